"""Measured ratios with their aims: variants that take turns within one run, processor time, peak memory."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import torch

Run = Callable[[], Any]
CLEAR = Path("/proc/self/clear_refs")  # of Linux alone
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Row:
    """One number. ``low`` and ``high`` are the quartiles of a ratio's rounds; ``aim`` is a bound such as ``"<= 1.02"``; ``note``, how it was measured."""

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

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.3g} {self.unit}"
        spread = "" if self.low is None else f" ({self.low:.3g} to {self.high:.3g})"
        aim = f", aim {self.aim}: {'met' if self.met else 'MISSED'}" if self.met is not None else ""
        return f"{self.model}: {self.what}: {value}{spread}{aim}{self.note and f' ({self.note})'}"


def ratio(
    what: str, model: str, mine: list[float], peer: list[float], aim: str = "", *, speedup: bool = False, note: str = ""
) -> Row:
    """Return mine over the peer's, or with ``speedup`` the peer's over mine: the median over rounds, each a ratio of neighbours in time."""
    rounds = [b / a if speedup else a / b for a, b in zip(mine, peer, strict=True)]
    low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else (None, None, None)
    return Row(what, model, median(rounds), "x", low, high, aim, note or f"peer {duration(median(peer))}")


def take_turns(variants: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round, after one round that warms up.

    Each round has an order of its own, the same in every run, so that neither drift of the machine nor the state that one variant
    leaves to the next favours any of them. A variant that returns a float has measured itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):
        for name in Random(index).sample(list(variants), len(variants)):
            taken = timed(variants[name])
            if index:
                seconds[name].append(taken)
    return seconds


def timed(run: Run) -> float:
    """Return the seconds that one call takes, or those that it returns as a float."""
    wait_for_device()
    start = time.perf_counter()
    result = run()
    wait_for_device()
    return result if isinstance(result, float) else time.perf_counter() - start


def processor_time(run: Run) -> Callable[[], float]:
    """Return the run as one that measures its processor time, which other work on the machine changes little."""

    def timed() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return timed


def wait_for_device() -> None:
    """Wait until a GPU has done its work, which Python does not wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def duration(seconds: float) -> str:
    """Return ``1.23 s`` or ``4.5 ms``."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function that runs in a process of its own, whose memory it measures."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def reset_peak() -> None:
    """Start the peak of this process afresh: below what it held before."""
    CLEAR.write_text("5")


def held(field: str = "VmHWM") -> int:
    """Return this process's memory in bytes: its peak, or now (``VmRSS``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
