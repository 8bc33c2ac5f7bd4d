"""The page's handlers without a browser: whatever is sent to them, they answer with a sentence and keep what they had."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from app_process import running_app
from PIL import Image

import sinkgate as sg
from app import engine, pictures, view_model
from app.backend import LocalSession
from app.engine import MAX_NEW_TOKENS, Deadline, Engine
from app.handlers import Handlers
from app.scheduler import Limits
from app.share_links import STAND_IN
from app.user_session import UserSession
from sinkgate.data import photographs

LENS = {"layer": 2, "head": None, "row": 0, "hide": False}


def unpacked(link: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(link + "=" * (-len(link) % 4)))


@pytest.fixture
def handlers(vlm: sg.VLM) -> Handlers:
    return Handlers(Engine(vlm))


def setting(vlm: sg.VLM, v_sink: float = 1.0, turn: int | None = None) -> dict[str, Any]:
    value: dict[str, Any] = {"v_sink": [v_sink] * vlm.num_layers, "rest": [1.0] * vlm.num_layers}
    return value if turn is None else {**value, "revision": turn}


@pytest.fixture
def session(handlers: Handlers, vlm: sg.VLM) -> UserSession:
    return handlers.begin(setting(vlm), LENS)["session"]


@pytest.mark.parametrize(
    "value",
    [
        None, [], "text", {}, {"v_sink": 1, "rest": 2}, {"v_sink": ["a"], "rest": [1]}, {"v_sink": [], "rest": []},
        {"v_sink": [1.0] * 3, "rest": [1.0] * 3}, {"v_sink": [10**400] * 8, "rest": [1] * 8},
        *({"v_sink": [bad] + [1.0] * 7, "rest": [1.0] * 8} for bad in (math.nan, math.inf, -0.1, 5.0, None, "1x")),
    ],
)  # fmt: skip
def test_bad_settings_get_a_sentence(handlers: Handlers, session: UserSession, value: Any) -> None:
    case = session.state
    update = handlers.set_gates(session, value, LENS)
    assert update["status"]["tone"] == "warning" and "Unexpected" not in update["status"]["text"]
    assert list(update) == ["status"] and session.state is case
    updates = list(handlers.stream_answers(session, value))
    assert len(updates) == 1 and updates[0]["status"]["tone"] == "warning"


@pytest.mark.parametrize(
    "lens",
    [
        None,
        [],
        {"layer": 10**9},
        {"layer": "x", "row": -5, "head": 99},
        {"layer": math.nan},
        {"hide": "yes"},
        {"sheet": 1},
        {"position": 10**7, "patch": -1},
        {"position": 3, "patch": 63, "heads": 1, "scale": "huge"},  # a token of the picture is no query
    ],
)
def test_any_lens_can_be_looked_through(handlers: Handlers, session: UserSession, vlm: sg.VLM, lens: Any) -> None:
    frame = handlers.set_lens(session, lens)["maps"]
    assert 0 <= frame["lens"]["layer"] < vlm.num_layers and frame["lens"]["hide"] is False
    assert frame["lens"]["sheet"] == 0 and frame["lens"]["position"] is None
    assert handlers.inspect(session, lens)["tokens"]["tokens"]


def test_a_forgotten_page_says_so(handlers: Handlers, vlm: sg.VLM) -> None:
    answers = handlers.stream_answers(None, setting(vlm))
    for update in (handlers.set_gates(None, setting(vlm), LENS), handlers.set_lens(None, LENS), *answers):
        assert "expired" in update["status"]["text"]


def test_a_view_opened_on_the_page_counts_on(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    """The next choice of a map is newer than all before, although the link's lens has no number."""
    handlers.set_lens(session, {**LENS, "layer": 4, "revision": 7})
    link = handlers.share(session, {**LENS, "layer": 3})["share"]["link"]
    values = handlers.open_view(session, {"choice": {"link": link}})
    lens = values["lens"]
    assert lens["layer"] == 3 and values["maps"]["lens"]["layer"] == 3
    frame = handlers.set_lens(session, {**lens, "layer": 5, "revision": lens["revision"] + 1})["maps"]
    assert frame["lens"]["layer"] == 5


