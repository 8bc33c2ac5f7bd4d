"""On ZeroGPU the page's work is done in other processes: what comes back is what a session in this one gives, bit by bit."""

from __future__ import annotations

import inspect
import io
import pickle
import threading
from pathlib import Path
from random import Random

import pytest
import torch
from fake_spaces import put_in_place, user

import sinkgate as sg
from app import backend
from app.engine import Engine
from app.gate_library import gates_in
from app.handlers import Handlers
from app.user_session import UserSession
from sinkgate.models.loading import DEMO
from sinkgate.scenes.scene import Scene

QUESTION = "How many objects are there?"
APP = Path(__file__).parents[2] / "app"


@pytest.fixture
def spaces(monkeypatch):
    made_up = put_in_place(monkeypatch)
    from app import backend_zerogpu

    monkeypatch.setattr(backend_zerogpu, "DEVICE", "cpu")
    yield made_up
    made_up.stop()


@pytest.fixture
def far_bench(spaces, demo):
    from app import backend_zerogpu

    return backend_zerogpu.Backend(demo)


@pytest.fixture(scope="module")
def image():
    return Scene.random(Random(71)).render(224)


@pytest.fixture(scope="module")
def gates(demo):
    return sg.Gates.ones(demo).set("v_sink", 0.2, layers=[2])


@pytest.fixture(scope="module")
def here(demo, image):
    near = backend.Backend(demo)
    return near.open(near.prompt(image, QUESTION), "auto")


def far_session(far_bench, image, question=QUESTION):
    return far_bench.open(far_bench.prompt(image, question), "auto")


def updates_of(stream):
    texts = []
    while True:
        try:
            texts.append(next(stream))
        except StopIteration as end:
            return texts, end.value


