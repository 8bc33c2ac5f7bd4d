"""LearnedGates gates on the page: they read each question and move the faders, until a hand or a switch says otherwise."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from app_process import running_app
from page_user import Tab
from test_live import LENS, setting

import sinkgate as sg
from app.engine import MAX_UPLOADED_GATES, Engine
from app.examples import FIRST_QUESTION, FIRST_SCENE, random_scene
from app.gate_library import CONFIG, WEIGHTS, LearnedGates, gates_in, uploaded_gates, weight_bytes
from app.handlers import Handlers
from app.handlers.values import MANUAL_SETTING
from app.user_session import OWN_REVISION_STEP, UserSession
from sinkgate.methods.lsg import LSG
from sinkgate.scenes.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OTHER_QUESTION = "What is the color of the background?"
RHO = "\N{GREEK SMALL LETTER RHO}"
CLOSE = 1e-4  # the page is sent four digits


def some_gates(vlm: sg.VLM, layers: list[int], seed: int = 5, **options: Any) -> LSG:
    """Gates that say something else to every question."""
    lsg = LSG.for_vlm(vlm, layers, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in lsg.gates.values():
            gate.down.weight.copy_(0.12 * torch.randn(gate.down.weight.shape, generator=generator))
            gate.up.weight.copy_(0.3 * torch.randn(gate.up.weight.shape, generator=generator))
    return lsg


@pytest.fixture(scope="session")
def shipped(vlm: sg.VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of gate folders, one of which is broken."""
    folder = tmp_path_factory.mktemp("gates")
    some_gates(vlm, [2], seed=3).save_pretrained(folder / "layer-2")
    some_gates(vlm, [2, 4, 5]).save_pretrained(folder / "stack")
    shutil.copytree(folder / "stack", folder / "torn")
    (folder / "torn" / WEIGHTS).write_bytes(b"torn")
    return folder


@pytest.fixture(scope="module")
def address(browser: Browser, shipped: Path) -> Iterator[str]:
    """The app with those gates, instead of the one that the other tests share."""
    with running_app("--gates", str(shipped)) as app:
        yield app.address


def expected_gates(
    vlm: sg.VLM, lsg: LSG, question: str = FIRST_QUESTION, scene: Scene | None = None
) -> dict[str, list[float]]:
    """Compute the faders without the page."""
    prompt = vlm.prompt((scene or random_scene(FIRST_SCENE)).render(448), question)
    scales = lsg.read(vlm, prompt).scales
    groups = {"v_sink": scales[:, 0], "l_sink": scales[:, 1], "rest": scales[:, 2]}
    return {group: column.tolist() for group, column in groups.items()}


def assert_stands(tab: Tab, frame: dict[str, Any], expected: dict[str, list[float]]) -> None:
    """Frame and faders are where these gates put them."""
    for group, scales in expected.items():
        assert frame["gates"].get(group, frame["gates"]["rest"]) == pytest.approx(scales, abs=CLOSE)
        assert [tab.scale(layer, group) for layer in range(len(scales))] == pytest.approx(scales, abs=CLOSE)


def choose(tab: Tab, name: str) -> dict[str, Any]:
    tab.page.locator("#learned select").select_option(name)
    wanted = "null" if name == "off" else json.dumps(name)
    tab.wait(f"(document.querySelector('#maps [data-tick]').frame.learned?.name ?? null) === {wanted}")
    return tab.settle()


def switch(tab: Tab, layer: int, key: str = "") -> dict[str, Any]:
    """Press the mark on a strip, by mouse or by key."""
    mark = tab.page.locator(f"#mixer .strip[data-layer='{layer}'] .rho")
    pressed = mark.get_attribute("aria-pressed")
    if key:
        mark.focus()
        tab.page.keyboard.press(key)
    else:
        mark.click()
    tab.wait(
        "([layer, old]) => document.querySelector(`#mixer .strip[data-layer='${layer}'] .rho`).ariaPressed !== old",
        arg=[layer, pressed],
    )
    return tab.settle()


def upload(tab: Tab, *files: Path) -> str:
    """Choose files for the gates; gives what the status line then says."""
    with tab.page.expect_file_chooser() as chooser:
        tab.page.locator("button#learned-upload").click()
    return tab.says(lambda: chooser.value.set_files(list(files)))


