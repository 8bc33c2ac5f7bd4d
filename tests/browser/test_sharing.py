"""Share links and Python code of a page: both repeat its answers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from app_process import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from page_user import Tab
from PIL import Image

import sinkgate as sg
from app.engine import Engine
from app.examples import FIRST_QUESTION, FIRST_SCENE
from app.gate_library import gates_in
from app.handlers import Handlers
from app.lens import SCALES, Lens
from app.share_links import (
    GATES_MISSING,
    MAX_LENGTH,
    NO_GATES,
    NO_PICTURE,
    STAND_IN,
    Link,
    LinkError,
    loading,
    share_value,
)
from app.token_view import prompt_tokens
from app.user_session import UserSession
from sinkgate.scenes.questions import KINDS
from sinkgate.scenes.scene import Scene

CLOSE = 2e-5
LAYERS = 8  # of the demo model
LENS = {"layer": 2, "head": None, "row": 0, "hide": False, "sheet": 0}


@pytest.fixture(scope="module")
def engine(vlm: sg.VLM) -> Engine:
    return Engine(vlm, gates_in(ROOT / "sinkgate" / "demo" / "gates", vlm))


@pytest.fixture(scope="module")
def handlers(engine: Engine) -> Handlers:
    return Handlers(engine)


def packed(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def unpacked(text: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def mixer(v_sink: float = 1.0) -> dict[str, Any]:
    return {"v_sink": [v_sink] * LAYERS, "rest": [1.0] * LAYERS}


def arrive(handlers: Handlers, text: Any) -> tuple[UserSession, str, dict[str, Any]]:
    """The session, the status line and the frame that a user with this link gets."""
    values = handlers.load_page(text, mixer(), LENS)
    return values["session"], values["status"]["text"], values["maps"]


# --- the link itself

scales = st.lists(st.integers(0, 200).map(lambda part: part / 100), min_size=LAYERS, max_size=LAYERS)
links = st.builds(
    Link,
    model=st.just("demo"),
    question=st.text(st.characters(codec="utf-8"), max_size=500),
    gates=st.builds(sg.Gates.from_lists, scales, scales, st.just("demo")),
    lens=st.builds(
        Lens,
        st.integers(0, LAYERS - 1),
        st.none() | st.integers(0, 3),
        st.integers(0, 31),
        st.booleans(),
        st.integers(0, 9),
        st.sampled_from(SCALES),
    ),
    seed=st.integers(0, 2**32 - 1),
    scene=st.none() | st.integers(0, 2**32 - 1).map(lambda seed: Scene.random(Random(seed))),
    kind=st.none() | st.sampled_from(sorted(KINDS)),
    learned=st.none() | st.text(st.characters(codec="utf-8"), max_size=30),
    off=st.lists(st.integers(0, LAYERS - 1), unique=True).map(tuple),
)


@given(link=links)
def test_a_link_comes_back_as_it_was(engine: Engine, link: Link) -> None:
    text = link.to_text()
    assert len(text) <= MAX_LENGTH and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
    assert Link.from_text(text, engine) == link


GOOD = {"v": 1, "model": "demo", "question": "How many objects are there?", "seed": 26}
FAR = {"background": "white", "objects": [{"shape": "circle", "color": "red", "size": "large", "x": 9, "y": 0.5}]}
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(text=st.text(max_size=200) | st.text("ABCabc019-_", max_size=200) | junk)
def test_what_is_no_link_is_refused_in_a_sentence(engine: Engine, text: Any) -> None:
    with pytest.raises(LinkError, match=r"^[A-Z].*\."):
        Link.from_text(text, engine)


@settings(max_examples=100)
@given(
    changes=st.dictionaries(
        st.sampled_from(["v", "model", "question", "seed", "kind", "scene", "gates", "learned", "off", "lens"]), junk
    )
)
def test_a_link_with_anything_in_it_opens_or_is_refused_in_a_sentence(engine: Engine, changes: dict[str, Any]) -> None:
    try:
        link = Link.from_text(packed(GOOD | changes), engine)
    except sg.SinkgateError as error:
        assert str(error)
    else:
        assert link.to_text() and link.gates.scales.shape == (LAYERS, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * (MAX_LENGTH + 1), "too long"),
        ("%%%", "damaged"),
        (packed(GOOD)[:-7], "damaged"),
        (packed([1]), "damaged"),
        (packed("\ud800"), "damaged"),
        ("W" * 4000, "damaged"),  # brackets in brackets
        (packed({**GOOD, "v": 2}), "another release"),
        (packed({**GOOD, "model": "llava-hf/llava-1.5-7b-hf"}), "llava-hf"),
        (packed({**GOOD, "question": 3}), "lacks the model, the question or the scene"),
        (packed({**GOOD, "question": "why " * 200}), "800"),
        (packed({**GOOD, "question": " "}), "question"),
        (packed({**GOOD, "seed": -1}), "lacks the model, the question or the scene"),
        (packed({**GOOD, "seed": True}), "lacks the model, the question or the scene"),
        (packed({**GOOD, "scene": FAR}), "9"),
        (packed({**GOOD, "gates": {"v_sink": [1.0] * 3, "rest": [1.0] * 3}}), "3 layers"),
        (packed({**GOOD, "gates": {"v_sink": [9.0] * 8, "rest": [1.0] * 8}}), "0 to 4"),
        (packed({**GOOD, "gates": "off"}), "lists of numbers"),
    ],
)
def test_a_broken_link_is_told_and_the_page_opens_as_usual(handlers: Handlers, text: str, message: str) -> None:
    session, status, frame = arrive(handlers, text)
    assert message in status and "Unexpected" not in status
    assert (session.seed, session.question, frame["identity"]) == (FIRST_SCENE, FIRST_QUESTION, True)


def test_without_a_link_the_page_opens_as_usual(handlers: Handlers) -> None:
    session, status, _ = arrive(handlers, "")
    assert (session.seed, session.question, status) == (FIRST_SCENE, FIRST_QUESTION, "")


def test_learned_gates_and_the_hand_over_them(handlers: Handlers, engine: Engine) -> None:
    """A link brings the learned gates back to work, with the faders where the hand had left them."""
    gates = engine.learned[0]
    link = Link(
        "demo", FIRST_QUESTION, sg.Gates.ones(engine.vlm), Lens(layer=1), 26, learned=gates.name, off=gates.layers[:1]
    )
    overridden = Link.from_text(link.to_text(), engine)
    session, _, frame = arrive(handlers, overridden.to_text())
    assert frame["learned"]["name"] == gates.name and frame["learned"]["off"] == list(gates.layers[:1])
    assert session.state and session.state.overridden and frame["identity"]
    assert unpacked(frame["here"]) == unpacked(link.to_text())
    away = packed({**GOOD, "learned": "gone", "gates": mixer(0.5)})
    session, status, frame = arrive(handlers, away)
    assert status == GATES_MISSING and session.learned is None and frame["gates"]["v_sink"] == [0.5] * LAYERS


def test_links_of_before_the_new_view_options_open_as_they_did(handlers: Handlers) -> None:
    lens = {"layer": 4, "head": 1, "row": 0, "hide": True, "sheet": 0}
    _, status, frame = arrive(handlers, packed({**GOOD, "lens": lens}))
    assert status == "" and frame["lens"] == asdict(Lens(layer=4, head=1, hide=True))
    prompt = handlers.engine.vlm.prompt(Scene.random(Random(26)).render(), GOOD["question"])
    tokens = prompt_tokens(handlers.engine.vlm, prompt)
    position = next(token["position"] for token in tokens if token["text"] == "objects")
    newer = {**lens, "scale": "own", "position": position, "heads": True, "patch": 9}
    _, _, frame = arrive(handlers, packed({**GOOD, "lens": newer}))
    assert frame["lens"] == newer and frame["query"].endswith("“objects”") and len(frame["heads"]) == 4


def test_how_a_model_of_the_hub_is_loaded_again(tiny: sg.VLM, vlm: sg.VLM) -> None:
    assert loading(vlm) == ['vlm = sg.load("demo")']
    tiny.model.config._commit_hash = "0123abc"
    assert loading(tiny) == [f"vlm = sg.load({tiny.name!r}, revision='0123abc', dtype='float32')"]


# --- in the browser


def takings(tab: Any) -> dict[str, str]:
    """Link, Python and what the link lacks, as the page shows them."""
    if not tab.page.locator("#share .link").is_visible():
        tab.page.get_by_role("button", name="Share", exact=True).click()
    tab.wait(
        "document.querySelector('#share [data-collected]')?.dataset.collected === "
        "document.querySelector('#maps [data-tick]').frame.here"
    )
    return tab.page.evaluate(
        """() => {
          const at = (name) => document.querySelector("#share " + name);
          return { link: at(".link").value, python: at("code").textContent, lacks: at(".lacks").textContent };
        }"""
    )


def alike(first: Any, second: Any) -> None:
    """Two tabs show the same."""
    one, other = first.frame(), second.frame()
    for key in ("before", "after", "gates", "lens", "marks", "learned", "queries"):
        assert one[key] == other[key], key
    assert first.answers() == second.answers()
    assert first.scene() == second.scene()
    assert (
        first.page.locator("#question textarea").input_value()
        == second.page.locator("#question textarea").input_value()
    )
    assert takings(first)["link"] == takings(second)["link"]
    questions = "[...document.querySelectorAll('#questions .chip')].map((chip) => [chip.textContent, chip.className])"
    assert first.page.evaluate(questions) == second.page.evaluate(questions)


def run(code: str) -> tuple[str, Any]:
    """Return a program's output and its attention map."""
    names: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    return output.getvalue().strip(), names["attention"]


