"""The scene composer: what is edited is what is asked about, and its truth follows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from page_user import Tab
from PIL import Image
from test_live import LENS, setting
from test_page import assert_shows, direct

import sinkgate as sg
from app.engine import Engine
from app.examples import GALLERY, random_scene
from app.handlers import Handlers
from app.handlers.values import composer_value
from app.user_session import UserSession
from app.view_model import sentence
from sinkgate.scenes.questions import ask, describe
from sinkgate.scenes.scene import MAX_OBJECTS, Scene

COUNTS = {ask(Scene.random(Random(1)), "count", Random(seed)).question for seed in range(60)}  # every wording


@pytest.fixture
def phone(enter: Callable[..., Tab], address: str) -> Tab:
    """A user with a phone."""
    return enter(address, phone=True, size={"width": 390, "height": 844})


def shown(tab: Any) -> np.ndarray:
    """The picture under the maps, as the page was sent it."""
    url = tab.page.evaluate("window.sinkgate.last.view.url")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def assert_about(tab: Any, frame: dict[str, Any], vlm: sg.VLM, folder: Path) -> Scene:
    """Picture, maps, sinks, answers and truth are those of the composer's scene."""
    scene = Scene.from_dict(tab.scene())
    picture = folder / "edited.png"
    scene.render(448).save(picture)
    assert np.abs(shown(tab) - np.asarray(scene.render(448)).astype(int)).mean() < 3  # JPEG
    current = tab.page.locator("#questions [data-asked]").get_attribute("data-asked")
    expected = direct(vlm, picture, current, frame["gates"])
    assert_shows(tab, frame, expected)
    assert {m["token"] for m in frame["marks"] if m["kind"] == "v_sink"} == set(
        expected["sinks"].v_sink.nonzero().flatten().tolist()
    )
    assert tab.page.locator("#questions .truth p").text_content() == sentence(describe(scene))
    return scene


def test_a_click_adds_an_object_and_the_count_goes_up(tab: Any, vlm: sg.VLM, tmp_path: Path) -> None:
    tab.compose()
    assert not tab.page.locator("#picture").is_visible()
    before = len(tab.scene()["objects"])
    counted = next(q for q, answer in tab.truth().items() if answer == str(before) and q in COUNTS)
    maps = tab.frame()["before"]
    for label in ("cross", "green", "small"):
        tab.page.locator("#composer").get_by_label(label, exact=True).click()
    frame = tab.after(lambda: tab.page.mouse.click(*tab.at(0.2, 0.3)))
    added = tab.scene()["objects"][-1]
    assert (added["shape"], added["color"], added["size"]) == ("cross", "green", "small")
    assert added["x"] == pytest.approx(0.2, abs=0.01) and added["y"] == pytest.approx(0.3, abs=0.01)
    assert tab.truth()[counted] == str(before + 1)
    assert frame["before"] != maps
    assert_about(tab, frame, vlm, tmp_path)

    while len(tab.scene()["objects"]) < MAX_OBJECTS:
        tab.after(lambda: tab.page.locator("#composer .add").click())
    assert not tab.page.locator("#composer .add").is_enabled()
    full = tab.scene()
    tab.page.evaluate(
        """() => {
          const note = document.querySelector('#composer .note');
          window.notes = [];
          new MutationObserver(() => window.notes.push(note.textContent)).observe(note, { childList: true });
        }"""
    )
    tab.page.mouse.click(*tab.at(0.01, 0.01))
    tab.wait("window.notes.some((note) => note.startsWith('Limit: '))")  # it disappears soon
    assert tab.scene() == full


