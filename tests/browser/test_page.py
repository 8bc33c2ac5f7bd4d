"""The page, used as a user uses it: claims are read off the screen or compared with a direct computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_user import Tab
from PIL import Image

import sinkgate as sg
from app.engine import MAX_NEW_TOKENS
from app.lens import Lens
from sinkgate.sinks.glossary import preset_name

QUESTION = "What color is the circle?"
CLOSE = 2e-5  # the page's values are rounded, and threads move the last digits


def direct(
    vlm: sg.VLM, picture: Path, question: str, setting: dict[str, list[float]], limit: int = MAX_NEW_TOKENS
) -> dict[str, Any]:
    """Compute answers, of at most ``limit`` tokens, and maps without the page."""
    prompt = vlm.prompt(sg.open_image(picture), question)
    sinks = sg.find_sinks(vlm, prompt)
    gates = sg.Gates.from_lists(v_sink=setting["v_sink"], rest=setting["rest"])
    return {
        "before": vlm.answer(prompt, None, sinks, max_new_tokens=limit),
        "after": vlm.answer(prompt, gates, sinks, max_new_tokens=limit),
        "sinks": sinks,
        "limit": limit,
    }


def ask_about(tab: Any, picture: Path) -> dict[str, Any]:
    """Upload a picture and ask about it."""
    tab.after(lambda: tab.upload(picture))
    return tab.after(lambda: tab.ask(QUESTION))


def assert_shows(tab: Any, frame: dict[str, Any], expected: dict[str, Any]) -> None:
    """The page shows exactly what was computed."""
    lens = frame["lens"]
    hide = expected["sinks"].v_sink | expected["sinks"].l_sink[lens["layer"]] if lens["hide"] else None
    for side in ("before", "after"):
        drawn = expected[side].visual(lens["layer"], lens["head"], lens["row"], hide, lens["sheet"])
        assert frame[side] == pytest.approx(drawn.flatten().tolist(), abs=CLOSE)
    probabilities = dict(expected["after"].next_token)
    shown = {word: gated for word, _, gated in frame["words"]}
    top = expected["after"].next_token[0][0]
    assert shown[top] == pytest.approx(probabilities[top], abs=1e-4)
    limit = expected.get("limit", MAX_NEW_TOKENS)
    assert tab.answers() == (shown_text(expected["before"], limit), shown_text(expected["after"], limit))


def shown_text(trace: sg.Trace, limit: int) -> str:
    """Return the answer as the page shows it: with an ellipsis where it was cut at the limit."""
    return f"{trace.text} …" if len(trace.ids) == limit else trace.text


def test_opens_with_an_answered_example_and_has_others(fresh_tab: Any) -> None:
    unchanged, gated = fresh_tab.answers()
    assert unchanged and unchanged == gated
    frame = fresh_tab.frame()
    assert frame["identity"] and frame["before"] == frame["after"]
    assert fresh_tab.page.locator("#picture img").count() == 1
    assert fresh_tab.page.locator("#words .word").count() >= 3
    assert fresh_tab.page.locator("#chart .marker").count() >= 3 * len(frame["gates"]["v_sink"])
    assert fresh_tab.page.title() == "sinkgate"
    assert "·" not in fresh_tab.page.locator("footer").inner_text()  # a lone separator

    # other scenes, and their true answers
    first = frame["before"]
    shown = fresh_tab.after(fresh_tab.page.locator("#questions .gallery button").nth(2).click)
    assert shown["before"] != first
    question = fresh_tab.page.locator("#questions .chip").nth(1)
    wanted = question.text_content()
    fresh_tab.after(question.click)
    assert fresh_tab.page.locator("#questions [data-asked]").get_attribute("data-asked") == wanted
    assert fresh_tab.page.locator("#question textarea").input_value() == wanted
    assert not fresh_tab.page.locator("#questions .truth p").is_visible()
    fresh_tab.page.locator("#questions summary").click()
    assert "background" in (fresh_tab.page.locator("#questions .truth p").text_content() or "")
    fresh_tab.after(fresh_tab.page.locator("#new-scene").click)


def test_upload_ask_drag_one_second_undo_and_redo_end_where_direct_computation_does(
    tab: Any, vlm: sg.VLM, picture: Path
) -> None:
    ask_about(tab, picture)
    still = tab.pixels("after")
    tab.page.evaluate("window.frames_seen = 0; document.addEventListener('sinkgate:frame', () => window.frames_seen++)")
    tab.drag(4, 0.13, ticks=40, seconds=1.0, until="window.frames_seen >= 2")  # it follows while it moves
    frame = tab.settle()
    assert tab.scale(4) == pytest.approx(0.13, abs=0.03)
    assert frame["gates"]["v_sink"][4] == tab.scale(4)
    assert tab.page.evaluate("window.frames_seen") >= 3
    assert tab.pixels("after") != still
    expected = direct(vlm, picture, QUESTION, frame["gates"])
    assert_shows(tab, frame, expected)
    assert not torch.equal(expected["before"].attention, expected["after"].attention)  # the test could have failed

    tab.page.keyboard.press("Control+z")
    tab.wait("document.querySelector('#maps [data-tick]').frame.identity")
    before = tab.settle()
    assert before["after"] == before["before"] and tab.scale(4) == 1
    tab.page.keyboard.press("Control+Shift+z")
    tab.wait("!document.querySelector('#maps [data-tick]').frame.identity")
    again = tab.settle()
    assert again["gates"] == frame["gates"] and again["after"] == frame["after"]
    assert_shows(tab, again, expected)

    tab.drag(-1, 2.0, group="rest")
    last = tab.settle()
    assert last["gates"] == {"v_sink": frame["gates"]["v_sink"], "rest": [2.0] * vlm.num_layers}
    words = [word[2] for word in last["words"]]
    assert words != [word[2] for word in frame["words"]]
    bars = tab.page.locator("#words .word .after").evaluate_all(
        "bars => bars.map((bar) => parseFloat(bar.style.width))"
    )
    assert bars == pytest.approx([100 * word for word in words], abs=0.01)  # the probabilities
    assert_shows(tab, last, direct(vlm, picture, QUESTION, last["gates"]))


def test_painting_across_strips_and_the_keyboard(tab: Any) -> None:
    start, end = tab.fader(1).bounding_box(), tab.fader(5).bounding_box()
    y = start["y"] + 0.75 * start["height"]
    tab.page.mouse.move(start["x"] + 10, y)
    tab.page.mouse.down()
    tab.page.mouse.move(end["x"] + 10, y, steps=3)
    tab.page.mouse.up()
    frame = tab.settle()
    assert frame["gates"]["v_sink"][1:6] == pytest.approx([0.5] * 5, abs=0.02)
    assert frame["gates"]["v_sink"][0] == 1 and set(frame["gates"]["rest"]) == {1}
    tab.fader(3).dblclick()
    assert tab.settle()["gates"]["v_sink"][3] == 1
    tab.page.locator("#mixer .preset", has_text="All at 1").click()
    tab.settle()

    tab.fader(0).focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    assert tab.settle()["gates"]["v_sink"][1] == 0.9
    tab.page.keyboard.press("Home")
    frame = tab.settle()
    assert frame["gates"]["v_sink"][:3] == [1, 0, 1]
    assert tab.page.evaluate("document.activeElement.ariaLabel") == "V-sinks, layer 1"
    tab.page.keyboard.press("End")
    assert tab.settle()["gates"]["v_sink"][1] == 2


def test_presets_link_and_reset(tab: Any, vlm: sg.VLM) -> None:
    for v_sink, rest in sg.PRESETS.values():
        tab.page.locator("#mixer .preset", has_text=preset_name(v_sink, rest)).click()
        gates = tab.settle()["gates"]
        assert gates == {"v_sink": [v_sink] * vlm.num_layers, "rest": [rest] * vlm.num_layers}
    tab.page.locator("#mixer .link").check()
    tab.drag(2, 0.2, group="rest")
    frame = tab.settle()
    gates = frame["gates"]
    assert frame["lens"]["layer"] == 2  # the maps follow the fader that is touched
    assert gates["v_sink"][2] == gates["rest"][2] == pytest.approx(0.2, abs=0.03)
    tab.page.locator("#mixer .preset", has_text="All at 1").click()
    assert tab.settle()["identity"]


def test_layer_head_query_and_hidden_sinks(tab: Any, vlm: sg.VLM, picture: Path) -> None:
    ask_about(tab, picture)
    tab.page.locator("#mixer .preset", has_text="V-sinks × 0").click()
    tab.settle()
    tab.page.locator("#films .film").nth(6).click()
    tab.page.locator("#lens .head").select_option("2")
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.head === 2")
    expected = direct(vlm, picture, QUESTION, tab.frame()["gates"])
    assert tab.frame()["lens"] == asdict(Lens(layer=6, head=2))
    assert_shows(tab, tab.frame(), expected)

    tab.page.locator("#lens .hide-sinks").check()
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.hide")
    assert_shows(tab, tab.frame(), expected)
    hidden = [mark["token"] for mark in tab.frame()["marks"]]
    assert all(tab.frame()["after"][token] == 0 for token in hidden)
    assert len(hidden) == int((expected["sinks"].v_sink | expected["sinks"].l_sink[6]).sum())
    assert tab.page.locator("#maps .marks").first.locator(".region").count() > 0

    if len(expected["after"].tokens) > 1 and len(expected["before"].tokens) > 1:
        tab.page.locator("#lens .row").select_option("1")
        tab.wait("document.querySelector('#maps [data-tick]').frame.lens.row === 1")
        assert_shows(tab, tab.frame(), expected)


def test_difference_query_and_patch(tab: Any) -> None:
    """The third map, a word of the question as the query, and the panel of a patch; test_maps.py has the details."""
    tab.drag(2, 0.1)
    frame = tab.settle()
    sink = frame["after"][0] - frame["before"][0]
    tab.page.locator("#maps .screen").nth(2).click(position={"x": 5, "y": 5})
    tab.page.wait_for_selector(".patch .decoded td")
    shown = tab.page.locator("#maps .trio output").nth(2).text_content().replace("\N{MINUS SIGN}", "-")
    assert float(shown.removesuffix(" pp")) == pytest.approx(100 * sink, abs=0.051) and sink < -0.3
    assert tab.page.locator(".patch .name").text_content() == "Patch row 0, column 0: V-sink"
    tab.page.locator(".token", has_text="objects").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.position !== null")
    assert tab.frame()["before"] != frame["before"]
    assert tab.frame()["query"].endswith("“objects”")


def test_bad_questions_and_unknown_words(tab: Any, picture: Path) -> None:
    ask_about(tab, picture)
    shown = tab.frame()["before"]
    tab.ask("   ")
    tab.page.wait_for_selector("#status .warning")
    tab.ask("why " * 200)
    tab.wait("document.querySelector('#status').textContent.includes('800')")
    assert tab.frame()["before"] == shown
    tab.ask("How many bananas are there?")
    tab.page.wait_for_selector("#status .calm")
    assert "bananas" in tab.status()
    tab.settle()


def test_gates_as_json_in_and_out(tab: Any, vlm: sg.VLM) -> None:
    text = tab.gates_text()
    gates = sg.Gates.ones(vlm).set("v_sink", 0.25, layers=[3])
    text.fill(gates.to_json())
    tab.page.locator("#gates-apply").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[3] === 0.25")
    tab.settle()
    assert tab.scale(3) == 0.25
    tab.drag(5, 0.5)
    frame = tab.settle()
    tab.wait("(n) => document.querySelector('#gates-text textarea').value.includes(n)", arg=str(tab.scale(5)))
    assert sg.Gates.from_json(text.input_value()).scales[:, 0].tolist() == pytest.approx(frame["gates"]["v_sink"])

    document = json.loads(gates.to_json())
    wrong = ["not json", "[]", json.dumps(document).replace("0.25", "NaN"), json.dumps(document).replace("0.25", "-1"),
             json.dumps(document).replace("0.25", "1e400"), json.dumps(document).replace("0.25", "9"),
             sg.Gates.from_lists(v_sink=[0.5] * 3, rest=[1.0] * 3).to_json()]  # fmt: skip
    for broken in wrong:
        text.fill(broken)
        sentence = tab.says(tab.page.locator("#gates-apply").click)
        assert tab.page.locator("#status .warning").count() == 1 and "Unexpected" not in sentence, broken
        assert tab.frame()["gates"] == frame["gates"], broken
    text.fill(gates.to_json())
    tab.says(tab.page.locator("#gates-apply").click)
    assert tab.page.locator("#status .calm").count() == 1


def test_a_tick_that_comes_late_hides_no_error(tab: Any) -> None:
    text = tab.gates_text()
    text.fill("not json")
    sentence = tab.says(tab.page.locator("#gates-apply").click)
    calm = "(requestTime) => window.sinkgate.publish('update', { status: { text: '', tone: 'calm' }, requestTime })"
    tab.page.evaluate(calm, 0)
    tab.page.wait_for_timeout(200)
    assert tab.page.locator("#status .warning").count() == 1 and tab.status() == sentence
    tab.page.evaluate(calm, tab.page.evaluate("performance.now()"))
    tab.page.wait_for_selector("#status .warning", state="detached")
    text.fill("not json")
    assert tab.says(tab.page.locator("#gates-apply").click) == sentence


def test_a_fader_that_rests_is_asked_for_once(tab: Any) -> None:
    calls: list[str] = []
    tab.page.on(
        "request", lambda request: calls.append(request.post_data) if "component_server" in request.url else None
    )
    tab.drag(5, 0.5)
    tab.settle()
    pressed = len(calls)  # where it was pressed, and where it was released
    for key, moved in (("ArrowUp", 1), ("ArrowDown", 1)):
        calls.clear()
        tab.page.keyboard.press(key)
        tab.settle()
        tab.page.wait_for_timeout(600)  # its rest follows after 300 ms
        assert len(calls) == moved
    assert 1 <= pressed <= 2 and tab.frame()["here"]


def test_what_moves_again_after_its_rest_waits_for_no_frame(tab: Any) -> None:
    sent = tab.page.evaluate(
        """async () => {
          let sent = 0;
          const pace = window.sinkgate.pace(() => { sent += 1; }, () => {});
          pace.settled();
          await new Promise((resolve) => setTimeout(resolve, 100));
          pace.moved();
          return sent;
        }"""
    )
    assert sent == 1


def test_gates_as_files_in_and_out(tab: Any, vlm: sg.VLM, tmp_path: Path) -> None:
    tab.page.locator("#gates button").first.click()
    tab.drag(2, 0.4)
    frame = tab.settle()
    tab.wait("(n) => document.querySelector('#gates-text textarea').value.includes(n)", arg=str(tab.scale(2)))
    with tab.page.expect_download() as download:
        tab.page.locator("#gates-save").click()
    download.value.save_as(tmp_path / "gates.json")
    saved = sg.Gates.load(tmp_path / "gates.json")
    assert saved.model == vlm.name
    assert saved.scales[:, 0].tolist() == pytest.approx(frame["gates"]["v_sink"])
    tab.page.locator("#mixer .preset", has_text="All at 1").click()
    assert tab.settle()["identity"]
    with tab.page.expect_file_chooser() as chooser:
        tab.page.locator("button#gates-load").click()
    chooser.value.set_files(tmp_path / "gates.json")
    tab.wait("!document.querySelector('#maps [data-tick]').frame.identity")
    assert tab.settle()["gates"] == frame["gates"]


def test_every_kind_of_picture_is_taken(tab: Any, tmp_path: Path, picture: Path) -> None:
    """RGBA, 16 bits, CMYK, an animation, a photograph lying on its side: the page shows and answers each."""
    image = Image.open(picture)
    turned = image.getexif()
    turned[0x0112] = 6
    image.convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.resize((120, 60)).save(tmp_path / "turned.jpg", exif=turned)
    image.save(tmp_path / "moving.webp", save_all=True, append_images=[image.rotate(90)])
    for name in ("rgba.png", "deep.png", "cmyk.jpg", "turned.jpg", "moving.webp"):
        tab.after(lambda name=name: tab.upload(tmp_path / name))
        assert tab.answers()[0], name
        assert not tab.page.locator("#status .warning").count(), name


def test_light_and_dark(enter: Callable[..., Tab], address: str, tab: Any) -> None:
    def ground(page: Any) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground(tab.page)
    tab.page.get_by_label("Dark page").click()
    assert ground(tab.page) != light
    tab.leave(tab.page.reload)
    tab.settle()
    assert ground(tab.page) != light  # the choice is kept
    other = enter(address, color_scheme="dark")
    assert ground(other.page) == ground(tab.page)  # and without one the system's is followed


def test_two_users_never_share_a_setting(enter: Callable[..., Tab], address: str, tab: Any) -> None:
    other = enter(address)
    tab.page.locator("#mixer .preset", has_text="V-sinks × 0").click()
    assert not tab.settle()["identity"]
    other.page.locator("#films .film").nth(1).click()
    other.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 1")
    assert other.frame()["identity"]


LATE = """
const { fetch } = window;
const later = (ms) => new Promise((done) => setTimeout(done, ms));
window.fetch = async (...request) => {
  const answer = await fetch(...request);
  const late = new TransformStream({
    async transform(part, to) {
      const [sooner, end] = part.split('data: {"msg":"close_stream"');
      if (sooner) to.enqueue(sooner);
      if (end === undefined) return;
      await later(300);
      to.enqueue('data: {"msg":"close_stream"' + end);
    },
  });
  if (!answer.url.includes("/queue/data")) return answer;
  return new Response(answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(late).pipeThrough(new TextEncoderStream()));
};
"""


def test_a_page_that_hears_late_that_its_stream_ends_misses_nothing(enter: Callable[..., Tab], address: str) -> None:
    tab = enter(address, script=LATE)
    for layer in range(4):
        tab.drag(layer, 0.2)
        tab.settle()
