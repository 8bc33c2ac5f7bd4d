"""Work for a hand that is faster than the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Newest:
    """Work done in a thread; of what waits for it only the newest is kept, all between is passed over."""

    def __init__(self, work: Callable[[Any], None]) -> None:
        self._work, self._busy = work, False
        self._waiting: list[Any] = []
        self._changed = threading.Condition()

    def put(self, wish: Any) -> None:
        """Have ``work(wish)`` done next, in place of whatever waits."""
        with self._changed:
            self._waiting = [wish]
            self._changed.notify_all()
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._run, daemon=True).start()

    def comes(self, seconds: float = 0) -> bool:
        """Whether something newer waits, or comes within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._waiting), seconds)

    def settle(self, seconds: float | None = None) -> bool:
        """Wait until all is done; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._busy = False
                    self._changed.notify_all()
                    return
                wish = self._waiting.pop()
            self._work(wish)
