"""Stacks: greedy from the best, nothing trained again, told as it went."""

import pytest
import torch
from tiny import noise_image

import sinkgate as sg
from sinkgate.data import scene_samples
from sinkgate.methods import Fixed
from sinkgate.training.dataset import ExampleCache
from sinkgate.training.evaluation import evaluate
from sinkgate.training.stacking import stack


def leaning(vlm, layers, toward):
    """Gates that give V-sinks (0) or the rest (1) nearly everything, by layer, whatever they read."""
    lsg = sg.LSG.for_vlm(vlm, layers, start="identity", bias=True)
    with torch.no_grad():
        for layer, group in zip(layers, toward, strict=True):
            lsg.gates[str(layer)].up.bias[group] = 3.0 if group is not None else 0.0
    return lsg


@pytest.fixture(scope="module")
def samples():
    return list(scene_samples(26, 3, split="validation", haze=(0.3, 0.6), size=64))


@pytest.mark.parametrize("score", ["accuracy", "loss"])
def test_the_stack_is_what_greedy_choice_by_hand_gives(demo, samples, score):
    lsg = leaning(demo, [0, 2, 3, 6], [0, 1, 0, 1])
    result = stack(lsg, demo, samples, score=score, progress=False)
    examples = ExampleCache(demo, lsg.find_sinks)

    def value(layers):
        marks = evaluate(demo, {"it": lsg.only(layers)}, samples, examples=examples, progress=False)
        return marks.accuracy("it") if score == "accuracy" else -marks.mean_loss("it")

    alone = {layer: value([layer]) for layer in lsg.config.layers}
    assert result.singles == pytest.approx(alone)
    order = sorted(alone, key=lambda layer: -alone[layer])
    chosen, reached = [order[0]], alone[order[0]]
    for layer in order[1:]:
        if (new := value([*chosen, layer])) > reached:
            chosen, reached = [*chosen, layer], new
    assert result.lsg.config.layers == tuple(sorted(chosen))
    assert result.score == pytest.approx(reached)
    assert len(result.steps) == 4 and result.steps[0].accepted
    plain = evaluate(demo, {"plain": Fixed(sg.Gates.ones(demo))}, samples, examples=examples, progress=False)
    expected = plain.accuracy("plain") if score == "accuracy" else -plain.mean_loss("plain")
    assert result.unmodified == pytest.approx(expected)


def test_a_margin_keeps_the_best_gate_alone_and_modules_are_shared(demo, samples):
    lsg = leaning(demo, [2, 6], [1, None])
    result = stack(lsg, demo, samples, margin=1.0, progress=False)
    assert len(result.lsg.config.layers) == 1
    layer = str(result.lsg.config.layers[0])
    assert result.lsg.gates[layer] is lsg.gates[layer]
    with pytest.raises(sg.GateError, match="no gate in layer 5"):
        lsg.only([5])
    with pytest.raises(sg.SinkgateError, match="no sample can be used"):
        stack(lsg, demo, [sg.Sample((noise_image(),), "What?", "")], progress=False)


def test_the_score_is_that_of_the_returned_stack_under_a_negative_margin(demo, samples):
    lsg = leaning(demo, [2, 3, 6], [1, 0, 1])
    result = stack(lsg, demo, samples, margin=-1.0, progress=False)
    assert len(result.lsg.config.layers) == 3 and all(step.accepted for step in result.steps)
    examples = ExampleCache(demo, lsg.find_sinks)
    marks = evaluate(demo, {"it": result.lsg}, samples, examples=examples, progress=False)
    assert result.score == pytest.approx(-marks.mean_loss("it"))
    assert result.score < max(step.score for step in result.steps), "the case needs a step that made it worse"
