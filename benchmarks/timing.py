"""Ratios of variants that take turns within one run, and what they are held against."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch

Run = Callable[[], Any]
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Row:
    """One number. ``low`` and ``high`` are the quartiles of a ratio's rounds; ``aim`` reads like ``"<= 1.02"``; ``note`` says how it came about."""

    what: str
    model: str
    value: float | None
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    aim: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Return whether the aim is met, as measured and not as rounded; None where there is none."""
        if not self.aim or self.value is None:
            return None
        compare, number = self.aim.split()
        return _COMPARE[compare](self.value, float(number))

    def as_json(self) -> dict[str, Any]:
        """The row and whether its aim is met."""
        return {**asdict(self), "met": self.met}


def ratio(
    what: str, model: str, mine: list[float], peer: list[float], aim: str = "", *, speedup: bool = False, note: str = ""
) -> Row:
    """Mine over the peer's, or with ``speedup`` the peer's over mine: the median over rounds, each a ratio of neighbours in time."""
    rounds = [b / a if speedup else a / b for a, b in zip(mine, peer, strict=True)]
    low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else (None, None, None)
    return Row(what, model, median(rounds), "x", low, high, aim, note or f"peer {duration(median(peer))}")


def take_turns(variants: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one round that warms up.

    Drift of the machine hits all alike, and so does what one variant leaves to the next: every other round runs backwards.
    A variant that returns a float has measured itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):
        for name in list(variants)[:: 1 if index % 2 else -1]:
            taken = timed(variants[name])
            if index:
                seconds[name].append(taken)
    return seconds


def timed(run: Run) -> float:
    """Seconds that one call takes, or those that it says it took."""
    wait_for_device()
    start = time.perf_counter()
    result = run()
    wait_for_device()
    return result if isinstance(result, float) else time.perf_counter() - start


def processor_time(run: Run) -> Callable[[], float]:
    """Return the run as one that measures its processor time, on which other work on the machine weighs little."""

    def timed() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return timed


def wait_for_device() -> None:
    """A GPU works on while Python goes on."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def duration(seconds: float) -> str:
    """``1.23 s`` or ``4.5 ms``."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
