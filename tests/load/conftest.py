"""Apps whose every job is logged; one is slow and has a fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_process import App, running_app

sys.path.append(str(Path(__file__).parents[1] / "browser"))

from load_clients import demo

import sinkgate as sg

EVERY_JOB = ("--log-level", "debug")
ALTERED = """
import time
import sinkgate as sg
import sinkgate.models.generation as streaming
ask = streaming._StopWhen.__call__
def slowly(self, *given, **more):
    time.sleep(0.15)  # a token
    return ask(self, *given, **more)
streaming._StopWhen.__call__ = slowly
predict = sg.Session.predict
def broken(self, gates=None):
    if self.prompt.question.startswith("Which"):
        raise RuntimeError("CUDA error: secret " + self.prompt.question)
    return predict(self, gates)
sg.Session.predict = broken
"""


@pytest.fixture(scope="session")
def app() -> Iterator[App]:
    with running_app(*EVERY_JOB) as app:
        yield app


@pytest.fixture(scope="module")
def altered_app() -> Iterator[App]:
    """An app that takes 0.15 s for a token, and whose model raises at questions that begin with "Which"."""
    with running_app(*EVERY_JOB, code=ALTERED) as app:
        yield app


@pytest.fixture(scope="session")
def vlm() -> sg.VLM:
    return demo()
