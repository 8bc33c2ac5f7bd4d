"""The one command for a GPU, on a CPU: every part runs, is right, is written, and is not run again."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from forked import Forked

ROOT = Path(__file__).parent.parent
SCRIPT = "benchmarks/gpu.py"
COSTS = ("prefill", "decode", "find_sinks", "slider", "sweep", "training", "memory")
PARTS = {"equality", "compile", "kernels", *(f"{part}, {shape}" for part in COSTS for shape in ("llava", "qwen"))}


def options(out, *more):
    return ["--device", "cpu", "--size", "tiny", "--out", str(out), *more]


def forked(out, *more):
    """The script in a process that need not import torch; flex attention, which takes a minute to compile, is not there."""
    return Forked(script, SCRIPT, *options(out, *more)).wait()


def script():
    folder = ROOT / "benchmarks"
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)  # tests have files of the same names
    sys.path.insert(0, str(folder))
    import attention

    use = attention.use

    def use_quickly(subject, implementation):
        if implementation == "flex_attention":
            raise ImportError("left out here")
        use(subject, implementation)

    attention.use = use_quickly
    runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")


def right(results):
    """Return whether only aims of times are missed, and every row has a value or a reason."""
    missed = [
        row for part in ("equality", "compile", "kernels") for row in results["parts"][part] if row["met"] is False
    ]
    return not missed and all(
        row["value"] is not None or row["note"] for rows in results["parts"].values() for row in rows
    )


def test_every_part_runs_once_and_is_right(tmp_path):
    out = tmp_path / "gpu.json"
    first = forked(out, "--minutes", "0")
    assert first.returncode == 0 and "left: equality" in first.stderr, first.stderr
    done = forked(out, "--minutes", "60")
    assert done.returncode == 0 and "left" not in done.stderr, done.stderr
    results = json.loads(out.read_text())
    assert set(results["parts"]) == PARTS and right(results)
    for part in ("equality", "compile"):
        assert any(row["met"] for row in results["parts"][part])
    assert "not available here: left out here" in str(results["parts"]["kernels"])
    before = out.read_bytes()
    again = forked(out)
    assert (again.returncode, again.stdout) == (0, "") and out.read_bytes() == before, again.stderr
    results["machine"]["device"] = "another device"
    out.write_text(json.dumps(results))
    refused = forked(out)
    assert refused.returncode == 2 and "name another file" in " ".join(refused.stderr.replace("│", "").split()), (
        refused.stderr
    )


def test_started_as_users_do_it_compares_flex_attention_too(tmp_path):
    out = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, *options(out, "--minutes", "60")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert set(results["parts"]) == PARTS and right(results)
    kernels = results["parts"]["kernels"]
    broken = "without gates" in str(kernels)  # torch's flex kernel on CPUs without AVX-512
    assert broken or any(row["met"] for row in kernels)