def files(folder: Path) -> list[Path]:
    return [folder / CONFIG, folder / WEIGHTS]


def test_learned_gates_move_the_faders_for_the_question_at_hand(tab: Tab, vlm: sg.VLM, shipped: Path) -> None:
    options = tab.page.locator("#learned option").all_text_contents()
    assert options == ["off", "layer-2", "stack"]  # the broken one is left out
    assert tab.page.locator("#mixer .rho:visible").count() == 0
    lsg = LSG.from_pretrained(shipped / "stack")
    first = expected_gates(vlm, lsg)
    frame = choose(tab, "stack")
    assert_stands(tab, frame, first)
    prompt = vlm.prompt(random_scene(FIRST_SCENE).render(448), FIRST_QUESTION)
    trace = vlm.answer(prompt, sg.Gates.from_lists(**frame["gates"]), sg.find_sinks(vlm, prompt))
    assert tab.answers()[1] == trace.text
    shown = {word: gated for word, _, gated in frame["words"]}
    word, probability = trace.next_token[0]
    assert shown[word] == pytest.approx(probability, abs=CLOSE)
    assert "2, 4-5" in tab.status() and "parameters" in (tab.page.locator("#learned .about").text_content() or "")
    marks = tab.page.locator("#mixer .rho:visible").all_text_contents()
    assert marks == [f"{RHO} {first['v_sink'][layer]:.2f}" for layer in (2, 4, 5)]

    frame = tab.after(lambda: tab.ask(OTHER_QUESTION))
    second = expected_gates(vlm, lsg, OTHER_QUESTION)
    assert max(abs(a - b) for a, b in zip(first["v_sink"], second["v_sink"], strict=True)) > 0.02  # could have failed
    assert_stands(tab, frame, second)
    assert_stands(
        tab,
        choose(tab, "layer-2"),
        expected_gates(vlm, LSG.from_pretrained(shipped / "layer-2"), OTHER_QUESTION),
    )
    assert choose(tab, "off")["identity"] and "back at 1" in tab.status()
    assert tab.page.locator("#mixer .rho:visible").count() == 0
    assert tab.after(lambda: tab.ask(FIRST_QUESTION))["identity"]


def test_a_layer_is_switched_off_and_the_gates_above_read_again(tab: Tab, vlm: sg.VLM, shipped: Path) -> None:
    lsg = LSG.from_pretrained(shipped / "stack")
    whole = choose(tab, "stack")
    frame = switch(tab, 2)
    expected = expected_gates(vlm, lsg.only([4, 5]))
    assert_stands(tab, frame, expected)
    assert frame["gates"]["v_sink"][2] == 1 and "Off, at 1: layer 2" in tab.status()
    assert abs(expected["v_sink"][4] - whole["gates"]["v_sink"][4]) > CLOSE  # the gate above did read something else
    frame = tab.after(lambda: tab.ask(OTHER_QUESTION))  # it stays off
    assert_stands(tab, frame, expected_gates(vlm, lsg.only([4, 5]), OTHER_QUESTION))
    switch(tab, 4, key="Enter")
    switch(tab, 5, key=" ")
    assert tab.frame()["identity"] and "Every layer of these gates is off" in tab.status()
    for layer in (2, 4, 5):
        frame = switch(tab, layer)
    assert_stands(tab, frame, expected_gates(vlm, lsg, OTHER_QUESTION))
    choose(tab, "off")


def test_an_edited_scene_and_a_new_one_are_read_again(tab: Tab, vlm: sg.VLM, shipped: Path) -> None:
    lsg = LSG.from_pretrained(shipped / "stack")
    before = choose(tab, "stack")
    tab.compose()
    tab.thing(0).focus()
    frame = tab.after(lambda: [tab.page.keyboard.press("ArrowUp") for _ in range(4)])
    scene = Scene.from_dict(tab.scene())
    assert_stands(tab, frame, expected_gates(vlm, lsg, FIRST_QUESTION, scene))
    assert frame["gates"] != before["gates"]
    frame = tab.after(lambda: tab.page.locator("#questions .gallery button").nth(3).click())
    question = tab.page.locator("#question textarea").input_value()
    assert_stands(tab, frame, expected_gates(vlm, lsg, question, Scene.from_dict(tab.scene())))


