"""The card of the layers: rows on one axis, faders or curves, and three groups of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from app_process import running_app
from models import FEWER_TOKENS, MOST_TOKENS
from page_user import Tab
from test_page import assert_shows
from tiny import tiny_llava

import sinkgate as sg
from app.engine import MAX_NEW_TOKENS
from app.examples import FIRST_SCENE, SCENE_SIDE, random_scene

MANY = 48
QUESTION = "How many objects are there?"
# The middle of each layer in each row: thumbnail, chart, Key scale.
MIDDLES = """(group) => {
  const middle = (node) => { const box = node.getBoundingClientRect(); return box.x + box.width / 2; };
  const plot = document.querySelector('#chart .plot').getBoundingClientRect();
  const points = document.querySelector(`#chart .plot .line.gated.${group}`).getAttribute('points').split(' ');
  return {
    films: [...document.querySelectorAll('#films .film canvas')].map(middle),
    chart: points.map((point) => plot.x + Number(point.split(',')[0])),
    scales: [...document.querySelectorAll('#mixer .strip:not(.master)')].map(middle),
  };
}"""
BAND = "getComputedStyle(document.querySelector('{}'), '::before').left"


@pytest.fixture(scope="module")
def many(module_enter: Callable[..., Tab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A page, 1280 x 720, about a model of 48 layers that never ends an answer by itself."""
    folder = tmp_path_factory.mktemp("models") / "many"
    for part in tiny_llava(layers=MANY):
        part.save_pretrained(folder)
    with running_app("--model", str(folder), code=FEWER_TOKENS) as app:
        tab = module_enter(app.address, size={"width": 1280, "height": 720})
        yield tab
        tab.leave(lambda: tab.page.goto("about:blank"))


def assert_aligned(tab: Tab, layers: int) -> None:
    """All rows have the same columns, in sight without scrolling sideways."""
    tab.wait(
        "document.querySelector('#chart .plot svg').clientWidth === document.querySelector('#chart .plot').clientWidth"
        " && document.querySelector('#chart .plot').clientWidth === document.querySelector('#films .films').clientWidth"
    )  # the chart is drawn anew after the window's size has changed
    rows = tab.page.evaluate(MIDDLES, "ordinary")
    width = tab.page.evaluate("innerWidth")
    for name, middles in rows.items():
        assert len(middles) == layers and middles == pytest.approx(rows["films"], abs=1), name
        assert middles[0] > 0 and middles[-1] < width
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.evaluate(
        "[...document.querySelectorAll('#films .films, #mixer .strips, .layered')]"
        ".every((row) => row.scrollWidth <= row.clientWidth + 1)"
    )


def unmoved(tab: Tab, layer: int) -> list[Any]:
    """The faders' boxes and the rows' heights."""
    return [
        tab.fader(layer).bounding_box(),
        tab.fader(-1).bounding_box(),
        tab.page.locator("#chart .plot").bounding_box(),
        tab.page.locator(".layered").bounding_box(),
    ]


def separate(tab: Tab) -> None:
    tab.page.locator("#mixer .separate").check()


# --- one axis


def test_48_layers_fit(many: Tab) -> None:
    assert_aligned(many, MANY)
    assert many.page.locator("#mixer .desk.curves").count() == 1
    assert many.page.locator("#mixer .fader.v_sink[role=slider]").count() == MANY + 1
    width = many.page.locator("#films .film").first.bounding_box()
    assert width and width["width"] >= 20


