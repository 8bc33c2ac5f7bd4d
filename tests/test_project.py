"""The files that tools and newcomers read agree with each other."""

import re
import tomllib
from pathlib import Path

import model_table
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines):
    return {Requirement(line).name.lower().replace("_", "-"): Requirement(line).specifier for line in lines}


@pytest.fixture(scope="module")
def ranges():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return requirements(PROJECT["dependencies"] + extras)


def test_environment_yml_agrees_with_pyproject(ranges):
    listed = re.findall(r"^ {6}- ([^-\s].*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert requirements(listed) == {name: pin for name, pin in ranges.items() if name != "lmms-eval"}
    python = re.search(r"- python(\S+)", (ROOT / "environment.yml").read_text())
    assert python and python[1] == PROJECT["requires-python"]


def test_pins_lie_in_the_ranges(ranges):
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = requirements(lines)
    needed = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["app"])
    assert pins.keys() == needed.keys()
    for name, pin in pins.items():
        (exact,) = pin
        assert exact.operator == "==" and exact.version in ranges[name]


def test_ci_runs_the_readmes_test_command():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = next(line for line in readme.splitlines() if line.endswith("-m pytest -n 2"))
    assert command.replace("pip install -r", "pip install -q -r") in ci.splitlines()


def test_the_models_of_the_page_are_those_of_the_tests():
    assert model_table.written(model_table.PAGE.read_text()) == model_table.table()


def test_no_machine_is_named():
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.yml"),
        *ROOT.rglob("sinkgate/**/*.py"),
    ]:
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|Users)/", path.read_text(encoding="utf-8")), path
