from random import Random

import numpy as np
import pytest

import sinkgate as sg
from sinkgate.scenes.scene import Scene

pytest.importorskip("anywidget")
pytest.importorskip("ipywidgets")
QUESTION = "How many objects are there?"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_setting_has_its_map_bars_and_answer(demo, count):
    image, names = Scene.random(Random(71)).render(), [f"<{number}>" for number in range(count)]
    settings = {name: sg.Gates.ones(demo).set("v_sink", 0.1 * number, [2]) for number, name in enumerate(names)}
    compared = sg.compare(demo, image, QUESTION, settings)
    traces = [demo.answer(demo.prompt(image, QUESTION), gates) for gates in (None, *settings.values())]
    assert [trace.text for trace in compared.traces.values()] == [trace.text for trace in traces]
    for layer in (2, 6):
        compared.screen.layer.value = layer
        for shown, trace in zip(compared.screen.maps, traces, strict=True):
            assert np.allclose(shown.z, trace.visual(layer).numpy(), atol=1e-5)
    compared.screen.kind.value = "Difference"
    for shown, trace in zip(compared.screen.maps[1:], traces[1:], strict=True):
        difference = 100 * (trace.visual(6) - traces[0].visual(6)).numpy()
        assert np.allclose(shown.z, difference, atol=1e-3) and shown.zmax == compared.screen.maps[1].zmax
    for bar, trace in zip(compared.screen.bars, traces, strict=True):
        assert bar.y[int(np.argmax(bar.x))] == trace.text
    titles = [note.text for note in compared.screen.figure.layout.annotations]
    assert {"Original model", "&lt;0&gt;"} < set(titles)
    assert len(set(compared.screen.colors)) == count + 1
    assert repr(compared).startswith("compare: Unchanged '2', <0> '1'")


def test_what_cannot_be_compared_is_said(demo):
    image = Scene.random(Random(71)).render()
    with pytest.raises(sg.PromptError, match="empty"):
        sg.compare(demo, image, "", {})
    with pytest.raises(sg.GateError, match="3 layers"):
        sg.compare(demo, image, QUESTION, {"other": sg.Gates.ones(3)})
    with pytest.raises(sg.GateError, match="made for somebody/else, this is demo"):
        sg.compare(demo, image, QUESTION, {"other": sg.Gates(sg.Gates.ones(8).scales, "somebody/else")})
    with pytest.raises(sg.GateError, match="Unchanged.* is the name of the unmodified model"):
        sg.compare(demo, image, QUESTION, {"Unchanged": sg.Gates.preset("V-sinks off", demo)})
    with pytest.raises(sg.ImageError, match=r"nowhere\.png"):
        sg.compare(demo, "nowhere.png", QUESTION, {})


def test_tokens_without_a_place_and_holes_are_drawn(demo, monkeypatch):
    """A sheet without a box has no picture; where it has no token nothing is drawn."""
    from sinkgate.images.layout import list_sheet

    prompt = demo.prompt(Scene.random(Random(71)).render(), QUESTION)
    prompt.sheets = (list_sheet(len(prompt.visual)),)
    prompt.sheets[0].tokens[-1, -1] = -1
    monkeypatch.setattr(demo, "prompt", lambda image, question: prompt)
    compared = sg.compare(demo, prompt.image, QUESTION, {"off": sg.Gates.preset("V-sinks off", demo)})
    drawn = np.array(compared.screen.maps[1].z)
    assert drawn.shape == (4, 16) and np.isnan(drawn[-1, -1]) and np.isfinite(drawn.ravel()[:-1]).all()
    assert not compared.screen.figure.layout.images


def test_missing_packages_are_one_sentence(demo, monkeypatch):
    from sinkgate.widgets import common as parts

    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    for call in (sg.explore, lambda *arguments: sg.compare(*arguments, {}), lambda *_: sg.sweep_map("nowhere")):
        with pytest.raises(sg.SinkgateError, match=r'pip install "sinkgate\[notebooks\]"'):
            call(demo, "image.png", QUESTION)