def test_the_rows_are_in_sight_share_one_axis_and_select_their_layers(tab: Tab) -> None:
    middles = tab.page.evaluate(MIDDLES, "ordinary")["films"]
    for row, layer in (("#chart .plot", 6), ("#mixer .strips", 4), ("#films .films", 1)):
        box = tab.page.locator(row).bounding_box()
        assert box
        beside = 40 if row == "#mixer .strips" else 0  # of the faders
        tab.page.mouse.click(middles[layer] + beside, box["y"] + box["height"] / 2)
        tab.wait(f"document.querySelector('#maps [data-tick]').frame.lens.layer === {layer}")
        assert tab.page.locator("#films [aria-checked=true]").get_attribute("aria-label") == f"Layer {layer}"
        tab.page.mouse.move(0, 0)
        tab.wait(f"document.querySelector('.layer-words b').textContent === 'Layer {layer}'")
    assert tab.settle()["identity"]
    lefts = {tab.page.evaluate(BAND.format(row)) for row in ("#films .films", ".chart", ".desk")}
    assert len(lefts) == 1  # the mark goes through all rows
    shown = ("#maps .screen", "#answers .answer", "#words .bars", "#films .film", "#chart .plot", "#mixer .strips")
    for width, height in ((1280, 720), (1366, 768), (1440, 900), (2560, 1440)):
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.wait(
            "document.querySelector('#chart .plot svg').clientWidth === document.querySelector('#chart .plot').clientWidth"
        )
        for name in shown:
            box = tab.page.locator(name).last.bounding_box()
            assert box and box["y"] >= 0 and box["y"] + box["height"] <= height, (name, width)
    for width in (1280, 2560, 390):
        tab.page.set_viewport_size({"width": width, "height": 800})
        assert_aligned(tab, 8)
        curves = tab.page.locator("#mixer .desk.curves").count() == 1
        assert curves == (width == 390)


def test_no_fader_moves_while_one_is_dragged(many: Tab) -> None:
    many.page.locator("#mixer .preset", has_text="All at 1").click()
    many.settle()
    many.fader(12, "rest").scroll_into_view_if_needed()
    before = unmoved(many, 12)
    many.drag(12, 0.4, group="rest")
    frame = many.settle()
    assert unmoved(many, 12) == before
    assert [layer for layer, scale in enumerate(frame["gates"]["rest"]) if scale != 1] == [12]
    assert many.scale(12, "rest") == pytest.approx(0.4, abs=0.06)


def test_curves_are_painted(many: Tab) -> None:
    many.page.locator("#mixer .preset", has_text="All at 1").click()
    many.settle()
    many.fader(20, "rest").scroll_into_view_if_needed()
    start, end = many.fader(20, "rest").bounding_box(), many.fader(30, "rest").bounding_box()
    assert start and end
    x, y = start["x"] + start["width"] / 2, start["y"] + start["height"] / 2
    many.page.mouse.move(x, y)
    many.page.mouse.down()
    many.page.mouse.move(end["x"] + end["width"] / 2, start["y"] + start["height"] - 1, steps=2)
    many.page.mouse.up()
    frame = many.settle()
    scales = frame["gates"]["rest"]
    line = many.page.locator("#mixer .curve.rest polyline").get_attribute("points") or ""
    drawn = [2 * (1 - float(point.split(",")[1])) for point in line.split()]
    assert scales[19:21] == [1, 1] and scales[31] == 1 and scales[30] < 0.1
    assert scales[20:31] == sorted(scales[20:31], reverse=True) and len(set(scales[20:31])) > 7
    assert drawn == pytest.approx(scales) and set(frame["gates"]["v_sink"]) == {1}


@pytest.fixture
def narrow(many: Tab) -> Iterator[Tab]:
    """48 layers in a phone's width, where a column has 5 pixels."""
    many.page.set_viewport_size({"width": 390, "height": 844})
    many.page.wait_for_selector("#mixer .desk.narrow")
    many.page.locator("#mixer .preset", has_text="All at 1").click()
    many.settle()
    yield many
    many.page.set_viewport_size({"width": 1280, "height": 720})
    many.page.wait_for_selector("#mixer .desk:not(.narrow)")
    many.page.locator("#mixer .preset", has_text="All at 1").click()
    many.settle()


