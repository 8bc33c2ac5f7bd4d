"""Output folders that are tried before the work, progress that shows in a log as well as on a terminal, and tables in Markdown."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from uuid import uuid4

from tqdm import tqdm

from sinkgate.errors import SinkgateError, with_remedy

T = TypeVar("T")
SECONDS = 30.0  # between two lines of a log
REFRESH = 0.2  # seconds between two changes of a bar
#: Shows the steps of an item, of the newest loop that `track` shows.
_report: ContextVar[Callable[[str], None] | None] = ContextVar("report", default=None)


@contextmanager
def disk_errors(subject: str) -> Iterator[None]:
    """Turn an error of the disk within the block into a `SinkgateError` that begins with the subject."""
    try:
        yield
    except OSError as error:
        raise SinkgateError(f"{subject}: {with_remedy(error, 'give another one')}") from error


def writable_folder(folder: str | Path) -> Path:
    """Create a folder if it is missing, and prove that a file can be written there.

    Raises:
        SinkgateError: it cannot be created or written to.
    """
    folder = Path(folder)
    trial = folder / f".{uuid4().hex}"
    with disk_errors(f"the folder {folder} cannot be written"):
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
    total = _length(items, done) if total is None else total
    if not show:
        yield from items
    elif sys.stderr.isatty() or _in_notebook():
        yield from _with_bar(items, name, total, done, unit, note)
    else:
        yield from _logged(items, name, total, done, unit, SECONDS if seconds is None else seconds, note)


def steps(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yield the steps of one item of a loop, and show how many are done in the line that `track` has for that loop, if it shows one.

    A bar shows the steps all the time, a log in a line every ``SECONDS``.

    Args:
        items: the steps.
        name: of the steps, in the plural.
        total: number of steps; from the length of ``items`` if None.

    Example:
        >>> from sinkgate.output import steps, track
        >>> for part in track(parts, "study"):
        ...     for sample in steps(part, "samples"):
        ...         measure(sample)
    """
    if (report := _report.get()) is None:
        yield from items
        return
    total, start = _length(items) if total is None else total, monotonic()
    report(_count(0, total, name))
    for number, item in enumerate(items, 1):
        yield item
        report(_count(number, total, name, monotonic() - start))
    report("")


def _length(items: Any, done: int = 0) -> int | None:
    return done + len(items) if hasattr(items, "__len__") else None


def _count(number: int, total: int | None, name: str, elapsed: float = 0.0, done: int = 0) -> str:
    """Return how far a loop is, with the time left if ``elapsed`` seconds went by since ``done`` items."""
    line = f"{number}{f'/{total}' if total is not None else ''} {name}"
    if total is not None and done < number < total:
        line += f", {duration(elapsed / (number - done) * (total - number))} left"
    return line


def _reported(items: Iterable[T], report: Callable[[str], None]) -> Iterator[T]:
    """Yield the items, ``report`` being that of `steps` while each is worked on."""
    for item in items:
        above = _report.get()
        _report.set(report)
        try:
            yield item
        finally:
            _report.set(above)


def _with_bar(
    items: Iterable[T], name: str, total: int | None, done: int, unit: str, note: Callable[[], str]
) -> Iterator[T]:
    shown = float("-inf")
    with tqdm(items, name, total, initial=done, unit=f" {unit}") as bar:

        def report(text: str) -> None:
            nonlocal shown
            if (now := monotonic()) - shown >= REFRESH or not text:
                bar.set_postfix_str(_joined(text, note()), refresh=bool(text))
                shown = now

        for item in _reported(bar, report):
            yield item
            bar.set_postfix_str(note(), refresh=False)


def _logged(
    items: Iterable[T],
    name: str,
    total: int | None,
    done: int,
    unit: str,
    seconds: float,
    note: Callable[[], str],
) -> Iterator[T]:
    def write(number: int, inside: str = "") -> float:
        now = monotonic()
        line = _count(done + number, total, unit, now - start, done)
        print(f"{name}: {_joined(line, inside, note())}", file=sys.stderr, flush=True)  # noqa: T201
        return now

    def report(text: str) -> None:
        nonlocal written
        if text and monotonic() - written >= SECONDS:
            written = write(number, text)

    start = written = monotonic()
    number = 0
    if not seconds:
        write(0)
    for item in _reported(items, report):
        yield item
        number += 1
        if monotonic() - written >= seconds:
            written = write(number)
    if seconds and written > start:
        write(number)


def _joined(*texts: str) -> str:
    return ", ".join(filter(None, texts))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown; a column is aligned right if all its cells are empty or begin as a number."""
    cells = [list(map(str, row)) for row in rows]
    numbers = [all(re.match(r"$|[-+<]? ?\d", cell) for cell in column) for column in zip(*cells, strict=True)]
    marks = ["---:" if number else "---" for number in numbers or [False] * len(columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, marks, *cells))


def duration(seconds: float) -> str:
    """Return a time in its two largest units: "3 h 10 min", "4 min 20 s", "7 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
