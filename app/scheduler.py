"""Fair turns on the one model: however much a visitor sends, everyone else comes next in between.

A turn decides on order alone. That two calls never run on the model at once is what the model's own lock is for, so a
turn that somebody fails to give back costs time and nothing else.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, get_ident

import sinkgate as sg


class BusyError(sg.SinkgateError):
    """More people ask than the model can answer; nothing was run."""


@dataclass(frozen=True)
class Limits:
    """How many may wait, and for how long. All numbers are ours."""

    places: int = 64  # that wait, of all visitors together
    each: int = 4  # that wait, of one visitor: a page sends one event of a kind at a time
    patience: float = 20.0  # seconds that one waits
    lease: float = 60.0  # seconds after which a turn that was not given back counts as over


@dataclass(eq=False)
class _Ticket:
    visitor: Hashable
    joined: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    thread: int = field(default_factory=get_ident)


class Turnstile:
    """Lets one job through at a time, the visitors in rotation and each one's jobs in their order."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.open = True
        self.observe: Callable[[str, str, float, float], None] = lambda *_: (
            None
        )  # tier, outcome, seconds waited and run
        self._waiting: OrderedDict[Hashable, deque[_Ticket]] = OrderedDict()  # whoever is served next is first
        self._inside: _Ticket | None = None
        self._moved = Condition()

    def __len__(self) -> int:
        """Jobs that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody is inside."""
        return self._inside is None and not self._waiting

    @property
    def stuck(self) -> bool:
        """Whether a job is inside for longer than it may be."""
        inside = self._inside
        return inside is not None and time.monotonic() > inside.begun + self.limits.lease

    @contextmanager
    def turn(self, visitor: Hashable, tier: str = "") -> Iterator[float]:
        """Wait for this visitor's turn and hold it during the block; yields the seconds waited.

        Within a turn, another one of the same thread is the same turn.

        Raises:
            BusyError: there is no place to wait, or the wait was too long, or the turnstile is closed.
        """
        if self._inside is not None and self._inside.thread == get_ident():
            yield 0.0
            return
        came = time.monotonic()
        try:
            ticket = self._enter(visitor)
        except BusyError:
            self.observe(tier, "refused", time.monotonic() - came, 0.0)
            raise
        outcome = "done"
        try:
            yield ticket.begun - came
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            with self._moved:
                if self._inside is ticket:
                    self._inside = None
                    self._moved.notify_all()
            self.observe(tier, outcome, ticket.begun - came, time.monotonic() - ticket.begun)

    def close(self) -> None:
        """Let nobody in any more; those who wait are told so, whoever is inside goes on."""
        with self._moved:
            self.open = False
            self._moved.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait for whoever is inside; whether they left in time."""
        with self._moved:
            return self._moved.wait_for(lambda: self.idle, seconds)

    # --- inside

    def _enter(self, visitor: Hashable) -> _Ticket:
        with self._moved:
            ticket = self._take_place(visitor)
            try:
                self._wait(ticket)
            except BaseException:
                self._leave(ticket)
                raise
            return ticket

    # The rest runs under the condition.

    def _take_place(self, visitor: Hashable) -> _Ticket:
        own = self._waiting.get(visitor, ())
        if len(own) >= self.limits.each:
            raise BusyError(f"You have {len(own)} questions waiting already: let them be answered first.")
        if len(self) >= self.limits.places:
            raise BusyError(
                "Very many people are asking just now, and every place in the queue is taken: try again in a minute."
            )
        ticket = _Ticket(visitor)
        self._waiting.setdefault(visitor, deque()).append(ticket)
        return ticket

    def _wait(self, ticket: _Ticket) -> None:
        deadline = ticket.joined + self.limits.patience
        while self.open and not self._may_enter(ticket):
            now = time.monotonic()
            if now >= deadline:
                raise BusyError(
                    f"So many people are asking just now that your turn did not come within {self.limits.patience:.0f} s: try again."
                )
            ends = self._inside.begun + self.limits.lease if self._inside else deadline
            self._moved.wait(max(0.001, min(deadline, ends) - now))
        if not self.open:
            raise BusyError("This server is about to stop or restart: try again in a minute.")
        self._leave(ticket)
        ticket.begun = time.monotonic()
        self._inside = ticket
        if ticket.visitor in self._waiting:
            self._waiting.move_to_end(ticket.visitor)

    def _may_enter(self, ticket: _Ticket) -> bool:
        inside = self._inside
        if inside is not None and time.monotonic() < inside.begun + self.limits.lease:
            return False
        return next(iter(self._waiting.values()))[0] is ticket

    def _leave(self, ticket: _Ticket) -> None:
        own = self._waiting[ticket.visitor]
        own.remove(ticket)
        if not own:
            del self._waiting[ticket.visitor]
        self._moved.notify_all()
