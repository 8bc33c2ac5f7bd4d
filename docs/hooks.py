"""MkDocs hooks: pages from other folders, links between all of them, formulas without JavaScript.

- Notebooks, documents in other folders, and the options of the command line become pages.
- Links work in the repository, and are rewritten to the page of their target, those to a module to its reference; other files
  (pictures, notebooks, tables) are copied into the site.
- Formulas become MathML.

A link to a missing target stays unchanged, and a strict build reports it.
"""

from __future__ import annotations

import html
import posixpath
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import nbformat
import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbformat import NotebookNode
from typer.cli import get_docs_for_click
from typer.main import get_command

from sinkgate.cli import cli

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OWN = "docs/pages/"
PAGES = {  # source outside of MkDocs' folder: page
    **{f"notebooks/{path.name}": f"tutorials/{path.stem}.md" for path in sorted(ROOT.glob("notebooks/*.ipynb"))},
    "sinkgate/demo/weights/README.md": "demo/model.md",
    "sinkgate/demo/gates/README.md": "demo/gates.md",
    "sinkgate/demo/studies/README.md": "demo/studies.md",
    "sinkgate/demo/weights-large/README.md": "demo/model-large.md",
    "sinkgate/demo/gates-large/README.md": "demo/gates-large.md",
    "sinkgate/demo/studies-large/README.md": "demo/studies-large.md",
    "sinkgate/demo/LOG.md": "demo/log.md",
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
FIGURE = "application/vnd.plotly.v1+json"
PICTURES = {"image/svg+xml": "svg", "image/png": "png"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s:#]+)(#[^()\s]*)?\)")
FORMULA = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from other folders, and the page of the command line."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text = "\n\n".join(tutorial(nbformat.reads(text, as_version=4), Path(source), files, config))
        files.append(File.generated(config, page, content=text))
    command = get_command(cli)
    options = get_docs_for_click(obj=command, ctx=typer.Context(command), name="sinkgate", title="Command line")
    options = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", options)  # shortened there, complete below
    files.append(File.generated(config, "reference/command-line.md", content=options))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite each link, relative to its source, to its target on the site."""
    here = SOURCES.get(page.file.src_uri, OWN + page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if path.startswith("sinkgate/") and path.endswith(".py"):
            return f"[{text}][{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}]"
        if path in PAGES or path.startswith(OWN):
            uri = PAGES.get(path) or path.removeprefix(OWN)
        elif (ROOT / path).is_file() and not path.endswith(".md"):  # a document that is no page is reported
            uri = f"files/{path}"
            if not files.get_file_from_path(uri):
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        else:
            return link[0]
        return f"{image}[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))}{anchor})"

    return LINK.sub(rewritten, markdown)


def on_page_content(content: str, **_: object) -> str:
    """Replace formulas by MathML, which browsers show without JavaScript."""

    def mathml(formula: re.Match[str]) -> str:
        written = convert(html.unescape(formula[2]), display="block" if formula[1] == "[" else "inline")
        return written.replace(
            "<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>'
        )  # bars of a norm: all as high

    return FORMULA.sub(mathml, content)


def tutorial(notebook: NotebookNode, source: Path, files: Files, config: MkDocsConfig) -> Iterator[str]:
    """Yield a notebook as blocks of Markdown, solutions collapsed; add its pictures to ``files``."""
    files.append(File.generated(config, f"files/{source}", abs_src_path=str(ROOT / source)))
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", ())
        if cell.cell_type == "markdown":
            yield re.sub(r"^\[!\[.*\n", "", cell.source, flags=re.MULTILINE)  # badges are pictures from other servers
        elif "install" not in tags:  # only for Colab
            blocks = [fenced(cell.source, "python"), *outputs(cell, f"{source.stem}/{number}", files, config)]
            yield "\n\n".join(
                ['??? question "Solution"', *(indent(b, "    ") for b in blocks)] if "solution" in tags else blocks
            )
        if number == 0:
            yield f"*This page is a notebook with its output: [{source.name}](../files/{source}).*"


def outputs(cell: NotebookNode, name: str, files: Files, config: MkDocsConfig) -> Iterator[str]:
    """Yield the output of a cell: text, tables, and pictures, which become files ``name``-0, ``name``-1, ..."""
    for number, output in enumerate(cell.outputs):
        data = output.get("data", {})
        kind = next((kind for kind in PICTURES if kind in data), None)
        if kind:
            picture = f"{name}-{number}.{PICTURES[kind]}"
            content = data[kind] if kind.startswith("image/svg") else b64decode(data[kind])
            files.append(File.generated(config, f"tutorials/{picture}", content=content))
            title = data.get(FIGURE, {}).get("layout", {}).get("title", {}).get("text", "A picture")
            yield f"![{title}]({picture})"
        elif "text/html" in data:
            yield re.sub(r"<style.*?</style>|(?<=<table)[^>]*|\n\s*", "", data["text/html"], flags=re.DOTALL)
        else:
            yield fenced(output.get("text") or data["text/plain"], "{ .text .output }")


def fenced(text: str, language: str) -> str:
    """Return text as a block of code."""
    return f"``````{language}\n{text.strip()}\n``````"
