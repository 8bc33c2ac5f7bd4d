"""Racing sweep: settings that cannot be the best, or do not gain, are dropped while the items are answered.

The exact map (`sinkgate.studies.sweep`) answers every item under every setting. A race answers the same question, the best setting over
all items, with fewer: see `sinkgate.analysis.racing` for the tests and what they promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from sinkgate.analysis.racing import LEVEL, MARGIN, Drop, Race
from sinkgate.analysis.statistics import compared
from sinkgate.errors import SinkgateError
from sinkgate.studies.runner import Tables
from sinkgate.studies.sweep import CELL, SCALES, UNMODIFIED, Sweep, cells_of, in_words, right_of

DROPPED = ["worse_than", "reason", "samples", "wins", "losses", "p"]


@dataclass(frozen=True)
class RacingSweep(Sweep):
    """A sweep as a race, over items in random order; its chunks follow one another, in one process.

    Tables ``items`` and ``answers`` are those of `Sweep`, with the settings that were in the race at that time. ``dropped`` has a row for
    each dropped setting: after how many samples, the reason, and the setting that was better.

    Args:
        level: chance that the best setting, or one that gains the margin, is dropped, in (0, 1).
        margin: smallest gain worth finding, a share in (0, 1); settings that gain less are dropped as without gain.
        seed: of the order of items.

    Raises:
        SinkgateError: level or margin is not in (0, 1).

    Example:
        >>> results = run(RacingSweep(vlm, items, layers=[2]), "runs/race")
        >>> placed(results.table("answers"), results.table("dropped"))
    """

    kind: ClassVar[str] = "race"
    sequential: ClassVar[bool] = True
    level: float = LEVEL
    margin: float = MARGIN
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("level", self.level), ("margin", self.margin)):
            if not 0 < value < 1:
                raise SinkgateError(f"the {name} of a race is {value:g}; expected a share between 0 and 1")

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return {**super().settings, "level": self.level, "margin": self.margin, "seed": self.seed}

    @cached_property
    def _race(self) -> Race:
        return Race(len(self.choices), self.level, self.margin)

    @cached_property
    def _order(self) -> list[int]:
        return np.random.default_rng(self.seed).permutation(len(self.items)).tolist()

    def begin(self) -> None:
        """Begin at the first chunk."""
        self.__dict__.pop("_race", None)

    def work(self, unit: int) -> Tables:
        """Return the tables of the next chunk, under the settings in the race, and drop some of these."""
        numbers = self._order[unit * self.chunk : (unit + 1) * self.chunk]
        tables = self.answered(numbers, [self.choices[index] for index in self._race.settings])
        return {**tables, "dropped": self._dropped(self._race.update(self._right(tables)))}

    def follow(self, tables: Tables) -> None:
        """Drop the same settings as after a finished chunk."""
        self._race.update(self._right(tables))

    def _right(self, tables: Tables) -> Any:
        answers = tables["answers"]
        assert isinstance(answers, pd.DataFrame)
        count = answers["sample"].nunique()
        right = answers["right"].to_numpy(dtype=bool).reshape(-1, count).T  # the unmodified model stands first
        return np.roll(right, -1, axis=1)

    def _dropped(self, drops: list[Drop]) -> pd.DataFrame:
        cells = [dict(zip(CELL, cell, strict=True)) for cell in cells_of(self.choices)]
        names = [*map(in_words, cells), "unmodified"]
        rows = [
            vars(drop) | cells[drop.setting] | {"worse_than": names[drop.rival] if drop.reason == "worse" else ""}
            for drop in drops
        ]
        kinds = dict.fromkeys(("layer", "samples", "wins", "losses"), "int32") | dict.fromkeys(SCALES, "float32")
        kinds |= {"p": "float64", "reason": "str", "worse_than": "str"}
        return pd.DataFrame(rows, columns=[*CELL, *DROPPED]).astype(kinds)


def placed(answers: pd.DataFrame, dropped: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return one row for each setting: those that finished, by change from the unmodified model, then those dropped, the last one first.

    Args:
        answers: table of a race.
        dropped: table of a race.
        seed: of the bootstrap.

    Returns:
        ``setting`` in words, ``state`` ("finished", "worse", "no gain"), ``worse_than``, ``samples`` until then, ``change`` on them with
        its 95 % interval ``low`` to ``high`` (of a setting that finished biased upwards, as it was chosen on the same items), ``p`` of the
        sequential test that dropped it.
    """
    right, base = right_of(answers, complete=False)
    rows = []
    keys = dropped[CELL].astype(float).round(4).itertuples(index=False, name=None)
    ends = dict(zip(keys, dropped[["reason", "worse_than", "samples", "p"]].itertuples(index=False), strict=True))
    for cell in right.columns:
        answered = right[cell].notna()
        row = compared(right.loc[answered, [cell]], base[answered], seed).iloc[0]
        reason, rival, samples, p = ends.get(tuple(map(float, cell)), ("finished", "", int(answered.sum()), np.nan))
        setting = {"setting": in_words(dict(zip(CELL, cell, strict=True))), "state": reason, "worse_than": rival}
        rows.append({**setting, "samples": samples, **row[["change", "low", "high"]], "p": p})
    table = pd.DataFrame(rows)
    order = table.assign(done=table["state"] == "finished").sort_values(
        ["done", "samples", "change"], ascending=False, kind="stable", ignore_index=True
    )
    return order.drop(columns="done")


def saved(answers: pd.DataFrame) -> float:
    """Return the number of answers of the exact map over that of the race, on the same items."""
    settings = answers.loc[answers["layer"] != UNMODIFIED, CELL].drop_duplicates()
    samples = answers["sample"].nunique()
    return samples * len(settings) / int((answers["layer"] != UNMODIFIED).sum())
