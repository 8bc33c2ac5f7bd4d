"""Results of a comparison, read from its folder: right answers, gains with their tests, best layers and scales."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from sinkgate.analysis.statistics import sign_test
from sinkgate.demo.comparison import FORMS, Setup
from sinkgate.methods.base import UNMODIFIED
from sinkgate.scenes.questions import KINDS

Report = dict[str, Any]
GLOBAL, LOCAL = ([kind for kind in KINDS if KINDS[kind].scope == scope] for scope in ("global", "local"))
ORACLES = {"paper": "oracle, paper's line", "free": "oracle, around 1 too"}


@dataclass(frozen=True)
class Gain:
    """Gain of a method over the unmodified model on the same questions, in points, one for each seed.

    ``over_seeds`` is p of the paired t-test over seeds, ``over_questions`` p of the exact sign test over all questions whose mark changed.
    """

    accuracy: float
    seeds: list[float]
    over_seeds: float
    over_questions: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.seeds)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds."""
        return stdev(self.seeds) if len(self.seeds) > 1 else 0.0


class Comparison:
    """Results of a comparison, seed by seed.

    Args:
        folder: of `sinkgate.demo.comparison.run_comparison`; parts that its setup leaves out may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.seeds = [_read(path) for path in sorted(folder.glob("seed-*.json"))]
        for run in self.seeds:
            further, oracle = (folder / f"{name}-{run['seed']}.json" for name in ("more", "oracle"))
            if oracle.exists():
                right = run["worlds"]["hazed"]["marks"]["right"]
                right.update({ORACLES[way]: marks for way, marks in _read(oracle).items()})
            if further.exists():
                content = _read(further)
                for world, table in content["worlds"].items():
                    run["worlds"][world]["marks"]["right"].update(table["right"])
                run["stacks"] |= {
                    name if name.endswith("by loss") else f"{name} by loss": stacked
                    for name, stacked in content["stacks"].items()
                }
        self.oracle = _read(folder / "oracle.json") if (folder / "oracle.json").exists() else {}

    def names(self, world: str) -> list[str]:
        """Return the methods that were tested on a world."""
        return list(self.seeds[0]["worlds"][world]["marks"]["right"])

    def marks(self, world: str, name: str, kinds: Container[str] = KINDS) -> list[np.ndarray]:
        """Return right (1) or wrong (0) on the questions of some kinds, one array for each seed."""
        tables = [run["worlds"][world]["marks"] for run in self.seeds]
        masks = [[kind in kinds for kind in table["kinds"]] for table in tables]
        return [np.asarray(table["right"][name])[mask] for table, mask in zip(tables, masks, strict=True)]

    def gain(self, world: str, name: str, kinds: Container[str] = KINDS) -> Gain:
        """Return the gain of a method over the unmodified model on the questions of some kinds."""
        pairs = list(zip(self.marks(world, name, kinds), self.marks(world, UNMODIFIED, kinds), strict=True))
        seeds = [100 * float((marks - plain).mean()) for marks, plain in pairs]
        better, worse = (int(sum((sign * (marks - plain) > 0).sum() for marks, plain in pairs)) for sign in (1, -1))
        accuracy = 100 * fmean(float(marks.mean()) for marks, _ in pairs)
        return Gain(accuracy, seeds, _t_test(seeds), float(sign_test(better, worse)))

    def best_layer(self, form: str) -> int:
        """Return the layer with the best single gate on validation questions, by the mean over seeds."""
        name = form if form in self.seeds[0]["stacks"] else f"{form} by loss"
        singles = [run["stacks"][name]["singles"] for run in self.seeds]
        return int(max(singles[0], key=lambda layer: fmean(single[layer] for single in singles)))

    def rho(self, world: str, form: str) -> dict[str, list[float]]:
        """Return the mean scale of V-sinks by kind and layer, over seeds."""
        tables = [run["worlds"][world]["rho"][form] for run in self.seeds]
        by_layer = {kind: zip(*(table[kind] for table in tables), strict=True) for kind in KINDS if kind in tables[0]}
        return {kind: [fmean(values) for values in layers] for kind, layers in by_layer.items()}

    def main_rows(self, setup: Setup) -> list[str]:
        """Return the methods of the first table, in its order."""
        at = {form: self.best_layer(form) for form in FORMS}
        names = self.names("hazed")
        rows = [
            UNMODIFIED,
            *("0.5 everywhere", f"0.5, layer {at['LSG']}"),
            *(f"{form}, layer {at[form]}" for form in FORMS),
            *("LSG, stack", "LSG, stack by loss", "LSG from 1, stack", "LSG from 1, stack by loss"),
            *("LSG from 1, all layers at once", "LSG from 1, joint"),
            *(name for name in names if name.endswith("5 x samples") and "LoRA" not in name),
            *(f"LSG, layer {layer}" for layer in setup.ablated),
            *(f"{name}, layer {layer}" for name in setup.ablations for layer in setup.ablated),
            *("V-sinks suppressed", "V-sinks removed", "VAR", "sinks to the front", "query reweighting"),
            *("LoRA", "LoRA, 5 x samples"),
            *ORACLES.values(),
        ]
        return [name for name in dict.fromkeys(rows) if name in names]


def _read(path: Path) -> Report:
    return json.loads(path.read_text(encoding="utf-8"))


def _t_test(differences: Sequence[float]) -> float:
    """Return p of a paired t-test; 1 for a single seed, from which nothing follows."""
    from scipy.stats import ttest_1samp

    if len(set(differences)) == 1:  # no spread to divide by
        return 1.0 if len(differences) == 1 or differences[0] == 0 else 0.0
    return float(ttest_1samp(differences, 0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
