"""Everyone can use the page: no serious finding of axe, everything by keyboard, room on a phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_user import Tab

from sinkgate.sinks.glossary import TERMS

PHONE = {"width": 390, "height": 844}
IMPACTS = ("serious", "critical")


def findings(tab: Tab) -> list[str]:
    """Return serious and critical violations of axe, one line for each element."""
    violations: list[dict[str, Any]] = Axe().run(tab.page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:160]} ({node['failureSummary'].splitlines()[-1].strip()})"
        for rule in violations
        if rule["impact"] in IMPACTS
        for node in rule["nodes"]
    ]


def tab_to(tab: Tab, target: str) -> None:
    """Press Tab until the focus is there."""
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate(f"document.activeElement.matches({target!r})"):
            return
    raise AssertionError(f"the keyboard does not reach {target}")


def test_everything_can_be_done_by_keyboard(tab: Tab) -> None:
    keyboard = tab.page.keyboard
    tab_to(tab, "#question textarea")
    keyboard.press("Control+a")
    keyboard.type("How many objects are there?")
    tab.after(lambda: keyboard.press("Enter"))
    unchanged, gated = tab.answers()
    assert unchanged == gated == "2"
    tab_to(tab, "#films [role=radio]")
    tab_to(tab, "#mixer .fader[data-layer='0']")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    for _ in range(3):
        keyboard.press("PageDown")
    tab.settle()  # the map follows at once,
    tab.settle()  # the answer when the keys have rested
    assert tab.scale(2) == 0.25 and tab.answers() == ("2", "1")
    name = tab.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert name == "V-sinks, layer 2"
    tab_to(tab, "#chart *, #share button, .gates button, .label-wrap")


def test_help_opens_over_the_page_by_mouse_and_keyboard(tab: Tab) -> None:
    page, definition = tab.page, tab.page.locator("#help")
    boxes = "['.panels', '.layered', '#mixer .strips'].map((name) => JSON.stringify(document.querySelector(name).getBoundingClientRect()))"
    before = page.evaluate(boxes)
    for term, text in TERMS.items():
        button = page.get_by_role("button", name=f"Help: {term}")
        button.click()
        dialog = page.get_by_role("dialog", name=term)
        assert dialog.is_visible() and text in (definition.text_content() or "") and page.evaluate(boxes) == before
        box = definition.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 1366 and 0 <= box["y"] <= 768 - box["height"]
        button.click()  # the same again closes it
        assert not definition.is_visible()
    tab_to(tab, ".help[data-term='Key scale']")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "help" and findings(tab) == []
    page.keyboard.press("Escape")
    assert not definition.is_visible() and page.evaluate("document.activeElement.dataset.term") == "Key scale"
    page.keyboard.press("Space")
    page.mouse.click(5, 300)
    assert not definition.is_visible()
    page.get_by_label("Enlarge the gated map").click()
    page.locator(".zoom .help[data-term='V-sink']").click()
    assert definition.is_visible()
    page.keyboard.press("Escape")  # closes the definition, not the maps
    assert not definition.is_visible() and page.locator(".zoom").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector(".zoom", state="hidden")


@pytest.fixture
def phone(enter: Callable[..., Tab], address: str) -> Tab:
    return enter(address, phone=True, size=PHONE)


def test_axe_finds_nothing_serious(tab: Tab) -> None:
    """On the page in light and in dark, as it opens and with composer, questions and sharing open."""
    assert findings(tab) == []
    tab.page.locator(".light-switch").click()
    assert findings(tab) == []
    tab.compose()
    tab.page.locator("#questions summary").click()
    tab.page.get_by_text("Share and save").click()
    assert findings(tab) == []
    tab.page.locator(".light-switch").click()
    assert findings(tab) == []


def test_a_phone_has_room_for_the_page(phone: Tab) -> None:
    width = "document.documentElement.scrollWidth"
    assert phone.page.evaluate(width) <= PHONE["width"]
    assert findings(phone) == []
    for name in ("#question textarea", "#ask", "#maps canvas.after", "#answers", "#mixer .fader", "#chart .plot"):
        box = phone.page.locator(name).first.bounding_box()
        assert box and box["x"] >= 0 and (name == "#mixer .fader" or box["x"] + box["width"] <= PHONE["width"] + 1), (
            name
        )
    phone.compose()
    assert phone.page.evaluate(width) <= PHONE["width"]
