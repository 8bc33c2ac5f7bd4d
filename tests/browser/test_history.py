"""Undo, redo and pins: each returns exactly what was on the page."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from page_user import Tab
from test_access import findings, tab_to
from test_composer import assert_about
from test_page import assert_shows, direct

import sinkgate as sg
from app.examples import FIRST_QUESTION, FIRST_SCENE, SCENE_SIDE, random_scene

UNDO, REDO = "Control+z", "Control+Shift+z"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture of the page when it opens, as a file."""
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    random_scene(FIRST_SCENE).render(SCENE_SIDE).save(path)
    return path


def steps(tab: Tab) -> str:
    """Return the index of the step on the page and the number of steps."""
    return tab.page.evaluate("document.querySelector('#history [data-steps]').dataset.steps")


def later(steps: str, more: int) -> str:
    """Return what `steps` gives so many changes later."""
    at = int(steps.partition("/")[0]) + more
    return f"{at}/{at + 1}"


def shown(tab: Tab) -> tuple[Any, ...]:
    frame = tab.settle()
    return frame["gates"], frame["learned"], tab.answers()


def pin(tab: Tab) -> None:
    count = tab.page.locator("#pins .pin").count()
    tab.page.get_by_role("button", name="Pin this setting").click()
    tab.wait(
        f"document.querySelectorAll('#pins .pin').length === {count + 1} &&"
        " !document.querySelector('#pins .pin:last-child .pin-answer .faint')"
    )


def test_every_change_is_one_step(fresh_tab: Tab, vlm: sg.VLM, scene: Path) -> None:
    states = [shown(fresh_tab)]

    def change(act: Any) -> None:
        act()
        fresh_tab.wait(
            "([before]) => document.querySelector('#history [data-steps]').dataset.steps !== before", arg=[steps_before]
        )
        states.append(shown(fresh_tab))

    for act in (
        lambda: fresh_tab.drag(2, 0.1),
        lambda: fresh_tab.page.locator("#mixer .preset", has_text="V-sinks × 2").click(),
        lambda: (fresh_tab.fader(3).focus(), fresh_tab.press("ArrowDown", "ArrowDown")),
        lambda: fresh_tab.page.locator("#learned select").select_option("stack"),
    ):
        steps_before = steps(fresh_tab)
        change(act)
    box = fresh_tab.gates_text()
    box.fill(sg.Gates.ones(vlm).set("l_sink", 0.5, 4).to_json())
    steps_before = steps(fresh_tab)
    change(lambda: fresh_tab.page.locator("#gates-apply").click())
    assert steps(fresh_tab) == "5/6"
    fresh_tab.fader(0).focus()
    for index in reversed(range(5)):
        fresh_tab.page.keyboard.press(UNDO)
        fresh_tab.wait(f"document.querySelector('#history [data-steps]').dataset.steps === '{index}/6'")
        wait_for(fresh_tab, states[index])
        assert shown(fresh_tab) == states[index]
    fresh_tab.page.keyboard.press(UNDO)  # nothing is left
    fresh_tab.page.locator("#history .redo").click()
    wait_for(fresh_tab, states[1])
    assert_shows(fresh_tab, fresh_tab.settle(), direct(vlm, scene, FIRST_QUESTION, states[1][0]))
    for index, keys in ((2, REDO), (3, "Control+y"), (4, REDO), (5, REDO)):
        fresh_tab.page.keyboard.press(keys)
        wait_for(fresh_tab, states[index])
        assert shown(fresh_tab) == states[index]
    fresh_tab.page.keyboard.press(UNDO)
    wait_for(fresh_tab, states[4])
    fresh_tab.page.locator("#mixer .preset", has_text="All at 1").click()  # drops the step that was undone
    fresh_tab.settle()
    assert (
        steps(fresh_tab) == "5/6" and fresh_tab.page.locator("#history .redo").get_attribute("aria-disabled") == "true"
    )


def wait_for(tab: Tab, state: tuple[Any, ...]) -> None:
    """Wait until the page shows scales and learned gates of a state."""
    tab.wait(
        """([gates, learned]) => {
          const frame = document.querySelector('#maps [data-tick]').frame;
          return window.sinkgate.same(frame.gates, gates) && JSON.stringify(frame.learned) === JSON.stringify(learned);
        }""",
        arg=[state[0], state[1]],
    )