def assert_same(first: sg.Trace, second: sg.Trace) -> None:
    assert (first.text, first.ids, first.next_token) == (second.text, second.ids, second.next_token)
    for name in ("probabilities", "attention", "positions", "separators"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert [sheet.grid for sheet in first.sheets] == [sheet.grid for sheet in second.sheets]


@pytest.mark.parametrize("keep", [True, False], ids=["one process", "a process a job"])
def test_a_far_session_says_what_a_near_one_says(far_bench, spaces, here, image, gates, keep):
    spaces.keep = keep
    far = far_session(far_bench, image)
    assert torch.equal(far.sinks.v_sink, here.sinks.v_sink) and torch.equal(far.sinks.l_sink, here.sinks.l_sink)
    assert far.sinks.explain(0, 1) == here.sinks.explain(0, 1)
    assert far.prompt.length == here.prompt.length and far.prompt.question == QUESTION
    assert torch.equal(far.prompt.visual, here.prompt.visual)
    for setting in (None, gates):
        assert_same(far.predict(setting), here.predict(setting))
        assert_same(far.answer(setting, max_new_tokens=8), here.answer(setting, max_new_tokens=8))
        texts, trace = updates_of(far.stream(setting, max_new_tokens=8))
        assert_same(trace, here.answer(setting, max_new_tokens=8))
        assert texts[-1] == trace.text
    assert far.resumes == here.resumes
    assert not far_bench._sessions  # nothing is held in this process


def test_learned_gates_read_over_there(far_bench, demo, here, image):
    learned = gates_in(DEMO.parent / "gates", demo)[0]
    assert torch.equal(learned.read(far_session(far_bench, image)).scales, learned.read(here).scales)


def test_a_process_that_lives_on_resumes(far_bench, spaces, demo, image, gates):
    far = far_session(far_bench, image)
    assert spaces.forks == 1
    before = far.layers_run
    far.predict(gates)
    assert far.layers_run - before == len(demo.adapter.all_layers) - 2  # from layer 2 upward
    assert far.nbytes > 0
    spaces.stop()
    far.predict(gates.set("v_sink", 0.5, layers=[2]))
    assert spaces.forks == 2 and far.layers_run - before > len(demo.adapter.all_layers)


def test_the_unchanged_prediction_takes_no_gpu_again(far_bench, spaces, demo, image):
    far = far_session(far_bench, image)
    far.predict()
    far.predict(sg.Gates.ones(demo))
    assert len(spaces.durations) == 1


def test_what_the_unchanged_model_said_is_remembered(far_bench, spaces, here, image, gates):
    first = far_session(far_bench, image)
    updates_of(first.stream(max_new_tokens=8))
    taken = len(spaces.durations)
    second = far_session(far_bench, image.copy())
    texts, trace = updates_of(second.stream(max_new_tokens=8))
    assert len(spaces.durations) == taken and set(texts) == {trace.text}
    assert_same(trace, here.answer(max_new_tokens=8))
    assert (second.nbytes, second.resumes) == (first.nbytes, first.resumes)
    assert_same(second.predict(gates), here.predict(gates))  # what is gated is asked for
    far_session(far_bench, image, "What do you see?")
    far_session(far_bench, image.transpose(0))
    far_bench.open(far_bench.prompt(image, QUESTION), "attention")
    assert len(spaces.durations) == taken + 4  # three other prompts


def test_an_answer_that_was_cut_is_not_remembered(far_bench, spaces, image, monkeypatch):
    far = far_session(far_bench, image, "What do you see?")
    with monkeypatch.context() as patched:
        patched.setattr(far_bench, "time_to_run", lambda passes: 0.0)
        short = far.answer(max_new_tokens=32)
    assert far.answer(max_new_tokens=32).text.startswith(short.text) and len(spaces.durations) == 3


def test_the_memory_is_bounded(spaces):
    from app import backend_zerogpu

    memory = backend_zerogpu.LRUCache(2)
    for key in "abac":
        memory.get(key)
        memory.put(key, key.upper())
    assert [memory.get(key) for key in "abc"] == ["A", None, "C"]


def test_only_text_and_bytes_cross(far_bench, spaces, image, gates):
    far = far_session(far_bench, image)
    updates_of(far.stream(gates, max_new_tokens=8))
    assert {type(value) for value in spaces.crossed} == {str, bytes}


def test_tensors_leave_the_gpu(spaces, monkeypatch):
    from app import backend_zerogpu

    class OnGPU(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]
        moved = 0

        def cpu(self):
            OnGPU.moved += 1
            return torch.ones(2)

    with io.BytesIO(backend_zerogpu._packed({"deep": [torch.ones(2).as_subclass(OnGPU)]})) as buffer:
        assert torch.equal(pickle.load(buffer)["deep"][0], torch.ones(2)) and OnGPU.moved == 1


def test_the_time_asked_for_grows_with_the_work_and_the_model(far_bench, spaces, image):
    far = far_session(far_bench, image)
    far_bench.gigabytes = 14.0  # half-precision weights of 7 billion parameters
    far.answer(max_new_tokens=4)
    far.answer(max_new_tokens=32)  # remembered answers have their own length
    opening, short, long = spaces.durations
    assert opening < short < long <= 60  # seconds; spaces' own default is 60
    assert all(type(seconds) is int for seconds in spaces.durations)


def test_the_user_is_known_to_the_scheduler(far_bench, spaces, image):
    user.set("somebody")
    far = far_session(far_bench, image)
    updates_of(far.stream(max_new_tokens=4))  # which runs in a thread of its own
    assert spaces.users == ["somebody", "somebody"]


def test_stopping_gives_the_text_so_far_and_frees_the_process(far_bench, spaces, here, image):
    whole = here.answer(max_new_tokens=32).text
    far = far_session(far_bench, image, "What do you see?")
    texts, trace = updates_of(far.stream(max_new_tokens=32, stop=lambda: True))
    assert len(texts) <= 1 or trace.text == texts[-1]
    assert_same(far.predict(), far_session(far_bench, image, "What do you see?").predict())
    stream = far.stream(max_new_tokens=32)
    next(stream)
    stream.close()
    assert spaces.forks == 1 and far_session(far_bench, image).answer(max_new_tokens=32).text == whole


def test_the_turn_is_held_while_the_gpu_writes(far_bench, image):
    far, held = far_session(far_bench, image), []

    class Turn:
        def __enter__(self):
            held.append(threading.get_ident())

        def __exit__(self, *error):
            held.append(threading.get_ident())

    updates_of(far.stream(max_new_tokens=4, within=Turn()))  # type: ignore[arg-type]
    assert len(held) == 2 and len({*held, threading.get_ident()}) == 2


def test_what_is_wrong_is_said_in_our_words(far_bench, spaces, demo, image):
    from app import backend_zerogpu

    with pytest.raises(sg.PromptError, match="the question is empty"):
        far_session(far_bench, image, "  ")
    far = far_session(far_bench, image)
    with pytest.raises(sg.GateError, match="layers"):
        far.predict(sg.Gates(torch.zeros(7, 3)))
    with pytest.raises(RuntimeError, match="TypeError on the GPU"):
        far._run(backend.LocalSession.predict, "a question of somebody's", "and more")
    spaces.quota = 1
    with pytest.raises(backend_zerogpu.GPUError, match="no GPU for this at present: You have exceeded your quota"):
        far.predict(sg.Gates.ones(demo).set("rest", 0.5))


def test_only_so_many_prompts_are_held(far_bench, image):
    from app import backend_zerogpu

    sessions = [
        far_session(far_bench, image, f"Is there a circle {'?' * n}")
        for n in range(1, backend_zerogpu.MAX_SESSIONS + 2)
    ]
    before = sessions[0].layers_run
    sessions[0].predict(sg.Gates.ones(far_bench.vlm).set("rest", 0.9, layers=[3]))
    assert sessions[0].layers_run - before == len(far_bench.vlm.adapter.all_layers)  # made again
    before = sessions[-1].layers_run
    sessions[-1].predict(sg.Gates.ones(far_bench.vlm).set("rest", 0.9, layers=[3]))
    assert sessions[-1].layers_run - before == len(far_bench.vlm.adapter.all_layers) - 3  # held, and resumed


def test_a_desk_works_there_as_here(far_bench, demo, image, gates):
    learned = gates_in(DEMO.parent / "gates", demo)
    frames = []
    for engine in (Engine(demo, learned), Engine(demo, learned, far_bench)):
        session = UserSession()
        engine.ask(session, QUESTION, sg.Gates.ones(demo), image)
        last = [*engine.stream_answers(session, gates)][-1]
        engine.set_learned(session, engine.learned[0])
        assert session.state and session.state.rho is not None
        trace, sinks = engine.answer("a program", image, QUESTION, gates)
        frames.append(
            (last.unchanged, last.gated, session.state.rho.scales.tolist(), trace.text, int(sinks.v_sink.sum()))
        )
    assert frames[0] == frames[1]


def test_far_has_the_face_of_a_warm_session(far_bench, image):
    far = far_session(far_bench, image)
    for name in ("predict", "answer", "stream", "read", "drop"):
        near = inspect.signature(getattr(backend.LocalSession, name)).parameters
        assert inspect.signature(getattr(type(far), name)).parameters.keys() <= near.keys(), name
    for name in ("vlm", "prompt", "sinks", "resumes", "nbytes", "layers_run"):
        assert getattr(far, name) is not None


def test_the_page_follows_no_moving_hand_there(far_bench, demo):
    from app.page import build_page

    def moving(engine):
        config = build_page(engine).get_config_file()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        targets = [target for wired in config["dependencies"] for target in wired["targets"]]
        calls = {
            (part["props"].get("elem_id"), name)
            for part in config["components"]
            for name in part["props"].get("server_fns", ())
        }
        return calls | {(names.get(part), event) for part, event in targets if names.get(part) in ("mixer", "composer")}

    settled = {("mixer", "commit"), ("composer", "commit"), ("mixer", "overdue")}
    assert moving(Engine(demo)) == settled | {("mixer", "set_gates"), ("composer", "input")}
    assert moving(Engine(demo, backend=far_bench)) == settled


def test_rows_and_patches_are_measured_over_there(far_bench, spaces, here, image, gates):
    far = far_session(far_bench, image)
    for setting in (None, gates):
        assert torch.equal(far.rows([4, 9], setting, layers=[3]), here.rows([4, 9], setting, layers=[3]))
        first, second = far.patch(0, 2, setting), here.patch(0, 2, setting)
        assert first.tokens == second.tokens
        for name in ("before", "after", "received_before", "received_after"):
            assert torch.allclose(getattr(first, name), getattr(second, name), atol=1e-6), name
        assert dict(first.words.words(0, 2)) == pytest.approx(dict(second.words.words(0, 2)))


def test_tokens_are_measured_there_when_they_are_chosen(far_bench, spaces, demo, image):
    """Naming the tokens takes no job; choosing one does, and a refused job is a sentence beside the maps."""
    handlers = Handlers(Engine(demo, backend=far_bench))
    session = UserSession()
    handlers.engine.ask(session, QUESTION, sg.Gates.ones(demo), image)
    jobs = spaces.forks
    value = handlers.inspect(session, {"layer": 2})["tokens"]
    assert [token["text"] for token in value["tokens"] if token["kind"] == "question"] == [
        "how",
        "many",
        "objects",
        "are",
        "there",
    ]
    assert spaces.forks == jobs and not any("shares" in token for token in value["tokens"]) and value["patch"] is None
    position = next(token["position"] for token in value["tokens"] if token["text"] == "objects")
    frame = handlers.set_lens(session, {"layer": 2, "position": position})["maps"]
    near = Handlers(Engine(demo))
    other = UserSession()
    near.engine.ask(other, QUESTION, sg.Gates.ones(demo), image)
    assert frame["before"] == pytest.approx(
        near.set_lens(other, {"layer": 2, "position": position})["maps"]["before"], abs=1e-6
    )
    assert near.inspect(other, {"layer": 2})["tokens"]["tokens"][-1]["shares"]
    far_bench.run = refuse
    frame = handlers.set_lens(session, {"layer": 2, "position": position + 1})["maps"]
    assert frame["lens"]["position"] is None and frame["note"] == "No GPU for this."


def refuse(*_, **__):
    raise sg.SinkgateError("no GPU for this")


def test_nothing_else_imports_it():
    importers = [
        path.name
        for path in APP.glob("*.py")
        if "backend_zerogpu import" in path.read_text() and path.name != "backend_zerogpu.py"
    ]
    assert importers == ["main.py"]