def test_the_hand_wins_until_the_next_question(tab: Tab, vlm: sg.VLM, shipped: Path) -> None:
    lsg = LSG.from_pretrained(shipped / "stack")
    rho = choose(tab, "stack")["learned"]["rho"]
    box = tab.fader(4).bounding_box()
    tab.drag(4, 1.7)
    frame = tab.settle()
    assert tab.fader(4).bounding_box() == box  # no sentence moves the page under the hand
    assert frame["gates"]["v_sink"][4] == pytest.approx(1.7, abs=0.05) and tab.status() == MANUAL_SETTING
    assert frame["learned"]["rho"] == rho  # what the gates said stays on the strips
    assert tab.page.locator("#mixer .strip[data-layer='4'] .rho").text_content() == f"{RHO} {rho['v_sink'][4]:.2f}"
    frame = tab.after(lambda: tab.ask(OTHER_QUESTION))
    assert_stands(tab, frame, expected_gates(vlm, lsg, OTHER_QUESTION))
    assert tab.status() != MANUAL_SETTING
    tab.page.locator("#mixer .preset", has_text="All at 1").click()
    assert tab.settle()["identity"] and tab.status() == MANUAL_SETTING


def test_a_fader_that_moves_while_the_gates_read_another_question_still_counts(tab: Tab) -> None:
    """The question's frame makes the page send the fader before it has read the faders of the same message."""
    choose(tab, "stack")
    began = tab.frame()["began"]
    tab.page.locator("#question textarea").fill(OTHER_QUESTION)
    box = tab.fader(4).bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.evaluate("document.querySelector('#ask').click()")
    while tab.frame()["began"] == began:
        for step in (4, 0):
            tab.page.mouse.move(x, y + step)
    tab.page.mouse.up()
    frame = tab.settle()
    assert frame["question"] == OTHER_QUESTION and frame["gates"]["v_sink"][4] == tab.scale(4) > 1.4
    assert tab.status() == MANUAL_SETTING


def test_a_gate_folder_is_uploaded_for_one_user(
    enter: Callable[..., Tab], address: str, fresh_tab: Tab, vlm: sg.VLM, tmp_path: Path
) -> None:
    lsg = some_gates(vlm, [1, 3], seed=11, start="identity")
    lsg.save_pretrained(tmp_path)
    strange = tmp_path / "<img src=x onerror=window.hacked=1>.safetensors"
    shutil.copy(tmp_path / WEIGHTS, strange)
    sentence = upload(fresh_tab, tmp_path / CONFIG, strange)
    fresh_tab.wait("document.querySelector('#learned select').value === 'uploaded 1'")
    assert "layers 1, 3" in sentence
    frame = fresh_tab.settle()
    assert_stands(fresh_tab, frame, expected_gates(vlm, lsg))
    assert frame["gates"]["v_sink"][1] + frame["gates"]["rest"][1] == pytest.approx(2, abs=CLOSE)
    choose(fresh_tab, "stack")
    assert_stands(fresh_tab, choose(fresh_tab, "uploaded 1"), expected_gates(vlm, lsg))
    assert fresh_tab.page.evaluate("window.hacked") is None

    other = enter(address)
    assert other.frame()["identity"] and other.frame()["learned"] is None
    assert other.page.locator("#learned option").all_text_contents() == ["off", "layer-2", "stack"]
    choose(other, "layer-2")
    assert fresh_tab.after(lambda: fresh_tab.ask(OTHER_QUESTION))["learned"]["name"] == "uploaded 1"


def spoiled(vlm: sg.VLM, folder: Path) -> dict[str, tuple[list[Path], str]]:
    """Uploads that are not to be taken, and a word of the sentence that says why."""
    good = folder / "good"
    some_gates(vlm, [1]).save_pretrained(good)

    def like(name: str, **change: Any) -> Path:
        shutil.copytree(good, folder / name)
        content = json.loads((good / CONFIG).read_text()) | change
        (folder / name / CONFIG).write_text(json.dumps(content))
        return folder / name

    shape, width, big, pickled = (
        like("shape", bottleneck=32),
        like("width", hidden_size=64),
        like("big"),
        like("pickle"),
    )
    with (big / WEIGHTS).open("r+b") as file:
        file.truncate(weight_bytes(vlm) + 1)
    (pickled / WEIGHTS).write_bytes(pickle.dumps({"gates.1.down.weight": [1.0] * 9000}))
    layers = like("layers", layers=[40])
    bomb = like("bomb", bottleneck=10**9)
    markup = "<img src=x onerror=window.hacked=1>"
    return {
        "shape": (files(shape), "(64, 128)"),
        "width": (files(width), "64 wide"),
        "big": (files(big), f"{weight_bytes(vlm):,}"),
        "pickle": (files(pickled), "these files"),
        "layers": (files(layers), "no layer 40"),
        "bomb": (files(bomb), "claims more parameters"),
        "grouping": (files(like("three", grouping="three")), "expected (3, 64)"),
        "model": (files(like("model", base_model=markup, weights=None)), markup),
        "one": ([good / WEIGHTS], "got 1 file"),
    }


