"""Output folders that are tried before the work, and progress that shows in a log as well as on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TypeVar
from uuid import uuid4

from tqdm import tqdm

from sinkgate.errors import SinkgateError

T = TypeVar("T")
SECONDS = 30.0  # between two lines of a log


@contextmanager
def disk_errors(subject: str) -> Iterator[None]:
    """Turn an error of the disk within the block into a `SinkgateError` that begins with the subject."""
    try:
        yield
    except OSError as error:
        raise SinkgateError(f"{subject}: {error.strerror or error}") from error


def writable_folder(folder: str | Path) -> Path:
    """Create a folder if it is missing, and prove that a file can be written there.

    Raises:
        SinkgateError: it cannot be created or written to.
    """
    folder = Path(folder)
    trial = folder / f".{uuid4().hex}"
    with disk_errors(f"the folder {folder} cannot be written; give another one"):
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    return folder


def track(
    items: Iterable[T],
    name: str,
    total: int | None = None,
    *,
    done: int = 0,
    unit: str = "items",
    seconds: float | None = None,
    note: Callable[[], str] = str,
    show: bool = True,
) -> Iterator[T]:
    """Yield items and show how far the loop is: a bar on a terminal or in a notebook, lines in a log.

    Args:
        items: what the loop runs over. Cut it to a limit before, not after, so that the bar ends at its total.
        name: the beginning of each line.
        total: number of items, those done before included; from the length of ``items`` if None.
        done: number of items that were done before.
        unit: name of the items, in the plural.
        seconds: least time between two lines of a log, ``SECONDS`` if None; 0 writes a line an item, and one at the beginning.
        note: called for words to show beside, such as the newest loss.
        show: False shows nothing.

    Example:
        >>> from sinkgate.output import track
        >>> sum(track([1, 2, 3], "numbers"))
        6
    """
    length = getattr(items, "__len__", None)
    total = done + length() if total is None and length else total
    if not show:
        yield from items
    elif sys.stderr.isatty() or _in_notebook():
        with tqdm(items, name, total, initial=done, unit=f" {unit}") as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(note(), refresh=False)
    else:
        yield from _logged(items, name, total, done, unit, SECONDS if seconds is None else seconds, note)


def _logged(
    items: Iterable[T],
    name: str,
    total: int | None,
    done: int,
    unit: str,
    seconds: float,
    note: Callable[[], str],
) -> Iterator[T]:
    def write(number: int) -> float:
        now = monotonic()
        line = f"{name}: {done + number}{f'/{total}' if total is not None else ''} {unit}"
        if total is not None and number and done + number < total:
            line += f", {duration((now - start) / number * (total - done - number))} left"
        print(", ".join(filter(None, (line, note()))), file=sys.stderr, flush=True)  # noqa: T201
        return now

    start = written = monotonic()
    number = 0
    if not seconds:
        write(0)
    for number, item in enumerate(items, 1):
        yield item
        if monotonic() - written >= seconds:
            written = write(number)
    if seconds and written > start:
        write(number)


def duration(seconds: float) -> str:
    """Return a time in its two largest units: "3 h 10 min", "4 min 20 s", "7 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