def assert_repeats(tab: Any, code: str) -> None:
    """The program says and sees what the page does."""
    printed, attention = run(code)
    assert printed == " | ".join(tab.answers())
    assert tab.frame()["after"] == pytest.approx(attention.flatten().tolist(), abs=CLOSE)


def test_a_link_opens_the_same_page(enter: Callable[..., Tab], tab: Tab) -> None:
    tab.after(tab.page.locator("#questions .frame").nth(3).click)
    tab.after(lambda: tab.page.locator("#questions .chip").nth(1).click())
    tab.page.locator("#films .film").nth(4).click()
    tab.page.locator("#lens .head").select_option("1")
    tab.page.locator("#lens .hide-sinks").check()
    tab.page.locator("#lens .scale-kind").select_option("log")
    tab.drag(2, 0.1)
    tab.drag(5, 1.7, group="rest")
    tab.settle()
    tab.page.locator("#films .film").nth(4).click()
    tab.settle()
    taken = takings(tab)
    other = enter(taken["link"])
    alike(tab, other)
    assert (
        other.page.locator("#lens .head").input_value() == "1" and other.page.locator("#lens .hide-sinks").is_checked()
    )
    assert other.page.locator("#lens .scale-kind").input_value() == other.frame()["lens"]["scale"] == "log"
    assert other.status() == "" and other.errors == []
    assert_repeats(tab, taken["python"])
    assert taken["lacks"] == "" and not tab.page.locator("#share .lacks").is_visible()