def test_gates_of_three_groups_bring_the_faders_of_l_sinks(tab: Tab, vlm: sg.VLM, tmp_path: Path) -> None:
    lsg = some_gates(vlm, [4, 7], seed=12, start="identity", grouping="three")
    lsg.save_pretrained(tmp_path)
    upload(tab, *files(tmp_path))
    frame = tab.settle()
    expected = expected_gates(vlm, lsg)
    assert max(abs(a - b) for a, b in zip(expected["l_sink"], expected["rest"], strict=True)) > 0.02
    assert_stands(tab, frame, expected)
    assert tab.fader(4, "l_sink").is_visible() and frame["learned"]["rho"] == frame["gates"]
    mark = tab.page.locator("#mixer .strip[data-layer='4'] .rho").get_attribute("title") or ""
    assert f"L-sinks by {expected['l_sink'][4]:.2f}" in mark


def test_broken_uploads_get_a_sentence_and_the_page_lives_on(tab: Tab, vlm: sg.VLM, tmp_path: Path) -> None:
    stands, offered = choose(tab, "stack"), tab.page.locator("#learned option").count()
    for name, (chosen, word) in spoiled(vlm, tmp_path).items():
        sentence = upload(tab, *chosen)
        assert tab.page.locator("#status .warning").count() == 1, name
        assert (
            word in sentence
            and "Unexpected" not in sentence
            and str(tmp_path) not in sentence
            and "/tmp" not in sentence
        ), (
            name,
            sentence,
        )
        assert tab.page.locator("#learned select").input_value() == "stack", name
        assert tab.page.locator("#learned option").count() == offered, name
    assert tab.frame()["gates"] == stands["gates"] and tab.page.evaluate("window.hacked") is None
    assert (
        "layers 1" not in upload(tab, *files(tmp_path / "good")) and "layer 1" in tab.status()
    )  # and a good one works
    tab.settle()


# Without a browser.


@pytest.fixture
def handlers(vlm: sg.VLM, shipped: Path) -> Handlers:
    with pytest.warns(UserWarning, match="torn"):
        return Handlers(Engine(vlm, gates_in(shipped, vlm)))


@pytest.fixture
def session(handlers: Handlers, vlm: sg.VLM) -> UserSession:
    return handlers.begin(setting(vlm), LENS)["session"]


def chosen(name: str | None, off: Any = ()) -> dict[str, Any]:
    return {"chosen": name, "off": list(off) if isinstance(off, tuple) else off}


@pytest.mark.parametrize(
    "value",
    [None, [], {}, chosen("no such gates"), chosen("stack", ["x"]), chosen("stack", 3), {"chosen": 3, "off": []}],
)
def test_bad_choices_get_a_sentence(handlers: Handlers, session: UserSession, value: Any) -> None:
    handlers.choose_learned(session, chosen("stack"), LENS)
    case = session.state
    update = handlers.choose_learned(session, value, LENS)
    assert update["status"]["tone"] == "warning" and "Unexpected" not in update["status"]["text"]
    assert update["learned"]["chosen"] == "stack" and session.state is case
    for update in (handlers.choose_learned(None, value, LENS), handlers.upload_learned(None, [], LENS)):
        assert "expired" in update["status"]["text"]


def test_layers_without_a_gate_cannot_be_switched_off(handlers: Handlers, session: UserSession) -> None:
    handlers.choose_learned(session, chosen("stack", (2, 7, -1)), LENS)
    assert session.learned is not None and session.learned.off == {2}


