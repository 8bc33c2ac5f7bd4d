"""Notebooks from their sources: build them, run them in clean kernels, and see whether what they show is still true.

``python notebooks/execute.py [01 03 ...]`` writes; ``--check`` writes nothing and fails where a notebook is not what its
source says, or where a run says something else than what is stored. Text is compared; pictures and Plotly figures are not.
Every figure is kept with a static picture, drawn by kaleido, for readers that run no JavaScript.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

SOURCES = Path(__file__).parent / "source"
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
COLAB, BINDER = "https://colab.research.google.com", "https://mybinder.org"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",  # on a busy machine threads that wait would take the cores from those that work
    "PLOTLY_RENDERER": "plotly_mimetype",
    "TQDM_DISABLE": "1",  # the time left is nobody's result
}
TIMEOUT = 600  # seconds a cell
FIGURE, PICTURE, WIDGET = "application/vnd.plotly.v1+json", "image/svg+xml", "application/vnd.jupyter.widget-view+json"
WIDTH, HEIGHT = 900, 450  # pixels, of a figure that does not say


class NotebookError(Exception):
    """A cell that cannot be run, named."""


def sources(chosen: Iterable[str] = ()) -> list[Path]:
    """The sources whose names begin as one of ``chosen``, or all of them; ``NotebookError`` where one means none."""
    there, wanted = sorted(SOURCES.glob("*.py")), list(chosen) or [""]
    for start in wanted:
        if not any(source.name.startswith(start) for source in there):
            raise NotebookError(f"no notebook begins with {start!r}; there are: {', '.join(s.stem for s in there)}")
    return [source for source in there if source.name.startswith(tuple(wanted))]


def notebook_of(source: Path) -> Path:
    """Where the notebook of a source lies: beside the folder of sources."""
    return source.parent.parent / f"{source.stem}.ipynb"


def read(source: Path) -> NotebookNode:
    """The notebook that a source describes, without outputs; the same bytes every time."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)  # blank lines of the source
    notebook.cells[0].source = re.sub(r"(?m)\A(# .*)$", rf"\1{badges(source.stem)}", notebook.cells[0].source)
    return notebook


def badges(name: str) -> str:
    """A line for under the title that opens a notebook on Colab and Binder; none unless the project says where on GitHub it is."""
    urls = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"].get("urls", {})
    github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", urls.get("Repository", ""))
    if not github:
        return ""
    colab = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{github[1]}/blob/main/notebooks/{name}.ipynb)"
    binder = f"[![Open on Binder]({BINDER}/badge_logo.svg)]({BINDER}/v2/gh/{github[1]}/main?labpath=notebooks%2F{name}.ipynb)"
    return f"\n\n{colab} {binder}"


def run(notebook: NotebookNode, name: str, folder: Path) -> NotebookNode:
    """Run all cells in a clean kernel that works in ``folder``, in place.

    Raises:
        NotebookError: a cell raised, took too long, or ended the kernel.
    """
    here = 0
    with tqdm(total=len(notebook.cells), desc=name, unit="cell") as bar:

        def begin(cell_index: int, **_: object) -> None:
            nonlocal here
            here = cell_index
            bar.update(cell_index - bar.n)

        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name=KERNEL["name"],
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
            store_widget_state=False,
            on_cell_start=begin,
        )
        try:
            client.execute(env={**os.environ, **ENVIRONMENT})
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise NotebookError(f"{_named(name, here, notebook.cells[here])} failed:\n{error}") from error
        bar.update(bar.total - bar.n)
    notebook.metadata.language_info = {"name": "python"}  # the kernel adds its version
    for output in _outputs(notebook):
        if WIDGET in output.get("data", ()):  # alive in a kernel alone
            output.data = NotebookNode({"text/plain": "(a widget: run the cell to play with it)"})
    return notebook


def build(source: Path) -> None:
    """Write a source's notebook, with the outputs of a run; nothing is written where a cell fails.

    Raises:
        NotebookError: as `run`.
    """
    path = notebook_of(source)
    notebook = run(read(source), source.stem, path.parent)
    draw(notebook)
    nbformat.write(notebook, path)


def check(source: Path) -> list[str]:
    """What of a stored notebook is not, or no longer, true; one sentence a cell, none where all is well.

    Raises:
        NotebookError: as `run`.
    """
    path = notebook_of(source)
    if not path.exists():
        return [f"{path.name} is not there: python notebooks/execute.py {source.stem}"]
    stored, fresh = nbformat.read(path, as_version=4), read(source)
    return unpaired(stored, fresh, source.stem) or changed(stored, run(fresh, source.stem, path.parent), source.stem)


def unpaired(stored: NotebookNode, fresh: NotebookNode, name: str) -> list[str]:
    """Cells of a notebook that are not those of its source: other text, another type, other tags."""
    if len(stored.cells) != len(fresh.cells):
        return [f"{name} has {len(stored.cells)} cells, and its source {len(fresh.cells)}: build it again"]
    return [
        f"{_named(name, number, new)} is not what its source says: build it again"
        for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True))
        if any(old[key] != new[key] for key in ("cell_type", "source", "metadata"))
    ]


def changed(stored: NotebookNode, fresh: NotebookNode, name: str) -> list[str]:
    """Cells of which a run says something else than what is stored."""
    return [
        f"{_named(name, number, new)} says\n{told(new)}\nwhere the notebook has\n{told(old)}"
        for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True))
        if told(old) != told(new)
    ]


def told(cell: NotebookNode) -> str:
    """What a cell says in words: its streams and plain texts; of a figure only that it is there."""
    words = []
    for output in cell.get("outputs", ()):
        text = output.text if output.output_type == "stream" else output.data.get("text/plain", "(a figure)")
        words.append(re.sub(r" at 0x[0-9a-fA-F]+", "", text))
    return "\n".join(words)


def draw(notebook: NotebookNode) -> None:
    """A static picture beside every Plotly figure, all by one browser."""
    figures = [output.data for output in _outputs(notebook) if FIGURE in output.get("data", ())]
    if not figures:
        return
    import kaleido

    kaleido.start_sync_server(mathjax=False)  # else from a CDN
    try:
        for data in figures:
            layout = data[FIGURE]["layout"]
            size = {"width": layout.get("width", WIDTH), "height": layout.get("height", HEIGHT)}
            data[PICTURE] = kaleido.calc_fig_sync(data[FIGURE], opts={"format": "svg", **size}).decode()
    finally:
        kaleido.stop_sync_server()


def _outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def _named(name: str, number: int, cell: NotebookNode) -> str:
    """A cell as one finds it: its number from 0 and its first line."""
    return f"{name}, cell {number} ({(cell.source.splitlines() or [''])[0]!r})"


def main(arguments: list[str] | None = None) -> int:
    """Build or check; 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        description="Build notebooks from their sources, or check that they are still true."
    )
    parser.add_argument("notebooks", nargs="*", help="how their names begin, such as 01; all where left out")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where stored outputs are not what a run says"
    )
    options = parser.parse_args(arguments)
    wrong: list[str] = []
    try:
        for source in sources(options.notebooks):
            if options.check:
                wrong += check(source)
            else:
                build(source)
    except NotebookError as error:
        wrong.append(str(error))
    for each in wrong:
        sys.stderr.write(f"{each}\n\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
