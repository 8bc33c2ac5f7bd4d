"""Mouse and finger on the mixer: what is pressed is what moves, and nothing else on the page moves with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from page_user import Tab, entering

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMALL = {"width": 1280, "height": 720}
# Where everything stands that a pointer may be on, in page coordinates.
PLACES = """() => Object.fromEntries(
  ["#mixer .fader", "#mixer .preset", "#mixer .switch", "#learned select", "#chart .plot", "#films .film", "#lens select", "#maps .screen",
   "#answers .answer", "#words .bars"].flatMap((name) => [...document.querySelectorAll(name)].filter((part) => part.offsetParent).map((part, index) => {
    const box = part.getBoundingClientRect();
    return [name + " " + index, [box.x, box.y + scrollY, box.width, box.height].map(Math.round)];
  })))"""
WATCH = f"""() => {{
  const places = {PLACES};
  const first = places();
  let due = false;
  window.moved = {{}};
  const look = () => {{
    due = false;
    for (const [name, place] of Object.entries(places())) {{
      if (first[name] && String(first[name]) !== String(place)) window.moved[name] = [first[name], place];
    }}
  }};
  new MutationObserver(() => {{ // at each frame that something has changed
    if (!due) requestAnimationFrame(look);
    due = true;
  }}).observe(document.body, {{ subtree: true, childList: true, attributes: true, characterData: true }});
}}"""


@pytest.fixture
def small(tab: Tab) -> Tab:
    tab.page.set_viewport_size(SMALL)  # pyright: ignore[reportArgumentType]
    return tab


def test_the_pressed_layer_moves_and_no_other(small: Tab) -> None:
    for moved in ([5], [5, 7]):
        small.fader(moved[-1]).scroll_into_view_if_needed()
        small.drag(moved[-1], 0.1)
        gates = small.settle()["gates"]
        assert [index for index, scale in enumerate(gates["v_sink"]) if scale != 1] == moved
        assert gates["v_sink"][moved[-1]] == pytest.approx(0.1, abs=0.03) and set(gates["rest"]) == {1}


def test_a_double_click_anywhere_on_a_fader_sets_it_to_one(tab: Tab) -> None:
    box = tab.fader(3).bounding_box()
    assert box
    for part in (0.9, 0.2):
        x, y = box["x"] + box["width"] / 2, box["y"] + part * box["height"]
        tab.page.mouse.click(x, y)
        tab.page.wait_for_timeout(600)  # longer than two clicks of a double click are apart
        assert tab.settle()["gates"]["v_sink"][3] == pytest.approx(2 * (1 - part), abs=0.03)
        tab.page.mouse.dblclick(x, y)
        tab.wait("document.querySelector('#mixer .fader.v_sink[data-layer=\"3\"]').ariaValueNow === '1'")
        assert tab.settle()["gates"]["v_sink"][3] == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_a_drag_stays_in_its_layer_until_it_clearly_leaves_it(tab: Tab, width: int) -> None:
    """Faders at 1280 pixels, curves at 390: a hand that shakes at the edge of a column paints no other layer."""
    tab = tab
    tab.page.set_viewport_size({"width": width, "height": 720})
    tab.page.wait_for_selector("#mixer .desk.curves" if width == 390 else "#mixer .desk:not(.curves)")
    tab.fader(3).scroll_into_view_if_needed()
    column, fader = tab.page.locator("#mixer .strip[data-layer='3']").bounding_box(), tab.fader(3).bounding_box()
    assert column and fader
    edge, y = column["x"] + column["width"], fader["y"] + 0.75 * fader["height"]
    tab.page.mouse.move(fader["x"] + fader["width"] / 2, y)
    tab.page.mouse.down()
    tab.page.mouse.move(edge + 5, y, steps=4)
    tab.page.mouse.move(edge - 5, y)
    assert [tab.scale(layer) != 1 for layer in range(8)] == [layer == 3 for layer in range(8)]
    tab.page.mouse.move(edge + 12, y)
    tab.page.mouse.up()
    scales = tab.settle()["gates"]["v_sink"]
    assert scales[4] == pytest.approx(0.5, abs=0.05) and scales[5] == 1


def test_scales_beyond_the_faders_range_are_drawn_at_their_place(tab: Tab) -> None:
    import sinkgate as sg

    gates = sg.Gates.ones(8).set("v_sink", 3.5, layers=[2]).set("v_sink", 0.5, layers=[4])
    tab.gates_text().fill(gates.to_json())
    tab.page.locator("#gates-apply").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[2] === 3.5")
    tab.settle()
    assert tab.page.locator("#mixer .rule.scales").first.inner_text().split() == ["4", "2", "0"]
    for layer, scale in ((2, 3.5), (4, 0.5), (5, 1.0)):
        fader, knob = tab.fader(layer).bounding_box(), tab.fader(layer).locator(".knob").bounding_box()
        assert fader and knob
        middle = knob["y"] + knob["height"] / 2
        assert 4 * (fader["y"] + fader["height"] - middle) / fader["height"] == pytest.approx(scale, abs=0.05)
        assert tab.fader(layer).get_attribute("aria-valuemax") == "4" and tab.scale(layer) == scale
    tab.drag(2, 0.5, group="v_sink", most=4)
    assert tab.settle()["gates"]["v_sink"][2] == pytest.approx(0.5, abs=0.06)
    assert tab.page.locator("#mixer .rule.scales").first.inner_text().split() == ["2", "1", "0"]


def test_nothing_moves_while_texts_change(small: Tab) -> None:
    small.page.evaluate(WATCH)
    small.fader(5).scroll_into_view_if_needed()
    small.drag(5, 0.1)
    small.settle()
    for preset in ("V-sinks × 0", "Others × 0.5"):
        small.page.locator("#mixer .preset", has_text=preset).click()
        small.settle()
    small.after(lambda: small.ask("Describe the picture."))
    small.page.locator("#mixer .preset", has_text="All at 1").click()
    small.settle()
    small.page.locator("#maps .screen").first.hover(position={"x": 4, "y": 4})  # a sink
    small.page.wait_for_selector("#maps .reading b")
    small.page.locator("#lens .row").select_option("1")
    small.page.locator("#lens .hide-sinks").check()
    small.page.locator("#learned select").select_option(index=1)
    small.page.wait_for_selector("#mixer .rho:visible")
    small.settle()
    small.page.locator("#mixer .rho:visible").first.click()
    small.settle()
    small.after(lambda: small.ask("why " * 30))
    assert small.page.evaluate("window.moved") == {}


# --- fingers


@pytest.fixture(scope="module")
def finger(browser: Browser, windows: dict[bool, list[Page]], address: str) -> Iterator[Tab]:
    with entering(browser, windows) as enter:
        yield enter(address, phone=True, size={"width": 390, "height": 700})


def swipe(tab: Tab, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
    """A finger goes from one place of the screen to another."""
    touch = tab.page.context.new_cdp_session(tab.page)

    def send(kind: str, points: list[dict[str, Any]]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", [{"x": start[0], "y": start[1]}])
    for step in range(1, steps + 1):
        x, y = (begin + (stop - begin) * step / steps for begin, stop in zip(start, end, strict=True))
        send("touchMove", [{"x": x, "y": y}])
        tab.page.wait_for_timeout(20)
    send("touchEnd", [])


def centre(tab: Tab, layer: int, part: float) -> tuple[float, float]:
    """A place on a fader; ``part`` counts from its lower end."""
    box = tab.fader(layer).bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + (1 - part) * box["height"]


def test_a_finger_that_scrolls_the_page_over_a_fader_leaves_it(finger: Tab) -> None:
    finger.page.evaluate("document.querySelector('#mixer .strips').scrollIntoView({ block: 'center' })")
    before = finger.page.evaluate("scrollY")
    x, y = centre(finger, 2, 0.1)
    swipe(finger, (x, y), (x, y + 140))  # upwards: the page ends soon below
    finger.wait(f"Math.abs(scrollY - {before}) > 60")
    assert finger.settle()["identity"]


def test_a_finger_moves_a_fader_by_its_knob_or_with_a_tap(finger: Tab) -> None:
    finger.page.evaluate("document.querySelector('#mixer .strips').scrollIntoView({ block: 'center' })")
    x, y = centre(finger, 2, 0.5)
    swipe(finger, (x, y), (x, centre(finger, 2, 0.1)[1]))
    # a busy page takes the last places of a finger later, and is settled between two of them
    finger.wait("window.sinkgate.last.settled?.v_sink[2] < 0.3")
    assert finger.settle()["gates"]["v_sink"][2] == pytest.approx(0.2, abs=0.06)
    finger.page.touchscreen.tap(*centre(finger, 1, 0.8))
    finger.wait("document.querySelector('#mixer .fader.v_sink[data-layer=\"1\"]').ariaValueNow !== '1'")
    gates = finger.settle()["gates"]
    assert gates["v_sink"][1] == pytest.approx(1.6, abs=0.05)
    assert [layer for layer, scale in enumerate(gates["v_sink"]) if scale != 1] == [1, 2]
