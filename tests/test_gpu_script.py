"""The one command for a GPU, on a CPU: every part runs, is right, is written, and is not run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def command(out, *more):
    options = ["--device", "cpu", "--size", "tiny", "--out", str(out), *more]
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_every_part_runs_once_and_is_right(tmp_path):
    out = tmp_path / "gpu.json"
    first = command(out, "--minutes", "0")
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
        assert any(row["met"] for row in results["parts"][part])
    assert all(row["value"] is not None or row["note"] for rows in results["parts"].values() for row in rows)
    before = out.read_bytes()
    again = command(out)
    assert (again.returncode, again.stdout) == (0, "") and out.read_bytes() == before, again.stderr
    results["machine"]["device"] = "another device"
    out.write_text(json.dumps(results))
    refused = command(out)
    assert refused.returncode == 2 and "name another file" in " ".join(refused.stderr.replace("│", "").split()), (
        refused.stderr
    )
