"""Hooks of MkDocs: links lead where their targets are, notebooks become pages, formulas MathML."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import Files
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

HOOKS = Path(__file__).parents[2] / "docs" / "hooks.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", HOOKS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _load()


@pytest.fixture(scope="module")
def config():
    loaded = load_config(str(HOOKS.parent / "mkdocs.yml"))
    loaded.plugins._current_plugin = "hooks"  # as MkDocs does while it calls them
    return loaded


@pytest.mark.parametrize(
    ("page", "written", "led"),
    [
        ("guides/studies.md", "[x](../models.md#models)", "[x](../models.md#models)"),
        ("guides/studies.md", "[x](../../../notebooks/04_train_lsg.ipynb)", "[x](../tutorials/04_train_lsg.md)"),
        ("guides/studies.md", "![x](../../../sinkgate/demo/gates/rho.svg)", "![x](../files/sinkgate/demo/gates/rho.svg)"),
        ("tutorials/04_train_lsg.md", "[x](05_your_own_model.ipynb)", "[x](05_your_own_model.md)"),
        ("tutorials/04_train_lsg.md", "[`a[0]`](../sinkgate/methods/lsg/gate.py)", "[`a[0]`][sinkgate.methods.lsg.gate]"),
        ("tutorials/04_train_lsg.md", "[x](../README.md#limits)", "[x](../project/readme.md#limits)"),
        ("project/readme.md", "[x](docs/pages/models.md)", "[x](../models.md)"),
        ("project/readme.md", "[x](sinkgate/methods/lsg/__init__.py)", "[x][sinkgate.methods.lsg]"),
        ("demo/studies.md", "[x](../LOG.md)", "[x](log.md)"),
        ("index.md", "[x](https://arxiv.org/abs/2604.03316), `names[0](x)`", "[x](https://arxiv.org/abs/2604.03316), `names[0](x)`"),
        ("index.md", "[x](nowhere.txt)", "[x](nowhere.txt)"),
    ],
)  # fmt: skip
def test_a_link_leads_to_where_its_target_is(config, page, written, led):
    here = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(written, here, config, Files([])) == led


def test_a_file_that_is_linked_is_copied_once(config):
    here, files = SimpleNamespace(file=SimpleNamespace(src_uri="index.md")), Files([])
    hooks.on_page_markdown("![a](../../app/screenshot.png) ![b](../../app/screenshot.png)", here, config, files)
    assert [file.src_uri for file in files] == ["files/app/screenshot.png"]


def test_formulas_become_mathml_and_code_stays():
    page = hooks.on_page_content(
        r'<p><span class="arithmatex">\(a &lt; b\)</span> <code>\(x\)</code></p><div class="arithmatex">\['
        "\na\n"
        r"\]</div>"
    )
    assert (
        page.count("<math") == 2 and 'display="block"' in page and "&#x0003C;" in page and r"<code>\(x\)</code>" in page
    )


def test_a_notebook_becomes_a_page(config):
    svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    figure = {hooks.FIGURE: {"layout": {"title": {"text": "Two bars"}}}, "image/svg+xml": svg}
    table = "<div>\n<style scoped>p {}</style>\n<table border='1'>\n  <tr><td>1</td></tr>\n</table>\n</div>"
    cells = [
        new_markdown_cell("# A toy\n\n[![Open](https://x.org/x.svg)](https://x.org)\n"),
        new_code_cell("import google.colab", metadata={"tags": ["install"]}),
        new_code_cell("show()", outputs=[new_output("display_data", figure), new_output("stream", text="```\n")]),
        new_code_cell("1", metadata={"tags": ["solution"]}, outputs=[new_output("display_data", {"text/html": table})]),
    ]
    files = Files([])
    source = Path("notebooks/01_meet_the_sinks.ipynb")
    title, note, shown, solution = hooks.tutorial(new_notebook(cells=cells), source, files, config)
    assert title.strip() == "# A toy" and "01_meet_the_sinks.ipynb" in note
    assert "![Two bars](01_meet_the_sinks/2-0.svg)" in shown and "``````{ .text .output }\n```\n``````" in shown
    assert files.get_file_from_path("tutorials/01_meet_the_sinks/2-0.svg").content_string == svg
    assert solution.splitlines()[0] == '??? question "Solution"'
    assert "    <div><table><tr><td>1</td></tr></table></div>" in solution
