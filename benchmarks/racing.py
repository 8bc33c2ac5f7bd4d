"""Answers that a racing sweep saves: over the stored answers of exact sweeps, and over made-up worlds with a real effect.

``python benchmarks/racing.py [FOLDER ...] [--json]``. No model is run: a race decides by answers alone, and those of an exact sweep
are what it would have computed. A folder is that of a finished sweep; the demo model's own by default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer

import sinkgate.demo as demo
from sinkgate.analysis.racing import LEVEL, Race, fewest_samples
from sinkgate.studies.results import Results
from sinkgate.studies.sweep import right_of

ORDERS = 3  # random orders of the items
MARGINS = (0.02, 0.05)
CHUNK = 32  # items between two decisions
#: Settings, items, gain of the best, share of answers that a setting changes: MMStar and CV-Bench on 32 layers, as counted in full_sweep.py.
WORLDS = {
    "352 settings, the best gains 5 points, 2 % of answers change": (352, 4138, 0.05, 0.02),
    "352 settings, the best gains 5 points, 10 % of answers change": (352, 4138, 0.05, 0.10),
    "352 settings, the best gains 10 points, 10 % of answers change": (352, 4138, 0.10, 0.10),
    "352 settings, none gains, 10 % of answers change": (352, 4138, 0.0, 0.10),
}


@dataclass(frozen=True)
class Saving:
    """Outcome of races: answers of the exact map over those of a race, and how often the best of the exact map was in it to the end."""

    world: str
    settings: int
    samples: int
    margin: float
    best: float  # change of the best setting on all items
    fewer: float  # times, mean over orders
    fewest: float
    survived: float  # share of the races in which the best finished
    finished: float  # settings at the end, mean
    bound: float  # times, if every setting but one were idle and left at the fewest samples that any test needs


def races(world: str, rights: Iterator[np.ndarray], margin: float) -> Saving:
    """Race over answers (S, M + 1), the unmodified model last."""
    fewer: list[float] = []
    survived: list[bool] = []
    finished: list[int] = []
    gains: list[float] = []
    samples = settings = 0
    for right in rights:
        samples, settings = len(right), right.shape[1] - 1
        race, answers = Race(settings, LEVEL, margin), 0
        for start in range(0, samples, CHUNK):
            part = right[start : start + CHUNK, race.running]
            answers += part.size - len(part)
            race.update(part)
        change = right.mean(0)[:-1] - right.mean(0)[-1]
        best = np.flatnonzero(change == change.max())
        fewer.append(samples * settings / answers)
        survived.append(bool(set(best.tolist()) & set(race.settings)))
        finished.append(len(race.settings))
        gains.append(float(change.max()))
    ends = min(samples, fewest_samples(settings, LEVEL, margin))
    bound = samples * settings / (samples + (settings - 1) * ends)
    return Saving(
        world, settings, samples, margin, mean(gains), mean(fewer), min(fewer), mean(survived), mean(finished), bound
    )


def stored(folder: Path) -> Iterator[np.ndarray]:
    """Answers of a finished sweep, in several random orders."""
    right, base = right_of(Results.load(folder).table("answers"))
    table = np.column_stack([right.to_numpy(), base.to_numpy()]).astype(bool)
    for seed in range(ORDERS):
        yield table[np.random.default_rng(seed).permutation(len(table))]


def made_up(settings: int, samples: int, gain: float, changed: float) -> Iterator[np.ndarray]:
    """Worlds in which one setting gains and the others change as many answers to the better as to the worse; half of the base is right."""
    for seed in range(ORDERS):
        rng = np.random.default_rng(seed)
        base = rng.random((samples, 1)) < 0.5
        gains = np.array([gain, *[0.0] * (settings - 1)])
        better = (rng.random((samples, settings)) < changed + gains) & ~base
        worse = (rng.random((samples, settings)) < np.maximum(0, changed - gains)) & base
        yield np.hstack([(base | better) & ~worse, base])


def main(
    folders: Annotated[list[Path] | None, typer.Argument(help="Finished sweeps; the demo model's if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Race, and print a line for each world and margin, or JSON."""
    own = Path(demo.__file__).parent / "studies"
    rows = [
        races(str(folder.name), stored(folder), margin)
        for folder in folders or [own / "sweep-clear", own / "sweep-hazed"]
        for margin in MARGINS
    ]
    rows += [races(name, made_up(*world), margin) for name, world in WORLDS.items() for margin in MARGINS]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        facts: dict[str, Any] = asdict(row)
        print(
            ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
            )
        )


if __name__ == "__main__":
    typer.run(main)
