"""What an operator sees: JSON lines, Prometheus metrics and a health check. Nothing of what visitors ask, show or are answered.

Metrics are served on a port of their own, to this machine alone.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from pythonjsonlogger.json import JsonFormatter
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .state import Desk

log = logging.getLogger("sinkgate.app")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60)  # bounds of the histograms


def write_logs(level: str) -> None:
    """One JSON object a line on stderr, from this level up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter("{asctime}{levelname}{message}", style="{", rename_fields={"message": "event"}))
    log.handlers, log.propagate = [handler], False
    log.setLevel(level.upper())


def log_unforeseen(error: BaseException) -> None:
    """Where an error came from and of what kind it is; not its message, which may quote a visitor."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = [f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
    log.error("unforeseen", extra={"kind": type(error).__name__, "where": where})


class Monitor:
    """Counts what happens on a desk, and says whether it is well."""

    def __init__(self, desk: Desk, registry: CollectorRegistry = REGISTRY) -> None:
        self.desk, self.registry = desk, registry
        options: dict[str, Any] = {"registry": registry}
        self.waited = Histogram("sinkgate_wait_seconds", "Wait for a turn", ["tier"], buckets=SECONDS, **options)
        self.ran = Histogram("sinkgate_run_seconds", "Work on the model", ["tier"], buckets=SECONDS, **options)
        self.turns = Counter("sinkgate_turns_total", "Turns, by how they ended", ["tier", "outcome"], **options)
        self.refused = Counter("sinkgate_refused_total", "Requests that the guard refused", ["status"], **options)
        for name, about, read in (
            ("sinkgate_waiting", "Jobs that wait for their turn", lambda: len(desk.turns)),
            ("sinkgate_visitors", "Visitors who are remembered", lambda: desk.visitors),
            ("sinkgate_visitors_bytes", "Memory of their pictures and gates", lambda: desk.kept_bytes),
            ("sinkgate_warm_bytes", "Memory of warm prompts", lambda: desk.shelf.nbytes),
        ):
            Gauge(name, about, **options).set_function(read)
        desk.turns.observe = self.observe

    def observe(self, tier: str, outcome: str, waited: float, ran: float) -> None:
        """A turn is over: ``done``, ``refused`` by the turnstile, or the name of what was raised."""
        self.waited.labels(tier).observe(waited)
        if outcome != "refused":
            self.ran.labels(tier).observe(ran)
        self.turns.labels(tier, outcome).inc()
        level = logging.DEBUG if tier == "fast" and outcome == "done" else logging.INFO
        log.log(
            level, "turn", extra={"tier": tier, "outcome": outcome, "waited": round(waited, 4), "ran": round(ran, 4)}
        )

    def refuse(self, status: int) -> None:
        """The guard refused a request."""
        self.refused.labels(status).inc()

    def serve_metrics(self, port: int) -> None:
        """Prometheus's page at this port, for this machine alone.

        Raises:
            OSError: the port is taken.
        """
        start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def health(self) -> Route:
        """``/healthz``: 200 while work gets done, 503 while the server stops or a job holds the model for too long."""

        def healthz(_: Request) -> JSONResponse:
            turns = self.desk.turns
            status = "stopping" if not turns.open else "stuck" if turns.stuck else "ok"
            return JSONResponse({"status": status, "waiting": len(turns)}, 200 if status == "ok" else 503)

        return Route("/healthz", healthz)
