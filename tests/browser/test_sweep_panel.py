"""A sweep of one question: its values, its progress, its end, and the faders that a cell sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_user import Tab
from test_access import findings, tab_to
from test_show_me import OVER

import sinkgate as sg
from app.engine import Engine
from app.handlers import Handlers
from app.sweep import AXIS, GROUPS, NO_SWEEP, SCALES, point
from app.user_session import UserSession

ONES, LENS = {"v_sink": [1.0] * 8, "rest": [1.0] * 8, "revision": 0}, {"layer": 2}
STATUS = "document.querySelector('#sweep [data-status]').dataset.status"


@pytest.fixture(scope="module")
def handlers(vlm: sg.VLM) -> Handlers:
    return Handlers(Engine(vlm))


def opened(handlers: Handlers) -> UserSession:
    return handlers.begin(ONES, LENS)["session"]


def swept(handlers: Handlers, session: UserSession | None) -> Iterator[dict[str, Any]]:
    return (update["sweep"] for update in handlers.sweep(session))


def test_values_equal_a_direct_computation(handlers: Handlers, vlm: sg.VLM) -> None:
    session = opened(handlers)
    *_, value = swept(handlers, session)
    assert session.state and value["status"] == "done" and value["done"] == value["total"]
    sinks, prompt = session.state.sinks, vlm.prompt(session.image, session.question)
    first = int(vlm.predict(prompt).probabilities.argmax())
    assert value["token"] == vlm.token_name(first) == "2"
    compared = 0
    for group in GROUPS:
        for layer in range(vlm.num_layers):
            shares, tops = (value["groups"][group][key][layer] for key in ("p", "tops"))
            if not sinks.group(group, layer).any():
                assert set(shares) == {None} and set(tops) == {""}
                continue
            for scale, share, top in zip(AXIS, shares, tops, strict=True):
                if layer in (2, 4, 7):  # the others take long
                    trace = vlm.predict(prompt, sg.Gates.ones(vlm).set(group, scale, layer), sinks)
                    likeliest = int(trace.probabilities.argmax())
                    assert share == pytest.approx(float(trace.probabilities[first]), abs=2e-5)
                    assert top == ("" if likeliest == first else vlm.token_name(likeliest))
                    compared += 1
    assert compared >= 7 * len(AXIS)
    assert value["groups"]["v_sink"]["tops"][2][AXIS.index(0.0)] == "1"


def test_points_are_those_of_the_oracle() -> None:
    assert [point(group, 0.5) for group in GROUPS] == [(0.5, 1, 1), (1, 1, 0.5), (1, 0.5, 1)]
    assert sorted([*SCALES, 1]) == AXIS


def test_faders_come_in_between_and_the_page_is_as_without_a_sweep(handlers: Handlers, vlm: sg.VLM) -> None:
    session = opened(handlers)
    running = swept(handlers, session)
    values = [next(running), next(running)]
    moved = {**ONES, "v_sink": [1, 1, 0.1, 1, 1, 1, 1, 1], "revision": 1}
    frame = handlers.set_gates(session, moved, LENS)["maps"]  # the generator holds no slot while it is not read
    values += running
    direct = vlm.predict(
        vlm.prompt(session.image, session.question), sg.Gates.ones(vlm).set("v_sink", 0.1, 2), session.state.sinks
    )
    assert frame["after"] == pytest.approx(direct.visual(2).flatten().tolist(), abs=2e-5)
    assert values[-1]["status"] == "done" and handlers.engine.scheduler.idle
    done = [value["done"] for value in values]
    assert done == sorted(done) and len(set(done)) > 3
    assert session.state.gates.scales[2, 0] == pytest.approx(0.1)


@pytest.mark.parametrize("end", ["stop", "question", "picture", "sweep", "expired"])
def test_a_sweep_ends_early(handlers: Handlers, end: str) -> None:
    session = opened(handlers)
    running = swept(handlers, session)
    before = [next(running), next(running)][-1]
    if end == "stop":
        handlers.stop_sweep(session)
    elif end == "question":
        handlers.ask(session, "What color is the background?", ONES, LENS)
    elif end == "picture":
        handlers.new_scene(session, ONES, LENS)
    elif end == "sweep":
        next(handlers.sweep(session))
    else:
        session.expire()
    [last] = running
    assert last["status"] == "stopped" and last["done"] == before["done"] < last["total"]
    assert handlers.engine.scheduler.idle and len(handlers.engine.scheduler) == 0


def test_failures_are_sentences(handlers: Handlers) -> None:
    assert next(swept(handlers, None))["note"].startswith("This session expired")
    session = opened(handlers)
    handlers.engine.backend.interactive = False
    try:
        [value] = swept(handlers, session)
    finally:
        del handlers.engine.backend.interactive
    assert value == {"status": "failed", "note": NO_SWEEP}


def finished(tab: Tab) -> dict[str, Any]:
    tab.page.get_by_role("button", name="Sweep this question").click()
    tab.wait(f"{STATUS} === 'done'")
    return tab.frame()


def cell(group: str, layer: int, scale: float) -> str:
    return f"#sweep .cell[data-key='{group}:{layer}:{AXIS.index(scale)}']"


def test_a_cell_sets_the_faders_in_one_step(tab: Tab) -> None:
    finished(tab)
    shrunk = tab.page.locator(cell("v_sink", 2, 0.25))
    label = shrunk.get_attribute("aria-label") or ""
    assert label.startswith("V-sinks × 0.25, layer 2: “2” ") and label.endswith("the answer begins with “1”")
    tab.drag(5, 0.5)
    tab.settle()
    shrunk.click()
    frame = tab.settle()
    assert frame["gates"]["v_sink"] == [1, 1, 0.25, 1, 1, 1, 1, 1] and set(frame["gates"]["rest"]) == {1}
    assert tab.answers() == ("2", "1") and frame["lens"]["layer"] == 2
    assert f"“2” {100 * frame['first']['after']:.1f} %" in label
    assert "on" in (shrunk.get_attribute("class") or "").split()
    tab.page.keyboard.press("Control+z")
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[5] !== 1")
    assert tab.settle()["gates"]["v_sink"][2] == 1
    tab.page.locator(cell("l_sink", 4, 0.0)).click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.l_sink?.[4] === 0")
    assert set(tab.settle()["gates"]["rest"]) == {1}
    with tab.page.expect_download() as download:
        tab.page.locator("#sweep .save-sweep").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    flips = [row for row in rows if row["layer"] == "2" and row["group"] == "V-sinks" and row["scale"] == "0.25"]
    assert [row["likeliest token"] for row in flips] == ["1"]
    assert findings(tab) == []


def test_a_sweep_by_keyboard_belongs_to_its_question_and_can_be_stopped(calm: Tab) -> None:
    tab = calm
    tab.after(lambda: tab.ask("Is there any blue circle?"))
    tab_to(tab, ".start-sweep")
    tab.page.keyboard.press("Enter")
    tab.wait(f"{STATUS} === 'done'")

    # "Show me", which has no demonstration of this question, moves the fader of the strongest cell
    best = tab.page.evaluate("window.sinkgate.strongest()")
    assert (best["group"], best["layer"]) == ("ordinary", 2)
    before = tab.settle()
    tab.page.locator("#actions .show-me").click()
    tab.wait(f"document.querySelector('#maps [data-tick]').frame.gates.rest[2] === {best['scale']}")
    tab.wait(OVER)
    assert tab.settle()["gates"] == before["gates"]

    tab_to(tab, "#sweep .cell")
    tab.page.locator("#sweep .cell").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"):
        tab.page.keyboard.press(key)
    tab.page.keyboard.press("Enter")
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[2] === 0.25")
    assert tab.settle()["gates"] == {"v_sink": [1, 1, 0.25, 1, 1, 1, 1, 1], "rest": [1] * 8}
    tab.after(lambda: tab.ask("What color is the background?"))
    assert not tab.page.locator("#sweep").is_visible()
    tab.page.get_by_role("button", name="Sweep this question").click()
    tab.page.wait_for_selector("#sweep .cell.gain, #sweep .cell.loss")
    tab.page.locator("#sweep .close-sweep").click()
    tab.page.wait_for_selector("#sweep", state="hidden")
    tab.drag(2, 0.5)
    tab.settle()
    assert not tab.page.locator("#sweep").is_visible()