def test_what_the_hand_sent_before_the_gates_read_comes_too_late(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    handlers.set_gates(session, setting(vlm, 0.3, turn=4), LENS)
    values = handlers.choose_learned(session, chosen("stack"), LENS)
    frame = values["maps"]
    assert values["mixer"]["revision"] == OWN_REVISION_STEP
    assert handlers.set_gates(session, setting(vlm, 0.7, turn=5), LENS) == {}
    assert handlers.set_lens(session, LENS)["maps"]["gates"] == frame["gates"]
    *_, last = handlers.stream_answers(
        session, setting(vlm, 0.7, turn=5)
    )  # no hand will ask again: what the gates set is told
    assert last["answers"]["done"] and last["answers"]["sequence"] == session.sequence
    assert last["maps"]["gates"] == frame["gates"]
    update = handlers.set_gates(session, setting(vlm, 0.7, turn=OWN_REVISION_STEP + 1), LENS)
    assert update["status"]["text"] == MANUAL_SETTING


def test_gates_find_sinks_by_their_own_criterion(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    lsg = some_gates(vlm, [2], criterion="norm")
    handlers.engine.learned.append(LearnedGates("by norm", lsg))
    before = session.state
    assert before and before.sinks.v_verdict and "norm" not in before.sinks.v_verdict.criterion
    mixer = handlers.choose_learned(session, chosen("by norm"), LENS)["mixer"]
    assert session.state and session.state.sinks.v_verdict and "norm" in session.state.sinks.v_verdict.criterion
    assert mixer["v_sink"] == pytest.approx(expected_gates(vlm, lsg)["v_sink"], abs=CLOSE)
    handlers.choose_learned(session, chosen(None), LENS)
    assert session.state.sinks.v_verdict.criterion == before.sinks.v_verdict.criterion


def test_gates_that_cannot_read_leave_everything_as_it_was(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    class Broken(LSG):
        def only(self, layers: Any) -> LSG:
            raise sg.GateError("these gates cannot read")

    case = session.state
    for criterion in ("auto", "norm"):
        lsg = Broken(some_gates(vlm, [2], criterion=criterion).config)
        handlers.engine.learned.append(LearnedGates(criterion, lsg))
        update = handlers.choose_learned(session, chosen(criterion), LENS)
        assert update["status"]["text"] == "These gates cannot read." and update["learned"]["chosen"] is None
        assert session.state is case and session.learned is None


def test_uploads_are_few_and_numbered(handlers: Handlers, session: UserSession, vlm: sg.VLM, tmp_path: Path) -> None:
    some_gates(vlm, [1]).save_pretrained(tmp_path)
    for _ in range(MAX_UPLOADED_GATES + 1):
        update = handlers.upload_learned(session, [str(path) for path in files(tmp_path)], LENS)
        assert update["status"]["tone"] == "calm"
    picker = update["learned"]
    names = [gates["name"] for gates in picker["offered"]]
    assert names == ["layer-2", "stack", *(f"uploaded {number}" for number in range(2, MAX_UPLOADED_GATES + 2))]
    assert picker["chosen"] == names[-1]


@pytest.mark.parametrize(
    "content", [b"[" * 5000, b"\xff\xfe", b'{"format": "sinkgate-lsg"}', b"1" * 5000, b" " * 70_000]
)
def test_broken_configurations_are_refused_before_anything_is_built(
    vlm: sg.VLM, tmp_path: Path, content: bytes
) -> None:
    some_gates(vlm, [1]).save_pretrained(tmp_path)
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(sg.GateError):
        uploaded_gates([str(path) for path in files(tmp_path)], vlm)


def test_gates_of_another_model_are_refused_without_an_option_that_the_page_lacks(vlm: sg.VLM, tmp_path: Path) -> None:
    some_gates(vlm, [1]).save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(content | {"base_model": "other", "weights": None}))
    with pytest.raises(sg.GateError, match=f"trained on other, this is {vlm.name}$"):
        uploaded_gates([str(path) for path in files(tmp_path)], vlm)


def test_memory_that_only_the_configuration_claims_is_never_taken(vlm: sg.VLM, tmp_path: Path) -> None:
    some_gates(vlm, [1]).save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    for change in ({"bottleneck": 10**12}, {"hidden_size": 10**4000}, {"layers": list(range(9000))}):
        (tmp_path / CONFIG).write_text(json.dumps(content | change))
        with pytest.raises(sg.GateError):
            uploaded_gates([str(path) for path in files(tmp_path)], vlm)
