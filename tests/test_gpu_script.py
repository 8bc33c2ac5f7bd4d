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


def options(out, *more):
    return ["--device", "cpu", "--size", "tiny", "--out", str(out), *more]


def command(out, *more):
    """The script in a process of its own, as its users start it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, SCRIPT, *options(out, *more)]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


def forked(out, *more):
    """The script in a process that need not import torch."""
    return Forked(script, SCRIPT, *options(out, *more)).wait()


def script():
    folder = ROOT / "benchmarks"
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)  # tests have files of the same names
    sys.path.insert(0, str(folder))
    runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")


def test_every_part_runs_once_and_is_right(tmp_path):
    out = tmp_path / "gpu.json"
    first = forked(out, "--minutes", "0")
    assert first.returncode == 0 and "left: equality" in first.stderr, first.stderr
    done = command(out, "--minutes", "60")
    assert done.returncode == 0 and "left" not in done.stderr, done.stderr
    results = json.loads(out.read_text())
    costs = {
        f"{part}, {shape}"
        for part in ("prefill", "decode", "find_sinks", "slider", "sweep", "training", "memory")
        for shape in ("llava", "qwen")
    }
    assert set(results["parts"]) == {"equality", "compile", "kernels", *costs}
    for part in ("equality", "compile", "kernels"):  # the others are times
        assert [row for row in results["parts"][part] if row["met"] is False] == []
        broken = part == "kernels" and "without gates" in str(
            results["parts"][part]
        )  # torch's flex kernel on CPUs without AVX-512
        assert broken or any(row["met"] for row in results["parts"][part])
    assert all(row["value"] is not None or row["note"] for rows in results["parts"].values() for row in rows)
    before = out.read_bytes()
    again = forked(out)
    assert (again.returncode, again.stdout) == (0, "") and out.read_bytes() == before, again.stderr
    results["machine"]["device"] = "another device"
    out.write_text(json.dumps(results))
    refused = forked(out)
    assert refused.returncode == 2 and "name another file" in " ".join(refused.stderr.replace("│", "").split()), (
        refused.stderr
    )
