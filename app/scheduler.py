"""Round-robin queue in front of the model: after each job of a client, every other client comes first.

A slot decides the order alone. The model's own lock keeps two calls from running at once, so a slot that is never released
costs time and nothing else.
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
    """The queue is full, or closed, or the wait was too long; nothing was run."""


@dataclass(frozen=True)
class Limits:
    """Length and times of the queue; all chosen by us."""

    queue: int = 64  # jobs that wait, of all clients together
    queue_per_client: int = 4  # jobs that wait, of one client: a page sends one event of a kind at a time
    wait_seconds: float = 20.0  # for one job
    lease_seconds: float = 60.0  # after which a slot that was not released counts as free


@dataclass(eq=False)
class _Ticket:
    client: Hashable
    joined: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    thread: int = field(default_factory=get_ident)


class Scheduler:
    """Run one job at a time: the clients in rotation, each client's jobs in order."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.open = True
        # called with tier, outcome, seconds waited and seconds run
        self.observe: Callable[[str, str, float, float], None] = lambda *_: None
        self._waiting: OrderedDict[Hashable, deque[_Ticket]] = OrderedDict()  # the next client first
        self._running: _Ticket | None = None
        self._changed = Condition()

    def __len__(self) -> int:
        """Return the number of jobs that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def idle(self) -> bool:
        """True where no job waits or runs."""
        return self._running is None and not self._waiting

    @property
    def stuck(self) -> bool:
        """True where a job has run for longer than its lease."""
        running = self._running
        return running is not None and time.monotonic() > running.begun + self.limits.lease_seconds

    @contextmanager
    def slot(self, client: Hashable, tier: str = "") -> Iterator[float]:
        """Wait for a slot of a client and hold it during the block; yields the seconds waited.

        Within a slot, another one of the same thread is the same slot.

        Raises:
            BusyError: the queue is full or closed, or the wait was too long.
        """
        if self._running is not None and self._running.thread == get_ident():
            yield 0.0
            return
        joined = time.monotonic()
        try:
            ticket = self._enter(client)
        except BusyError:
            self.observe(tier, "refused", time.monotonic() - joined, 0.0)
            raise
        outcome = "done"
        try:
            yield ticket.begun - joined
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            with self._changed:
                if self._running is ticket:
                    self._running = None
                    self._changed.notify_all()
            self.observe(tier, outcome, ticket.begun - joined, time.monotonic() - ticket.begun)

    def close(self) -> None:
        """Refuse all jobs that wait, and all later ones; the running one goes on."""
        with self._changed:
            self.open = False
            self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait for the running job; return whether it ended in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.idle, seconds)

    def _enter(self, client: Hashable) -> _Ticket:
        with self._changed:
            ticket = self._join(client)
            try:
                self._wait(ticket)
            except BaseException:
                self._leave(ticket)
                raise
            return ticket

    # The methods below are called with the condition held.

    def _join(self, client: Hashable) -> _Ticket:
        own = self._waiting.get(client, ())
        if len(own) >= self.limits.queue_per_client:
            raise BusyError(f"{len(own)} of your requests are waiting already: wait for their answers first.")
        if len(self) >= self.limits.queue:
            raise BusyError("The server is busy: every place in the queue is taken. Try again in a minute.")
        ticket = _Ticket(client)
        self._waiting.setdefault(client, deque()).append(ticket)
        return ticket

    def _wait(self, ticket: _Ticket) -> None:
        deadline = ticket.joined + self.limits.wait_seconds
        while self.open and not self._may_run(ticket):
            now = time.monotonic()
            if now >= deadline:
                raise BusyError(
                    f"The server is busy: your request did not start within {self.limits.wait_seconds:.0f} s. Try again."
                )
            ends = self._running.begun + self.limits.lease_seconds if self._running else deadline
            self._changed.wait(max(0.001, min(deadline, ends) - now))
        if not self.open:
            raise BusyError("This server is about to stop or restart: try again in a minute.")
        self._leave(ticket)
        ticket.begun = time.monotonic()
        self._running = ticket
        if ticket.client in self._waiting:
            self._waiting.move_to_end(ticket.client)

    def _may_run(self, ticket: _Ticket) -> bool:
        running = self._running
        if running is not None and time.monotonic() < running.begun + self.limits.lease_seconds:
            return False
        return next(iter(self._waiting.values()))[0] is ticket

    def _leave(self, ticket: _Ticket) -> None:
        own = self._waiting[ticket.client]
        own.remove(ticket)
        if not own:
            del self._waiting[ticket.client]
        self._changed.notify_all()
