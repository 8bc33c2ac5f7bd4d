"""Memory that many warm sessions share."""

from __future__ import annotations

import threading
import weakref

from sinkgate.models.session import Session


class SessionCache:
    """Warm sessions within a budget of memory: the least recently used drop their states first, and run in full the next time."""

    def __init__(self, budget: int = 2 << 30) -> None:
        self.budget = budget  # bytes
        self._recent: dict[int, weakref.ref[Session]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory that the sessions hold together, in bytes."""
        with self._lock:
            return sum(session.nbytes for session in self._alive())

    def use(self, session: Session) -> None:
        """Note that a session was just used; drops others where the budget is spent."""
        with self._lock:
            self._recent.pop(id(session), None)
            self._recent[id(session)] = weakref.ref(session)
            warm = self._alive()
            held = sum(other.nbytes for other in warm)
            for other in warm[:-1]:
                if held <= self.budget:
                    break
                held -= other.nbytes
                other.drop()

    def _alive(self) -> list[Session]:
        """Return the sessions that are still referenced, the one used last at the end."""
        self._recent = {key: session for key, session in self._recent.items() if session() is not None}
        return [session for reference in self._recent.values() if (session := reference()) is not None]