def test_narrow_columns_have_one_large_slider_a_group(narrow: Tab) -> None:
    page = narrow.page
    layer = narrow.frame()["lens"]["layer"]
    for step, button in ((1, "Next layer"), (1, "Next layer"), (-1, "Previous layer")):
        layer += step
        page.get_by_role("button", name=button).click()
        narrow.wait(f"document.querySelector('#maps [data-tick]').frame.lens.layer === {layer}")
    assert page.locator("#mixer .which").text_content() == f"Layer {layer}"
    slider = page.get_by_role("slider", name=f"Other visual tokens, layer {layer}").locator("visible=true").last
    box = slider.bounding_box()
    assert box and box["height"] >= 40 and box["width"] >= 150
    slider.scroll_into_view_if_needed()
    page.mouse.click(box["x"] + 2, (slider.bounding_box() or box)["y"] + box["height"] / 2)
    frame = narrow.settle()
    assert [at for at, scale in enumerate(frame["gates"]["rest"]) if scale != 1] == [layer]
    assert frame["gates"]["rest"][layer] < 0.2 and set(frame["gates"]["v_sink"]) == {1}
    first = frame["first"]
    shares = [page.evaluate("share => window.sinkgate.percent(share)", first[side]) for side in ("before", "after")]
    outcome = page.locator("#mixer .outcome").text_content() or ""
    assert all(share.removesuffix(" %") in outcome for share in shares)


def test_a_finger_on_a_narrow_column_selects_its_layer_and_moves_no_fader(narrow: Tab) -> None:
    narrow.page.evaluate(
        """() => {
          const fader = document.querySelector('#mixer .fader.rest[data-layer="33"]');
          const box = fader.getBoundingClientRect();
          const at = { pointerType: 'touch', bubbles: true, clientX: box.x + 2, clientY: box.y + 2 };
          for (const name of ['pointerdown', 'pointerup', 'click']) fader.dispatchEvent(new PointerEvent(name, at));
        }"""
    )
    narrow.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 33")
    assert narrow.settle()["identity"] and narrow.scale(33, "rest") == 1


def test_points_of_curves_are_sliders_for_the_keyboard(many: Tab) -> None:
    many.page.locator("#mixer .preset", has_text="All at 1").click()
    many.settle()
    many.fader(11, "rest").focus()
    many.page.keyboard.press("ArrowRight")
    for _ in range(3):
        many.page.keyboard.press("ArrowDown")
    point = many.page.evaluate(
        "(({ ariaLabel, role, ariaValueText }) => ({ ariaLabel, role, ariaValueText }))(document.activeElement)"
    )
    assert point == {"ariaLabel": "Other visual tokens, layer 12", "role": "slider", "ariaValueText": "0.85"}
    frame = many.settle()
    assert frame["gates"]["rest"][12] == 0.85 and frame["lens"]["layer"] == 12
    many.fader(12, "rest").dblclick()
    assert many.settle()["identity"]


# --- layers out of sight, answers without an end, folders


def in_sight(tab: Tab, layer: int) -> bool:
    film = tab.page.locator("#films .film").nth(layer).bounding_box()
    assert film
    return film["x"] >= 0 and film["x"] + film["width"] <= 1280


def test_the_layer_of_the_maps_is_named_and_its_film_is_in_sight(many: Tab) -> None:
    assert all(in_sight(many, layer) for layer in range(MANY))
    many.fader(27, "rest").scroll_into_view_if_needed()
    top = many.page.evaluate("scrollY")
    many.drag(27, 0.5, group="rest")
    many.settle()
    assert many.frame()["lens"]["layer"] == 27 and many.page.evaluate("scrollY") == top
    assert many.page.locator("#films [aria-checked=true]").inner_text() == "27"
    captions = many.page.locator("#maps .trio figcaption").all_text_contents()
    assert len(captions) == 3 and all("layer 27" in caption for caption in captions)
    many.page.locator("#films .film").nth(26).focus()
    for _ in range(3):
        many.page.keyboard.press("ArrowLeft")
    many.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 24")
    assert many.page.locator("#films [aria-checked=true]").get_attribute("aria-label") == "Layer 24"


