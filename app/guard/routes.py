"""The allow-list: every path that the page and API clients use, with the check of its body."""

from __future__ import annotations

from dataclasses import dataclass

from ..guard import payload
from .payload import SESSION, Reader


@dataclass(frozen=True)
class Route:
    """An allowed request: ``kind`` selects the rate limit, ``read`` checks the body."""

    methods: tuple[str, ...]
    path: str  # a regular expression
    kind: str
    read: Reader | None = None


CALLS = (payload.call, payload.call_by_name)
QUEUED = (payload.event, *CALLS)
EVENT = r"[0-9a-f]{1,64}"
ROUTES = (
    Route(("GET", "HEAD"), r"/", "page"),
    Route(("GET",), r"/config|/gradio_api/(info|openapi\.json)", "page"),
    Route(("GET",), r"/(theme\.css|favicon\.ico|robots\.txt|manifest\.json)", "other"),
    Route(("GET",), r"/gradio_api/(startup-events|queue/status|app_id|upload_progress)", "other"),
    Route(("GET",), r"/(assets|static)(/\w[\w.-]{0,120}){1,6}", "other"),
    Route(("GET",), rf"/gradio_api/heartbeat/{SESSION}", "event"),
    Route(("GET",), r"/gradio_api/queue/data", "event"),
    Route(("GET",), rf"/gradio_api/call/(v2/)?answer/{EVENT}", "event"),
    Route(("POST",), r"/gradio_api/queue/join", "event", payload.event),
    Route(("POST",), r"/gradio_api/component_server/", "event", payload.server_call),
    Route(("POST",), r"/gradio_api/cancel", "event", payload.cancel),
    Route(("POST",), r"/gradio_api/reset", "event", payload.reset),
    Route(("POST",), r"/gradio_api/call/answer", "event", payload.call),
    Route(("POST",), r"/gradio_api/call/v2/answer", "event", payload.call_by_name),
    Route(("POST",), r"/gradio_api/upload", "upload"),
)
HEALTH = Route(("GET", "HEAD"), r"/healthz", "health")
MCP = (Route(("POST",), r"/gradio_api/mcp", "event", payload.message),)


def uploads() -> Route:
    """Return the route of uploaded files, whose folder Gradio reads from the environment."""
    return Route(("GET",), rf"/gradio_api/file={payload.stored()}", "other")
