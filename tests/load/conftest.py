"""Apps as processes of their own, and what they write to stderr."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1] / "browser"))
from visitor import ROOT, START_SECONDS, free_port

import sinkgate as sg

SLOW = """
import runpy, sys, time
sys.path.insert(0, "app")
import sinkgate.streaming as streaming
ask = streaming._StopWhen.__call__
def slowly(self, *given, **more):
    time.sleep(0.15)  # a token
    return ask(self, *given, **more)
streaming._StopWhen.__call__ = slowly
runpy.run_path("app/main.py", run_name="__main__")
"""
BROKEN = """
import runpy, sys
sys.path.insert(0, "app")
import sinkgate as sg
predict = sg.Session.predict
def broken(self, gates=None):
    if self.prompt.question.startswith("Which"):
        raise RuntimeError("CUDA error: secret " + self.prompt.question)
    return predict(self, gates)
sg.Session.predict = broken
runpy.run_path("app/main.py", run_name="__main__")
"""


@dataclass
class App:
    """A running app."""

    process: subprocess.Popen[str]
    address: str
    metrics: str
    log: Path

    def logged(self) -> str:
        """What it wrote to stderr so far."""
        return self.log.read_text(encoding="utf-8")

    def measured(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(self.metrics).text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and not line.startswith("#")
        )

    @property
    def threads(self) -> int:
        return psutil.Process(self.process.pid).num_threads()


@contextmanager
def started(log: Path, code: str | None = None) -> Iterator[App]:
    """The app with logs of every turn and metrics; ``code`` starts it where something is to be different."""
    port, metrics = free_port(), free_port()
    start = ["-c", code] if code else ["app/main.py"]
    options = ["--port", str(port), "--metrics-port", str(metrics), "--log-level", "debug"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *start, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stream, text=True
        )
    app = App(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{app.address}/healthz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"the app did not start: {app.logged()[-2000:]}")
        yield app
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with started(tmp_path_factory.mktemp("app") / "log") as app:
        yield app


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[App]:
    """Takes 0.15 s for a token."""
    with started(tmp_path / "log", SLOW) as app:
        yield app


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[App]:
    """Its model raises at questions that begin with "Which"."""
    with started(tmp_path / "log", BROKEN) as app:
        yield app


@pytest.fixture(scope="session")
def vlm() -> sg.VLM:
    return sg.load("demo")