def test_a_model_for_photographs_opens_with_photographs(vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows all words, as real tokenizers do. A link opens the photograph again, and the code names it."""
    monkeypatch.setattr(vlm, "unknown_words", lambda _: [])
    handlers = Handlers(Engine(vlm))
    opened = handlers.begin(setting(vlm), LENS)
    session, shown, question = opened["session"], opened["picture"], opened["question"]
    cat, astronaut = (sg.open_image(photographs()[name]) for name in ("cat", "astronaut"))
    assert session.photograph == "cat" and shown.tobytes() == cat.tobytes() and question == "What is in the picture?"
    chosen = {"choice": {"picture": 2}}
    frame = handlers.pick_example(session, chosen, setting(vlm, 0.5), LENS)["maps"]
    assert session.photograph == "astronaut" and session.image is not None
    assert session.image.tobytes() == astronaut.tobytes() and session.scene is None
    taken = handlers.share(session, LENS)["share"]
    assert "photographs()['astronaut']" in taken["python"] and taken["lacks"] == ""
    values = handlers.load_page(taken["link"], setting(vlm), LENS)
    assert values["session"].photograph == "astronaut" and values["status"]["text"] == ""
    assert values["picture"].tobytes() == astronaut.tobytes()
    assert values["maps"]["after"] == frame["after"] and values["maps"]["here"] == taken["link"]
    handlers.new_scene(session, setting(vlm), LENS)
    assert session.photograph is None and session.scene is not None
    assert "photograph" not in unpacked(handlers.share(session, LENS)["share"]["link"])


def test_a_link_with_an_unknown_photograph_opens_a_scene(handlers: Handlers, vlm: sg.VLM) -> None:
    content = {"v": 1, "model": vlm.name, "question": "How many objects are there?", "photograph": "../secret"}
    link = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    session = handlers.load_page(link, setting(vlm), LENS)["session"]
    assert session.photograph is None and session.scene is not None and session.notice.startswith(STAND_IN)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pictures_that_browsers_open_are_read(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(path := tmp_path / "picture", kind)
    assert pictures.open_picture(str(path)).size == (40, 30)


def test_an_older_setting_never_replaces_a_newer_one(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    handlers.set_gates(session, setting(vlm, 0.3, turn=7), LENS)
    assert handlers.set_gates(session, setting(vlm, 0.9, turn=6), LENS) == {}
    assert list(handlers.stream_answers(session, setting(vlm, 0.9, turn=6))) == []
    assert session.state is not None and session.state.gates.scales[0, 0].item() == pytest.approx(0.3)


def test_a_last_tick_behind_the_answers_keeps_the_link(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    moving, late = (handlers.set_gates(session, setting(vlm, 0.4, turn=turn), LENS)["maps"] for turn in (1, 2))
    assert "here" not in moving and late["here"] == handlers.frame(session, LENS)["here"]


def test_a_tick_names_its_session_by_the_key_of_the_frame(handlers: Handlers, session: UserSession) -> None:
    key = handlers.frame(session, LENS)["session"]
    assert handlers.engine.session(key) is session and len(key) > 30


def test_a_late_tick_keeps_the_newest_lens(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    handlers.set_lens(session, {**LENS, "layer": 4, "revision": 2})
    frame = handlers.set_gates(session, setting(vlm, 0.4, turn=1), {**LENS, "layer": 5, "revision": 1})["maps"]
    assert frame["lens"]["layer"] == 4 and session.lens["layer"] == 4
    frame = handlers.set_gates(session, setting(vlm, 0.5, turn=2), {**LENS, "layer": 6, "revision": 3})["maps"]
    assert frame["lens"]["layer"] == 6


def test_a_frame_with_an_older_lens_is_an_older_frame(
    handlers: Handlers, session: UserSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lens moves while a frame is drawn, however long that takes: the page keeps the frame with the newest lens."""
    drawn, frames = view_model._map, []

    def moved_meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(view_model, "_map", drawn)
        frames.append(handlers.set_lens(session, {**LENS, "layer": 5, "revision": 2})["maps"])
        return drawn(*arguments)

    monkeypatch.setattr(view_model, "_map", moved_meanwhile)
    frames.append(handlers.frame(session, {**LENS, "revision": 1}))
    assert max(frames, key=lambda frame: frame["tick"])["lens"]["layer"] == 5


def test_frames_after_a_restart_of_the_machine_are_newer(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = handlers.frame(session, LENS)["tick"]
    monkeypatch.setattr(time, "monotonic_ns", lambda: 0)  # the machine's own clock begins anew
    assert handlers.frame(handlers.begin(setting(vlm), LENS)["session"], LENS)["tick"] > before


def test_a_tick_that_waits_while_its_fader_comes_to_rest_brings_its_frame(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    scheduler = handlers.engine.scheduler
    with ThreadPoolExecutor(1) as threads:
        with scheduler.slot("another client"):
            tick = threads.submit(handlers.set_gates, session, setting(vlm, 0.5, turn=1), LENS)
            while not len(scheduler):
                time.sleep(0.001)
            assert session.accepts(2)  # the event of its rest
        assert tick.result()["maps"]["gates"]["v_sink"] == [0.5] * vlm.num_layers


def test_the_answers_bring_a_frame_before_they_are_done_only_where_no_tick_has(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interactive, scale in ((True, 0.3), (False, 0.4)):
        monkeypatch.setattr(handlers.engine.backend, "interactive", interactive)
        updates = list(handlers.stream_answers(session, setting(vlm, scale)))
        assert ["maps" in update for update in updates] == [not interactive, *[False] * (len(updates) - 2), True]


def test_an_answer_stops_when_something_newer_begins(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    answers = handlers.stream_answers(session, setting(vlm, 0.3))
    next(answers)
    handlers.set_gates(session, setting(vlm, 0.6), LENS)
    rest = list(answers)
    assert not any(update["answers"].get("done") for update in rest)
    assert session.state is not None and not session.state.gated_done
    final = list(handlers.stream_answers(session, setting(vlm, 0.6)))[-1]
    assert final["answers"]["done"] and final["answers"]["sequence"] == session.sequence


def test_an_answer_that_was_interrupted_is_never_kept_as_whole(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fader moves away while the answer is generated, and back before the interruption is noticed."""
    handlers.ask(session, "Describe the picture.", setting(vlm), LENS)
    list(handlers.stream_answers(session, setting(vlm)))
    session.state.unchanged_done = False
    gates = handlers.engine.read_gates(setting(vlm, 0.4))
    stream, moved_away = LocalSession.stream, sg.Gates.ones(vlm)

    def interrupted(self: LocalSession, *arguments: Any, stop: Any, **options: Any) -> Any:
        tokens = 0

        def after_two_tokens() -> bool:
            nonlocal tokens
            tokens += 1
            session.wanted = moved_away if tokens == 2 else gates
            return stop()

        trace = yield from stream(self, *arguments, stop=after_two_tokens, **options)
        session.wanted = gates
        return trace

    monkeypatch.setattr(LocalSession, "stream", interrupted)
    for side in ("unchanged_done", "gated_done"):
        assert not any(update["answers"].get("done") for update in handlers.stream_answers(session, setting(vlm, 0.4)))
        assert not getattr(session.state, side)
        session.state.unchanged_done = True  # so that the next answer to be generated is the gated one
    monkeypatch.setattr(LocalSession, "stream", stream)
    final = list(handlers.stream_answers(session, setting(vlm, 0.4)))[-1]["answers"]
    expected = vlm.answer(session.state.prompt, gates, session.state.sinks, max_new_tokens=MAX_NEW_TOKENS)
    assert final["done"] and [word for word, _ in final["gated"]] == expected.text.split()
    assert len(expected.tokens) > 2


def test_what_is_written_is_drawn_through_the_newest_lens(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    answers = handlers.stream_answers(session, setting(vlm, 0.3))
    next(answers)
    handlers.set_lens(session, {**LENS, "layer": 5})
    assert list(answers)[-1]["maps"]["lens"]["layer"] == 5


def test_a_frame_shows_one_setting_though_the_faders_move_while_it_is_drawn(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = handlers.engine.read_gates(setting(vlm, 0.3))
    before = handlers.frame(session, LENS)
    drawn = view_model._map

    def moved_meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(view_model, "_map", drawn)
        handlers.engine.set_gates(session, newer)
        return drawn(*arguments)

    monkeypatch.setattr(view_model, "_map", moved_meanwhile)
    frame = handlers.frame(session, LENS)
    assert all(frame[name] == before[name] for name in ("gates", "identity", "sequence", "after", "words", "here"))
    assert handlers.frame(session, LENS)["sequence"] > before["sequence"]


def test_an_unlikely_token_is_not_shown_as_impossible(handlers: Handlers, session: UserSession) -> None:
    assert session.state is not None
    gated = session.state.gated
    unlikely = gated.probabilities.clone()
    unlikely[gated.probabilities.topk(2).indices[1]] = 2e-7
    session.state.gated = replace(gated, probabilities=unlikely)
    assert 2e-7 in [after for _, _, after in handlers.frame(session, LENS)["words"]]


def test_the_rows_of_a_prompt_token_belong_to_the_faders_that_are_shown(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.state is not None
    lens = {**LENS, "position": session.state.prompt.length - 2}
    newer = handlers.engine.read_gates(setting(vlm, 0.0))
    look = handlers.engine.look

    def moved_behind(session: UserSession, position: int | None) -> None:
        look(session, position)
        monkeypatch.setattr(handlers.engine, "look", look)
        handlers.engine.set_gates(session, newer)

    monkeypatch.setattr(handlers.engine, "look", moved_behind)
    frame = handlers.frame(session, lens)
    assert frame["gates"]["v_sink"] == [0.0] * vlm.num_layers and frame["lens"]["position"] == lens["position"]
    assert frame["after"] != frame["before"] and frame["after"] == handlers.frame(session, lens)["after"]


def test_both_tiers_at_once_settle_on_one_state(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    updates: list[Any] = []
    slow = threading.Thread(target=lambda: updates.extend(handlers.stream_answers(session, setting(vlm, 0.2))))
    slow.start()
    handlers.set_gates(session, setting(vlm, 0.2), LENS)
    slow.join(timeout=60)
    assert updates[-1]["answers"]["done"]
    assert session.state is not None and session.state.gated_done


def test_one_setting_at_a_time_runs_on_the_model(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, running, most = LocalSession.predict, [], []

    def counted(self: LocalSession, gates: sg.Gates | None = None) -> sg.Trace:
        running.append(gates)
        most.append(len(running))
        time.sleep(0.01)  # long enough to be overtaken
        trace = predict(self, gates)
        running.pop()
        return trace

    monkeypatch.setattr(LocalSession, "predict", counted)
    other = handlers.begin(setting(vlm), LENS)["session"]
    with ThreadPoolExecutor(4) as hands:
        for number in range(1, 9):
            hands.submit(handlers.set_gates, (session, other)[number % 2], setting(vlm, number / 10), LENS)
    assert len(most) >= 8 and max(most) == 1


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many, and no more, stay in memory."""
    monkeypatch.setattr(engine, "MAX_QUESTION_STATES", 3)
    return 3


def test_memory_is_bounded_and_what_was_dropped_comes_back(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, states: int
) -> None:
    before = handlers.set_lens(session, LENS)["maps"]["before"]
    for _ in range(states):
        handlers.begin(setting(vlm), LENS)
    assert session.state is None
    frame = handlers.set_gates(session, setting(vlm), LENS)["maps"]
    assert frame["before"] == pytest.approx(before, abs=1e-6)


def test_what_was_dropped_comes_back_under_its_gates_when_it_is_looked_at(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, states: int
) -> None:
    handlers.set_gates(session, setting(vlm, 0.3), LENS)
    for _ in range(states):
        handlers.begin(setting(vlm), LENS)
    assert session.state is None
    assert handlers.set_lens(session, LENS)["maps"]["gates"]["v_sink"][0] == 0.3


def test_whoever_moves_faders_is_not_idle(handlers: Handlers, session: UserSession, vlm: sg.VLM, states: int) -> None:
    for _ in range(states):
        handlers.set_gates(session, setting(vlm), LENS)
        handlers.begin(setting(vlm), LENS)
    assert session.state is not None


@pytest.mark.parametrize("bound", ["MAX_QUESTION_STATES", "MAX_SESSIONS"])
def test_nobody_is_forgotten_while_being_answered(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(engine, bound, 1)
    answers = handlers.stream_answers(session, setting(vlm, 0.3))
    next(answers)
    for _ in range(2):
        handlers.begin(setting(vlm), LENS)
    assert list(answers)[-1]["answers"]["done"] and session.state is not None
    handlers.begin(setting(vlm), LENS)
    assert session.state is None


@pytest.mark.parametrize(("bound", "least"), [("MAX_SESSIONS", 3), ("MAX_SESSION_BYTES", 2_500_000)])
def test_the_idlest_users_are_forgotten_and_told_so(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch, bound: str, least: int
) -> None:
    monkeypatch.setattr(engine, bound, least)
    for _ in range(3):
        handlers.begin(setting(vlm), LENS)
    assert handlers.engine.session(session.key) is None and handlers.engine.session([]) is None
    assert session.nbytes == 0 and handlers.engine.sessions == 3 and handlers.engine.session_bytes < 2_500_000
    assert "expired" in handlers.set_gates(session, setting(vlm, 0.5), LENS)["status"]["text"]
    assert "maps" in handlers.new_scene(session, setting(vlm), LENS)  # a click, and it goes on


def test_too_large_a_picture_is_made_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 2000), "red").save(path := tmp_path / "large.png")
    image = pictures.open_picture(str(path))
    assert image.size == (2000, 1000) and image.width * image.height <= pictures.MAX_PIXELS
    photograph = Image.new("RGB", (8064, 6048), "red")
    exif = photograph.getexif()
    exif[0x0112] = 6  # a phone held upright
    photograph.save(path := tmp_path / "phone.jpg", exif=exif)
    assert pictures.open_picture(str(path)).size == (1224, 1632)


def test_an_answer_that_takes_too_long_is_stopped_and_says_so(
    handlers: Handlers, session: UserSession, vlm: sg.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "__call__", lambda self: setattr(self, "passed", True) or True)
    handlers.ask(session, "What do you see?", setting(vlm), LENS)
    *_, last = handlers.stream_answers(session, setting(vlm))
    assert last["answers"]["done"] and len(last["answers"]["unchanged"]) == 1
    assert "stopped after 20 seconds" in last["status"]["text"]


def test_a_user_who_meets_a_full_queue_keeps_the_page(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    handlers.engine.scheduler.limits = Limits(queue=0)
    case = session.state
    updates = [
        handlers.set_gates(session, setting(vlm, 0.5), LENS),
        handlers.ask(session, "How many circles are there?", setting(vlm), LENS),
        handlers.begin(setting(vlm), LENS),
        handlers.new_scene(session, setting(vlm), LENS),
        next(handlers.stream_answers(session, setting(vlm))),
    ]
    assert all("every place in the queue is taken" in update["status"]["text"] for update in updates)
    assert session.state is case
    handlers.engine.scheduler.limits = Limits()
    assert "maps" in handlers.set_gates(session, setting(vlm, 0.5), LENS)


def test_a_fader_runs_only_the_layers_from_its_own_upward(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    for layer in (6, 2):
        handlers.set_gates(session, setting(vlm), LENS)
        gates = sg.Gates.ones(vlm).set("v_sink", 0.3, layer)
        value = {"v_sink": gates.scales[:, 0].tolist(), "rest": gates.scales[:, 2].tolist(), "revision": 100 - layer}
        frame = handlers.set_gates(session, value, LENS)["maps"]
        assert frame["cost"].startswith(f"recomputed layers {layer}-{vlm.num_layers - 1} · ")


def test_warm_prompts_share_a_budget(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    cache = handlers.engine.cache
    assert session.state is not None and session.state.prompt_session.nbytes > 0
    cache.budget = session.state.prompt_session.nbytes
    handlers.begin(setting(vlm), LENS)
    assert session.state.prompt_session.nbytes == 0, "the newer user's prompt is held"
    frame = handlers.set_gates(session, setting(vlm, 0.3), LENS)["maps"]
    assert frame["identity"] is False and cache.nbytes <= cache.budget


def test_calls_from_one_address_share_one_limit(
    handlers: Handlers, vlm: sg.VLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the endpoint has a session of its own, so that a session is no client."""
    clients: list[Any] = []
    slot = handlers.engine.scheduler.slot
    monkeypatch.setattr(
        handlers.engine.scheduler, "slot", lambda client, tier="": clients.append(client) or slot(client, tier)
    )
    for number, host in enumerate(("203.0.113.7", "203.0.113.7", "2001:db8::1:2", "2001:db8::5:6", "203.0.113.8")):
        request = gr.Request(session_hash=f"call {number}", client={"host": host, "port": number})
        handlers.answer({"path": str(picture)}, "How many objects are there?", "", request)
    assert clients == ["203.0.113.7", "203.0.113.7", "2001:db8::/64", "2001:db8::/64", "203.0.113.8"]


def test_the_endpoint_for_programs(address: str, vlm: sg.VLM, picture: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    endpoints: Any = client.view_api(return_format="dict")
    assert list(endpoints["named_endpoints"]) == ["/answer"]  # the page's own are private
    gates = sg.Gates.ones(vlm).set("v_sink", 0.0)
    question = "What color is the circle?"
    reply = client.predict(handle_file(picture), question, gates.to_json(), api_name="/answer")
    prompt = vlm.prompt(sg.open_image(picture), question)
    assert reply["text"] == vlm.answer(prompt, gates, sg.find_sinks(vlm, prompt)).text
    wrong = sg.Gates.from_lists(v_sink=[1.0] * 3, rest=[1.0] * 3).to_json()
    for arguments in ((question, wrong), ("", ""), (question, "no json")):
        with pytest.raises(AppError) as error:
            client.predict(handle_file(picture), *arguments, api_name="/answer")
        assert len(str(error.value)) > 15 and "Traceback" not in str(error.value)


def test_a_port_that_is_taken_is_one_sentence(address: str) -> None:
    sentence = rf"exit status 1\)(.|\n)*{address} cannot be served"
    with pytest.raises(RuntimeError, match=sentence) as stopped, running_app("--port", address.rsplit(":", 1)[1]):
        pass
    assert "Traceback" not in str(stopped.value)
