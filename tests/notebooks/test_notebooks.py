"""Notebooks match their sources and the stored output, and the check finds differences."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted((FOLDER / "source").glob("*.py"))


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = _load()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_source_has_its_notebook_and_every_cell_its_outputs(source):
    notebook = nbformat.read(execute.notebook_of(source), as_version=4)
    nbformat.validate(notebook)
    assert execute.unpaired(notebook, execute.read(source), source.stem) == []
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    figures = [output.data for output in execute._outputs(notebook) if execute.FIGURE in output.get("data", ())]
    assert all(execute.PICTURE in data for data in figures)  # what GitHub shows


def test_no_notebook_is_without_a_source():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == [source.stem for source in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_begins_with_its_title_its_parameters_and_a_guarded_install(source):
    title, parameters, install = execute.read(source).cells[:3]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert parameters.metadata["tags"] == ["parameters"]
    assert install.metadata["tags"] == ["install"] and "google.colab" in install.source


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_run_in_a_clean_kernel_says_what_is_stored(source):
    assert execute.check(source) == []


TOY = """\
# %% [markdown]
# # A toy

# %% tags=["sum"]
print("the sum is", 1 + 1)

# %%
object()
"""


@pytest.fixture
def toy(tmp_path) -> Path:
    source = tmp_path / "source" / "toy.py"
    source.parent.mkdir()
    source.write_text(TOY)
    return source


@pytest.fixture
def built(toy) -> Path:
    execute.build(toy)
    return toy


def test_what_was_built_is_true(built):
    notebook = nbformat.read(execute.notebook_of(built), as_version=4)
    assert notebook.cells[1].metadata == {"tags": ["sum"]}
    assert notebook.cells[1].outputs[0].text == "the sum is 2\n"
    assert execute.check(built) == []  # also where an object's address is another


@pytest.mark.parametrize(
    ("urls", "there"),
    [
        ("", False),
        ('Repository = "https://git.example.org/a/sinkgate"', False),
        ('Repository = "https://github.com/a-b/sink.gate"', True),
        ('Repository = "https://github.com/a-b/sink.gate.git"', True),
    ],
)
def test_badges_stand_under_the_title_where_the_address_is_known(toy, tmp_path, monkeypatch, urls, there):
    project = tmp_path / "pyproject.toml"
    project.write_text(f'[project]\nname = "x"\n[project.urls]\n{urls}\n')
    monkeypatch.setattr(execute, "PROJECT", project)
    title, _, line = execute.read(toy).cells[0].source.partition("\n\n")
    assert title == "# A toy" and bool(line) == there
    if there:
        assert "/github/a-b/sink.gate/blob/main/notebooks/toy.ipynb)" in line
        assert "/gh/a-b/sink.gate/main?labpath=notebooks%2Ftoy.ipynb)" in line


def test_a_changed_output_is_noticed(built):
    path = execute.notebook_of(built)
    path.write_text(path.read_text().replace("the sum is 2", "the sum is 3"))
    (difference,) = execute.check(built)
    assert "cell 1" in difference and "the sum is 2" in difference and "the sum is 3" in difference


@pytest.mark.parametrize(
    ("old", "new", "cell"),
    [
        ("1 + 1", "1+1", "cell 1"),
        ("A toy", "Toys", "cell 0"),
        ('["sum"]', "[]", "cell 1"),
        ("# %%\nobject()", "", "cells"),
    ],
)
def test_a_source_that_went_on_without_its_notebook_is_noticed(toy, old, new, cell):
    stored = execute.read(toy)
    toy.write_text(TOY.replace(old, new))
    (difference,) = execute.unpaired(stored, execute.read(toy), "toy")
    assert cell in difference and "build it again" in difference


def test_a_missing_output_and_a_missing_figure_are_noticed(toy):
    stored, fresh = execute.read(toy), execute.read(toy)
    fresh.cells[2].outputs = [nbformat.v4.new_output("display_data", {execute.FIGURE: {}})]
    (difference,) = execute.changed(stored, fresh, "toy")
    assert "cell 2" in difference and "(a figure)" in difference


def test_a_cell_that_raises_is_named_and_nothing_is_written(toy, capsys, monkeypatch):
    toy.write_text(TOY + "\n# %%\n1 / 0\n")
    monkeypatch.setattr(execute, "SOURCES", toy.parent)
    assert execute.main(["toy"]) == 1
    error = capsys.readouterr().err
    assert "toy, cell 3 ('1 / 0')" in error and "ZeroDivisionError" in error
    assert not execute.notebook_of(toy).exists()


def test_a_missing_notebook_and_an_unknown_name_are_said(toy, capsys, monkeypatch):
    monkeypatch.setattr(execute, "SOURCES", toy.parent)
    assert execute.main(["toy", "--check"]) == 1
    assert "toy.ipynb does not exist" in capsys.readouterr().err
    assert execute.main(["07"]) == 1
    assert "no notebook begins with '07'; there are: toy" in capsys.readouterr().err


def test_a_figure_gets_a_picture_that_readers_without_javascript_see(toy):
    pytest.importorskip("kaleido")
    notebook = execute.read(toy)
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {"height": 200}}
    notebook.cells[1].outputs = [nbformat.v4.new_output("display_data", {execute.FIGURE: figure})]
    try:
        execute.draw(notebook)
    except RuntimeError as error:
        pytest.skip(f"no browser here: {error}")
    picture = notebook.cells[1].outputs[0].data[execute.PICTURE]
    assert picture.startswith("<svg") and 'height="200"' in picture
