"""A worker thread that drops all requests but the newest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class LatestOnly:
    """Run ``work`` in a thread; of waiting requests only the newest is kept."""

    def __init__(self, work: Callable[[Any], None]) -> None:
        self._work, self._busy = work, False
        self._waiting: list[Any] = []
        self._changed = threading.Condition()

    def put(self, request: Any) -> None:
        """Run ``work(request)`` next, in place of any waiting request."""
        with self._changed:
            self._waiting = [request]
            self._changed.notify_all()
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._run, daemon=True).start()

    def comes(self, seconds: float = 0) -> bool:
        """Return whether a newer request waits, or arrives within ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._waiting), seconds)

    def settle(self, seconds: float | None = None) -> bool:
        """Wait until no request is left; return False after ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._busy = False
                    self._changed.notify_all()
                    return
                request = self._waiting.pop()
            self._work(request)
