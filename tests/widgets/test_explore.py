"""The mixer without a browser: what is drawn and said is what the model gives for the newest setting, whatever else is sent."""

import io
import threading
import time
from random import Random

import numpy as np
import pytest

import sinkgate as sg
from sinkgate.scenes.scene import Scene
from sinkgate.widgets.latest_only import LatestOnly

pytest.importorskip("anywidget")
pytest.importorskip("ipywidgets")
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def image():
    return Scene.random(Random(71)).render()


@pytest.fixture
def explorer(demo, image):
    return sg.explore(demo, image, QUESTION)


def shown_map(explorer, name=1):
    return np.array(explorer.screen.maps[name].z)


def likeliest(bar):
    return bar.y[int(np.argmax(bar.x))]


def test_it_begins_with_the_unmodified_model(demo, image, explorer):
    trace = demo.answer(demo.prompt(image, QUESTION))
    layer = explorer.screen.layer.value
    for name in (0, 1):
        assert np.allclose(shown_map(explorer, name), trace.visual(layer).numpy(), atol=1e-6)
    assert explorer.unchanged.text == explorer.gated.text == trace.text
    assert trace.text in explorer.answers.value and not explorer.message.value
    assert explorer.gates.is_identity
    sinks = explorer.warm.sinks
    cells = [trace.sheets[0].find(token) for token in sinks.v_sink.nonzero()[:, 0].tolist()]
    marks = explorer.screen.v_sinks[0]
    assert cells and list(zip(marks.y, marks.x, strict=True)) == cells
    assert all("V-sink" in why for why in marks.hovertext)


def test_a_fader_moves_map_bars_and_answer(demo, image, explorer):
    explorer.screen.layer.value = 5
    explorer.faders["v_sink"][2].value = 0.2
    assert explorer.settle(120)
    gates = sg.Gates.ones(demo).set("v_sink", 0.2, [2])
    trace = demo.answer(demo.prompt(image, QUESTION), gates)
    assert explorer.gates == gates
    assert explorer.screen.layer.value == 2, "the maps follow the fader"
    assert np.allclose(shown_map(explorer), trace.visual(2).numpy(), atol=1e-5)
    assert not np.allclose(shown_map(explorer), shown_map(explorer, 0), atol=0.01)
    assert explorer.gated.text == trace.text != explorer.unchanged.text
    before, after = explorer.screen.bars
    assert (likeliest(before), likeliest(after)) == (explorer.unchanged.text, trace.text)
    assert max(after.x) == pytest.approx(trace.next_token[0][1], abs=1e-4)


def test_l_sinks_can_have_faders_of_their_own(demo, explorer):
    explorer.faders["rest"][4].value = 0.5
    assert explorer.faders["l_sink"][4].layout.display == "none"
    explorer.separate.value = True
    assert explorer.faders["l_sink"][4].layout.display is None and explorer.faders["l_sink"][4].value == 0.5
    explorer.faders["l_sink"][4].value = 0.2
    assert explorer.settle(120)
    assert "L-sinks" in explorer.legend.value and "ordinary tokens" in explorer.legend.value
    gates = sg.Gates.ones(demo).set("ordinary", 0.5, [4]).set("l_sink", 0.2, [4])
    assert explorer.gates == gates == explorer._shown
    explorer.separate.value = False
    assert "L-sinks" not in explorer.legend.value and "other visual tokens" in explorer.legend.value
    assert explorer.gates == sg.Gates.ones(demo).set("rest", 0.5, [4])
    assert explorer.settle(120)


def test_the_other_fader_and_presets(demo, explorer):
    explorer.faders["rest"][3].value = 0.5
    assert explorer.settle(120)
    assert explorer.gates == sg.Gates.ones(demo).set("rest", 0.5, [3])
    layer = explorer.screen.layer.value
    for name, button in explorer.presets.items():
        button.click()
        assert explorer.gates == sg.Gates.preset(name, demo)
    assert explorer.presets["V-sinks off"].description == "V-sinks × 0", "as on the page"
    assert explorer.screen.layer.value == layer, "a preset is no layer's"
    assert explorer.settle(120)


