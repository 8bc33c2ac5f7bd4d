"""Measures the demo model on scenes that no training step saw and writes its card: ``python -m sinkgate.demo.evaluate``.

Every part is saved as soon as it is measured; a run that was stopped goes on with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Annotated, Any

import torch
import typer

from sinkgate.demo import anatomy, gating, probes
from sinkgate.demo.card import card
from sinkgate.demo.figures import accuracy_figure, gating_figure, growth_figure, probes_figure
from sinkgate.demo.scoring import Asked, held_out, overall
from sinkgate.models.loading import DEMO, load
from sinkgate.models.vlm import VLM, find_sinks

Report = dict[str, Any]


def measure_accuracy(vlm: VLM, scenes: int, seeds: list[int]) -> Report:
    """Accuracy by kind: the mean over seeds of held-out scenes, and how far the seeds lie apart; all are shares in [0, 1]."""
    runs = [gating.accuracy(vlm, gating.batches(vlm, held_out(seed, scenes), sinks=False)) for seed in seeds]
    kinds = {}
    for kind, first in runs[0].items():
        reached = [run[kind].accuracy for run in runs]
        kinds[kind] = {
            "scope": first.scope,
            "questions": sum(run[kind].questions for run in runs),
            "accuracy": fmean(reached),
            "spread": max(reached) - min(reached),
            "chance": fmean(run[kind].chance for run in runs),
        }
    totals = [overall(run) for run in runs]
    spread = stdev(totals) if len(totals) > 1 else 0.0
    return {"scenes": scenes, "seeds": seeds, "overall": fmean(totals), "deviation": spread, "kinds": kinds}


def measure_sinks(vlm: VLM, data: list[Asked]) -> Report:
    """What each criterion finds (see ``anatomy.Found``), and what share of patches lies on objects anyway."""
    grid = vlm.prompt(data[0][0].render(), data[0][1][0].question).grid
    return {
        "scenes": len(data),
        "covered": anatomy.covered_share(data, grid),
        "criteria": {
            name: {kind: asdict(found) for kind, found in kinds.items()}
            for name, kinds in anatomy.measure(vlm, data).items()
        },
    }


def measure_gating(vlm: VLM, data: list[Asked], confirm: list[Asked]) -> Report:
    """Accuracy by kind at every group, layer and scale; the best and the worst cell of each kind again on other scenes.

    ``plain`` and ``table`` hold shares in [0, 1]; in ``cells``, ``searched`` and ``confirmed`` are differences to the plain model.
    """
    searched = gating.batches(vlm, data)
    plain = {kind: score.accuracy for kind, score in gating.accuracy(vlm, searched).items()}
    table = dict(gating.sweep(vlm, searched, gating.settings(vlm.num_layers)))
    chosen = {
        (kind, way): pick(table, key=lambda setting: table[setting][kind])
        for kind in plain
        for way, pick in (("best", max), ("worst", min))
    }
    fresh = gating.batches(vlm, confirm)
    again = {kind: score.accuracy for kind, score in gating.accuracy(vlm, fresh).items()}
    reached = dict(gating.sweep(vlm, fresh, dict.fromkeys(chosen.values())))
    cells = [
        {"kind": kind, "way": way}
        | asdict(setting)
        | {"searched": table[setting][kind] - plain[kind], "confirmed": reached[setting][kind] - again[kind]}
        for (kind, way), setting in chosen.items()
    ]
    rows = [asdict(setting) | {"kinds": kinds} for setting, kinds in table.items()]
    return {"scenes": len(data), "confirmed_on": len(confirm), "plain": plain, "table": rows, "cells": cells}


def measure_cost(model: Path, vlm: VLM, data: list[Asked]) -> Report:
    """Seconds to load, milliseconds of a gated prefill and of a whole answer: medians, image encoding included.

    Raises:
        SinkgateError: the folder holds no model that can be loaded.
    """
    start = time.perf_counter()
    load(model, dtype=torch.float32)
    seconds = time.perf_counter() - start
    prefill, answer = [], []
    for scene, asked in data:
        prompt = vlm.prompt(scene.render(), asked[0].question)
        sinks = find_sinks(vlm, prompt)
        gates = gating.Setting("v_sink", 0, 0.5).gates(vlm)
        for run, times in ((vlm.predict, prefill), (vlm.answer, answer)):
            prompt.encoded = None
            start = time.perf_counter()
            run(prompt, gates, sinks)
            times.append(1000 * (time.perf_counter() - start))
    return {
        "parameters": vlm.model.num_parameters(),
        "megabytes": sum(file.stat().st_size for file in model.iterdir()) / 1e6,
        "load_seconds": seconds,
        "prefill_ms": median(prefill),
        "answer_ms": median(answer),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model; card and figures are written into it.")] = DEMO,
    scenes: Annotated[int, typer.Option(help="Held-out scenes a seed, for accuracy and to confirm gates.")] = 2000,
    gate_scenes: Annotated[int, typer.Option(help="Held-out scenes for the table of gates.")] = 500,
    probe_scenes: Annotated[int, typer.Option(help="Held-out scenes for probes; half trains, half tests.")] = 2000,
    sink_scenes: Annotated[int, typer.Option(help="Held-out scenes for sinks.")] = 300,
    history: Annotated[Path | None, typer.Option(help="history.jsonl of the training run, for the card.")] = None,
) -> None:
    """Measure a demo model; write ``evaluation.json``, figures and its card beside the weights."""
    path = model / "evaluation.json"
    report: Report = json.loads(path.read_text()) if path.exists() else {}
    if report.get("weights") != fingerprint(model):
        report = {"weights": fingerprint(model)}  # what was measured on other weights is no one's number
    if history:
        report["history"] = [json.loads(line) for line in history.read_text().splitlines()]
    vlm = load(model, dtype=torch.float32)
    seeds = [1, 2, 3]
    parts: dict[str, Callable[[], Report]] = {
        "accuracy": lambda: measure_accuracy(vlm, scenes, seeds),
        "sinks": lambda: measure_sinks(vlm, held_out(4, sink_scenes)),
        "probes": lambda: {"scenes": probe_scenes, "targets": probes.measure(vlm, held_out(5, probe_scenes))},
        "gating": lambda: measure_gating(vlm, held_out(6, gate_scenes), held_out(7, scenes)),
        "cost": lambda: measure_cost(model, vlm, held_out(8, 20)),
    }
    for name, measure in parts.items():
        if name not in report:
            report[name] = measure()
            path.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, model)
    (model / "README.md").write_text(card(report))
    typer.echo(f"{report['accuracy']['overall']:.1%} of all answers are right; card written to {model / 'README.md'}")


def fingerprint(model: Path) -> str:
    """The SHA-256 of a model's weights.

    Raises:
        FileNotFoundError: the folder has none.
    """
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def draw(report: Report, folder: Path) -> None:
    """Write the card's figures.

    Raises:
        RuntimeError: there is no Chromium or Chrome, which kaleido drives.
    """
    figures = {
        "growth": growth_figure(report["history"]),
        "accuracy": accuracy_figure(report["history"]),
        "probes": probes_figure(report["probes"]["targets"]),
        "gating": gating_figure(report["gating"]),
    }
    for name, figure in figures.items():
        figure.write_image(folder / f"{name}.svg")


if __name__ == "__main__":
    typer.run(main)
