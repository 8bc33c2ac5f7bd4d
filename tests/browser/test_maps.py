"""The attention maps: their numbers, scales and outlines are those of the frame, by mouse, keyboard, large and as a file."""

from __future__ import annotations

import base64
import csv
import io
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from page_user import Tab

import sinkgate as sg
from app.examples import FIRST_SCENE, SCENE_SIDE
from sinkgate.scenes.scene import Scene
from sinkgate.sinks.glossary import DARK_GROUP_COLORS, GROUP_COLORS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUESTION = "How many objects are there?"
CLOSE = 2e-5  # the page's values are rounded, and threads move the last digits
COLORS = """([side, cells]) => {
  const canvas = document.querySelectorAll("#maps .screen canvas")[side];
  const [rows, columns] = document.querySelector("#maps [data-tick]").frame.grid;
  const draw = canvas.getContext("2d", { willReadFrequently: true });
  return cells.map((cell) => [...draw.getImageData(
    Math.round(((cell % columns) + 0.5) * canvas.width / columns), Math.round((Math.floor(cell / columns) + 0.2) * canvas.height / rows), 1, 1,
  ).data.slice(0, 3)]);
}"""


def show(tab: Tab, **options: Any) -> dict[str, Any]:
    """Set controls of the maps and wait for the frame that they bring."""
    for name, value in options.items():
        if name == "hide":
            tab.page.locator("#lens .hide-sinks").set_checked(value)
        else:
            tab.page.locator({"scale": "#lens .scale-kind", "head": "#lens .head"}[name]).select_option(str(value))
        tab.wait(
            "([name, value]) => document.querySelector('#maps [data-tick]').frame.lens[name] === value",
            arg=[name, value],
        )
    return tab.frame()


def point_at(tab: Tab, cell: int, side: int = 0) -> list[str]:
    """Move the pointer to a cell; return the numbers above the three maps."""
    rows, columns = tab.frame()["grid"]
    box = tab.page.locator("#maps .screen").nth(side).bounding_box()
    assert box
    row, column = divmod(cell, columns)
    tab.page.mouse.move(
        box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows
    )
    return tab.page.locator("#maps .trio output").all_text_contents()


def number(text: str) -> float:
    return float(text.split()[0].replace("\N{MINUS SIGN}", "-"))


def brightness(colors: Sequence[Sequence[int]]) -> list[int]:
    return [sum(color) for color in colors]


