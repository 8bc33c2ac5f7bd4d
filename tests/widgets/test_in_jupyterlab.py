"""The widgets as a reader of a notebook meets them: JupyterLab, a kernel, a browser, a hand."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lab_server import TOKEN, jupyter_lab, write_notebook
from page_user import chromium

for package in ("jupyterlab", "ipywidgets", "anywidget", "playwright"):
    pytest.importorskip(package)

EXPLORE = """
import sinkgate as sg
from random import Random
from sinkgate.scenes.scene import Scene
sg.explore(sg.load("demo"), Scene.random(Random(71)).render(), "How many objects are there?")
"""
MANY_LAYERS = f"""
import sys
import sinkgate as sg
from random import Random
from sinkgate.scenes.scene import Scene
sys.path.append({str(Path(__file__).parents[1])!r})
from tiny import tiny_llava
sg.explore(sg.load(tiny_llava(layers=32)), Scene.random(Random(71)).render(), "How many objects are there?")
"""
#: Of each figure its own width and the room it has.
WIDTHS = """[...document.querySelectorAll('.js-plotly-plot')].map(
  (plot) => [plot.querySelector('.main-svg').clientWidth, plot.parentElement.clientWidth])"""
ANSWERS = "[...document.querySelectorAll('.sinkgate-answer')].map((each) => each.textContent).join()"
LIKELIEST = """(() => {
  const bar = document.querySelector('.js-plotly-plot').data.filter((trace) => trace.type === 'bar')[1];
  const chances = [...bar.x];
  return bar.y[chances.indexOf(Math.max(...chances))];
})()"""


WORDS_AXIS = "document.querySelector('.js-plotly-plot')._fullLayout.yaxis3.type"


def wait(page, condition):
    page.wait_for_function(condition, polling=100)  # ms; each frame of the screen would keep the browser busy


def in_a_thread(visit, *arguments):
    """Call in a thread of its own, as other tests may hold a browser in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(visit, *arguments).result()


@contextmanager
def opened(folder, *cells):
    """A notebook of these cells in JupyterLab, all of them run; without an error on the page."""
    write_notebook(folder / "widgets.ipynb", cells)
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except Exception as error:
            if os.environ.get("SINKGATE_REQUIRE_BROWSER") == "1":
                raise
            pytest.skip(f"no browser here: {str(error).splitlines()[0]}")
        address = stack.enter_context(jupyter_lab(folder))
        page = browser.new_page(viewport={"width": 1366, "height": 1000})
        page.set_default_timeout(120_000)
        errors = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/lab/tree/widgets.ipynb?token={TOKEN}")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.locator(".jp-CodeCell .cm-content").first.click()
        for _ in cells:
            page.keyboard.press("Shift+Enter")
        yield page
        assert errors == []


def narrowed(page, figures):
    """Figures have the width of their cell, and that of a narrower window."""
    wait(page, f"{WIDTHS}.length === {figures} && {WIDTHS}.every(([own, room]) => own === room)")
    before = page.evaluate(WIDTHS)
    page.set_viewport_size({"width": 1000, "height": 1000})
    wait(page, f"{WIDTHS}.every(([own, room]) => own === room && own < {before[0][0] - 100})")


def test_explore_and_sweep_map_in_jupyterlab(tmp_path, sweep_folder):
    in_a_thread(visit, tmp_path, sweep_folder)


def visit(folder, sweep_folder):
    with opened(folder, EXPLORE, f"sg.sweep_map({str(sweep_folder)!r})") as page:
        wait(page, f"{ANSWERS} === '2,2'")
        page.wait_for_selector(".js-plotly-plot .heatmaplayer image")
        assert page.evaluate(WORDS_AXIS) == "category"
        page.locator(".widget-vslider:has([title='V-sinks, layer 3']) .noUi-handle").press("ArrowDown")
        page.wait_for_selector("text=Layer >> xpath=.. >> text=3")  # other sinks are marked
        fader = page.locator(".widget-vslider:has([title='V-sinks, layer 2']) .noUi-handle")
        fader.scroll_into_view_if_needed()
        box = fader.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        for step in range(30):
            page.mouse.move(x, y + 2 * step)
        wait(page, f"{LIKELIEST} === '1'")  # while the button is still down
        page.mouse.up()
        wait(page, f"{ANSWERS} === '2,1'")
        assert page.evaluate(WORDS_AXIS) == "category"  # Plotly once made it numeric, and dropped "no" and "circle"
        if screenshots := os.environ.get("SINKGATE_SCREENSHOTS"):
            page.screenshot(path=f"{screenshots}/explore.png")

        question = page.locator(".widget-text input").first
        question.fill("")
        question.press("Enter")
        page.wait_for_selector("[role=alert]:has-text('The question is empty')")
        question.fill("What is the color of the background?")
        question.press("Enter")
        wait(page, f"{ANSWERS} === 'white,white'")
        page.wait_for_selector("[role=alert]", state="detached")

        sweep = page.locator(".jp-CodeCell").nth(1)
        sweep.locator(".js-plotly-plot .heatmaplayer image").wait_for()
        sweep.scroll_into_view_if_needed()
        box = sweep.locator(".nsewdrag").first.bounding_box()
        x, y = box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25  # the first task in layer 1
        page.mouse.move(x, y)
        page.wait_for_selector(".hoverlayer text")
        page.mouse.click(x, y)
        page.wait_for_selector("text=2 gained, 1 lost")
        assert [text for text in sweep.locator("td").all_text_contents() if text.startswith("id-")] == [
            "id-0",
            "id-2",
            "id-4",
        ]
        narrowed(page, 2)


def test_thirty_two_layers_in_jupyterlab(tmp_path):
    in_a_thread(visit_many_layers, tmp_path)


def visit_many_layers(folder):
    with opened(folder, MANY_LAYERS) as page:
        page.locator(".heatmaplayer image").first.wait_for()
        # three groups in 32 layers, of which L-sinks are shown when separated
        assert page.locator(".widget-vslider").count() == 96
        assert page.locator(".widget-vslider:visible").count() == 64
        wide = "(element) => element.scrollWidth > element.clientWidth"
        mixer = page.locator(".widget-hbox:has(> .widget-vbox)")
        assert mixer.evaluate(wide), "32 layers are wider than the cell"
        outer = mixer.locator("xpath=ancestor::*")
        assert not any(outer.nth(n).evaluate(wide) for n in range(outer.count())), "they scroll in their own box"
        narrowed(page, 1)
