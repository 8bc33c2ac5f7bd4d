"""Notebooks from their sources: build them, run them in clean kernels, and check the stored outputs.

``python notebooks/execute.py [01 03 ...]`` writes; ``--check`` writes nothing and fails if a notebook differs from its source, or if a
run prints other text than the stored one; pictures and Plotly figures are not compared. Every figure is stored with a static
picture, drawn by kaleido, for readers without JavaScript.
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
    "OMP_NUM_THREADS": "1",  # a second thread waits more than it works on models as small as these
    "OMP_WAIT_POLICY": "PASSIVE",  # on a busy machine, waiting threads would take the cores of working ones
    "PLOTLY_RENDERER": "plotly_mimetype",
    "TQDM_DISABLE": "1",  # bars are no output
}
TIMEOUT = 600  # seconds for each cell
FIGURE, PICTURE, WIDGET = "application/vnd.plotly.v1+json", "image/svg+xml", "application/vnd.jupyter.widget-view+json"
WIDTH, HEIGHT = 900, 450  # pixels, of a figure without a size


class NotebookError(Exception):
    """A cell that cannot be run."""


def sources(beginnings: Iterable[str] = ()) -> list[Path]:
    """Return the sources whose names begin as one of ``beginnings``, or all; raise NotebookError if one matches none."""
    existing, wanted = sorted(SOURCES.glob("*.py")), list(beginnings) or [""]
    for start in wanted:
        if not any(source.name.startswith(start) for source in existing):
            raise NotebookError(f"no notebook begins with {start!r}; there are: {', '.join(s.stem for s in existing)}")
    return [source for source in existing if source.name.startswith(tuple(wanted))]


def notebook_of(source: Path) -> Path:
    """Return the path of a source's notebook, beside the folder of sources."""
    return source.parent.parent / f"{source.stem}.ipynb"


def read(source: Path) -> NotebookNode:
    """Return the notebook of a source, without outputs; the same bytes every time."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)  # blank lines of the source
    notebook.cells[0].source = re.sub(r"(?m)\A(# .*)$", rf"\1{badges(source.stem)}", notebook.cells[0].source)
    return notebook


def badges(name: str) -> str:
    """Return the badges that open a notebook on Colab and Binder, "" if the project has no address on GitHub."""
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
        if WIDGET in output.get("data", ()):  # works only in a kernel
            output.data = NotebookNode({"text/plain": "(a widget: run the cell to play with it)"})
    return notebook


def build(source: Path) -> None:
    """Write a source's notebook with the outputs of a run; write nothing if a cell fails.

    Raises:
        NotebookError: as `run`.
    """
    path = notebook_of(source)
    notebook = run(read(source), source.stem, path.parent)
    draw(notebook)
    nbformat.write(notebook, path)


def check(source: Path) -> list[str]:
    """Return one sentence for each cell of a stored notebook that differs from its source, or from a new run.

    Raises:
        NotebookError: as `run`.
    """
    path = notebook_of(source)
    if not path.exists():
        return [f"{path.name} does not exist: python notebooks/execute.py {source.stem}"]
    stored, fresh = nbformat.read(path, as_version=4), read(source)
    return unpaired(stored, fresh, source.stem) or changed(stored, run(fresh, source.stem, path.parent), source.stem)


def unpaired(stored: NotebookNode, fresh: NotebookNode, name: str) -> list[str]:
    """Return sentences on the cells that differ from the source in text, type or tags."""
    if len(stored.cells) != len(fresh.cells):
        return [f"{name} has {len(stored.cells)} cells, and its source {len(fresh.cells)}: build it again"]
    return [
        f"{_named(name, number, new)} differs from its source: build it again"
        for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True))
        if any(old[key] != new[key] for key in ("cell_type", "source", "metadata"))
    ]


def changed(stored: NotebookNode, fresh: NotebookNode, name: str) -> list[str]:
    """Return sentences on the cells whose new output differs from the stored one."""
    return [
        f"{_named(name, number, new)} prints\n{output_text(new)}\nbut the notebook has\n{output_text(old)}"
        for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True))
        if output_text(old) != output_text(new)
    ]


def output_text(cell: NotebookNode) -> str:
    """Return the text output of a cell: streams and plain texts, and a placeholder for each figure."""
    words = []
    for output in cell.get("outputs", ()):
        text = output.text if output.output_type == "stream" else output.data.get("text/plain", "(a figure)")
        words.append(re.sub(r" at 0x[0-9a-fA-F]+", "", text))
    return "\n".join(words)


def draw(notebook: NotebookNode) -> None:
    """Add a static picture to every Plotly figure, all drawn by one browser."""
    figures = [output.data for output in _outputs(notebook) if FIGURE in output.get("data", ())]
    if not figures:
        return
    import kaleido

    kaleido.start_sync_server(mathjax=False)  # by default from a CDN
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
    """Return a name of a cell: its number from 0 and its first line."""
    return f"{name}, cell {number} ({(cell.source.splitlines() or [''])[0]!r})"


def main(arguments: list[str] | None = None) -> int:
    """Build or check; return 1 after an error."""
    parser = argparse.ArgumentParser(description="Build notebooks from their sources, or check them.")
    parser.add_argument("notebooks", nargs="*", help="beginnings of their names, such as 01; all if left out")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the output of a run differs from the stored one"
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