def test_the_difference_is_gated_minus_original_on_every_scale_and_where_sinks_are_masked(tab: Tab) -> None:
    still = tab.page.evaluate(COLORS, [2, list(range(64))])
    assert len({tuple(color) for color in still}) < 8  # only the picture shows through
    tab.drag(2, 0.1)
    frame = tab.settle()
    change = [after - before for before, after in zip(frame["before"], frame["after"], strict=True)]
    low, high = min(range(64), key=change.__getitem__), max(range(64), key=change.__getitem__)
    for cell in (low, high):
        original, gated, difference = map(number, point_at(tab, cell))
        assert original == pytest.approx(100 * frame["before"][cell], abs=0.051)
        assert gated == pytest.approx(100 * frame["after"][cell], abs=0.051)
        assert difference == pytest.approx(100 * change[cell], abs=0.051) and abs(difference) > 0.1
    colors = tab.page.evaluate(COLORS, [2, [low, high]])
    assert colors[0][0] > colors[0][2] + 30 and colors[1][0] < colors[1][2]  # brown where it fell, teal where it rose
    ends = [number(tab.page.locator(f"#maps .{end}").nth(2).text_content() or "") for end in ("low", "high")]
    assert ends == pytest.approx([100 * change[low], -100 * change[low]], abs=0.051)

    # masked sinks have no difference in colour and a true one in numbers
    true, (row, column) = frame, frame["marks"][0]["cell"]
    sink = row * frame["grid"][1] + column
    show(tab, hide=True)
    other = next(cell for cell in range(64) if abs(true["after"][cell] - true["before"][cell]) > 0.004 and cell != sink)
    for cell, note in ((sink, " (masked)"), (other, "")):
        shown = point_at(tab, cell, 2)[2]
        assert shown.endswith(f"pp{note}")
        assert number(shown) == pytest.approx(100 * (true["after"][cell] - true["before"][cell]), abs=0.051)
    tab.page.mouse.move(2, 2)
    empty = "([cell]) => { const c = document.querySelector('#maps canvas.difference'), [r, n] = document.querySelector('#maps [data-tick]').frame.grid;"
    where = "const at = [(cell % n + 0.5) * c.width / n, (Math.floor(cell / n) + 0.5) * c.height / r].map(Math.round);"
    alpha = f"{empty} {where} return c.getContext('2d').getImageData(...at, 1, 1).data[3]; }}"
    assert tab.page.evaluate(alpha, [sink]) < 128 and tab.page.evaluate(alpha, [other]) == 255

    # scales of the colours
    frame = show(tab, hide=False)

    def highest() -> list[float]:
        return [number(text) for text in tab.page.locator("#maps .high").all_text_contents()[:2]]

    tops = [100 * max(frame[side]) for side in ("before", "after")]
    assert tops[0] > 2 * tops[1] and highest() == pytest.approx([max(tops)] * 2, abs=0.051)
    brightest = max(range(64), key=frame["after"].__getitem__)
    faint = sorted(range(64), key=frame["after"].__getitem__)[32]
    shared = brightness(tab.page.evaluate(COLORS, [1, [brightest, faint]]))
    show(tab, scale="own")
    assert highest() == pytest.approx(tops, abs=0.051)
    own = brightness(tab.page.evaluate(COLORS, [1, [brightest, faint]]))
    assert own[0] > shared[0]
    show(tab, scale="log")
    assert highest() == pytest.approx([max(tops)] * 2, abs=0.051)
    assert brightness(tab.page.evaluate(COLORS, [1, [faint]]))[0] > max(shared[1], own[1])
    assert "logarithmic" in (tab.page.locator("#maps .caption").text_content() or "")
    assert number(point_at(tab, faint, 1)[1]) == pytest.approx(100 * frame["after"][faint], rel=0.06)


@pytest.mark.parametrize("colors", [GROUP_COLORS, DARK_GROUP_COLORS], ids=["light", "dark"])
def test_marks_and_their_legend_have_the_colours_of_the_chart(tab: Tab, colors: dict[str, str]) -> None:
    page = tab.page
    if colors == DARK_GROUP_COLORS:
        page.locator(".light-switch").click()
    painted = page.evaluate(
        """() => {
          const style = (node, name) => getComputedStyle(node)[name];
          const svg = document.querySelector("#maps .marks");
          const mark = (kind) => {
            const path = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
            path.setAttribute("class", "region " + kind);
            const color = style(path, "stroke");
            path.remove();
            return color;
          };
          const kinds = ["v_sink", "l_sink"];
          return {
            marks: kinds.map(mark),
            legend: kinds.map((kind) => style(document.querySelector(`#maps .key.${kind} i`), "borderTopColor")),
            chart: kinds.map((kind) => style(document.querySelector(`#chart .${kind} .line, #chart .line.${kind}`), "stroke")),
          };
        }"""
    )
    wanted = [
        f"rgb({', '.join(str(int(colors[kind][at : at + 2], 16)) for at in (1, 3, 5))})"
        for kind in ("v_sink", "l_sink")
    ]
    assert painted == {"marks": wanted, "legend": wanted, "chart": wanted}
    if colors == DARK_GROUP_COLORS:
        page.locator(".light-switch").click()


