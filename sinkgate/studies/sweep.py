"""The oracle sweep: every layer alone under every setting, on every item of a benchmark (paper, section 3).

The best of hundreds of settings flatters itself. So changes come with intervals, p values are corrected for the number of
settings, and the best cell of each task is chosen on one half of the items and confirmed on the other.

Shapes: S samples, M settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from sinkgate.benchmarks import Item
from sinkgate.evaluation import evaluate
from sinkgate.gates import Gates
from sinkgate.lessons import Finder, Lessons
from sinkgate.methods import Fixed
from sinkgate.statistics import compared, holm, intervals
from sinkgate.studies.items import facts_of_items, frame_of, refuse_skipped
from sinkgate.studies.provenance import facts_of
from sinkgate.studies.run import Tables, chunks
from sinkgate.sweep import Setting, oracle
from sinkgate.vlm import VLM, find_sinks, find_v_sinks

UNMODIFIED = -1  # its layer in the tables
SCALES = ["v_sink", "l_sink", "ordinary"]
CELL = ["layer", *SCALES]


@dataclass(frozen=True)
class Sweep:
    """Every setting on every item. Items with options are judged by forced choice, others by exact answer (`sinkgate.evaluate`).

    ``find`` names sinks; None takes the default criteria, and for settings that treat L-sinks as the rest the encoder alone.
    ``chunk``: items side by side in a forward, and in a part of the results.
    """

    kind: ClassVar[str] = "sweep"
    vlm: VLM
    items: Sequence[Item]
    points: Sequence[Setting] | None = None
    chunk: int = 8
    find: Finder | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def choices(self) -> list[Setting]:
        """The settings, each once, without the unmodified model."""
        given = oracle(self.vlm) if self.points is None else self.points
        return [setting for setting in dict.fromkeys(given) if set(setting.scales.values()) != {1.0}]

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.run.Study`."""
        return {"chunk": self.chunk, "cells": [[s.layer, *s.scales.values()] for s in self.choices], **self.about}

    @property
    def model(self) -> dict[str, Any]:
        """See `sinkgate.studies.run.Study`."""
        return facts_of(self.vlm)

    @property
    def data(self) -> dict[str, Any]:
        """See `sinkgate.studies.run.Study`."""
        return facts_of_items(self.items)

    @property
    def units(self) -> int:
        """See `sinkgate.studies.run.Study`."""
        return chunks(len(self.items), self.chunk)

    def work(self, unit: int) -> Tables:
        """Tables ``items`` and ``answers`` of one chunk; raises SinkgateError where an item cannot be asked."""
        start = unit * self.chunk
        part = self.items[start : start + self.chunk]
        methods = {"": Fixed(Gates.ones(self.vlm))}
        methods |= {str(number): Fixed(setting.gates(self.vlm)) for number, setting in enumerate(self.choices)}
        lessons = Lessons(self.vlm, self._find, budget=0)
        samples = [item.sample for item in part]
        marks = evaluate(self.vlm, methods, samples, lessons=lessons, batch_size=self.chunk, progress=False)
        refuse_skipped(lessons, part)
        cells = [
            (UNMODIFIED, 1.0, 1.0, 1.0),
            *((s.layer, s.scales["v_sink"], s.scales["l_sink"], s.scales["ordinary"]) for s in self.choices),
        ]
        answers = [
            pd.DataFrame(
                {
                    "sample": np.arange(start, start + len(part), dtype=np.int32),
                    **{
                        name: np.full(len(part), value, np.int16 if name == "layer" else np.float32)
                        for name, value in zip(CELL, cell, strict=True)
                    },
                    "right": marks.right[method],
                    "loss": np.array(marks.loss[method], dtype=np.float32),
                }
            )
            for cell, method in zip(cells, methods, strict=True)
        ]
        return {"items": frame_of(part, start), "answers": pd.concat(answers, ignore_index=True)}

    @property
    def _find(self) -> Finder:
        if self.find is not None:
            return self.find
        return find_v_sinks if all(s.l_sink in (None, s.rest) for s in self.choices) else find_sinks


# --- reading the results