def test_an_answer_that_was_cut_says_so(many: Tab, tab: Tab) -> None:
    many.page.locator("#mixer .preset", has_text="Others × 0.5").click()
    many.settle()
    heading = many.page.locator("#answers h2").first.inner_text()
    assert " ".join(heading.split()) == f"Original model cut at {MOST_TOKENS} tokens"
    assert all(answer.endswith("…") for answer in many.answers())
    assert "cut" not in tab.page.locator("#answers").inner_text() and "…" not in tab.answers()[0]


def test_code_for_a_model_from_a_folder_says_where_its_path_goes(many: Tab) -> None:
    many.page.get_by_role("button", name="Share", exact=True).click()
    many.wait("document.querySelector('#share code')?.textContent")
    code = many.page.locator("#share code").text_content() or ""
    assert 'folder = "many"  # the path of the model\'s folder\n' in code and "sg.load(folder, dtype=" in code


# --- three groups


def expected(vlm: sg.VLM, gates: sg.Gates) -> dict[str, Any]:
    """Compute answers and sinks of the first scene under these gates without the page."""
    prompt = vlm.prompt(random_scene(FIRST_SCENE).render(SCENE_SIDE), QUESTION)
    sinks = sg.find_sinks(vlm, prompt)
    before, after = (vlm.answer(prompt, each, sinks, max_new_tokens=MAX_NEW_TOKENS) for each in (None, gates))
    return {"before": before, "after": after, "sinks": sinks}


def three(frame: dict[str, Any]) -> sg.Gates:
    return sg.Gates.from_lists(**frame["gates"])


def test_l_sinks_have_a_scale_of_their_own_end_to_end(tab: Tab, vlm: sg.VLM, enter: Callable[..., Tab]) -> None:
    assert not tab.fader(4, "l_sink").is_visible()
    separate(tab)
    assert tab.fader(4, "rest").get_attribute("aria-label") == "Ordinary tokens, layer 4"
    for layer, scale in ((4, 0.2), (7, 1.8)):
        tab.fader(layer, "l_sink").scroll_into_view_if_needed()
        tab.drag(layer, scale, group="l_sink")
    tab.drag(3, 0.6, group="rest")
    frame = tab.settle()
    gates = frame["gates"]
    assert gates["l_sink"][4] == pytest.approx(0.2, abs=0.04) and gates["rest"][4] == 1 == gates["l_sink"][3]
    assert gates["rest"][3] == pytest.approx(0.6, abs=0.04) and set(gates["v_sink"]) == {1}
    assert_shows(tab, frame, expected(vlm, three(frame)))

    text = tab.gates_text()
    tab.wait("(n) => document.querySelector('#gates-text textarea').value.includes(n)", arg=str(gates["l_sink"][4]))
    assert sg.Gates.from_json(text.input_value()).scales.tolist() == three(frame).scales.tolist()
    tab.wait("document.querySelector('#share .link').value.includes('#s=')")
    tab.wait("document.querySelector('#share code').textContent.includes('l_sink=')")
    code = tab.page.locator("#share code").text_content() or ""
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["gates"].scales.tolist() == three(frame).scales.tolist()
    assert tuple(names[side].text for side in ("unchanged", "gated")) == tab.answers()

    other = enter(tab.page.locator("#share .link").input_value())
    assert other.settle()["gates"] == gates and other.page.locator("#mixer .separate").is_checked()
    assert other.fader(4, "l_sink").is_visible()