def test_another_layer_is_drawn_and_not_computed_again(explorer):
    explorer.faders["v_sink"][2].value = 0.2
    explorer.settle(120)
    computed = explorer.predictions
    for layer in range(8):
        explorer.screen.layer.value = layer
        explorer.settle(120)
        assert np.allclose(shown_map(explorer), explorer.gated.visual(layer).numpy(), atol=1e-6)
    assert explorer.predictions == computed


def test_maps_show_the_difference_from_the_original(explorer):
    explorer.faders["v_sink"][2].value = 0.2
    explorer.screen.kind.value = "Difference"
    explorer.settle(120)
    before, after = (trace.visual(2).numpy() for trace in (explorer.unchanged, explorer.gated))
    original, gated = explorer.screen.maps
    assert np.allclose(original.z, before, atol=1e-6) and original.zmin == 0
    assert np.allclose(gated.z, 100 * (after - before), atol=1e-4)
    assert gated.zmax == -gated.zmin == pytest.approx(abs(100 * (after - before)).max(), abs=1e-4)
    assert "percentage points" in explorer.screen.caption.value and "pp" in gated.hovertemplate
    explorer.screen.kind.value = "Share of attention"
    explorer.settle(120)
    assert np.allclose(gated.z, after, atol=1e-6) and gated.zmin == 0 and "pp" not in gated.hovertemplate


def test_of_many_quick_moves_few_are_computed_and_the_last_wins(demo, explorer, monkeypatch):
    slow, answered, predict, answer = [], [], explorer.warm.predict, explorer.warm.answer
    moved, waited_for = threading.Event(), []

    def slowly(gates):
        slow.append(float(gates.scales[2, 0]))
        waited_for.append(not moved.wait(120))
        return predict(gates)

    def answering(gates, **options):
        answered.append(float(gates.scales[2, 0]))
        return answer(gates, **options)

    monkeypatch.setattr(explorer.warm, "predict", slowly)
    monkeypatch.setattr(explorer.warm, "answer", answering)
    for step in range(100):
        explorer.faders["v_sink"][2].value = 0.2 if step == 99 else 1 + step / 100
    moved.set()
    assert explorer.settle(120)
    assert not any(waited_for), "the hand waits for nothing"
    assert len(slow) < 10 and slow[-1] == pytest.approx(0.2)
    assert answered == [pytest.approx(0.2)], "settings between two ticks are not answered"
    assert explorer.gated.text == "1"


def test_an_answer_ends_as_soon_as_the_hand_moves_again(explorer, monkeypatch):
    begun, given_up = threading.Event(), []
    answer = explorer.warm.answer

    def endless(gates, *, stop, **options):
        if gates.scales[2, 0] > 1:  # the first setting only
            begun.set()
            deadline = time.monotonic() + 120
            while not stop() and time.monotonic() < deadline:
                time.sleep(0.01)
            given_up.append(stop())
        return answer(gates, stop=stop, **options)

    monkeypatch.setattr(explorer.warm, "answer", endless)
    explorer.faders["v_sink"][2].value = 1.5
    assert begun.wait(120)
    explorer.faders["v_sink"][2].value = 0.2
    assert explorer.settle(120)
    assert given_up == [True] and explorer.gated.text == "1"


@pytest.mark.parametrize(
    ("question", "expected"),
    [("", "empty"), ("   ", "empty"), ("x" * 30_000, "at most 20,000"), ("<image>", "command")],
)
def test_a_question_that_cannot_be_asked(explorer, question, expected):
    before = shown_map(explorer)
    explorer.question.value = question
    assert explorer.settle(120)
    assert expected in explorer.message.value and "<image>" not in explorer.message.value
    assert (shown_map(explorer) == before).all()
    explorer.faders["v_sink"][2].value = 0.2  # the faders still move what is shown
    assert explorer.settle(120)
    assert explorer.gated.text == "1" and expected in explorer.message.value
    explorer.question.value = "What is the color of the background?"
    assert explorer.settle(120)
    assert not explorer.message.value and explorer.unchanged.text == "white"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_no_scale(explorer, value):
    fader = explorer.faders["v_sink"][2]
    fader.min, fader.max = -2.0, float("inf")  # ipywidgets would mend it
    fader.value = value
    assert explorer.settle(120)
    assert "scale of layer 2" in explorer.message.value
    with pytest.raises(sg.GateError, match="layer 2"):
        _ = explorer.gates
    fader.value = 0.2
    assert explorer.settle(120)
    assert not explorer.message.value and explorer.gated.text == "1"


