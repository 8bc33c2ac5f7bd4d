"""A `spaces` of our own: its GPU functions run in forked processes, and everything crosses pickled, as on ZeroGPU.

``put_in_place`` makes it what ``import spaces`` finds. As there, a process may serve the next job too (``keep``), generators lose what
they return, errors other than Gradio's lose their words, and closing a generator stops the process's.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import gradio as gr

FORK = multiprocessing.get_context("fork")
user: ContextVar[str] = ContextVar("user", default="nobody")  # `spaces` reads Gradio's request in this way


class Spaces:
    """Record of the scheduler's calls, and its behaviour."""

    def __init__(self) -> None:
        self.keep = True  # whether a process serves the next job too
        self.quota = float("inf")  # seconds left
        self.durations: list[float] = []
        self.users: list[str] = []
        self.forks = 0
        self.process: Any = None
        self.crossed: list[Any] = []  # what came back
        self.alone = threading.Lock()  # one process, one job

    def gpu(
        self, task: Callable[..., Iterator[Any]], *, duration: Callable[..., float]
    ) -> Callable[..., Iterator[Any]]:
        assert inspect.isgeneratorfunction(task)

        def handler(*arguments: Any) -> Iterator[Any]:
            seconds = duration(*arguments)
            self.durations.append(seconds)
            self.users.append(user.get())
            if seconds > self.quota:
                raise gr.Error(f"You have exceeded your quota ({seconds}s requested vs. {self.quota}s left).")
            with self.alone:
                yield from self.run(task, arguments)

        return handler

    def run(self, task: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> Iterator[Any]:
        jobs, replies, closed = self.worker(task)
        closed.clear()
        jobs.put(arguments)
        try:
            while True:
                kind, value = replies.get()
                if kind == "end":
                    break
                if kind == "error":
                    raise gr.Error(value)
                self.crossed.append(value)
                try:
                    yield value
                except GeneratorExit:
                    closed.set()
                    while replies.get()[0] == "said":
                        pass
                    raise
        finally:
            if not self.keep:
                self.stop()

    def worker(self, task: Callable[..., Iterator[Any]]) -> tuple[Any, Any, Any]:
        if self.process is None:
            queues = FORK.SimpleQueue(), FORK.SimpleQueue(), FORK.Event()
            child = FORK.Process(target=serve, args=(task, *queues), daemon=True)
            child.start()
            self.forks += 1
            self.process, self.queues = child, queues
        return self.queues

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join()
            self.process = None


def serve(task: Callable[..., Iterator[Any]], jobs: Any, replies: Any, closed: Any) -> None:
    def run(arguments: tuple[Any, ...]) -> None:
        words = task(*arguments)
        try:
            for word in words:
                if closed.is_set():
                    words.close()  # type: ignore[attr-defined]
                    break
                replies.put(("said", word))
            replies.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - as `spaces` hands it on
            replies.put(("error", type(error).__name__))

    close_connections()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what the app does when it is told to stop
    while True:
        arguments = jobs.get()
        with ThreadPoolExecutor(1) as executor:
            executor.submit(run, arguments).result()


def close_connections() -> None:
    """Users' connections belong to the server: what it closes stays open to them as long as a fork has it."""
    for number in range(3, 4096):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.close(number)


def made_up(spaces: Spaces) -> ModuleType:
    """Return the module that ``import spaces`` gives then."""
    module = ModuleType("spaces")
    module.__dict__["GPU"] = spaces.gpu
    return module


def put_in_place(monkeypatch: Any) -> Spaces:
    monkeypatch.setitem(sys.modules, "spaces", made_up(spaces := Spaces()))
    monkeypatch.delitem(sys.modules, "app.backend_zerogpu", raising=False)
    monkeypatch.delattr(
        sys.modules.get("app", object()), "backend_zerogpu", raising=False
    )  # imported anew for this one
    return spaces