def test_a_link_keeps_an_edited_scene(enter: Callable[..., Tab], tab: Tab) -> None:
    tab.compose()
    tab.thing(0).focus()
    tab.after(lambda: tab.press(*["ArrowLeft"] * 6))
    taken = takings(tab)
    assert "scene" in unpacked(taken["link"].partition("#s=")[2]) and "from_dict" in taken["python"]
    other = enter(taken["link"])
    alike(tab, other)
    assert_repeats(tab, taken["python"])


def test_learned_gates_are_in_link_and_python(enter: Callable[..., Tab], tab: Tab) -> None:
    tab.page.locator("#learned select").select_option(index=1)
    tab.wait("document.querySelector('#maps [data-tick]').frame.learned !== null")
    tab.settle()
    tab.drag(6, 0.4)
    tab.settle()
    taken = takings(tab)
    other = enter(taken["link"])
    alike(tab, other)
    assert (
        other.page.locator("#learned select").input_value() == tab.page.locator("#learned select").input_value() != ""
    )
    assert_repeats(tab, taken["python"])


def test_an_uploaded_picture_is_not_in_a_link_and_the_page_says_so(
    enter: Callable[..., Tab], tab: Tab, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.after(lambda: tab.upload(picture))
    tab.drag(2, 0.2)
    tab.settle()
    taken = takings(tab)
    assert taken["lacks"] == NO_PICTURE
    other = enter(taken["link"])
    assert other.status() == STAND_IN and other.frame()["gates"] == tab.frame()["gates"]
    monkeypatch.chdir(picture.parent)
    assert_repeats(tab, taken["python"].replace("picture.png", picture.name))


def test_uploaded_gates_are_not_in_a_link(engine: Engine, handlers: Handlers) -> None:
    session, _, _ = arrive(handlers, packed(GOOD))
    engine.set_learned(session, type(engine.learned[0])("uploaded 1", engine.learned[0].lsg))
    taken = share_value(session, Lens(), engine)
    assert taken["lacks"] == NO_GATES and "learned" not in unpacked(taken["link"])
    _, _, frame = arrive(handlers, taken["link"])
    assert session.state and frame["gates"]["v_sink"] == pytest.approx(
        session.state.gates.scales[:, 0].tolist(), abs=1e-4
    )


def test_a_broken_link_in_the_browser(enter: Callable[..., Tab], tab: Tab, address: str) -> None:
    other = enter(f"{address}/#s=nonsense")
    assert "damaged" in other.status() and other.answers() == tab.answers()

    def follow() -> None:  # another link in the same tab
        other.page.evaluate(f"location.hash = '#s={packed(GOOD)}'")
        other.wait("document.querySelector('#status .empty') && document.querySelector('#answers [data-done=true]')")

    other.leave(follow)
    assert other.settle() and other.scene() == Scene.random(Random(26)).to_dict()
    assert enter(f"{address}/#s={'x' * 50_000}").status().startswith("This link is too long")


#: More patience with a slow server than browsers' permission to copy lasts: tests have the permission.
PATIENT = "const { setTimeout } = window; window.setTimeout = (act, ms, ...rest) => setTimeout(act, ms === 4000 ? 120000 : ms, ...rest);"


def test_copying_with_the_keyboard_alone(enter: Callable[..., Tab], address: str) -> None:
    tab = enter(address, script=PATIENT)
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.get_by_role("button", name="Share", exact=True).focus()
    tab.page.keyboard.press("Enter")
    tab.wait("document.activeElement.textContent === 'Copy link'")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_text("Link copied.").wait_for()
    link = tab.page.evaluate("navigator.clipboard.readText()")
    assert link == takings(tab)["link"] == tab.page.get_by_label("Link", exact=True).input_value() == tab.page.url
    for _ in range(4):  # past both pictures and the table
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#share details[open]")
    for _ in range(2):  # past the listing, which scrolls
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_text("Python code copied.").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == takings(tab)["python"]


def test_sharing_where_there_is_no_clipboard_and_no_chart_yet(fresh_tab: Any) -> None:
    fresh_tab.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    takings(fresh_tab)  # opens the panel
    fresh_tab.page.get_by_role("button", name="Copy link").click()
    fresh_tab.page.get_by_text("Link copied.").wait_for()
    assert fresh_tab.page.evaluate("getSelection().toString()") == takings(fresh_tab)["link"]
    fresh_tab.page.evaluate("document.querySelector('#chart').remove()")
    fresh_tab.page.get_by_role("button", name="Save chart").click()
    fresh_tab.page.get_by_text("Nothing to save yet.").wait_for()


@pytest.mark.parametrize("light", ["light", "dark"])
def test_figure_and_chart_are_saved_for_white_paper(tab: Tab, tmp_path: Path, light: str) -> None:
    tab = tab
    if light == "dark":
        tab.page.locator(".light-switch").click()
    takings(tab)  # opens the panel
    pictures = []
    for button, name in (("Save figure", "sinkgate-layer-2.png"), ("Save chart", "sinkgate-layers.png")):
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name=button).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
        pictures.append(Image.open(tmp_path / name).convert("RGB"))
    figure = pictures[0]
    assert figure.width == 2 * (3 * 360 + 2 * 22 + 2 * 28) and figure.height > 1100
    assert pictures[1].width == 2 * (760 + 2 * 28) and tab.page.locator("#chart .plot svg").count() == 1
    assert {picture.getpixel((3, 3)) for picture in pictures} == {(255, 255, 255)}
    for picture in pictures:  # sinks are orange everywhere
        assert sum(count for count, color in picture.getcolors(1 << 24) or [] if color == (232, 89, 12)) > 20
