"""Project files agree with each other, and the core needs no extra."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from random import Random

import model_table
import pytest
import yaml
from packaging.requirements import Requirement

import sinkgate as sg
from sinkgate.scenes import Scene

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines):
    return {Requirement(line).name.lower().replace("_", "-"): Requirement(line).specifier for line in lines}


@pytest.fixture(scope="module")
def ranges():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return requirements(line for line in PROJECT["dependencies"] + extras if not line.startswith("sinkgate["))


def test_environment_yml_agrees_with_pyproject(ranges):
    listed = re.findall(r"^ {6}- ([^-\s].*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert requirements(listed) == {name: pin for name, pin in ranges.items() if name != "lmms-eval"}
    python = re.search(r"- python(\S+)", (ROOT / "environment.yml").read_text())
    assert python and python[1] == PROJECT["requires-python"]


def test_pins_lie_in_the_ranges(ranges):
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = requirements(lines)
    extras = PROJECT["optional-dependencies"]
    needed = requirements(PROJECT["dependencies"] + extras["app"] + extras["studies"])
    assert pins.keys() == needed.keys()
    for name, pin in pins.items():
        (exact,) = pin
        assert exact.operator == "==" and exact.version in ranges[name]


def test_the_classifiers_are_the_pythons_of_ci():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    assert [line for line in PROJECT["classifiers"] if line.startswith(prefix)] == [
        prefix + python.removeprefix("3.") for python in matrix["python"]
    ]


def test_ci_runs_the_readmes_test_command():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = next(line for line in readme.splitlines() if line.endswith("-m pytest -n 2"))
    assert command.replace("pip install -r", "pip install -q -r") in ci.splitlines()


def test_the_models_of_the_page_are_those_of_the_tests():
    assert model_table.written(model_table.PAGE.read_text()) == model_table.table()


def test_the_table_of_videos_agrees_with_that_of_the_models():
    cells = {row.split(" | ")[0]: row for row in model_table.written(model_table.PAGE.read_text()).splitlines()}
    page = (model_table.PAGE.parent / "guides" / "video.md").read_text()
    rows = re.findall(r"^\| (`\w+`) \| video \| (\d) \|", page, re.M)
    assert len(rows) == 7
    for name, frames in rows:
        assert f"| {frames} frame{'s' * (frames != '1')} a token" in cells[f"| {name}"], name


def test_the_project_reads_plainly():
    """``docs/wording.py`` finds nothing."""
    done = subprocess.run([sys.executable, "docs/wording.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (1, '"""What it does."""'),
        (2, 'def scale():\n    """Whether it scales."""'),
        (1, "seen = 1"),
        (1, "def scale(asked): ..."),
        (2, "class Gate:\n    def told(self): ..."),
        (2, "gate = object()\ngate.kept = 1"),
        (1, "# scales in" + " vain"),
    ],
)
def test_dialect_is_found(line, text):
    spec = spec_from_file_location("wording", ROOT / "docs" / "wording.py")
    wording = module_from_spec(spec)
    spec.loader.exec_module(wording)
    assert [number for number, _ in wording.problems_in_python(text)] == [line]
    assert not list(wording.problems_in_python('"""Gates."""\n\nscale, tokens_seen = 1, 2'))


def test_no_machine_is_named():
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.yml"),
        *ROOT.rglob("sinkgate/**/*.py"),
    ]:
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|Users)/", path.read_text(encoding="utf-8")), path


WITHOUT_EXTRAS = """
import sys

ABSENT = {"pandas", "pyarrow", "sklearn", "plotly", "gradio", "datasets", "peft"}

class Absent:
    # Hide extras from sinkgate; transformers uses some of them where they are installed.

    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if name.partition(".")[0] in ABSENT and frame.f_globals["__name__"].startswith("sinkgate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_without_extras(code):
    return subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS + code], cwd=ROOT, capture_output=True, text=True)


