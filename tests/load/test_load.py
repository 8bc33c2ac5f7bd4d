"""A small crowd, briefly: nobody gets anybody else's answer, and leaving frees what was held."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from load_clients import Notes, PageClient, errands

import sinkgate as sg

if TYPE_CHECKING:
    from app_process import App


def test_nobody_gets_an_answer_that_is_not_theirs(app: App, vlm: sg.VLM) -> None:
    notes, stop = Notes(), threading.Event()
    crowd = [PageClient(app.address, errands(vlm, number, 2), notes, stop, number) for number in range(4)]
    for user in crowd:
        user.start()
    stop.wait(8)
    stop.set()
    for user in crowd:
        user.join(60)
        assert not user.is_alive()
    assert notes.wrong == [] and not notes.refused
    assert notes.right >= 8
