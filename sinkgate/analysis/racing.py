"""Sequential tests of paired yes-or-no outcomes: settings that cannot be the best, or do not gain, are dropped as samples come in.

Each test is a bet against its hypothesis whose wealth is not expected to grow while the hypothesis is true, so that the chance that it
ever exceeds 1 / p is at most p, however often the test is evaluated and whenever it is stopped (Ville's inequality; Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS B, 2024, sections 3 and 4). The wealth is the mean of bets with fixed
stakes, which needs no tuning and depends on counts alone. Samples have to arrive in random order.

Shapes: S samples, M settings; index M is the unmodified model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEVEL, MARGIN = 0.05, 0.02
#: Stakes of the bets, as shares of the largest that cannot lose everything.
STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95])


def against_as_good(wins: Ints, losses: Ints) -> Floats:
    """Return the log wealth of a bet that one setting is right less often than another.

    Args:
        wins: samples on which the first alone was right, any shape.
        losses: samples on which the second alone was right.
    """
    bets = wins[..., None] * np.log1p(-STAKES) + losses[..., None] * np.log1p(STAKES)
    return np.logaddexp.reduce(bets, -1) - log(len(STAKES))


def against_gain(wins: Ints, losses: Ints, samples: int, margin: float = MARGIN) -> Floats:
    """Return the log wealth of a bet that a setting gains less than ``margin``.

    Args:
        wins: samples on which the setting alone was right, any shape.
        losses: samples on which the unmodified model alone was right.
        samples: number of samples, S.
        margin: smallest gain worth finding, a share in (0, 1).
    """
    stakes = STAKES / (1 - margin)
    same = samples - wins - losses
    bets = (
        wins[..., None] * np.log1p(-stakes * (1 - margin))
        + same[..., None] * np.log1p(stakes * margin)
        + losses[..., None] * np.log1p(stakes * (1 + margin))
    )
    return np.logaddexp.reduce(bets, -1) - log(len(stakes))


def fewest_samples(settings: int, level: float = LEVEL, margin: float = MARGIN) -> int:
    """Return the fewest samples after which any such test may drop a setting that changes no answer.

    A setting that gains exactly ``margin`` shows no difference on n samples with chance (1 - margin)^n at best, which must not exceed the
    error that each setting may have, level / (2 M).

    Example:
        >>> fewest_samples(352), fewest_samples(352, margin=0.05)
        (473, 187)
    """
    return ceil(log(2 * settings / level) / -log(1 - margin))


@dataclass(frozen=True)
class Drop:
    """A setting dropped from a race.

    Args:
        setting: its index.
        reason: "worse" than another setting or the unmodified model, or "no gain" of the margin or more.
        rival: index of the setting that is better, M for the unmodified model.
        samples: samples at that time.
        wins: samples that it alone answered rightly, against the rival.
        losses: samples that the rival alone answered rightly.
        p: bound of the chance of so much evidence by chance, before correction for the number of settings.
    """

    setting: int
    reason: str
    rival: int
    samples: int
    wins: int
    losses: int
    p: float


class Race:
    """The state of a race.

    With chance ``1 - level`` or more the best of all settings is not dropped as worse, and no setting that gains ``margin`` or more is
    dropped as without gain: each of two errors has half of the level, by Bonferroni over the settings. The chance is over the
    random order of samples, drawn from a population that the benchmark stands for.

    Args:
        settings: number of settings, M, without the unmodified model.
        level: chance of any such error, in (0, 1).
        margin: smallest gain worth finding, a share in (0, 1).
    """

    def __init__(self, settings: int, level: float = LEVEL, margin: float = MARGIN) -> None:
        self.level, self.margin, self.samples = level, margin, 0
        self.running: NDArray[np.bool_] = np.ones(settings + 1, dtype=bool)
        self._wins = np.zeros((settings + 1, settings + 1), dtype=np.int64)  # row right where column is wrong

    @property
    def settings(self) -> list[int]:
        """Settings that are still in the race."""
        return np.flatnonzero(self.running[:-1]).tolist()

    def update(self, right: NDArray[np.bool_]) -> list[Drop]:
        """Add samples and return the settings that are dropped.

        Args:
            right: (S, 1 + settings in the race) boolean, whether answers were right: of the settings in the race, in order, then of
                the unmodified model.
        """
        at = np.flatnonzero(self.running)
        correct = right.astype(np.float64)  # whose products are fast, and exact for counts
        self._wins[np.ix_(at, at)] += (correct.T @ (1 - correct)).astype(np.int64)
        self.samples += len(right)
        threshold = log(2 * (len(self.running) - 1) / self.level)
        wins, losses = self._wins[np.ix_(at, at)], self._wins.T[np.ix_(at, at)]
        excess = losses - wins
        # of all rivals the one with the strongest evidence, nearly; the correction counts them all
        strength = np.where(excess > 0, excess**2 / np.maximum(1, wins + losses), 0.0)
        rivals, rows = strength[:-1].argmax(1), np.arange(len(at) - 1)
        worse = against_as_good(wins[rows, rivals], losses[rows, rivals])
        idle = against_gain(wins[:-1, -1], losses[:-1, -1], self.samples, self.margin)
        drops: list[Drop] = []
        for row, setting in enumerate(at[:-1]):
            reason = "worse" if worse[row] >= threshold else "no gain"
            evidence, rival = (worse[row], int(rivals[row])) if reason == "worse" else (idle[row], len(at) - 1)
            if evidence >= threshold:
                counts = int(wins[row, rival]), int(losses[row, rival])
                drops.append(Drop(int(setting), reason, int(at[rival]), self.samples, *counts, exp(-evidence)))
        self.running[[drop.setting for drop in drops]] = False
        return drops
