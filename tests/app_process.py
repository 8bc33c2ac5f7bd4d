"""The app as its users meet it: a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import httpx
import psutil
import pytest

# Jupyter brings it, and jsonschema, which Gradio imports, builds its grammar for 2 s to check IRIs, which nothing here has
sys.modules.setdefault("rfc3987_syntax", None)  # pyright: ignore[reportArgumentType]
ROOT = Path(__file__).parents[1]
START_SECONDS = 600  # a bound for an app that hangs; a busy machine takes minutes
#: Of the app; the first sets variables that the others read.
IMPORTS = ["app.main", "app.backend", "app.gate_library", "app.page", "app.server", "sinkgate.models.loading"]


@dataclass
class App:
    """A running app."""

    process: Fork
    address: str
    metrics: str  # address
    log: Path

    def logged(self) -> str:
        """Return the stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def measured(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(self.metrics, timeout=60).text.splitlines()
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


@contextmanager
def running_app(*options: str, environment: Mapping[str, str] | None = None, code: str = "") -> Iterator[App]:
    """``python app/main.py`` on the small demo model, or another ``--model``; given once it is well, killed at the end where it still runs.

    It is forked off a process that has imported the app, which saves most of a start's time.

    Args:
        options: of the command line.
        environment: variables that the app's process has beside this one's.
        code: Python that the process runs before the app's own.
    """
    port, metrics = free_port(), free_port()
    model = () if "--model" in options else ("--model", "demo-small")
    arguments = ["--port", str(port), "--metrics-port", str(metrics), *model, *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        process = Fork(arguments, log, environment or {}, code)
        app = App(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_well(app.address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the app did not start (exit status {process.poll()}): {app.logged()[-2000:]}")
                time.sleep(0.05)
            yield app
        finally:
            with suppress(psutil.NoSuchProcess):  # tests/load stops one as an operator does
                for fork in psutil.Process(process.pid).children(recursive=True):  # they would outlive it, on ZeroGPU
                    fork.kill()
            process.kill()
            process.wait()


class Fork:
    """An app forked off a process that has imported what it imports."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], code: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, *IMPORTS])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
            patch.setenv("PYTHONWARNINGS", "ignore:resource_tracker")  # of locks that a killed app leaves
            self._process = context.Process(target=serve, args=(list(arguments), log, dict(environment), code))
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it still runs"
        return self._process.exitcode

    def send_signal(self, sig: int, /) -> None:
        os.kill(self.pid, sig)


def serve(arguments: list[str], log: Path, environment: dict[str, str], code: str) -> None:
    """Run the app in this process, with its output in a file."""
    sys.path.insert(0, str(ROOT))  # tests/app is no package of the app
    gc.freeze()  # what was imported before the fork
    with log.open("wb") as stream:
        for output in (1, 2):
            os.dup2(stream.fileno(), output)
    os.chdir(ROOT)
    os.environ.update(environment)
    tempfile.tempdir = None  # read from the environment again
    from app import server

    server.POLL_SECONDS = 0.02  # with its own 0.005, an idle app takes 6 % of a processor
    exec(code, {})
    from app.main import main

    main(arguments)


def is_well(address: str) -> bool:
    """Return whether an app answers there and reports that it is healthy."""
    try:
        with urlopen(f"{address}/healthz", timeout=5) as answer:  # httpx reads certificates for each client, 20 ms
            return answer.status == 200
    except OSError:
        return False


def requests_from_many(client: httpx.Client, address: str, count: int) -> list[int]:
    """So many requests within a minute, under many made-up addresses; their answers' codes."""

    def ask(number: int) -> int:
        return client.head(address, headers={"x-forwarded-for": f"198.51.100.{number % 250}"}).status_code

    with ThreadPoolExecutor(8) as many:  # side by side: they are counted by the minute
        return list(many.map(ask, range(count)))
