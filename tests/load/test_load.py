"""Several users at once: each gets the replies to its own scene, question and gates."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from load_clients import Notes, PageClient, errands

import sinkgate as sg

if TYPE_CHECKING:
    from app_process import App

USERS, ERRANDS, VISITS = 3, 2, 2
COMPARED = 2  # replies to an errand: first words, and both answers


def test_each_user_gets_the_replies_to_its_own_errands(app: App, vlm: sg.VLM) -> None:
    notes = Notes()
    users = [
        PageClient(app.address, errands(vlm, number, ERRANDS), notes, threading.Event(), number)
        for number in range(USERS)
    ]
    with ThreadPoolExecutor(USERS) as pool:
        for _ in range(VISITS):
            list(pool.map(PageClient.visit, users))
    assert notes.wrong == [] and not notes.refused
    assert notes.right == USERS * ERRANDS * VISITS * COMPARED
