"""The page in motion: a fader goes down and back, phenomena open at one click, and every input stops the motion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from page_user import Tab
from test_access import findings, tab_to

from app.phenomena import PHENOMENA

OVER = "document.querySelector('#actions .show-me').textContent === 'Show me' && !window.sinkgate.playing"
WATCH = """
  window.turns = []; window.lowest = 2;
  document.addEventListener('sinkgate:frame', ({ detail }) => { window.lowest = Math.min(window.lowest, detail.gates.v_sink[2]); });
  document.addEventListener('sinkgate:answers', ({ detail }) => {
    const text = (detail.gated || []).map(([word]) => word).join(' ');
    if (detail.done && !detail.stale && window.turns.at(-1) !== text) window.turns.push(text);
  });
"""


@pytest.fixture
def calm(enter: Callable[..., Tab], address: str) -> Tab:
    """A user who wants no motion."""
    return enter(address, reduced_motion="reduce")


def test_show_me_turns_the_answer_and_ends_where_it_began(tab: Tab) -> None:
    tab.page.locator("#films .film").nth(5).click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 5")
    before = tab.settle()
    tab.page.evaluate(WATCH)
    show = tab.page.locator("#actions .show-me")
    assert "first" in (show.get_attribute("class") or "").split()
    show.click()
    tab.wait("window.turns.includes('1')")
    tab.wait(OVER)
    frame = tab.settle()
    assert frame["gates"] == before["gates"] and tab.page.evaluate("window.lowest") == 0.1
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 5")
    assert tab.frame()["after"] == before["after"]
    assert tab.page.evaluate("window.turns") in (["2", "1", "2"], ["1", "2"])
    assert tab.page.locator("#history [data-steps]").get_attribute("data-steps") == "0/1"  # no step of the user's
    assert "first" not in (show.get_attribute("class") or "").split()


def test_without_motion_it_steps(calm: Tab) -> None:
    before = calm.settle()
    calm.page.evaluate(WATCH)
    calm.page.evaluate(
        "window.settings = new Set(); document.addEventListener('sinkgate:setting', ({ detail }) => window.settings.add(detail.v_sink[2]))"
    )
    calm.page.locator("#actions .show-me").click()
    calm.wait("window.turns.includes('1')")
    calm.wait(OVER)
    assert calm.settle()["gates"] == before["gates"]
    assert calm.page.evaluate("[...window.settings].sort()") == [0.1, 1]


def test_any_input_stops_it(tab: Tab) -> None:
    before = tab.settle()
    for interrupt in (
        lambda: tab.page.keyboard.press("Escape"),
        lambda: tab.page.mouse.wheel(0, 10),
        lambda: tab.page.locator("#actions .show-me").click(),  # now named Stop
    ):
        tab.page.locator("#actions .show-me").click()
        tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[2] < 1")
        interrupt()
        tab.wait(OVER)
        assert tab.settle()["gates"] == before["gates"]
        tab.page.wait_for_timeout(500)  # a click that stops starts nothing
        assert tab.page.evaluate(OVER)
    tab.page.locator("#actions .show-me").click()
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[2] < 1")
    tab.drag(4, 0.5)  # the fader under the hand moves, and the other is back
    tab.wait(OVER)
    gates = tab.settle()["gates"]
    assert gates["v_sink"][2] == 1 and gates["v_sink"][4] == tab.scale(4) < 0.6
    assert tab.page.locator("#history [data-steps]").get_attribute("data-steps") == "1/2"


def test_elsewhere_the_strongest_of_the_sweep_is_shown(tab: Tab) -> None:
    tab.after(lambda: tab.ask("Is there any blue circle?"))
    tab.page.get_by_role("button", name="Sweep this question").click()
    tab.wait("document.querySelector('#sweep [data-status]').dataset.status === 'done'")
    best = tab.page.evaluate("window.sinkgate.strongest()")
    assert (best["group"], best["layer"]) == ("ordinary", 2)
    before = tab.settle()
    tab.page.locator("#actions .show-me").click()
    tab.wait(f"document.querySelector('#maps [data-tick]').frame.gates.rest[2] === {best['scale']}")
    tab.wait(OVER)
    assert tab.settle()["gates"] == before["gates"]


def test_phenomena_open_at_one_click(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Phenomena").click()
    assert findings(tab) == []
    tab.page.keyboard.press("Escape")
    for phenomenon in PHENOMENA["demo"]:
        tab.page.get_by_role("button", name="Phenomena").click()
        tab.after(lambda title=phenomenon.title: tab.page.locator(".phenomenon", has_text=title).click())
        assert tab.answers() == phenomenon.answers and tab.status() == phenomenon.sentence
        assert not tab.page.locator(".phenomena").is_visible()
    assert tab.page.locator("#lens .hide-sinks").is_checked()
    tab.page.locator("#questions .chip").first.click()
    tab.wait("document.querySelector('#status .status').textContent === ''")


def test_a_phenomenon_by_keyboard_is_one_step(tab: Tab) -> None:
    tab_to(tab, ".open-phenomena")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".phenomena", state="visible")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector(".phenomena", state="hidden")
    assert tab.page.evaluate("document.activeElement.matches('.open-phenomena')")
    tab.page.keyboard.press("Enter")
    tab.wait("document.activeElement.matches('.phenomenon')")
    tab.page.keyboard.press("Tab")
    tab.after(lambda: tab.page.keyboard.press("Enter"))
    assert tab.answers() == PHENOMENA["demo"][1].answers
    assert tab.page.locator("#history [data-steps]").get_attribute("data-steps") == "1/2"
    tab.page.keyboard.press("Control+z")
    tab.wait("document.querySelector('#maps [data-tick]').frame.identity")