def upload(explorer, content):
    """Send a file as the browser does when one is chosen."""
    about = {"name": "picture.png", "type": "image/png", "size": len(content), "last_modified": 0}
    explorer.upload.set_state({"value": [{**about, "content": memoryview(content)}]})


def test_a_picture_that_cannot_be_read(demo, explorer, image):
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        half = buffer.getvalue()[: buffer.tell() // 2]
    for broken, expected in ((b"", "empty"), (b"no picture", "no picture that can be read"), (half, "cut short")):
        upload(explorer, broken)
        assert expected in explorer.message.value
    assert explorer.unchanged.text == "2"
    other = Scene.random(Random(3)).render()
    with io.BytesIO() as buffer:
        other.save(buffer, "PNG")
        upload(explorer, buffer.getvalue())
    assert explorer.settle(120)
    assert not explorer.message.value
    assert explorer.unchanged.text == demo.answer(demo.prompt(other, QUESTION)).text != "2"
    assert explorer.warm.prompt.image.size == other.size


def test_it_can_begin_with_bad_input_and_recover(demo, image):
    explorer = sg.explore(demo, "nowhere.png", QUESTION)
    assert "nowhere.png" in explorer.message.value and explorer.unchanged is None
    explorer.faders["v_sink"][2].value = 0.2
    assert explorer.settle(120)
    assert "No image yet" in explorer.message.value
    explorer._take(image)
    assert explorer.settle(120)
    assert not explorer.message.value and (explorer.unchanged.text, explorer.gated.text) == ("2", "1")
    assert "empty" in sg.explore(demo, image, "").message.value


def test_whatever_a_model_raises_the_widget_lives_on(explorer, monkeypatch):
    def broken(gates):
        raise RuntimeError("out of <memory>")

    with monkeypatch.context() as patched:
        patched.setattr(explorer.warm, "predict", broken)
        explorer.faders["v_sink"][2].value = 0.5
        assert explorer.settle(120)
        assert "out of &lt;memory&gt;" in explorer.message.value
    explorer.faders["v_sink"][2].value = 0.2
    assert explorer.settle(120)
    assert not explorer.message.value and explorer.gated.text == "1"


def test_what_is_shown_where_there_is_no_front_end(explorer):
    shown = explorer._repr_mimebundle_(include=None, exclude=None)
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert shown["text/plain"] == f"explore: {QUESTION!r}, unchanged '2', gated '2'"


def test_newest_keeps_the_newest_and_begins_again():
    done, gate = [], threading.Event()

    def work(wish):
        gate.wait(120)
        done.append(wish)

    newest = LatestOnly(work)
    for wish in range(50):
        newest.put(wish)
    assert newest.comes() or not done
    gate.set()
    assert newest.settle(120) and done[-1] == 49 and len(done) <= 2
    assert not newest.comes(0.01)
    newest.put("again")
    assert newest.settle(120) and done[-1] == "again"


def test_a_slider_goes_through_the_frames_of_a_video(demo):
    rng = Random(1)
    video = sg.Video([scene.render() for scene in Scene.random(rng, (2, 3)).clip(rng, 4)], fps=2)
    explorer = sg.explore(demo, video, QUESTION)
    time = explorer.screen.time
    assert time.layout.display is None and time.description == "Time"
    assert [name for name, _ in time.options] == [f"frame {index}" for index in range(4)]
    pictures, trace = [], demo.answer(demo.prompt(video, QUESTION))
    for index in (2, 3):
        time.value = index
        assert explorer.settle(120)
        layer = explorer.screen.layer.value
        assert np.allclose(shown_map(explorer, 0), trace.visual(layer, sheet=index).numpy(), atol=1e-6)
        sinks = explorer.warm.sinks
        cells = [cell for token in sinks.v_sink.nonzero()[:, 0].tolist() if (cell := trace.sheets[index].find(token))]
        marks = explorer.screen.v_sinks[0]
        assert list(zip(marks.y, marks.x, strict=True)) == cells
        pictures.append(explorer.screen.figure.layout.images[0].source)
    assert pictures[0] != pictures[1], "the frame under the maps"


def test_a_picture_has_no_slider_through_time(explorer):
    assert explorer.screen.time.layout.display == "none" and explorer.screen.time.value == 0