def test_everything_follows_a_dragged_object(tab: Any, vlm: sg.VLM, tmp_path: Path) -> None:
    tab.compose()
    old = tab.scene()["objects"]
    question = tab.page.locator("#question textarea").input_value()
    wanted = tab.truth()
    tab.page.evaluate(
        """() => {
          window.seen = [];
          document.addEventListener('sinkgate:frame', (event) => window.seen.push(event.detail.began));
        }"""
    )

    def drag() -> None:
        start = old[0]
        tab.page.mouse.move(*tab.at(start["x"], start["y"]))
        tab.page.mouse.down()
        for step in range(1, 21):
            x, y = (start[axis] + (0.2 - start[axis]) * step / 20 for axis in ("x", "y"))
            tab.page.mouse.move(*tab.at(x, y))
            tab.page.wait_for_timeout(30)
        tab.wait("new Set(window.seen).size >= 2")  # the page follows before the hand lets go
        assert tab.page.locator("#answers [data-done=false]").count() == 1
        tab.page.mouse.up()

    frame = tab.after(drag)
    new = tab.scene()["objects"]
    assert new[1:] == old[1:] and (new[0]["x"], new[0]["y"]) == pytest.approx((0.2, 0.2), abs=0.02)
    assert tab.page.locator("#question textarea").input_value() == question
    assert tab.truth()[question] == wanted[question]
    assert_about(tab, frame, vlm, tmp_path)
    tab.drag(3, 0.2)  # and the faders work on the edited scene
    assert_about(tab, tab.settle(), vlm, tmp_path)


def test_a_finger_drags_an_object_and_the_page_stays(phone: Tab, vlm: sg.VLM, tmp_path: Path) -> None:
    phone.compose()
    old = phone.scene()["objects"]
    fingers = phone.page.context.new_cdp_session(phone.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y} for x, y in places]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def drag() -> None:
        start = old[0]
        touch("touchStart", phone.at(start["x"], start["y"]))
        for step in range(1, 21):
            x, y = (start[axis] + (0.2 - start[axis]) * step / 20 for axis in ("x", "y"))
            touch("touchMove", phone.at(x, y))
        touch("touchEnd")

    frame = phone.after(drag)
    new = phone.scene()["objects"]
    assert new[1:] == old[1:] and (new[0]["x"], new[0]["y"]) == pytest.approx((0.2, 0.2), abs=0.02)
    assert phone.page.evaluate("scrollY") == 0
    assert_about(phone, frame, vlm, tmp_path)


def test_objects_stop_at_each_other_and_at_the_edge(tab: Any) -> None:
    tab.compose()
    first, second = tab.scene()["objects"][:2]
    tab.page.mouse.move(*tab.at(first["x"], first["y"]))
    tab.page.mouse.down()
    tab.page.mouse.move(*tab.at(second["x"] + 0.01, second["y"] + 0.02), steps=4)
    Scene.from_dict(tab.scene())  # raises if two stand on each other
    tab.page.mouse.move(*tab.at(1.5, 1.5), steps=4)
    tab.page.mouse.up()
    tab.settle()
    moved = Scene.from_dict(tab.scene()).objects[0]
    assert moved.x == moved.y == pytest.approx(1 - moved.radius - 1 / 64)
    assert not tab.page.locator("#status .warning").count()


def test_look_size_and_background_change_and_objects_go(tab: Any, vlm: sg.VLM, tmp_path: Path) -> None:
    tools = tab.page.locator("#composer")
    tab.compose()
    count = len(tab.scene()["objects"])
    tab.thing(0).click()
    for kind, name in (("color", "purple"), ("shape", "square"), ("size", "small")):
        tab.after(lambda name=name: tools.get_by_label(name, exact=True).click())
        assert tab.scene()["objects"][0][kind] == name
    assert tab.thing(0).get_attribute("aria-label") == "small purple square"
    tab.after(lambda: tools.locator(".backgrounds").get_by_label("brown").click())
    assert "brown" in tab.truth().values()
    frame = tab.after(lambda: tools.locator(".remove").click())
    scene = assert_about(tab, frame, vlm, tmp_path)
    assert len(scene.objects) == count - 1 and scene.background == "brown"
    assert not any(item.color == "purple" for item in scene.objects)
    tab.page.locator("#edit-done").click()
    tools.wait_for(state="hidden")
    assert tab.page.locator("#picture img").is_visible()


def test_the_keyboard_moves_and_removes(tab: Any) -> None:
    tab.compose()
    old = tab.scene()["objects"]
    tab.thing(0).focus()
    tab.after(lambda: tab.press("ArrowRight", "ArrowRight"))
    assert tab.scene()["objects"][0]["x"] == pytest.approx(old[0]["x"] + 2 / 32)
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.ariaLabel") == tab.thing(1).get_attribute("aria-label")
    for left in range(len(old) - 1, 0, -1):
        tab.after(lambda: tab.page.keyboard.press("Delete"))
        assert len(tab.scene()["objects"]) == left
    tab.page.keyboard.press("Delete")  # the last one stays
    assert len(tab.scene()["objects"]) == 1


