"""Oracle sweep: every layer alone under every setting, on every item of a benchmark (paper, section 3).

The best of hundreds of settings is biased upwards. So changes come with intervals, p values are corrected for the number of
settings, and the best setting of each task is chosen on one half of the items and confirmed on the other.

Shapes: S samples, M settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from sinkgate.analysis.statistics import compared, holm, intervals, paired_test, shared, smallest_effect
from sinkgate.analysis.sweep import CONTROLS, LINE, Setting, oracle
from sinkgate.benchmarks import Item
from sinkgate.methods import Fixed
from sinkgate.models.finder import SinkFinder, finder_settings
from sinkgate.models.vlm import VLM, Finder
from sinkgate.sinks.gates import Gates
from sinkgate.studies.base import OfItems, frame_of, pictures_of, prepared
from sinkgate.studies.runner import Tables
from sinkgate.training.dataset import ExampleCache
from sinkgate.training.evaluation import evaluate

UNMODIFIED = -1  # its layer in the tables
SCALES = ["v_sink", "l_sink", "ordinary"]
CELL = ["layer", *SCALES]


@dataclass(frozen=True)
class Sweep(OfItems):
    """Every setting on every item, scored by `sinkgate.evaluate`: the most probable option, or the exact answer of an item without options.

    Args:
        vlm: the model.
        items: questions of a benchmark.
        layers: as in `sinkgate.oracle`.
        points: scales of each layer, as in `sinkgate.oracle`.
        chunk: items side by side in a forward pass, and in a part of the results.
        find: finder of sinks; by the default criteria if None. Its criteria are part of ``settings``. A `SinkFinder` skips L-sinks if no
            setting has a separate scale for them.
        about: further facts for the record, such as paths.

    Example:
        >>> results = run(Sweep(vlm, SCENES.items(limit=100), layers=[2]), "runs/sweep")
        >>> confirmed(results.table("items"), results.table("answers"))
    """

    kind: ClassVar[str] = "sweep"
    vlm: VLM
    items: Sequence[Item]
    layers: Sequence[int] | None = None
    points: Sequence[tuple[float, ...]] = (*LINE, *CONTROLS)
    chunk: int = 8
    find: Finder | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def choices(self) -> list[Setting]:
        """The settings, each once, without the unmodified model."""
        by_cell = {(each.layer, *each.scales.values()): each for each in oracle(self.vlm, self.layers, self.points)}
        return [setting for cell, setting in by_cell.items() if set(cell[1:]) != {1.0}]

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        layers = list(range(self.vlm.num_layers) if self.layers is None else self.layers)
        points = [list(point) for point in self.points]
        return {"layers": layers, "points": points, "chunk": self.chunk, **finder_settings(self.finder, self.vlm)}

    def work(self, unit: int) -> Tables:
        """Return tables ``items`` and ``answers`` of one chunk; raises SinkgateError if an item cannot be used."""
        start = unit * self.chunk
        return self.answered(range(start, min(start + self.chunk, len(self.items))), self.choices)

    def answered(self, numbers: Sequence[int], choices: Sequence[Setting]) -> Tables:
        """Return tables ``items`` and ``answers`` of some items, by index, under the unmodified model and some settings."""
        part = [self.items[number] for number in numbers]
        methods = {"": Fixed(Gates.ones(self.vlm))}
        methods |= {str(number): Fixed(setting.gates(self.vlm)) for number, setting in enumerate(choices)}
        examples = ExampleCache(self.vlm, self.finder)
        prepared(examples, part)  # raise before hours of work
        samples = [item.sample for item in part]
        result = evaluate(self.vlm, methods, samples, examples=examples, batch_size=self.chunk, progress=False)
        answers = [
            pd.DataFrame(
                {
                    "sample": np.array(numbers, dtype=np.int32),
                    **dict(zip(CELL, cell, strict=True)),
                    "right": result.right[method],
                    "loss": np.array(result.loss[method], dtype=np.float32),
                }
            ).astype({"layer": np.int16, **dict.fromkeys(SCALES, np.float32)})
            for cell, method in zip([(UNMODIFIED, 1.0, 1.0, 1.0), *cells_of(choices)], methods, strict=True)
        ]
        items = frame_of(part, examples).assign(sample=list(numbers))
        return {"items": items, "answers": pd.concat(answers, ignore_index=True)}

    @property
    def finder(self) -> Finder:
        """The finder of sinks, without L-sinks if no setting has a separate scale for them."""
        find = SinkFinder() if self.find is None else self.find
        if isinstance(find, SinkFinder) and all(s.l_sink in (None, s.rest) for s in self.choices):
            return replace(find, v_only=True)
        return find


def cells_of(choices: Sequence[Setting]) -> list[tuple[float, ...]]:
    """Return the values of `CELL` of each setting."""
    return [(s.layer, s.scales["v_sink"], s.scales["l_sink"], s.scales["ordinary"]) for s in choices]


# --- reading the results


def gains(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task", seed: int = 0) -> pd.DataFrame:
    """Compare each setting with the unmodified model: one row for each task and setting.

    Columns: those of `sinkgate.analysis.statistics.compared`, ``corrected`` (p by Holm over all rows), ``task`` and those of `CELL`.
    """
    right, base = right_of(answers)
    pictures = pictures_of(items)
    tables = [
        compared(right.loc[members], base.loc[members], seed, None if pictures is None else pictures.loc[members])
        .reset_index()
        .assign(task=task)
        for task, members in _tasks(items, by)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(corrected=holm(table["p"]))


def confirmed(
    items: pd.DataFrame,
    answers: pd.DataFrame,
    by: str = "task",
    seed: int = 0,
    families: Callable[[pd.DataFrame], pd.Series] | None = None,
) -> pd.DataFrame:
    """Return the gain of each task's best setting on items that had no part in its choice.

    Each half of a task's items chooses its best setting (of equals the one with the lowest loss), or no change at all if no setting gains;
    the other half measures its effect. Questions about one picture are in the same half, and drawn and flipped together.

    Args:
        items: table of a sweep.
        answers: table of a sweep.
        by: column of the items that holds the task.
        seed: of the halves and the bootstrap.
        families: names a family for each cell (rows with ``layer`` and the scales); the best is then chosen within each.

    Returns:
        One row for each task and family: ``first`` and ``second``, the chosen settings, in words; ``searched``, their change on the half
        that chose them; ``confirmed``, their change on the other half, with its 95 % interval ``low`` to ``high``, ``p`` of the sign test, or
        of `flip_test` over pictures, and ``corrected``, p by Holm over all rows; ``smallest``, the change that so many items could have
        shown (`smallest_effect`), infinite if the unmodified model answers none or all of them correctly. Changes are shares in [-1, 1], over
        all of the task's items together.
    """
    right, base = right_of(answers)
    loss, _ = right_of(answers, "loss")
    cells = right.columns.to_frame(index=False)
    family = pd.Series("all", index=cells.index) if families is None else families(cells)
    rng = np.random.default_rng(seed)
    rows = []
    for task, members in _tasks(items, by):
        if len(members) < 2:
            continue
        mixed, middle = _halved(members, _shared(items, members), rng)
        if not 0 < middle < len(mixed):
            continue
        idle = np.zeros((len(mixed), 1), dtype=np.int8)
        changed = np.hstack([right.loc[mixed].to_numpy() - base.loc[mixed].to_numpy()[:, None], idle])
        losses = loss.loc[mixed].to_numpy()
        halves = (np.arange(middle), np.arange(middle, len(mixed)))
        for name in family.unique():
            within = np.flatnonzero(family == name)
            best = []
            for half in halves:
                gained = changed[half][:, within].mean(0)
                first = np.lexsort((losses[half][:, within].mean(0), -gained))[0]
                best.append(within[first] if gained[first] > 0 else len(cells))
            searched = np.concatenate([changed[half, cell] for half, cell in zip(halves, best, strict=True)])
            other = np.concatenate([changed[half, cell] for half, cell in zip(halves, best[::-1], strict=True)])
            pictures = _shared(items, mixed)
            words = [in_words(cells.iloc[cell]) if cell < len(cells) else "unmodified" for cell in best]
            row = (task, name, len(mixed), base.loc[members].mean(), *words, searched.mean(), other.mean())
            low, high = intervals(other[:, None], seed=seed, pictures=pictures)
            p = float(paired_test(other[:, None], pictures, seed)[0])
            rows.append((*row, low[0], high[0], p, (other, pictures)))
    setting = ["first", "second", "searched", "confirmed"]
    columns = ["task", "family", "samples", "base", *setting, "low", "high", "p", "smallest"]
    return _corrected(pd.DataFrame(rows, columns=columns))


def in_words(cell: Any) -> str:
    """Return a setting as "layer 2: V 0.1, rest 0.9"; with separate L-sinks "layer 2: V 0.1, L 0.5, ordinary 1"."""
    scales = f"rest {cell['ordinary']:g}"
    if cell["l_sink"] != cell["ordinary"]:
        scales = f"L {cell['l_sink']:g}, ordinary {cell['ordinary']:g}"
    return f"layer {int(cell['layer'])}: V {cell['v_sink']:g}, {scales}"


def leaning(
    items: pd.DataFrame, answers: pd.DataFrame, by: str = "task", seed: int = 0, together: bool = False
) -> pd.DataFrame:
    """Return the direction of each task: accuracy where V-sinks have the larger scale, minus accuracy where the rest has.

    Both are means over the cells of the line v_sink + rest = 1 on one side of the middle. The table has one row for each task and layer, or
    for each task with "all" layers ``together``, and is empty if the sweep has no such cells. ``lean`` in [-1, 1] is above 0 if the task
    gains from stronger sinks; ``low`` to ``high`` is its 95 % interval, ``p`` that of the sign test over samples, or of `flip_test` over
    pictures where several samples share one. ``base`` is the unmodified model's accuracy; ``corrected`` and ``smallest`` are as in `confirmed`.
    """
    right, base = right_of(answers)
    cells = right.columns.to_frame(index=False)
    on_line = np.isclose(cells["v_sink"] + cells["ordinary"], 1) & np.isclose(cells["l_sink"], cells["ordinary"])
    v_sink = cells["v_sink"].to_numpy()
    up, down = on_line & (v_sink > 0.55), on_line & (v_sink < 0.45)
    layers = sorted(cells.loc[on_line, "layer"].unique())
    chosen_layers = {"all": layers} if together and layers else {layer: [layer] for layer in layers}
    rows = []
    for task, members in _tasks(items, by) if chosen_layers else ():
        correct, pictures = right.loc[members].to_numpy(dtype=float), _shared(items, members)
        within = [cells["layer"].isin(among).to_numpy() for among in chosen_layers.values()]
        leans = [correct[:, up & here].mean(1) - correct[:, down & here].mean(1) for here in within]
        bounds = intervals(np.stack(leans, 1), seed=seed, pictures=pictures)
        for layer, lean, low, high in zip(chosen_layers, leans, *bounds, strict=True):
            p = float(paired_test(lean[:, None], pictures, seed)[0])
            rows.append((task, layer, lean.mean(), low, high, p, base.loc[members].mean(), (lean, pictures)))
    return _corrected(pd.DataFrame(rows, columns=["task", "layer", "lean", "low", "high", "p", "base", "smallest"]))


def _shared(items: pd.DataFrame, members: np.ndarray) -> np.ndarray | None:
    """Return the labels of some samples' pictures if several share one, else None."""
    pictures = pictures_of(items)
    return None if pictures is None else shared(pictures.loc[members].to_numpy())


