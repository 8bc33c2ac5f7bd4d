"""Benchmarks against a peer in the same run: ``python benchmarks [--json] [--only resume] [--model demo]``."""

from __future__ import annotations

import json
import os
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import attention
import intervention
import page
import resume
import sinks
import sweep
import torch
import training
import transformers
import typer
from models import SUBJECTS
from timing import Row
from transformers.utils import logging

BY_MODEL = {
    "attention": attention.measure,
    "resume": resume.measure,
    "sweep": sweep.measure,
    "intervention": intervention.measure,
    "sinks": sinks.measure,
}
SUITES = ("attention", "memory", "resume", "sweep", "intervention", "sinks", "training", "app")


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SUITES)}; all if left out.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SUBJECTS)}; all if left out.")] = None,
    rounds: Annotated[float, typer.Option(min=0, help="More or fewer rounds, as a factor.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print tables in Markdown, or JSON."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    suites, begin = only or SUITES, time.perf_counter()
    machine = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load before": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    rows: list[Row] = []
    for name in model or SUBJECTS:
        subject = SUBJECTS[name]()
        for suite in SUITES:
            if suite not in suites:
                continue
            typer.echo(f"{(time.perf_counter() - begin) / 60:5.1f} min  {suite}, {subject.name}", err=True)
            if suite in BY_MODEL:
                rows += BY_MODEL[suite](subject, rounds)
            elif suite == "memory" and name != "demo":
                rows += attention.measure_memory(name)
            elif suite == "training" and name == "demo":
                rows += training.measure(subject, rounds)
            elif suite == "app" and name == "demo":
                rows += page.measure(rounds)
    machine["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    if as_json:
        print(json.dumps({**machine, "rows": [row.as_json() for row in rows]}, indent=1))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        print(table(rows))


def table(rows: list[Row]) -> str:
    """Return ratios by model in Markdown, with the quartiles of the rounds and whether the aim is met; notes below."""
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [f"| work / peer | aim | {' | '.join(models)} |", "|---|---|" + "---|" * len(models)]
    for what, aim in dict.fromkeys((row.what, row.aim) for row in rows):
        cells = [next((_cell(row) for row in rows if (row.what, row.model) == (what, name)), "") for name in models]
        lines.append(f"| {what} | {aim} | {' | '.join(cells)} |")
    notes = [f"- {row.what}, {row.model}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes])


def _cell(row: Row) -> str:
    if row.value is None:
        return "not measured"
    spread = f" ({row.low:.2f} to {row.high:.2f})" if row.low is not None else ""
    met = {True: ", met", False: ", missed", None: ""}[row.met]
    return f"{row.value:{'.3g' if row.value >= 10 else '.2f'}} {row.unit}{spread}{met}"


def _processor() -> str:
    """Return the processor's name, where Linux gives it, and the number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    typer.run(main)
