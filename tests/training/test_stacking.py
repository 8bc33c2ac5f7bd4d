"""Stacks: greedy from the best, nothing trained again, told as it went."""

import functools
from dataclasses import replace

import pytest
import torch
from tiny import noise_image

import sinkgate as sg
from sinkgate.data import scene_samples
from sinkgate.methods import Fixed
from sinkgate.training import evaluation, stacking
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


def test_the_stack_is_what_greedy_choice_by_hand_gives(demo, samples, tmp_path):
    lsg = leaning(demo, [0, 2, 3, 6], [0, 1, 0, 1])
    examples = ExampleCache(demo, lsg.find_sinks)

    @functools.cache
    def marks(*layers):
        method = lsg.only(layers) if layers else Fixed(sg.Gates.ones(demo))
        return evaluate(demo, {"it": method}, samples, examples=examples, progress=False)

    for score in ("accuracy", "loss"):

        def value(*layers, score=score):
            right = marks(*sorted(layers))
            return right.accuracy("it") if score == "accuracy" else -right.mean_loss("it")

        result = stack(lsg, demo, samples, score=score, out=tmp_path, progress=False)
        alone = {layer: value(layer) for layer in lsg.config.layers}
        assert result.singles == pytest.approx(alone)
        order = sorted(alone, key=lambda layer: -alone[layer])
        chosen, reached = [order[0]], alone[order[0]]
        for layer in order[1:]:
            if (new := value(*chosen, layer)) > reached:
                chosen, reached = [*chosen, layer], new
        assert result.lsg.config.layers == tuple(sorted(chosen))
        assert result.score == pytest.approx(reached)
        assert len(result.steps) == 4 and result.steps[0].accepted
        assert result.unmodified == pytest.approx(value())


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


@pytest.fixture
def runs(monkeypatch):
    """The methods of every batch that is run; ``stop`` is the number of batches before a kill."""
    calls = []
    calls_of = evaluation._evaluated

    def counted(vlm, methods, examples, part):
        if len(calls) == runs.stop:
            raise KeyboardInterrupt
        calls.append(tuple(methods))
        return calls_of(vlm, methods, examples, part)

    class runs:  # noqa: N801
        stop = None
        batches = calls

    monkeypatch.setattr(evaluation, "_evaluated", counted)
    monkeypatch.setattr(stack, "__kwdefaults__", {**stack.__kwdefaults__, "batch_size": 3})
    return runs


def outcome(result):
    return result.lsg.config.layers, result.unmodified, result.singles, result.steps, result.sinks


def test_a_killed_stack_goes_on_and_equals_a_whole_one(demo, samples, tmp_path, runs):
    lsg, samples = leaning(demo, [0, 2, 3], [0, 1, 0]), samples[:5]
    whole = stack(lsg, demo, samples, progress=False)
    batches = list(runs.batches)
    assert len(batches) == 6 and len(batches[0]) == 4, "two batches of the singles, then two of each of two trials"
    for stop in (1, 2, 5):  # within the singles, behind them, within the last trial
        runs.batches.clear()
        runs.stop = stop
        with pytest.raises(KeyboardInterrupt):
            stack(lsg, demo, samples, out=tmp_path / str(stop), progress=False)
        newest = max(
            (tmp_path / str(stop) / stacking.TRIALS).rglob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns
        )
        with newest.open("a") as file:
            file.write('\n[3, {"kinds": ["cou')  # a line that the kill cut
        runs.stop = None
        assert outcome(stack(lsg, demo, samples, out=tmp_path / str(stop), progress=False)) == outcome(whole)
        assert runs.batches == batches, "no batch is run twice"
    runs.batches.clear()
    assert outcome(stack(lsg, demo, samples, out=tmp_path / "5", progress=False)) == outcome(whole)
    assert not runs.batches
    assert outcome(stack(lsg, demo, samples, out=tmp_path / "5", resume=False, progress=False)) == outcome(whole)
    assert runs.batches == batches


def test_outcomes_of_other_gates_samples_or_criteria_do_not_count(demo, samples, tmp_path, runs):
    lsg, few = leaning(demo, [2, 6], [1, 0]), samples[:3]
    stack(lsg, demo, few, out=tmp_path, progress=False)
    other = leaning(demo, [2, 6], [0, 1])
    by_norm = leaning(demo, [2, 6], [1, 0])
    by_norm.config = replace(by_norm.config, criterion="norm")
    answers = [replace(few[0], answer="9"), *few[1:]]
    for gates, these in ((other, few), (by_norm, few), (lsg, answers)):
        runs.batches.clear()
        fresh = stack(gates, demo, these, progress=False)
        alone = list(runs.batches)
        runs.batches.clear()
        assert outcome(stack(gates, demo, these, out=tmp_path, progress=False)) == outcome(fresh)
        assert runs.batches == alone
        assert len(list((tmp_path / stacking.TRIALS).iterdir())) == 1, "outcomes of other stacks are deleted"


def test_batches_of_another_size_are_computed_anew(demo, samples, tmp_path, runs):
    lsg, few = leaning(demo, [2, 6], [1, 0]), samples[:5]
    for batch_size, batches in ((4, 2), (2, 3)):
        runs.batches.clear()
        result = stack(lsg, demo, few, out=tmp_path, batch_size=batch_size, progress=False)
        assert len(runs.batches) == 2 * batches and result.sinks.images == 5


def test_another_score_or_margin_reads_the_same_outcomes(demo, samples, tmp_path, runs):
    lsg, few = leaning(demo, [2, 6], [1, 0]), samples[:3]
    stack(lsg, demo, few, out=tmp_path, progress=False)
    assert len(runs.batches) == 2
    stack(lsg, demo, few, out=tmp_path, margin=1.0, score="accuracy", progress=False)
    assert len(runs.batches) == 2