def _halved(members: np.ndarray, pictures: np.ndarray | None, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return samples in random order and the beginning of the second half; samples of one picture are in the same half."""
    if pictures is None:
        return rng.permutation(members), len(members) // 2
    codes, names = pd.factorize(pictures)
    ranks = rng.permutation(len(names))[codes]
    order = np.argsort(ranks, kind="stable")
    middle = np.searchsorted(ranks[order], ranks[order][len(members) // 2])  # where that picture begins
    return members[order], int(middle) or int((ranks == 0).sum())


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``corrected``, and compute ``smallest`` from the differences, with their pictures, in that column."""
    effects = [smallest_effect(each, len(table), pictures=pictures) for each, pictures in table["smallest"]]
    smallest = np.where(table["base"].isin([0, 1]), np.inf, np.array(effects, dtype=float))
    return table.assign(smallest=smallest, corrected=holm(table["p"]))


def groups_apart(cells: pd.DataFrame) -> pd.Series:
    """Return families for `confirmed`: "two groups" if L-sinks are scaled as ordinary tokens, else "three groups"."""
    return pd.Series(np.where(np.isclose(cells["l_sink"], cells["ordinary"]), "two groups", "three groups"))


def right_of(answers: pd.DataFrame, values: str = "right", *, complete: bool = True) -> tuple[pd.DataFrame, pd.Series]:
    """Return a column of the answers as a table, (S, M), a column for each cell, and that of the unmodified model, (S,).

    ``complete``: False for answers of a race, where some are missing; these are NaN.
    """
    rounded = answers.assign(**{name: answers[name].astype(float).round(4) for name in SCALES})
    wide = rounded.pivot(index="sample", columns=CELL, values=values)
    wide = wide.astype(np.int8 if values == "right" and complete else float)
    plain = (UNMODIFIED, 1.0, 1.0, 1.0)
    base = pd.Series(wide[plain].to_numpy(), index=wide.index)
    return wide.drop(columns=[plain]), base


def _tasks(items: pd.DataFrame, by: str) -> list[tuple[str, np.ndarray]]:
    """Return each task with its samples, in order of first appearance."""
    return [(str(task), rows["sample"].to_numpy()) for task, rows in items.groupby(by, sort=False)]
