"""Event handlers of the page. Parameters, and the names in their results, are ids of components.

No handler raises, which is why each catches everything: an error becomes one sentence in the status line, and everything
else stays as it was.
"""

from __future__ import annotations

from .gates import GateHandlers
from .questions import QuestionHandlers
from .views import ViewHandlers


class Handlers(QuestionHandlers, GateHandlers, ViewHandlers):
    """The page's event handlers, bound to one engine."""