def test_edits_of_the_scene_are_steps_among_those_of_the_faders(tab: Tab, vlm: sg.VLM, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        frame = tab.settle()
        return tab.scene(), frame["gates"], frame["before"], frame["after"], tab.answers()

    def move() -> None:
        thing = tab.scene()["objects"][0]
        tab.page.mouse.move(*tab.at(thing["x"], thing["y"]))
        tab.page.mouse.down()
        tab.page.mouse.move(*tab.at(0.25, 0.2), steps=4)
        tab.page.mouse.up()

    def press(*keys: str) -> None:
        tab.thing(0).focus()
        tab.press(*keys)

    tab.compose()
    states, opened = [state()], steps(tab)
    edits = (  # whether of the scene
        (True, move),
        (True, tab.page.locator("#composer .add").click),
        (False, lambda: tab.drag(2, 0.3)),
        (True, lambda: press("Delete")),
        (True, lambda: press("ArrowDown", "ArrowDown")),  # keys in a row are one edit
    )
    for of_scene, edit in edits:
        before = steps(tab)
        if of_scene:
            tab.after(edit)
        else:
            edit()
        tab.wait("(before) => document.querySelector('#history [data-steps]').dataset.steps !== before", arg=before)
        states.append(state())
    assert steps(tab) == later(opened, 5)

    def go(keys: str, index: int, of_scene: bool) -> None:
        if of_scene:
            tab.after(lambda: tab.page.keyboard.press(keys))
        else:
            tab.page.keyboard.press(keys)
            wait_for(tab, (states[index][1], None))
        assert state() == states[index]

    for index in reversed(range(5)):
        go(UNDO, index, edits[index][0])  # an object has the focus
    for index in range(1, 6):
        go(REDO, index, edits[index - 1][0])
    assert_about(tab, tab.settle(), vlm, tmp_path)

    tab.after(lambda: tab.page.get_by_role("button", name="Example picture 4").click())
    other = tab.scene()
    tab.page.keyboard.press(UNDO)  # the last change of the faders: scenes of another picture are left out
    at, count = later(opened, 2).partition("/")[0], later(opened, 5).partition("/")[2]
    tab.wait(f"document.querySelector('#history [data-steps]').dataset.steps === '{at}/{count}'")
    assert tab.settle()["identity"] and tab.scene() == other


def test_quick_undos_and_redos_lose_no_step(fresh_tab: Tab) -> None:
    """The results of all but the last come late, when the history is steps away."""

    def go(button: str, times: int, numbers: str, wanted: int) -> None:
        for _ in range(times):
            fresh_tab.page.locator(f"#history .{button}").click()
            fresh_tab.page.wait_for_timeout(40)  # the request is under way, and not answered yet
        fresh_tab.wait(f"document.querySelector('#maps [data-tick]').frame.{numbers} === {wanted}")
        fresh_tab.settle()

    def choose(name: str, index: int) -> None:
        fresh_tab.page.locator("#learned select").select_option(name)
        fresh_tab.wait(f"document.querySelector('#history [data-steps]').dataset.steps === '{index}/{index + 1}'")
        fresh_tab.settle()

    choose("stack", 1)
    fresh_tab.compose()
    fresh_tab.thing(0).focus()
    for _ in range(3):
        fresh_tab.after(lambda: fresh_tab.page.keyboard.press("ArrowUp"))
    scene, (gates, learned, _), edit = fresh_tab.scene(), shown(fresh_tab), fresh_tab.frame()["edit"]
    assert steps(fresh_tab) == "4/5"
    go("undo", 3, "edit", edit + 3)
    assert steps(fresh_tab) == "1/5" and fresh_tab.scene() != scene
    go("redo", 3, "edit", edit + 6)
    assert steps(fresh_tab) == "4/5" and fresh_tab.scene() == scene and shown(fresh_tab)[:2] == (gates, learned)
    choose("layer-2", 5)
    choose("joint", 6)
    go("undo", 2, "step", 2)
    assert steps(fresh_tab) == "4/7" and shown(fresh_tab)[:2] == (gates, learned)
    go("redo", 2, "step", 4)
    assert steps(fresh_tab) == "6/7" and fresh_tab.frame()["learned"]["name"] == "joint"


def test_another_question_is_no_step_and_a_text_box_has_its_own_undo(tab: Tab) -> None:
    once = later(steps(tab), 1)
    tab.page.locator("#learned select").select_option("stack")
    tab.wait(f"document.querySelector('#history [data-steps]').dataset.steps === '{once}'")
    tab.settle()
    tab.after(lambda: tab.ask("What color is the background?"))  # the learned gates set the faders anew
    frame = tab.settle()
    assert steps(tab) == once
    tab.page.locator("#question textarea").fill("")
    tab.page.locator("#question textarea").type("Hello")
    tab.page.keyboard.press(UNDO)
    tab.wait("document.querySelector('#question textarea').value !== 'Hello'")
    assert steps(tab) == once and tab.frame()["gates"] == frame["gates"]


def test_a_step_is_redone_after_another_question(fresh_tab: Tab) -> None:
    """The learned gates read the undone scene with the new question: the step has new scales, and no step is dropped."""
    fresh_tab.page.locator("#learned select").select_option("stack")
    fresh_tab.wait("document.querySelector('#history [data-steps]').dataset.steps === '1/2'")
    fresh_tab.compose()
    fresh_tab.thing(0).focus()
    fresh_tab.after(lambda: fresh_tab.page.keyboard.press("ArrowUp"))
    scene = fresh_tab.scene()
    fresh_tab.after(lambda: fresh_tab.ask("What color is the background?"))
    fresh_tab.after(fresh_tab.page.locator("#history .undo").click)
    assert steps(fresh_tab) == "1/3" and fresh_tab.scene() != scene
    fresh_tab.after(fresh_tab.page.locator("#history .redo").click)
    assert steps(fresh_tab) == "2/3" and fresh_tab.scene() == scene


def test_pins_hold_their_setting_and_can_be_put_back(tab: Tab) -> None:
    first = shown(tab)
    tab.drag(2, 0.1)
    second = shown(tab)
    pin(tab)
    tab.page.keyboard.press(UNDO)
    wait_for(tab, first)
    tab.settle()
    pin(tab)
    cards = tab.page.locator("#pins .pin")
    assert [cards.nth(i).locator(".pin-answer").inner_text().strip() for i in range(2)] == ["1", "2"]
    before, after = tab.frame()["first"]["before"], second[0]["v_sink"][2]
    assert cards.nth(0).locator(".name").input_value() == f"V-sinks × {after} in layer 2"
    assert cards.nth(1).locator(".chance").inner_text() == f"“2” {100 * before:.1f} %"
    cards.nth(0).locator(".name").fill("one corner")
    cards.nth(0).locator(".name").press("Enter")
    tab.leave(tab.page.reload)
    tab.settle()
    assert cards.nth(0).locator(".name").input_value() == "one corner"
    tab.page.get_by_role("button", name="Put back pin 1").click()
    wait_for(tab, second)
    assert shown(tab) == second
    tab.page.keyboard.press(UNDO)
    wait_for(tab, first)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save as CSV").first.click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert [row["name"] for row in rows] == ["one corner", "all scales are 1"]
    assert [row["answer"] for row in rows] == ["1", "2"] and rows[0]["original answer"] == "2"
    assert [float(scale) for scale in rows[0]["scales, V-sinks"].split()] == second[0]["v_sink"]
    assert float(rows[1]["probability"]) == pytest.approx(before)
    shares = [float(rows[1][name]) for name in rows[1] if name.startswith("attention, ")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    tab.page.get_by_role("button", name="Remove pin 1").click()
    assert cards.count() == 1


def test_a_pin_of_another_question_says_so_and_brings_it_back(tab: Tab) -> None:
    tab.drag(2, 0.1)
    first = shown(tab)
    pin(tab)
    tab.after(lambda: tab.page.get_by_role("button", name="Example picture 4").click())
    note = tab.page.locator("#pins .pin .elsewhere")
    assert note.inner_text() == "another picture"  # with the same question
    tab.after(lambda: tab.ask("What color is the background?"))
    assert "another question" in note.inner_text()
    tab.after(lambda: tab.page.get_by_role("button", name="Put back pin 1").click())
    assert shown(tab) == first and tab.page.locator("#question textarea").input_value() == FIRST_QUESTION
    tab.wait("!document.querySelector('#pins .pin .elsewhere')")


def test_there_is_room_for_four_pins(tab: Tab) -> None:
    for _ in range(4):
        pin(tab)
    tab.page.get_by_role("button", name="Pin this setting").click()
    assert "remove one first" in tab.page.locator("#pins .notice").inner_text()
    assert tab.page.locator("#pins .pin").count() == 4 and findings(tab) == []


def test_pins_and_history_by_keyboard(tab: Tab) -> None:
    tab.drag(2, 0.1)
    tab.settle()
    tab_to(tab, ".pin-setting")
    tab.page.keyboard.press("Enter")
    tab_to(tab, "#history .undo")
    tab.page.keyboard.press("Enter")
    tab.wait("document.querySelector('#maps [data-tick]').frame.identity")
    assert tab.page.evaluate("document.activeElement.matches('#history .undo')")  # the focus stays
    tab_to(tab, "#pins .put-back")
    tab.page.keyboard.press("Enter")
    tab.wait("!document.querySelector('#maps [data-tick]').frame.identity")
    assert tab.scale(2) == tab.settle()["gates"]["v_sink"][2] < 0.2