def test_evidence_by_mouse_and_keyboard(tab: Tab, vlm: sg.VLM) -> None:
    frame = tab.frame()
    sinks = [mark["cell"][0] * frame["grid"][1] + mark["cell"][1] for mark in frame["marks"]]
    reading = tab.page.locator("#maps .reading")
    hint = reading.text_content() or ""
    assert hint.startswith("Point at a patch") and tab.page.locator("#maps .screen [tabindex]").count() == 0
    point_at(tab, sinks[0])
    by_mouse = reading.text_content() or ""
    values = frame["marks"][0]["values"]
    assert by_mouse.startswith("Row 0, column 0: V-sink") and all(value in by_mouse for value in values)
    assert "(sink from 5)" in values[0]
    point_at(tab, 27)
    assert "no sink in this layer" in (reading.text_content() or "")
    tab.page.mouse.move(2, 2)
    assert reading.text_content() == hint
    tab.page.locator("#maps .trio").focus()
    tab.page.keyboard.press("PageDown")
    assert reading.text_content() == by_mouse
    tab.page.keyboard.press("PageDown")
    row, column = divmod(sorted(sinks)[1], frame["grid"][1])
    assert (reading.text_content() or "").startswith(f"Row {row}, column {column}: ")
    tab.page.keyboard.press("Home")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tab.page.keyboard.press(key)
    assert (reading.text_content() or "").startswith("Row 2, column 1: ")
    shown = tab.page.locator("#maps output").first.text_content() or ""
    assert number(shown) == pytest.approx(100 * frame["before"][17], rel=0.06)


def test_maps_open_large_and_close_again_and_neighbouring_sinks_share_an_outline(tab: Tab) -> None:
    page = tab.page
    small = page.locator("#maps canvas.after").bounding_box()
    button = page.get_by_role("button", name="Enlarge the gated map")
    button.focus()
    page.keyboard.press("Enter")
    large = page.locator("#maps canvas.after").bounding_box()
    assert small and large and large["width"] > 1.8 * small["width"] and large["y"] + large["height"] <= 768
    assert page.evaluate("document.querySelector('#maps canvas.after').width") == round(large["width"])  # drawn anew
    assert not page.locator("#maps canvas.before").is_visible()
    page.get_by_role("button", name="All three").click()
    assert page.locator("#maps canvas.before").is_visible() and page.locator("#maps canvas.difference").is_visible()
    point_at(tab, 0)
    assert "V-sink" in (page.locator("#maps .reading").text_content() or "")
    page.keyboard.press("Escape")
    page.wait_for_selector("#maps .home > .view")
    assert page.locator("#maps canvas.after").bounding_box() == small
    assert page.evaluate("document.activeElement.className") == "enlarge"
    assert page.locator("#maps [aria-pressed]:not(button)").count() == 0

    # a frame with a block of three sinks, one alone, and one of the other kind beside the block
    drawn = tab.page.evaluate(
        """() => {
          const node = document.querySelector("#maps [data-tick]"), frame = node.frame;
          const mark = (row, column, kind) => ({ token: 0, cell: [row, column], kind, values: ["1", "2", "3", "4"] });
          const { marks } = frame;
          frame.marks = [mark(2, 2, "l_sink"), mark(2, 3, "l_sink"), mark(3, 2, "l_sink"), mark(6, 6, "l_sink"), mark(3, 3, "v_sink")];
          window.dispatchEvent(new Event("resize"));
          document.querySelector("#maps .enlarge").click();  // draws again
          const drawn = [...document.querySelector("#maps .marks").querySelectorAll(".region")].map((path) =>
            [path.classList[1], path.getAttribute("d").match(/M/g).length]);
          frame.marks = marks;
          document.querySelector(".zoom .close").click();  // and again
          return drawn;
        }"""
    )
    assert sorted(drawn) == [["l_sink", 4], ["l_sink", 8], ["v_sink", 4]]  # edges of the outlines


