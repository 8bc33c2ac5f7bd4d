"""Logs as JSON lines, Prometheus metrics and a health check, without any user content.

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

from .engine import Engine

log = logging.getLogger("sinkgate.app")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60)  # bounds of the histograms


def write_logs(level: str) -> None:
    """Write one JSON object a line to stderr, from this level up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter("{asctime}{levelname}{message}", style="{", rename_fields={"message": "event"}))
    log.handlers, log.propagate = [handler], False
    log.setLevel(level.upper())


def log_unexpected(error: BaseException) -> None:
    """Log place and type of an error, without its message, which may quote user input."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = [f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
    log.error("unexpected error", extra={"kind": type(error).__name__, "where": where})


class Metrics:
    """Counters of one engine, and its health check."""

    def __init__(self, engine: Engine, registry: CollectorRegistry = REGISTRY) -> None:
        self.engine, self.registry = engine, registry
        options: dict[str, Any] = {"registry": registry}
        self.waited = Histogram(
            "sinkgate_wait_seconds", "Seconds that jobs waited", ["tier"], buckets=SECONDS, **options
        )
        self.ran = Histogram("sinkgate_run_seconds", "Seconds that jobs ran", ["tier"], buckets=SECONDS, **options)
        self.jobs = Counter("sinkgate_jobs_total", "Jobs, by outcome", ["tier", "outcome"], **options)
        self.refused = Counter("sinkgate_refused_total", "Requests that the guard refused", ["status"], **options)
        for name, about, read in (
            ("sinkgate_waiting", "Jobs that wait", lambda: len(engine.scheduler)),
            ("sinkgate_sessions", "Sessions in memory", lambda: engine.sessions),
            ("sinkgate_session_bytes", "Memory of pictures and uploaded gates", lambda: engine.session_bytes),
            ("sinkgate_cache_bytes", "Memory of key-value caches", lambda: engine.cache.nbytes),
        ):
            Gauge(name, about, **options).set_function(read)
        engine.scheduler.observe = self.observe

    def observe(self, tier: str, outcome: str, waited: float, ran: float) -> None:
        """Record a job.

        Args:
            tier: ``ask``, ``fast``, ``slow`` or ``api``.
            outcome: ``done``, ``refused`` by the scheduler, or the name of an exception.
            waited: seconds in the queue.
            ran: seconds on the model.
        """
        self.waited.labels(tier).observe(waited)
        if outcome != "refused":
            self.ran.labels(tier).observe(ran)
        self.jobs.labels(tier, outcome).inc()
        level = logging.DEBUG if tier == "fast" and outcome == "done" else logging.INFO
        log.log(
            level, "job", extra={"tier": tier, "outcome": outcome, "waited": round(waited, 4), "ran": round(ran, 4)}
        )

    def refuse(self, status: int) -> None:
        """Count a request that the guard refused, by its HTTP status."""
        self.refused.labels(status).inc()

    def serve_metrics(self, port: int) -> None:
        """Serve Prometheus metrics at this port, to this machine alone.

        Raises:
            OSError: the port is taken.
        """
        start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def health(self) -> Route:
        """Return ``/healthz``: 200 while jobs run, 503 while the server stops or a job has run for too long."""

        def healthz(_: Request) -> JSONResponse:
            scheduler = self.engine.scheduler
            status = "stopping" if not scheduler.open else "stuck" if scheduler.stuck else "ok"
            return JSONResponse({"status": status, "waiting": len(scheduler)}, 200 if status == "ok" else 503)

        return Route("/healthz", healthz)