def test_a_broken_scene_gets_a_sentence_and_the_next_edit_works(tab: Any, vlm: sg.VLM, tmp_path: Path) -> None:
    tab.compose()
    good = tab.scene()
    tab.page.evaluate("document.querySelector('#composer [data-composing]').scene.objects[0].color = 'pink'")
    tab.thing(1).focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.wait_for_selector("#status .warning")
    assert "'pink'" in tab.status() and "Unexpected" not in tab.status()
    tab.wait("document.querySelector('#composer [data-composing]').scene.objects[0].color !== 'pink'")
    assert tab.scene() == good
    frame = tab.after(lambda: tab.page.keyboard.press("ArrowLeft"))
    tab.page.wait_for_selector("#status .warning", state="detached")
    assert_about(tab, frame, vlm, tmp_path)


def test_the_composer_follows_the_picture(tab: Any, picture: Path) -> None:
    tab.compose()
    first = tab.scene()
    tab.after(lambda: tab.page.locator("#questions .gallery button").nth(1).click())
    assert tab.scene() == random_scene(GALLERY[1]).to_dict() != first
    tab.after(lambda: tab.page.locator("#new-scene").click())
    assert tab.scene() != random_scene(GALLERY[1]).to_dict()
    tab.page.locator("#edit-done").click()
    tab.after(lambda: tab.upload(picture))
    assert not tab.page.locator("#edit-scene").is_visible()  # a photograph has no objects to move
    tab.after(lambda: tab.page.locator("#new-scene").click())
    assert tab.page.locator("#edit-scene").is_visible()


def test_another_picture_ends_the_drag_of_an_object_and_keys_go_on(tab: Any, vlm: sg.VLM, tmp_path: Path) -> None:
    tab.compose()
    thing = tab.scene()["objects"][0]
    tab.page.mouse.move(*tab.at(thing["x"], thing["y"]))
    tab.page.mouse.down()
    tab.after(lambda: tab.page.evaluate("document.querySelectorAll('#questions .gallery button')[3].click()"))
    tab.page.mouse.up()
    scene = random_scene(GALLERY[3])
    assert Scene.from_dict(tab.scene()) == scene
    frame = tab.after(lambda: tab.page.keyboard.press("Delete"))  # the first object has had the focus all along
    assert Scene.from_dict(tab.scene()).objects == scene.objects[1:]
    assert_about(tab, frame, vlm, tmp_path)


def test_the_stage_shows_what_the_model_sees(tab: Any) -> None:
    tab.compose()
    tab.page.evaluate("document.querySelector('#composer .note').style.visibility = 'hidden'")
    tab.page.locator("#composer .stage").evaluate("(stage) => { stage.style.borderRadius = 0; }")
    screen = Image.open(io.BytesIO(tab.page.locator("#composer svg").first.screenshot())).convert("RGB")
    side = screen.width
    drawn = np.asarray(screen.resize((side, side))).astype(int)
    rendered = np.asarray(Scene.from_dict(tab.scene()).render(side)).astype(int)
    assert np.abs(drawn - rendered).mean() < 4
    assert (np.abs(drawn - rendered).max(-1) > 60).mean() < 0.02  # edges only


# Without a browser.


@pytest.fixture
def handlers(vlm: sg.VLM) -> Handlers:
    return Handlers(Engine(vlm))


@pytest.fixture
def session(handlers: Handlers, vlm: sg.VLM) -> UserSession:
    return handlers.begin(setting(vlm), LENS)["session"]


def moved(session: UserSession, turn: int, **change: Any) -> dict[str, Any]:
    """The composer's value after the first object changed."""
    value = composer_value(session)
    value["scene"]["objects"][0].update(change)
    return {**value, "revision": turn}


