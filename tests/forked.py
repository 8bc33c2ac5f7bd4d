"""Commands in processes forked off a test, which has imported already what they import."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

processes = multiprocessing.get_context("fork")


@dataclass
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A command in a process of its own, as if its program had been started anew.

    Args:
        program: runs with ``arguments`` in `sys.argv`, its own name first.
        environment: variables beside those of the test.
    """

    def __init__(self, program: Callable[[], object], *arguments: object, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        target = (program, list(map(str, arguments)), environment, self._outputs)
        self.process = processes.Process(target=_run, args=target)
        self.process.start()

    def wait(self) -> Done:
        """Return the exit code and the output when it has ended."""
        self.process.join()
        assert self.process.exitcode is not None
        stdout, stderr = (path.read_text(encoding="utf-8") for path in self._outputs)
        self._folder.cleanup()
        return Done(self.process.exitcode, stdout, stderr)


def _run(program: Callable[[], object], arguments: list[str], environment: dict[str, str], outputs: list[Path]) -> None:
    for number, path in enumerate(outputs, 1):
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.environ.update(environment)
    sys.argv = arguments
    torch.set_num_threads(1)  # replaces the parent's pool of threads, before threads that load a model do so at once
    program()
