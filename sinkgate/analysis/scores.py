"""Scores of tables that are computed for many bootstrap draws at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CountedScore:
    """A score of a table that is computed for many draws of its rows at once. Called with a table, it returns the score of that table.

    Args:
        of: score of a table of S rows for D draws, from the table and from how often each draw holds each row, (D, S) -> (D,); NaN where
            it is not defined.

    Example:
        >>> right = CountedScore(lambda table, counts: counts @ table["right"] / counts.sum(1))
        >>> right(pd.DataFrame({"right": [True, False]}))
        0.5
    """

    of: Callable[[pd.DataFrame, Floats], Floats]

    def __call__(self, table: pd.DataFrame) -> float:
        return float(self.of(table, np.ones((1, len(table))))[0])