def gains(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task", seed: int = 0) -> pd.DataFrame:
    """What each setting does to each task: the columns of `sinkgate.statistics.compared`, and ``corrected``, p by Holm over all rows.

    Tables of a sweep -> one row a task and setting, with ``task``, ``layer``, ``v_sink``, ``l_sink``, ``ordinary``.
    """
    right, base = _wide(answers)
    tables = [
        compared(right.loc[chosen], base.loc[chosen], seed).reset_index().assign(task=task)
        for task, chosen in _tasks(items, by)
    ]
    found = pd.concat(tables, ignore_index=True)
    return found.assign(corrected=holm(found["p"]))


def confirmed(
    items: pd.DataFrame,
    answers: pd.DataFrame,
    by: str = "task",
    seed: int = 0,
    families: Callable[[pd.DataFrame], pd.Series] | None = None,
) -> pd.DataFrame:
    """The best setting of each task, chosen on one half of the items and looked at on the other, both ways.

    Args:
        items: table of a sweep.
        answers: table of a sweep.
        by: column of the items that is the task.
        seed: of the halves and the bootstrap.
        families: names a family for each cell (rows with ``layer`` and the scales); the best is then chosen within each.

    Returns:
        One row a task, family and half: the cell, ``searched`` (its change where it was chosen), ``confirmed`` (on the other half) with its
        95 % interval ``low`` to ``high``, ``p`` of the sign test there.
    """
    right, base = _wide(answers)
    cells = right.columns.to_frame(index=False)
    family = pd.Series("all", index=cells.index) if families is None else families(cells)
    rng = np.random.default_rng(seed)
    rows = []
    for task, chosen in _tasks(items, by):
        mixed = rng.permutation(chosen)
        halves = (mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :])
        if not len(halves[0]):
            continue
        tables = [compared(right.loc[half], base.loc[half], seed) for half in halves]
        for name in family.unique():
            within = (family == name).to_numpy()
            for half, (search, other) in enumerate((tables, tables[::-1])):
                best = int(np.flatnonzero(within)[search.loc[within, "change"].to_numpy().argmax()])
                row = other.iloc[best]
                rows.append(
                    {"task": task, "family": name, "half": half, **cells.iloc[best].to_dict()}
                    | {"searched": search["change"].iloc[best], "confirmed": row["change"]}
                    | {"low": row["low"], "high": row["high"], "p": row["p"], "samples": int(row["samples"])}
                )
    return pd.DataFrame(rows).astype({"layer": int})


def leaning(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task", seed: int = 0) -> pd.DataFrame:
    """Which way each task wants the sinks, layer by layer: accuracy where V-sinks outweigh the rest, minus where they are outweighed.

    Over the cells of the line, v_sink + rest = 1 but the middle. One row a task and layer: ``lean`` in [-1, 1] with its 95 % interval ``low`` to
    ``high``; above 0 the task wants sinks up. Empty where the sweep has no such cells.
    """
    right, _ = _wide(answers)
    cells = right.columns.to_frame(index=False)
    on_line = np.isclose(cells["v_sink"] + cells["ordinary"], 1) & np.isclose(cells["l_sink"], cells["ordinary"])
    up, down = on_line & (cells["v_sink"] > 0.55), on_line & (cells["v_sink"] < 0.45)
    rows = []
    for task, chosen in _tasks(items, by):
        told = right.loc[chosen].to_numpy(dtype=float)
        for layer in sorted(cells.loc[on_line, "layer"].unique()):
            sides = [told[:, (side & (cells["layer"] == layer)).to_numpy()].mean(1) for side in (up, down)]
            difference = sides[0] - sides[1]
            low, high = intervals(difference[:, None], seed=seed)
            rows.append({"task": task, "layer": layer, "lean": difference.mean(), "low": low[0], "high": high[0]})
    return pd.DataFrame(rows, columns=["task", "layer", "lean", "low", "high"])


def groups_apart(cells: pd.DataFrame) -> pd.Series:
    """Families for `confirmed`: "two groups" where L-sinks are scaled as the ordinary tokens are, else "three groups"."""
    return pd.Series(np.where(np.isclose(cells["l_sink"], cells["ordinary"]), "two groups", "three groups"))


def _wide(answers: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Whether answers were right, (S, M) with the cells as columns, and under the unmodified model, (S,)."""
    rounded = answers.assign(**{name: answers[name].astype(float).round(4) for name in SCALES})
    wide = rounded.pivot(index="sample", columns=CELL, values="right").astype(np.int8)
    plain = (UNMODIFIED, 1.0, 1.0, 1.0)
    base = pd.Series(wide[plain].to_numpy(), index=wide.index)
    return wide.drop(columns=[plain]), base


def _tasks(items: pd.DataFrame, by: str) -> list[tuple[str, np.ndarray]]:
    """Each task with its samples, in the order of its first one."""
    return [(str(task), rows["sample"].to_numpy()) for task, rows in items.groupby(by, sort=False)]
