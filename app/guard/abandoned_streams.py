"""Drop events that no client reads: Gradio keeps them for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gradio.queueing import Queue


class AbandonedStreams:
    """Events of sessions, dropped when no client reads them.

    Args:
        seconds: from an event, or from the end of a stream, until all events of a session are dropped.
        limit: unread messages of one session, from which on new events are refused.
    """

    def __init__(self, seconds: float, limit: int) -> None:
        self.seconds, self.limit = seconds, limit
        self._listeners: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        # session of an API call -> address of the client, until its answer is fetched
        self._callers: dict[str, str] = {}

    def calls(self, address: str) -> int:
        """Return the number of API calls of an address that run, wait or were not fetched."""
        return sum(caller == address for caller in self._callers.values())

    def called(self, session: str, address: str) -> None:
        """Count an API call, which has a session of its own, for the address of its client."""
        self._callers[session] = address

    def too_many(self, queue: Queue, session: str) -> bool:
        """Return whether a session has more unread messages than allowed."""
        waiting = queue.pending_messages_per_session.get(session)
        return waiting is not None and waiting.qsize() > self.limit

    def joined(self, queue: Queue, session: str) -> None:
        """Note a new event of a session."""
        if not self._listeners[session]:
            del self._listeners[session]
            self._start(queue, session)

    @contextmanager
    def listening(self, queue: Queue, session: str) -> Iterator[None]:
        """Hold the events of a session while a client reads them."""
        self._listeners[session] += 1
        self._stop(session)
        try:
            yield
        finally:
            self._listeners[session] -= 1
            if not self._listeners[session]:
                del self._listeners[session]
                self._start(queue, session)
            if not queue.pending_event_ids_session.get(session):
                self._callers.pop(session, None)

    def _start(self, queue: Queue, session: str) -> None:
        self._stop(session)
        run = asyncio.get_running_loop()
        self._timers[session] = run.call_later(self.seconds, lambda: run.create_task(self._drop(queue, session)))

    def _stop(self, session: str) -> None:
        if timer := self._timers.pop(session, None):
            timer.cancel()

    async def _drop(self, queue: Queue, session: str) -> None:
        self._timers.pop(session, None)
        self._callers.pop(session, None)
        await queue.clean_events(session_hash=session)
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)
