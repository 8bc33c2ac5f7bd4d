"""The page on ZeroGPU: it moves on when the hand lets go."""

from __future__ import annotations

import pytest
from app_process import running_app

#: A `spaces` of our own, the variable that ZeroGPU sets, and the CPU for a GPU.
ON_ZEROGPU = """
import importlib, sys
sys.path.insert(0, "tests/hosting")
from fake_spaces import Spaces, made_up
sys.modules["spaces"] = made_up(Spaces())
from app import backend_zerogpu, main
backend_zerogpu.DEVICE = "cpu"
importlib.reload(main)  # it reads the variable
"""


@pytest.fixture(scope="module")
def far_tab(module_enter):
    with running_app(environment={"SPACES_ZERO_GPU": "true"}, code=ON_ZEROGPU) as app:
        tab = module_enter(app.address)
        yield tab
        tab.leave(lambda: tab.page.goto("about:blank"))


def test_maps_and_answers_follow_when_a_fader_is_let_go(far_tab):
    before, maps, (unchanged, _) = far_tab.frame(), far_tab.pixels("after"), far_tab.answers()
    box = far_tab.fader(2).bounding_box()
    x, top, height = box["x"] + box["width"] / 2, box["y"], box["height"]
    far_tab.page.mouse.move(x, top + height / 2)
    far_tab.page.mouse.down()
    for step in range(1, 9):
        far_tab.page.mouse.move(x, top + height * (0.5 + step / 20))
        far_tab.page.wait_for_timeout(100)
    assert far_tab.scale(2) < 0.5 and far_tab.frame()["tick"] == before["tick"]  # nothing ran while it moved
    far_tab.page.mouse.up()
    frame = far_tab.settle()
    assert frame["gates"]["v_sink"][2] == pytest.approx(far_tab.scale(2)) and far_tab.pixels("after") != maps
    assert far_tab.answers() == ("2", "1") and unchanged == "2"
    assert "recomputed layers 2-7" in far_tab.page.locator("#mixer .cost").inner_text()
    assert far_tab.errors == []


def test_the_maps_show_the_layer_of_the_fader_that_was_moved(far_tab):
    far_tab.drag(5, 0.5)
    far_tab.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 5")
    assert far_tab.settle()["lens"]["layer"] == 5


def test_a_new_question_and_an_edit_are_answered(far_tab):
    far_tab.after(lambda: far_tab.ask("What color is the background?"))
    far_tab.compose()
    things = len(far_tab.scene()["objects"])
    far_tab.after(lambda: (far_tab.thing(0).focus(), far_tab.page.keyboard.press("Delete")))
    assert len(far_tab.scene()["objects"]) == things - 1 and far_tab.status() == "" and far_tab.errors == []


def test_what_is_wrong_is_told(far_tab):
    far_tab.ask("   ")
    far_tab.wait("document.querySelector('#status .status').textContent.includes('question is empty')")