def test_gates_with_three_groups_open_their_faders_and_joining_them_takes_one_scale(tab: Tab, vlm: sg.VLM) -> None:
    gates = sg.Gates.ones(vlm).set("l_sink", 0.3, layers=[7]).set("ordinary", 0.8, layers=[7])
    tab.gates_text().fill(gates.to_json())
    tab.page.locator("#gates-apply").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.l_sink?.[7] === 0.3")
    assert tab.settle()["gates"]["rest"][7] == 0.8 and tab.page.locator("#mixer .separate").is_checked()
    assert tab.scale(7, "l_sink") == 0.3
    tab.page.locator("#mixer .separate").uncheck()
    tab.wait("!document.querySelector('#maps [data-tick]').frame.gates.l_sink")
    assert tab.settle()["gates"]["rest"][7] == 0.8 and not tab.fader(7, "l_sink").is_visible()
    two = {"v_sink": [1.0] * 8, "rest": [0.5] * 8}
    text = tab.page.locator("#gates-text textarea")
    text.fill(json.dumps(json.loads(gates.to_json()) | {"scales": two}))
    tab.page.locator("#gates-apply").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.rest[0] === 0.5")
    assert tab.settle()["gates"] == two and not tab.page.locator("#mixer .separate").is_checked()


def test_a_group_that_is_empty_in_a_layer_is_disabled_there_with_its_reason(tab: Tab) -> None:
    separate(tab)
    fader = tab.fader(3, "l_sink")
    reason = "No L-sinks in layer 3 (criterion: attention share)"
    assert fader.get_attribute("aria-disabled") == "true" and fader.get_attribute("title") == reason
    assert reason in (fader.get_attribute("aria-valuetext") or "")
    tab.drag(3, 0.2, group="l_sink")
    fader.focus()
    tab.page.keyboard.press("Home")
    assert tab.scale(3, "l_sink") == 1
    tab.page.keyboard.press("ArrowRight")  # from one disabled layer to the next with L-sinks
    tab.page.keyboard.press("Home")
    frame = tab.settle()
    assert frame["gates"]["l_sink"] == [1, 1, 1, 1, 0, 1, 1, 1]
    box, last = tab.fader(4, "l_sink").bounding_box(), tab.fader(7, "l_sink").bounding_box()
    assert box and last
    tab.page.mouse.move(box["x"] + 8, box["y"] + 0.75 * box["height"])
    tab.page.mouse.down()
    tab.page.mouse.move(last["x"] + 8, box["y"] + 0.75 * box["height"], steps=4)
    tab.page.mouse.up()
    scales = tab.settle()["gates"]["l_sink"]
    assert scales == pytest.approx([1, 1, 1, 1, 0.5, 1, 1, 0.5], abs=0.04)
    tab.page.locator("#mixer .separate").uncheck()


def test_presets_of_an_empty_group_are_disabled_or_offer_the_other_sinks(tab: Tab) -> None:
    def presets(**none: int) -> dict[str, bool]:
        """The presets in sight, and whether they are disabled, for a picture without tokens of these groups."""
        tab.page.evaluate(
            """(none) => {
              const { frame } = document.querySelector('#maps [data-tick]');
              const tokens = Object.entries(frame.groups.tokens).map(([name, all]) => [name, name in none ? all.map(() => 0) : all]);
              window.sinkgate.publish('frame', { ...frame, groups: { ...frame.groups, tokens: Object.fromEntries(tokens) } });
            }""",
            none,
        )
        shown = tab.page.locator("#mixer .preset:visible")
        return dict(shown.evaluate_all("all => all.map((preset) => [preset.textContent, preset.disabled])"))

    names = ["All at 1", "V-sinks × 0", "V-sinks × 2", "Others × 0.5", "All × 0.5"]
    assert presets() == dict.fromkeys(names, False)
    assert presets(v_sink=0, l_sink=0) == {name: name.startswith("V-") for name in names}
    reason = "No V-sinks (criterion: attention share)"
    assert tab.page.locator("#mixer .preset", has_text="V-sinks × 0").get_attribute("title") == reason
    assert tab.fader(-1).get_attribute("aria-disabled") == "true" and tab.fader(-1).get_attribute("title") == reason

    assert presets(v_sink=0) == dict.fromkeys([name.replace("V-", "L-") for name in names], False)
    tab.page.locator("#mixer .preset", has_text="L-sinks × 0").click()
    assert tab.settle()["gates"] == {"v_sink": [1] * 8, "l_sink": [0] * 8, "rest": [1] * 8}
    assert tab.fader(4, "l_sink").is_visible()
