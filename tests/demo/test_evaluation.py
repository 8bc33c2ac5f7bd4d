"""The demo model's measurements: right answers are those of greedy decoding, the card says what was measured."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import sinkgate as sg
from sinkgate.demo import anatomy, evaluate, gating, probes
from sinkgate.demo.card import card
from sinkgate.demo.scoring import by_kind, held_out, overall
from sinkgate.models.loading import DEMO
from sinkgate.models.vlm import find_sinks
from sinkgate.scenes.questions import KINDS
from sinkgate.scenes.scene import Scene, SceneObject

REPORT = json.loads((DEMO / "evaluation.json").read_text())


@pytest.mark.parametrize("setting", [None, gating.Setting("v_sink", 3, 0.0), gating.Setting("rest", 2, 0.25)])
def test_accuracy_is_what_greedy_generation_gives(demo, setting):
    data = held_out(seed=9, count=8)
    gates = setting and setting.gates(demo)
    scores = gating.accuracy(demo, gating.batches(demo, data, size=5), gates)
    right = [
        [
            demo.answer(prompt, gates, find_sinks(demo, prompt)).text == question.answer
            for question in asked
            for prompt in [demo.prompt(scene.render(), question.question)]
        ]
        for scene, asked in data
    ]
    assert scores == by_kind(data, right)


def test_identity_gates_change_nothing(demo):
    made = gating.batches(demo, held_out(seed=9, count=4))
    assert gating.accuracy(demo, made, sg.Gates.ones(demo)) == gating.accuracy(demo, made)


def test_chance_is_the_best_constant_answer():
    data = held_out(seed=3, count=40)
    scores = by_kind(data, [[q.answer == "yes" for q in asked] for _, asked in data])
    assert scores["presence"].chance >= max(scores["presence"].accuracy, 1 - scores["presence"].accuracy) - 1e-9
    assert overall(scores) < 0.25


def test_settings_cover_every_group_layer_and_scale(demo):
    made = gating.settings(demo.num_layers)
    assert len(set(made)) == len(made) == 2 * demo.num_layers * len(gating.SCALES)
    assert 1.0 not in gating.SCALES


def test_objects_cover_the_patches_under_their_middle():
    scene = Scene(
        "black",
        (SceneObject("circle", "red", "large", 0.3, 0.3), SceneObject("cross", "green", "small", 0.8, 0.7)),
    )
    covered = anatomy.on_objects(scene, (8, 8))
    pixels = np.asarray(scene.render(1600)).astype(int)
    painted = [
        np.abs(pixels[r * 200 + 100, c * 200 + 100] - pixels[0, 0]).sum() > 60 for r in range(8) for c in range(8)
    ]
    assert any(painted) and all(covered[i] for i, seen in enumerate(painted) if seen)  # the boxes hold all paint
    assert covered.sum() < 20


def test_steady_sinks_are_those_whatever_is_asked(demo):
    """A token that draws attention for one question of four is no L-sink; one that does for all four is."""
    scene, asked = held_out(seed=2, count=1)[0]
    prompts = [demo.prompt(scene.render(), question.question) for question in asked[:4]]
    seen = [demo.observe(prompt) for prompt in prompts]
    flat = [replace(one, attention=torch.full_like(one.attention, 0.01)) for one in seen]
    for one in flat:
        one.attention[2, 11] = 0.5
    flat[0].attention[2, 30] = 0.5
    flat[0].encoder_attention.fill_(0.01)
    v_sink, l_sink = anatomy._steady(flat, prompts[0].sheets, "attention")
    assert not v_sink.any()
    assert l_sink.nonzero().tolist() == [[2, 11]]


def test_probes_find_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    told = rng.normal(size=(300, 12)) + 3 * np.eye(12)[labels]
    assert probes._fit(told, labels, 150) > 0.95
    assert probes._fit(rng.normal(size=(300, 12)), labels, 150) < 0.5


def test_a_killed_evaluation_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(DEMO, model, ignore=shutil.ignore_patterns("evaluation.json", "*.svg", "README.md"))
    history = tmp_path / "history.jsonl"
    history.write_text("\n".join(map(json.dumps, REPORT["history"])))
    small = {"scenes": 6, "gate_scenes": 3, "probe_scenes": 60, "sink_scenes": 2, "history": history}
    monkeypatch.setattr(gating, "SCALES", (0.0,))
    monkeypatch.setattr(evaluate, "draw", lambda report, folder: None)  # figures need a browser
    real = evaluate.measure_gating
    monkeypatch.setattr(evaluate, "measure_gating", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(model, **small)
    kept = json.loads((model / "evaluation.json").read_text())
    assert {"accuracy", "sinks", "probes"} <= kept.keys() and "gating" not in kept
    monkeypatch.setattr(evaluate, "measure_gating", real)
    monkeypatch.setattr(evaluate, "measure_accuracy", _interrupt)  # must not be asked again
    evaluate.main(model, **small)
    done = json.loads((model / "evaluation.json").read_text())
    assert done["accuracy"] == kept["accuracy"] and "gating" in done
    assert f"**{done['accuracy']['overall']:.1%}**" in (model / "README.md").read_text()


def _interrupt(*_):
    raise KeyboardInterrupt


def test_the_shipped_card_says_what_was_measured():
    assert (DEMO / "README.md").read_text() == card(REPORT)
    assert REPORT["weights"] == evaluate.fingerprint(DEMO)
    for figure in ("growth.svg", "accuracy.svg", "probes.svg", "gating.svg"):
        assert (DEMO / figure).read_text().startswith("<svg")


def test_the_shipped_model_is_as_good_as_its_card_says(demo):
    """150 fresh scenes against the card's numbers, which were measured on other seeds."""
    scores = gating.accuracy(demo, gating.batches(demo, held_out(seed=77, count=150), sinks=False))
    measured = REPORT["accuracy"]
    assert overall(scores) == pytest.approx(measured["overall"], abs=0.03)
    assert scores.keys() == KINDS.keys()
    for kind, score in scores.items():
        assert score.accuracy == pytest.approx(measured["kinds"][kind]["accuracy"], abs=0.12), kind
