"""The page on the model that it opens on, walked as its guide does in two minutes."""

from __future__ import annotations

import pytest
from app_process import ROOT
from page_user import Tab

from app.phenomena import DEMONSTRATIONS

GUIDE = (ROOT / "docs" / "pages" / "guides" / "app.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(large: str) -> str:
    return large


def preset(tab: Tab, name: str) -> None:
    tab.page.get_by_role("button", name=name, exact=True).click()
    tab.settle()


def test_the_guide_can_be_walked(tab: Tab) -> None:
    assert tab.answers() == ("2", "2")
    preset(tab, "V-sinks × 0")
    assert tab.answers() == ("2", "3")
    preset(tab, "All at 1")
    tab.page.locator("#mixer .separate").check()
    for group, answer in (("l_sink", "2"), ("v_sink", "1")):
        tab.drag(-1, 0, group)
        tab.settle()
        assert tab.answers() == ("2", answer)
    preset(tab, "All at 1")
    tab.after(lambda: tab.ask("Is there any blue circle?"))
    for layer, answer in ((3, "no"), (4, "yes")):
        tab.drag(layer, 2)
        tab.settle()
        assert tab.answers() == ("yes", answer)
        preset(tab, "All at 1")
    walk = GUIDE.partition("## In two minutes")[2].partition("\n## ")[0]
    for part in (
        "V-sinks × 0",
        "Separate L-sinks",
        "three",
        "still two",
        "one.",
        "Is there any blue circle?",
        "layer 3",
        "layer 4",
    ):
        assert part in walk


def test_show_me_turns_the_answer(tab: Tab) -> None:
    tab.page.evaluate(
        """() => { window.turns = []; document.addEventListener('sinkgate:answers', ({ detail }) => {
          if (detail.done && !detail.stale) window.turns.push((detail.gated || []).map(([word]) => word).join(' ')); }); }"""
    )
    tab.page.locator("#actions .show-me").click()
    turned = DEMONSTRATIONS["demo-large"].answers[1]
    tab.wait(f"window.turns.includes('{turned}')")
    tab.wait("document.querySelector('#actions .show-me').textContent === 'Show me' && !window.sinkgate.playing")
    assert tab.settle()["identity"]