def test_the_command_gates_in_a_process_of_its_own_without_extras(demo, tmp_path):
    """As ``python -m sinkgate``; other tests of the command run it within the test."""
    picture, question = tmp_path / "scene.png", "How many objects are there?"
    Scene.random(Random(71)).render().save(picture)
    gates = sg.Gates.ones(demo).set("rest", 0.25, layers=[2])
    gates.save(tmp_path / "gates.json")
    code = f"""
import runpy
sys.argv = ["sinkgate", "ask", {str(picture)!r}, {question!r}, "--gates", {str(tmp_path / "gates.json")!r}, "--json"]
runpy.run_module("sinkgate", run_name="__main__")
"""
    done = run_without_extras(code)
    assert done.returncode == 0, done.stderr
    printed, expected = json.loads(done.stdout), demo.answer(demo.prompt(picture, question), gates)
    assert printed["text"] == expected.text
    assert printed["next_token"][0]["probability"] == pytest.approx(expected.next_token[0][1], abs=1e-4)


def test_a_command_names_the_extra_that_it_needs(tmp_path):
    code = f"""
sys.argv = ["sinkgate", "report", {str(tmp_path)!r}]
from sinkgate.cli import main
main()
"""
    done = run_without_extras(code)
    assert done.returncode == 2 and done.stderr.strip() == (
        'sinkgate: pandas is not installed: pip install "sinkgate[studies]"'
    ), done.stderr


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)  # torch itself takes seconds
sys.meta_path.insert(0, Watch())
sys.argv = ["sinkgate", "info"]
{run}
"""


@pytest.mark.parametrize(
    "run",
    [
        "import sinkgate.cli; sinkgate.cli.main()",
        "import runpy; runpy.run_module('sinkgate')",
        "import app.main, torch",
    ],
)
@pytest.mark.parametrize("variables", [None, "ACTIVE"])
def test_threads_that_wait_sleep_from_before_torch_is_imported(run, variables):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if variables is None else {"OMP_WAIT_POLICY": variables}
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(run=run)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == (variables or "PASSIVE"), done.stderr


HEAVY = ("torch", "transformers", "numpy", "pandas", "plotly", "sklearn", "scipy", "gradio", "datasets")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sinkgate", HEAVY),
        ("import sys; from sinkgate import cli; sys.argv = ['sinkgate', '--help']; cli.main()", HEAVY),
        ("import sys; from sinkgate import cli; sys.argv = ['sinkgate', 'sweep', '--help']; cli.main()", HEAVY),
        (
            "import sinkgate as sg; sg.load; sg.Gates",  # transformers takes some of the others where they are installed
            ("plotly", "gradio", "datasets", "sinkgate.plots", "sinkgate.widgets", "sinkgate.training.trainer"),
        ),
    ],
)
def test_import_and_help_leave_out_what_they_do_not_need(code, absent):
    report = f"print('IMPORTED', *sorted(set({absent!r}) & set(sys.modules)))"
    wrapped = f"import atexit, sys; atexit.register(lambda: {report}); {code}"
    done = subprocess.run([sys.executable, "-c", wrapped], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "IMPORTED"


def test_public_names_are_imported_when_they_are_used():
    assert sorted(sg._HOME) == sorted(sg.__all__)
    assert set(sg.__all__) <= set(dir(sg))
    for name in sg.__all__:
        assert getattr(sg, name) is not None
    assert sg.data.Sample is sg.Sample and sg.sinks.criteria.SinkCriteria is sg.SinkCriteria
    with pytest.raises(AttributeError, match="'sinkgate' has no attribute 'gate'"):
        sg.gate  # noqa: B018


def test_type_checkers_see_the_modules_of_the_public_names():
    """Names under ``TYPE_CHECKING`` are those that ``__getattr__`` imports."""
    tree = ast.parse((ROOT / "sinkgate" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    listed = {alias.name: node.module for node in block.body for alias in node.names}
    assert listed == {name: f"sinkgate.{module}" for name, module in sg._HOME.items()}