def test_the_maps_as_a_table(tab: Tab, tmp_path: Path) -> None:
    tab.drag(2, 0.1)
    true = tab.settle()
    show(tab, hide=True)  # rescaled colours change no number of the file
    page = tab.page
    page.get_by_role("button", name="Share", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save CSV").click()
    assert download.value.suggested_filename == "sinkgate-layer-2.csv"
    download.value.save_as(tmp_path / "map.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "map.csv").read_text(encoding="utf-8"))))
    assert [(int(line["row"]), int(line["column"])) for line in lines] == [divmod(cell, 8) for cell in range(64)]
    for name, side in (("original", "before"), ("gated", "after")):
        assert [float(line[name]) for line in lines] == pytest.approx(true[side], abs=1e-8)
    assert all(
        float(line["difference"]) == pytest.approx(float(line["gated"]) - float(line["original"]), abs=1e-8)
        for line in lines
    )
    groups = {tuple(mark["cell"]): mark["kind"] for mark in true["marks"]}
    assert [line["group"] for line in lines] == [groups.get(divmod(cell, 8), "ordinary") for cell in range(64)]


# --- who looks at whom


def chip(tab: Tab, text: str) -> Any:
    return tab.page.get_by_role("group", name="Query: a token").get_by_role("button", name=text, exact=True)


def query(tab: Tab, text: str) -> dict[str, Any]:
    """Choose a token of the question as the query."""
    chip(tab, text).click()
    tab.wait("(text) => document.querySelector('#maps [data-tick]').frame.query.includes(text)", arg=f"“{text}”")
    return tab.frame()


def expected_rows(vlm: sg.VLM, tab: Tab, frame: dict[str, Any]) -> tuple[sg.Session, sg.Gates, list[torch.Tensor]]:
    """The rows of the query of a frame, computed without the page: original and gated."""
    prompt = vlm.prompt(Scene.random(Random(FIRST_SCENE)).render(SCENE_SIDE), QUESTION)
    session = sg.Session(vlm, prompt)
    gates = sg.Gates.from_lists(**frame["gates"])
    return session, gates, [session.rows([frame["lens"]["position"]], each)[:, :, 0] for each in (None, gates)]


def test_a_token_of_the_question_is_the_query_of_all_panels(tab: Tab, vlm: sg.VLM) -> None:
    tab.drag(2, 0.1)
    last = tab.settle()
    frame = query(tab, "objects")
    session, _, rows = expected_rows(vlm, tab, frame)
    visual = session.prompt.visual
    for side, each in zip(("before", "after"), rows, strict=True):
        assert frame[side] == pytest.approx(each[2].mean(0)[visual].tolist(), abs=CLOSE)
        share = frame["shares"]["unchanged" if side == "before" else "gated"]
        groups = [share[group][2] for group in ("v_sink", "l_sink", "ordinary", "separator", "text")]
        assert sum(groups) == pytest.approx(1, abs=1e-5)
        assert share["text"][2] == pytest.approx(1 - float(each[2].mean(0)[visual].sum()), abs=CLOSE)
    assert frame["films"] != last["films"]
    assert tab.page.locator("#lens .row").input_value() == "prompt"

    tab.drag(2, 1.6)  # its rows follow the fader
    moved = tab.settle()
    _, _, rows = expected_rows(vlm, tab, moved)
    assert moved["after"] == pytest.approx(rows[1][2].mean(0)[visual].tolist(), abs=CLOSE)
    assert moved["after"] != frame["after"] and moved["before"] == frame["before"]

    tab.page.locator("#lens .row").select_option("0")
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.position === null")
    assert tab.frame()["before"] == pytest.approx(last["before"], abs=CLOSE)
    query(tab, "many")
    tab.after(lambda: tab.ask("What color is the background?"))  # its tokens are others
    assert tab.frame()["lens"]["position"] is None and tab.page.locator("#lens .row").input_value() == "0"


def test_a_token_that_is_drawn_again_while_it_is_pressed_is_chosen(tab: Tab) -> None:
    """As when its measurement arrives."""
    box = chip(tab, "objects").bounding_box()
    assert box
    tab.page.mouse.move(box["x"] + 3, box["y"] + 3)
    tab.page.mouse.down()
    tab.page.evaluate("window.sinkgate.publish('frame', document.querySelector('#maps [data-tick]').frame)")
    tab.page.mouse.up()
    tab.wait("document.querySelector('#maps [data-tick]').frame.query.includes('“objects”')")
    assert chip(tab, "objects").get_attribute("aria-pressed") == "true"


def test_tokens_are_filled_by_their_attention_to_the_picture(tab: Tab, vlm: sg.VLM) -> None:
    frame = tab.frame()
    tab.wait("document.querySelector('.token.question').style.getPropertyValue('--share')")
    prompt = vlm.prompt(Scene.random(Random(FIRST_SCENE)).render(SCENE_SIDE), QUESTION)
    rows = sg.Session(vlm, prompt).rows(range(prompt.length), layers=[frame["lens"]["layer"]])[0].mean(0)
    words = [vlm.token_name(int(token)) for token in prompt.inputs["input_ids"][0]]
    for word in ("objects", "there"):
        share = float(rows[words.index(word), prompt.visual].sum())
        assert f"{share:.1%}".replace("%", " %") in (chip(tab, word).get_attribute("title") or "")
        filled = chip(tab, word).evaluate("(chip) => parseFloat(chip.style.getPropertyValue('--share'))")
        assert filled == pytest.approx(100 * share, abs=0.06)
    assert tab.page.locator(".token.picture").text_content() == "picture · 64 tokens"
    hidden = tab.page.locator(".token").count()
    tab.page.get_by_role("button", name="Show the tokens of the chat template").first.click()
    assert tab.page.locator(".token").count() >= hidden and tab.page.locator(".token.special").count() >= 1


def test_all_heads_and_the_choice_of_one(tab: Tab) -> None:
    assert not tab.page.locator(".heads").is_visible()
    tab.page.get_by_role("button", name="All heads").click()
    tab.page.wait_for_selector(".heads .head-map")
    assert tab.page.locator(".heads .head-map").count() == len(tab.frame()["heads"]) == 4
    tab.page.get_by_role("radio", name="Head 2").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.head === 2")
    assert tab.page.locator("#lens .head").input_value() == "2"
    tab.page.keyboard.press("ArrowRight")
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.head === 3")
    shades = base64.b64decode(tab.frame()["heads"][3])
    after = tab.frame()["after"]
    assert max(range(64), key=shades.__getitem__) == max(range(64), key=after.__getitem__)


def test_a_patch_shows_who_attends_to_it(tab: Tab, vlm: sg.VLM) -> None:
    page = tab.page
    tab.drag(2, 0.1)
    frame = tab.settle()
    point_at(tab, 0)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector(".patch .decoded td")
    assert page.locator(".patch h2 .name").text_content() == "Patch row 0, column 0: V-sink"
    prompt = vlm.prompt(Scene.random(Random(FIRST_SCENE)).render(SCENE_SIDE), QUESTION)
    session, gates = sg.Session(vlm, prompt), sg.Gates.from_lists(**frame["gates"])
    position = int(prompt.visual[0])
    value = page.evaluate("window.sinkgate.last.inspected.patch")
    received = [session.received(each)[:, :, position] for each in (None, gates)]
    for side, each in enumerate(received):
        assert value["received"][side][0] == pytest.approx(each.mean(1).tolist(), abs=CLOSE)
    assert [number for row in value["heads"] for number in row] == pytest.approx(
        received[1].flatten().tolist(), abs=CLOSE
    )
    rows = [session.rows(range(prompt.length), each, layers=[2])[0].mean(0)[:, position] for each in (None, gates)]
    texts = [each for each in range(prompt.length) if each not in prompt.visual.tolist()]
    best = max(texts, key=lambda each: float(rows[1][each]))
    name, *shares = value["attended"][0]
    assert name == f"“{vlm.token_name(int(prompt.inputs['input_ids'][0, best]))}”"
    assert shares == pytest.approx([float(each[best]) for each in rows], abs=CLOSE)
    lens = sg.logit_lens(vlm, prompt, layers=[2], top=3, gates=gates)
    words = next(line for line in value["words"] if line[0] == 2)
    assert dict(words[1]) == pytest.approx(dict(lens.words(0, 2)), abs=1e-3)
    assert value["ordinary"].startswith("patch row") and len(words) == 3  # beside those of an ordinary patch
    assert page.locator(".patch .evidence tr").count() == 4 and page.locator(".patch .lines .line").count() == 3

    page.locator("#maps .trio").focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    tab.wait("document.querySelector('.patch .name').textContent.endsWith('no sink in this layer')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".patch", state="hidden")
    assert tab.frame()["lens"]["patch"] is None


BOXES = """() => ['.panels', '.layered', '#maps .trio', '#chart .plot', '#mixer .strips', '#answers'].map((name) => {
  const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
  return [x, y, width, height];
})"""


def test_heads_and_the_panel_of_a_patch_move_nothing(tab: Tab) -> None:
    page = tab.page
    for width in (390, 1280, 2560):
        page.set_viewport_size({"width": width, "height": 800})
        tab.wait(
            "document.querySelector('#chart .plot svg').clientWidth === document.querySelector('#chart .plot').clientWidth"
        )
        page.locator("#maps canvas.after").scroll_into_view_if_needed()
        before = page.evaluate(BOXES)
        page.locator("#maps canvas.after").click()
        page.wait_for_selector(".patch .decoded td")
        assert page.evaluate(BOXES) == before
        page.locator("#lens .all-heads").click()
        page.wait_for_selector(".heads .head-map")
        panel = page.locator(".beside").bounding_box()
        assert page.evaluate(BOXES) == before and panel
        for name in ("#maps .trio", "#mixer .strips"):  # at a phone's width it covers the lower half
            box = page.locator(name).bounding_box()
            assert box and (
                width == 390 or box["y"] >= panel["y"] + panel["height"] or box["x"] + box["width"] <= panel["x"]
            )
        page.locator("#lens .all-heads").click()
        page.locator(".close-patch").click()
        page.wait_for_selector(".patch", state="hidden")
        page.wait_for_selector(".heads", state="hidden")


def test_a_key_scale_of_0_that_raises_attention_says_why(tab: Tab) -> None:
    """The Key scale 0 makes the logit 0, which may be more than it was."""
    hint = tab.page.locator("#maps .reading")
    tab.after(lambda: tab.ask("Describe the picture."))
    assert (hint.text_content() or "").startswith("Point at a patch")
    tab.page.locator("#mixer .preset", has_text="V-sinks × 0").click()
    frame = tab.settle()
    shares = [frame["shares"][side]["v_sink"] for side in ("unchanged", "gated")]
    risen = [layer for layer, (before, after) in enumerate(zip(*shares, strict=True)) if after > before + 0.001]
    fallen = [layer for layer, (before, after) in enumerate(zip(*shares, strict=True)) if after <= before]
    assert risen and fallen
    for layer in (risen[0], fallen[0]):
        tab.page.locator("#films .film").nth(layer).click()
        tab.wait(f"document.querySelector('#maps [data-tick]').frame.lens.layer === {layer}")
        tab.page.mouse.move(0, 0)
        text = hint.text_content() or ""
        assert text.startswith("V-sinks × 0: their share of attention rises") == (layer == risen[0])


def test_a_link_and_python_keep_query_heads_and_patch(tab: Tab, enter: Callable[..., Tab]) -> None:
    page = tab.page
    tab.drag(2, 0.1)
    tab.settle()
    frame = query(tab, "objects")
    page.get_by_role("button", name="All heads").click()
    point_at(tab, 9)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector(".patch .decoded td")
    page.get_by_role("button", name="Share", exact=True).click()
    tab.wait("document.querySelector('#share code').textContent.includes('.rows([')")
    names: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        exec(page.locator("#share code").text_content() or "", names)
    assert frame["after"] == pytest.approx(names["attention"].flatten().tolist(), abs=CLOSE)
    tab.wait("document.querySelector('#share .link').value")
    other = enter(page.locator("#share .link").input_value())
    other.page.wait_for_selector(".patch .decoded td")
    assert other.frame()["lens"] == tab.frame()["lens"] and other.frame()["after"] == pytest.approx(
        frame["after"], abs=CLOSE
    )
    assert other.page.locator(".heads .head-map").count() == 4