def test_an_older_edit_or_one_of_another_picture_never_wins(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    early, late = moved(session, 1, color="red"), moved(session, 2, color="green")
    handlers.edit_scene(session, late, setting(vlm), LENS)
    handlers.edit_scene(session, early, setting(vlm), LENS)
    assert session.scene and session.scene.objects[0].color == "green"
    handlers.new_scene(session, setting(vlm), LENS)
    scene = session.scene
    handlers.commit_scene(session, {**late, "revision": 3}, setting(vlm), LENS)
    assert session.scene == scene


def test_an_edit_of_an_earlier_session_never_wins(handlers: Handlers, session: UserSession, vlm: sg.VLM) -> None:
    old = moved(session, 5, color="red")
    other = handlers.begin(setting(vlm), LENS)["session"]
    assert composer_value(other)["picture"] > old["picture"]
    before = other.scene
    assert handlers.edit_scene(other, old, setting(vlm), LENS) == {} and other.scene is before


def test_a_frame_names_the_newest_edit_and_step_that_are_done(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    value = moved(session, 1, color="red")
    assert handlers.frame(session, LENS)["edit"] == 0
    assert handlers.edit_scene(session, value, setting(vlm), LENS)["maps"]["edit"] == 1
    assert (
        handlers.commit_scene(session, {**value, "revision": 2}, setting(vlm), LENS)["maps"]["edit"] == 2
    )  # no change
    scene = session.scene.to_dict() if session.scene else None
    refused = handlers.commit_scene(session, moved(session, 3, color="pink"), setting(vlm), LENS)
    assert refused["composer"] == {**composer_value(session), "scene": scene, "revision": 3}
    assert handlers.frame(session, LENS)["edit"] == 3
    step = {**setting(vlm), "chosen": None, "off": [], "revision": 5}
    assert handlers.restore(session, step, LENS)["maps"]["step"] == 5
    handlers.restore(session, {**step, "chosen": "gone", "revision": 6}, LENS)
    assert handlers.frame(session, LENS)["step"] == 6
    handlers.engine.scheduler.close()
    refused = handlers.commit_scene(session, moved(session, 4, color="green"), setting(vlm), LENS)
    assert refused["composer"]["revision"] == 4 and refused["composer"]["scene"] == scene


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        {"revision": 1},
        {"revision": 1, "scene": 3},
        {"picture": "1", "revision": None},
    ],
)
def test_bad_edits_get_a_sentence(handlers: Handlers, session: UserSession, vlm: sg.VLM, value: Any) -> None:
    scene, case = session.scene, session.state
    if isinstance(value, dict):
        value = {"picture": session.picture, **value}
    update = handlers.edit_scene(session, value, setting(vlm), LENS)
    assert update["status"]["tone"] == "warning" and "Unexpected" not in update["status"]["text"]
    assert update["composer"]["scene"] == scene.to_dict() and session.scene is scene and session.state is case
    handlers.commit_scene(session, moved(session, 2, color="green"), setting(vlm), LENS)
    assert session.scene and session.scene.objects[0].color == "green"


def test_the_question_keeps_its_words_and_its_truth_follows(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    cross = {"shape": "cross", "color": "purple", "size": "small", "x": 0.2, "y": 0.2}
    for index in range(len(session.examples)):
        session = handlers.begin(setting(vlm), LENS)["session"]
        question, before = session.examples[index]
        handlers.ask(session, question, setting(vlm), LENS)
        value = {**composer_value(session), "revision": 1}
        value["scene"]["objects"].append(cross)
        handlers.edit_scene(session, value, setting(vlm), LENS)
        assert session.question == question and question in dict(session.examples)
        if session.kinds[question] == "count":
            assert dict(session.examples)[question] == str(int(before or 0) + 1)


def test_a_question_that_the_scene_no_longer_allows_comes_back(
    handlers: Handlers, session: UserSession, vlm: sg.VLM
) -> None:
    question = next(text for text, kind in session.kinds.items() if kind == "place")
    handlers.ask(session, question, setting(vlm), LENS)
    scene = composer_value(session)["scene"]
    midline = [{**item, "x": 0.5, "y": y} for item, y in zip(scene["objects"], (0.55, 0.215), strict=True)]
    for turn, (objects, allowed) in enumerate(((midline, False), (scene["objects"], True)), start=1):
        value = {**composer_value(session), "scene": {**scene, "objects": objects}, "revision": turn}
        assert handlers.edit_scene(session, value, setting(vlm), LENS)["status"]["tone"] == "calm"
        assert (question in dict(session.examples)) == allowed
