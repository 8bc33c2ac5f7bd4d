"""A `spaces` of our own: its GPU functions run in forked processes, and everything crosses pickled, as on ZeroGPU.

``put_in_place`` makes it what ``import spaces`` finds. As there, a process may serve the next job too (``keep``), generators lose what
they return, errors other than Gradio's lose their words, and whoever closes a generator stops the process's.
"""

from __future__ import annotations

import inspect
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import gradio as gr

FORK = multiprocessing.get_context("fork")
visitor: ContextVar[str] = ContextVar("visitor", default="nobody")  # `spaces` reads Gradio's request in this way


class Spaces:
    """What was asked of the scheduler, and how it behaves."""

    def __init__(self) -> None:
        self.keep = True  # whether a process serves the next job too
        self.quota = float("inf")  # seconds left
        self.asked: list[float] = []
        self.visitors: list[str] = []
        self.forks = 0
        self.process: Any = None
        self.crossed: list[Any] = []  # what came back

    def gpu(
        self, task: Callable[..., Iterator[Any]], *, duration: Callable[..., float]
    ) -> Callable[..., Iterator[Any]]:
        assert inspect.isgeneratorfunction(task)

        def handler(*arguments: Any) -> Iterator[Any]:
            seconds = duration(*arguments)
            self.asked.append(seconds)
            self.visitors.append(visitor.get())
            if seconds > self.quota:
                raise gr.Error(f"You have exceeded your quota ({seconds}s requested vs. {self.quota}s left).")
            jobs, said, closed = self.worker(task)
            closed.clear()
            jobs.put(arguments)
            try:
                while True:
                    kind, value = said.get()
                    if kind == "end":
                        break
                    if kind == "error":
                        raise gr.Error(value)
                    self.crossed.append(value)
                    try:
                        yield value
                    except GeneratorExit:
                        closed.set()
                        while said.get()[0] == "said":
                            pass
                        raise
            finally:
                if not self.keep:
                    self.stop()

        return handler

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


def serve(task: Callable[..., Iterator[Any]], jobs: Any, said: Any, closed: Any) -> None:
    def run(arguments: tuple[Any, ...]) -> None:
        words = task(*arguments)
        try:
            for word in words:
                if closed.is_set():
                    words.close()  # type: ignore[attr-defined]
                    break
                said.put(("said", word))
            said.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - as `spaces` hands it on
            said.put(("error", type(error).__name__))

    while True:
        arguments = jobs.get()
        with ThreadPoolExecutor(1) as executor:
            executor.submit(run, arguments).result()


def put_in_place(monkeypatch: Any) -> Spaces:
    made_up = ModuleType("spaces")
    made_up.__dict__["GPU"] = (spaces := Spaces()).gpu
    monkeypatch.setitem(sys.modules, "spaces", made_up)
    monkeypatch.delitem(sys.modules, "zerogpu", raising=False)
    return spaces
