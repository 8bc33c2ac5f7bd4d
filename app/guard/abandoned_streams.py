"""Answers that nobody fetches. Gradio keeps what was put out for a visitor until it is read; here it is let go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gradio.queueing import Queue


class Unread:
    """Ends what was asked in sessions to which nobody listens.

    Args:
        seconds: from asking, or from the end of listening, until all of a session's events are forgotten.
        most: messages that may lie unread in one session; more may not be asked before they are fetched.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self.seconds, self.most = seconds, most
        self._listeners: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._callers: dict[
            str, str
        ] = {}  # session of an API call -> address of the client, until its answer is fetched

    def calls(self, address: str) -> int:
        """Return the number of API calls of an address that run, wait or were not fetched."""
        return sum(caller == address for caller in self._callers.values())

    def called(self, session: str, address: str) -> None:
        """Count an API call, which has a session of its own, for the address of its client."""
        self._callers[session] = address

    def too_many(self, queue: Queue, session: str) -> bool:
        """Whether a visitor asks and asks, and fetches nothing."""
        waiting = queue.pending_messages_per_session.get(session)
        return waiting is not None and waiting.qsize() > self.most

    def asked(self, queue: Queue, session: str) -> None:
        """Something was asked in this session."""
        if not self._listeners[session]:
            del self._listeners[session]
            self._wind(queue, session)

    @contextmanager
    def listening(self, queue: Queue, session: str) -> Iterator[None]:
        """Somebody fetches what is put out in this session."""
        self._listeners[session] += 1
        self._stop(session)
        try:
            yield
        finally:
            self._listeners[session] -= 1
            if not self._listeners[session]:
                del self._listeners[session]
                self._wind(queue, session)
            if not queue.pending_event_ids_session.get(session):
                self._callers.pop(session, None)

    def _wind(self, queue: Queue, session: str) -> None:
        self._stop(session)
        run = asyncio.get_running_loop()
        self._timers[session] = run.call_later(self.seconds, lambda: run.create_task(self._forget(queue, session)))

    def _stop(self, session: str) -> None:
        if timer := self._timers.pop(session, None):
            timer.cancel()

    async def _forget(self, queue: Queue, session: str) -> None:
        self._timers.pop(session, None)
        self._callers.pop(session, None)
        await queue.clean_events(session_hash=session)
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)
