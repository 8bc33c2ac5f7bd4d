"""The page in motion: a fader goes down and back, phenomena open at one click, and every input stops the motion."""

from __future__ import annotations

from collections.abc import Callable

from page_user import Tab
from test_access import findings, tab_to
from test_history import later, steps
from test_panels import HELD

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


def test_show_me_turns_the_answer_and_ends_where_it_began(fresh_tab: Tab) -> None:
    fresh_tab.page.locator("#films .film").nth(5).click()
    fresh_tab.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 5")
    before = fresh_tab.settle()
    fresh_tab.page.evaluate(WATCH)
    show = fresh_tab.page.locator("#actions .show-me")
    assert "first" in (show.get_attribute("class") or "").split()
    show.click()
    fresh_tab.wait("window.turns.includes('1')")
    fresh_tab.wait(OVER)
    frame = fresh_tab.settle()
    assert frame["gates"] == before["gates"] and fresh_tab.page.evaluate("window.lowest") == 0.1
    fresh_tab.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 5")
    assert fresh_tab.frame()["after"] == before["after"]
    assert fresh_tab.page.evaluate("window.turns") in (["2", "1", "2"], ["1", "2"])
    assert fresh_tab.page.locator("#history [data-steps]").get_attribute("data-steps") == "0/1"  # no step of the user's
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


HURRIED = """
const { setTimeout } = window, now = performance.now.bind(performance);
window.skipped = 0;  // ms
performance.now = () => now() + window.skipped;
window.setTimeout = (act, ms, ...rest) => setTimeout(act, ms === 2000 ? 0 : ms, ...rest);  // the answer is not held
"""


def test_it_waits_for_a_slow_answer(enter: Callable[..., Tab], address: str) -> None:
    tab = enter(address, script=HELD + HURRIED, reduced_motion="reduce")
    tab.page.evaluate(WATCH)
    tab.page.evaluate("window.held = []")
    tab.page.locator("#actions .show-me").click()
    tab.wait("window.held.length")
    tab.page.evaluate("window.skipped = 30000")
    tab.page.wait_for_timeout(300)
    assert not tab.page.evaluate(OVER) and tab.scale(2) == 0.1
    tab.page.evaluate("{ const held = window.held; window.held = null; held.forEach((go) => go()); }")
    tab.wait("window.turns.includes('1')")
    tab.wait(OVER)
    assert tab.settle()["identity"]


def test_any_input_stops_it(tab: Tab) -> None:
    before, once = tab.settle(), later(steps(tab), 1)
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
    assert steps(tab) == once


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
    once = later(steps(tab), 1)
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
    assert steps(tab) == once
    tab.page.keyboard.press("Control+z")
    tab.wait("document.querySelector('#maps [data-tick]').frame.identity")
