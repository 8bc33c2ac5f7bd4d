"""A click on a cell lists exactly the questions that it flipped."""

from html import unescape
from random import Random
from types import SimpleNamespace

import pytest
from plotly.callbacks import InputDeviceState

import sinkgate as sg
from sinkgate.benchmarks import Item
from sinkgate.data import Sample
from sinkgate.scenes.scene import Scene
from sinkgate.studies.results import Results

pytest.importorskip("anywidget")
pytest.importorskip("ipywidgets")


def scene_questions(count=8):
    image = Scene.random(Random(1)).render(64)
    return [
        Item(Sample((image,), f"<how many> {n}?", "2", ["count", "a<b"][n % 2]), f"id-{n}", {}) for n in range(count)
    ]


def click(shown, task, layer):
    """Call the handler of a click on a cell, with the figure's values of that cell."""
    figure = shown.figure.data[0]
    x, y = (
        next(each for each in figure.x if int(each) == layer),
        next(each for each in figure.y if unescape(each) == task),
    )
    figure._dispatch_on_click(SimpleNamespace(xs=[x], ys=[y]), InputDeviceState(False, False, False, False, 0, 1))


def listed(shown):
    return [n for n in range(8) if f">id-{n}<" in shown.flipped.value]


def test_a_click_lists_the_flipped_questions(sweep_folder):
    shown = sg.sweep_map(sweep_folder)
    click(shown, "count", 1)
    assert listed(shown) == [0, 2, 4]
    assert "2 gained, 1 lost" in shown.flipped.value and "layer 1: V 0, rest 1" in shown.flipped.value
    assert shown.flipped.value.count("wrong → right") == 2 and shown.flipped.value.count("right → wrong") == 1
    click(shown, "a<b", 1)
    assert listed(shown) == [] and "a&lt;b" in shown.flipped.value
    flips = shown.flips("count", 1)
    assert flips.index.tolist() == [0, 2, 4] and flips["after"].tolist() == [True, True, False]


def test_the_setting_chooses_what_the_map_shows(sweep_folder):
    shown = sg.sweep_map(sweep_folder)
    at = list(shown.figure.data[0].y).index("a&lt;b"), list(shown.figure.data[0].x).index("0")
    assert shown.figure.data[0].z[at] == 0, "the best of the cell"
    shown.setting.value = "V 1, rest 0"
    assert shown.figure.data[0].z[at] == -25
    click(shown, "a<b", 0)
    assert listed(shown) == [1] and "0 gained, 1 lost" in shown.flipped.value
    click(shown, "count", 1)
    assert listed(shown) == []


def test_items_bring_pictures_and_questions(sweep_folder):
    shown = sg.sweep_map(Results.load(sweep_folder), scene_questions())
    shown.choose("count", 1)
    assert listed(shown) == [0, 2, 4]
    assert shown.flipped.value.count("data:image/png") == 3
    assert "&lt;how many&gt; 4?" in shown.flipped.value and "<how many>" not in shown.flipped.value


def test_what_is_no_sweep_is_refused(sweep_folder, tmp_path):
    with pytest.raises(sg.SinkgateError, match="no study"):
        sg.sweep_map(tmp_path)
    (tmp_path / "study.json").write_text((sweep_folder / "study.json").read_text().replace('"sweep"', '"probes"'))
    with pytest.raises(sg.SinkgateError, match="expected a sweep"):
        sg.sweep_map(tmp_path)
    with pytest.raises(sg.SinkgateError, match="differ from the 8 items"):
        sg.sweep_map(sweep_folder, scene_questions(7))
