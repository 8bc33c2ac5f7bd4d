"""Several users at once, each with replies of its own; health, metrics, logs; and what users see when something goes wrong."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from load_clients import Notes, PageClient, errands
from raw_client import RawClient

import sinkgate as sg

if TYPE_CHECKING:
    from app_process import App

LONG = "What do you see?"  # is answered with a dozen words
USERS, ERRANDS = 3, 2
COMPARED = 2  # replies to an errand: first words, and both answers


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def client(app: App):
    client = RawClient(app.address)
    yield client
    client.close()


def ask(client: RawClient, question: str) -> dict:
    client.values["question"] = question
    return client.send("ask", "click")


def test_healthy_and_measured(app: App, client: RawClient) -> None:
    assert httpx.get(f"{app.address}/healthz", timeout=60).json() == {"status": "ok", "waiting": 0}
    jobs = app.measured("sinkgate_jobs_total")
    client.send("", "load")
    client.follow("", "load")
    assert app.measured("sinkgate_jobs_total") > jobs
    for tier in ("ask", "slow"):
        assert app.measured(f'sinkgate_run_seconds_count{{tier="{tier}"}}') >= 1
    assert app.measured("sinkgate_sessions ") >= 1 and app.measured("sinkgate_cache_bytes ") > 0
    assert app.measured("process_resident_memory_bytes") > 1e8
    assert httpx.get(f"{app.address}/metrics", timeout=60).status_code == 404  # not for users
    assert app.measured('sinkgate_refused_total{status="404"}') == 1


def test_an_app_at_rest_hardly_wakes(app: App) -> None:
    """Gradio looked at its empty queue a thousand times a second."""

    def wakes() -> int:
        wakes = 0
        for thread in Path(f"/proc/{app.process.pid}/task").glob("*/status"):
            with suppress(OSError):  # it has ended
                wakes += int(thread.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
        return wakes

    before = wakes()
    time.sleep(1)
    assert wakes() - before < 500


def test_logs_are_json_and_hold_nothing_that_users_wrote(app: App, client: RawClient) -> None:
    client.send("", "load")
    ask(client, "Is there a magenta hexagon-7731?")
    ask(client, "x" * 600)  # too long
    client.send("gates-apply", "click", **{"gates-text": '{"secret": "hexagon-7731"'})
    lines = [json.loads(line) for line in app.logged().splitlines() if line.startswith("{")]
    assert lines and all({"asctime", "levelname", "event"} <= line.keys() for line in lines)
    assert "hexagon" not in app.logged() and "x" * 50 not in app.logged()
    assert {line["tier"] for line in lines if line["event"] == "job"} >= {"ask"}


def test_each_user_gets_the_replies_to_its_own_errands(app: App, vlm: sg.VLM) -> None:
    notes = Notes()
    users = [
        PageClient(app.address, errands(vlm, number, ERRANDS), notes, threading.Event(), number)
        for number in range(USERS)
    ]
    with ThreadPoolExecutor(USERS) as pool:
        list(pool.map(PageClient.visit, users))
    assert notes.wrong == [] and not notes.refused
    assert notes.right == USERS * ERRANDS * COMPARED


def test_a_model_that_raises_is_one_sentence_and_the_next_question_works(altered_app: App) -> None:
    client = RawClient(altered_app.address)
    client.send("", "load")
    reply = ask(client, "Which shapes are there?")
    assert reply["status"] == {
        "text": "Unexpected error: the page keeps its last result. Try again.",
        "tone": "warning",
    }
    assert "maps" in ask(client, "How many objects are there?")
    assert altered_app.measured('sinkgate_jobs_total{outcome="RuntimeError"') == 1
    (line,) = [json.loads(line) for line in altered_app.logged().splitlines() if '"unexpected error"' in line]
    assert line["kind"] == "RuntimeError" and any("broken" in where for where in line["where"])
    assert "secret" not in altered_app.logged()
    client.close()


def test_a_tab_that_closes_in_mid_answer_frees_the_model(altered_app: App) -> None:
    leaving, staying = RawClient(altered_app.address), RawClient(altered_app.address)
    for client in (leaving, staying):
        client.send("", "load")
    ask(leaving, LONG)
    stream = leaving.stream("mixer", "commit")
    next(stream)
    threads = altered_app.threads
    stream.close()
    leaving.close()
    assert "maps" in ask(staying, "How many objects are there?")
    wait_for(lambda: altered_app.threads <= threads)  # what wrote the answer has ended
    assert httpx.get(f"{altered_app.address}/healthz", timeout=60).json()["status"] == "ok"
    staying.close()


def test_sigterm_in_mid_answer_finishes_it_and_tells_those_who_wait(altered_app: App) -> None:
    answered, waiting = RawClient(altered_app.address), RawClient(altered_app.address)
    for client in (answered, waiting):
        client.send("", "load")
        ask(client, LONG)
    stream = answered.stream("mixer", "commit")
    next(stream)
    messages: list[dict] = []
    thread = threading.Thread(target=lambda: messages.append(ask(waiting, "How many objects are there?")))
    thread.start()
    wait_for(lambda: altered_app.measured("sinkgate_waiting ") == 1)
    altered_app.process.send_signal(signal.SIGTERM)
    wait_for(lambda: httpx.get(f"{altered_app.address}/healthz", timeout=60).status_code == 503)
    *_, last = stream
    assert last["answers"]["done"] and last["answers"]["unchanged"]
    thread.join(60)
    assert "about to stop or restart" in messages[0]["status"]["text"]
    assert altered_app.process.wait(60) == 0
    for client in (answered, waiting):
        client.close()
