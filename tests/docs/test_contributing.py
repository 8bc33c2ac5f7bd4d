"""CONTRIBUTING adds an architecture, a method and a benchmark, with the code that it prints."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import parquet_files
import pytest
from PIL import Image
from typer.testing import CliRunner

from sinkgate.benchmarks import BENCHMARKS
from sinkgate.cli import cli
from sinkgate.methods.registry import PUBLISHED, published

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(path: str) -> list[str]:
    """The blocks of Python that are titled with the path of a file."""
    snippets = re.findall(rf'^( *)```python title="{re.escape(path)}"\n(.*?)^\1```$', TEXT, re.MULTILINE | re.DOTALL)
    return [dedent(code) for _, code in snippets]


def new_module(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the page writes to a new file."""
    (code,) = blocks(path)
    assert not (ROOT / path).exists(), "an example that became real: choose another"
    module = ModuleType(path.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(compile(code, path, "exec"), vars(module))
    return module


def run(*command: str | Path) -> dict:
    done = CliRunner().invoke(cli, [*map(str, command), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "path", ["tests/zoo.py", "sinkgate/models/adapters/qwen2_5_vl.py", "sinkgate/models/adapters/__init__.py"]
)
def test_the_code_of_an_architecture_is_that_of_the_project(path):
    """So the tests of architectures run it."""
    code = (ROOT / path).read_text(encoding="utf-8")
    assert blocks(path)
    for block in blocks(path):
        lines = block.splitlines()
        assert block in code or (len(lines) == 1 and f"    {lines[0]}\n" in code)


def test_a_method(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "methods")
    cases = import_module("method_cases")
    module = new_module("sinkgate/methods/early_boost.py", monkeypatch)
    (line,) = blocks("sinkgate/methods/registry.py")
    for name, kind in eval(f"{{{line}}}", vars(module)).items():
        monkeypatch.setitem(PUBLISHED, name, kind)
    method = published("early-boost")
    vlm = cases.vlm_of("llava")
    prompts = cases.prompts_of("llava", vlm, 2)
    sinks = [cases.some_sinks(vlm, prompt, seed) for seed, prompt in enumerate(prompts)]
    plain, changed = cases.check_leaves_nothing(vlm, method, prompts, sinks)
    assert (changed - plain).abs().max() > 1e-3
    cases.check_batched_equals_single(vlm, method, prompts, sinks)
    cases.check_teacher_forcing_equals_steps(vlm, method, prompts, sinks)
    result = run("eval", "--data", "scenes", "--limit", "13", "--method", "early-boost")
    assert set(result["methods"]) == {"unmodified", "early-boost"}


def test_a_benchmark(tmp_path, monkeypatch):
    module = new_module("sinkgate/benchmarks/objects.py", monkeypatch)
    (line,) = blocks("sinkgate/benchmarks/__init__.py")
    registered = line.strip().replace(", OBJECTS", "")
    assert registered in (ROOT / "sinkgate/benchmarks/__init__.py").read_text(encoding="utf-8")
    monkeypatch.setitem(BENCHMARKS, module.OBJECTS.name, module.OBJECTS)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    picture = {"bytes": (tmp_path / "red.png").read_bytes(), "path": None}
    rows = [
        {
            "id": number,
            "image": picture,
            "question": "Is there a red circle?",
            "answer": ("yes", "no")[number % 2],
            "task": ("near", "far")[number % 2],
            "source": ("photograph", "drawing")[number // 2],
        }
        for number in range(4)
    ]
    file = parquet_files.write(tmp_path / "rows.parquet", rows)
    items = BENCHMARKS["objects"].items(file)
    assert [item.sample.answer for item in items] == ["yes", "no", "yes", "no"]
    result = run("eval", "--data", "objects", "--files", file)
    assert [row["score"] for row in result["scores"]] == ["micro", "task mean", "photographs"]
    assert (
        result["samples"] == 4 and result["methods"]["unmodified"]["accuracy"] == 0.5
    )  # the same picture and question
