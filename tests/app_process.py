"""The app as its users meet it: a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
START_SECONDS = 600  # a bound for an app that hangs; a busy machine takes minutes
ALTERED = """import runpy, sys
sys.path.insert(0, ".")
{code}
runpy.run_path("app/main.py", run_name="__main__")
"""


@dataclass
class App:
    """A running app."""

    process: subprocess.Popen[bytes]
    address: str
    metrics: str  # address
    log: Path

    def logged(self) -> str:
        """Return the stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def measured(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(self.metrics).text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and not line.startswith("#")
        )

    @property
    def threads(self) -> int:
        return psutil.Process(self.process.pid).num_threads()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def altered(code: str) -> tuple[str, str]:
    """A ``start`` of `running_app` that runs some code before the app's own."""
    return "-c", ALTERED.format(code=code)


@contextmanager
def running_app(
    *options: str, start: Sequence[str] = ("app/main.py",), environment: Mapping[str, str] | None = None
) -> Iterator[App]:
    """``python app/main.py``; given once it is well, killed at the end where it still runs."""
    port, metrics = free_port(), free_port()
    command = [sys.executable, *start, "--port", str(port), "--metrics-port", str(metrics), *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=stream, stderr=stream
            )
        app = App(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_well(app.address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the app did not start: {app.logged()[-2000:]}")
                time.sleep(0.05)
            yield app
        finally:
            process.kill()  # tests/load stops one as an operator does
            process.wait()


def is_well(address: str) -> bool:
    """Return whether an app answers there and reports that it is healthy."""
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def requests_from_many(client: httpx.Client, address: str, count: int) -> list[int]:
    """So many requests within a minute, under many made-up addresses; their answers' codes."""

    def ask(number: int) -> int:
        return client.head(address, headers={"x-forwarded-for": f"198.51.100.{number % 250}"}).status_code

    with ThreadPoolExecutor(8) as many:  # side by side: they are counted by the minute
        return list(many.map(ask, range(count)))
