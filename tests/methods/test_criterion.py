"""Gates bring the criterion that they were trained with to everything that uses them."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import sinkgate as sg
from sinkgate import cli
from sinkgate.benchmarks import SCENES, Item
from sinkgate.data import scene_samples
from sinkgate.methods import VAR, Fixed, LoRA, Remove, Reweight, Suppress, criterion_of, finder_of
from sinkgate.models import loading
from sinkgate.models.vlm import find_sinks
from sinkgate.studies.evaluation import Evaluation
from sinkgate.studies.runner import run
from sinkgate.training.dataset import ExampleCache
from sinkgate.training.stacking import stack

CRITERION = "norm"  # names no sink in the demo world, where the default names two in most images


@pytest.fixture(scope="module")
def lsg(demo) -> sg.LSG:
    """Gates that mute V-sinks whatever they read, trained with another criterion than the default."""
    gates = sg.LSG.for_vlm(demo, [1, 2], start="identity", bias=True, criterion=CRITERION)
    with torch.no_grad():
        for gate in gates.gates.values():
            gate.up.bias[1] = 5.0
    return gates


@pytest.fixture(scope="module")
def samples():
    return list(scene_samples(13, 3, split="test", haze=(0.3, 0.6), size=64))


def by(name):
    return lambda vlm, prompt: find_sinks(vlm, prompt, v_sink=name, l_sink=name)


@pytest.fixture(scope="module")
def losses(demo, lsg, samples):
    """Losses under the gates with sinks by either criterion, which differ."""
    results = {}
    for name in (CRITERION, "auto"):
        examples = ExampleCache(demo, by(name))
        results[name] = sg.evaluate(demo, {"lsg": lsg}, samples, examples=examples, progress=False).loss["lsg"]
    assert results[CRITERION] != pytest.approx(results["auto"], abs=1e-3)
    return results


def test_one_rule_decides(demo, lsg):
    assert criterion_of([]) == criterion_of([Fixed(sg.Gates.ones(8)), sg.Gates.ones(8), VAR(), None]) == "auto"
    assert criterion_of([lsg, VAR(), Remove()]) == criterion_of([Suppress(criterion="norm"), lsg]) == "norm"
    assert criterion_of([Reweight.for_vlm(demo, criterion="massive")]) == "massive"
    with pytest.raises(sg.SinkgateError, match="different criteria, massive, norm; run them apart"):
        criterion_of([lsg, VAR(criterion="massive")])
    with pytest.raises(sg.SinkgateError, match="different criteria"):
        finder_of([lsg, sg.LSG.for_vlm(demo, [1])])


def test_l_sinks_are_left_out_where_nobody_uses_them(demo, lsg, samples, monkeypatch):
    prompt = demo.prompt(samples[0].images, samples[0].question)
    other = replace(lsg.config, grouping="three")
    for method, uses in (
        (lsg, False),
        (sg.LSG(other), True),
        (Fixed(sg.Gates.ones(demo).set("v_sink", 0)), False),
        (Fixed(sg.Gates.ones(demo).set("l_sink", 0)), True),
        (Suppress(), False),
        (Remove(), False),
        (Reweight.for_vlm(demo), False),
        (LoRA.for_vlm(demo, 1), False),
        (VAR(), True),
        (VAR(dimensions=(3,)), False),
    ):
        assert method.uses_l_sinks is uses
        full, least = finder_of([method])(demo, prompt), finder_of([method], l_sinks=False)(demo, prompt)
        assert isinstance(full, sg.SinkMap) and torch.equal(full.v_sink, least.v_sink)
    monkeypatch.setattr(type(demo), "observe", lambda *_: pytest.fail("the LLM need not run"))
    fresh = demo.prompt(samples[0].images, samples[0].question)
    assert not finder_of([lsg, Remove()], l_sinks=False)(demo, fresh).l_sink.any()


def test_evaluate(demo, lsg, samples, losses):
    marks = sg.evaluate(demo, {"plain": Fixed(sg.Gates.ones(demo)), "lsg": lsg}, samples, progress=False)
    assert marks.loss["lsg"] == pytest.approx(losses[CRITERION], abs=1e-5)


def test_stack(demo, lsg, samples, losses):
    stacked = stack(lsg, demo, samples, progress=False)
    both = next(step for step in stacked.steps if len(step.layers) == 2)
    assert -both.score == pytest.approx(sum(losses[CRITERION]) / len(samples), abs=1e-5)


@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_studies(demo, lsg, samples, tmp_path, scoring):
    items = [Item(sample, str(number), {"scope": "local"}) for number, sample in enumerate(samples)]
    methods = {"unmodified": Fixed(sg.Gates.ones(demo)), "lsg": lsg}
    tables = [
        run(Evaluation(demo, SCENES, items, methods, scoring, find=find), tmp_path / name, progress=False)
        for name, find in (("default", None), ("own", by(CRITERION)), ("other", by("auto")))
    ]
    default, own, other = (each.table("answers") for each in tables)
    assert default.equals(own)
    assert scoring == "generate" or not default.equals(other)


def test_ask(demo, lsg, samples, tmp_path, monkeypatch, capsys):
    lsg.save_pretrained(tmp_path / "gates")
    (tmp_path / "picture.png").write_bytes(samples[0].images[0])
    question = samples[0].question
    monkeypatch.setattr(loading, "load", lambda *_, **__: demo)
    arguments = ["sinkgate", "ask", tmp_path / "picture.png", question, "--gates", tmp_path / "gates", "--json"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    cli.cli(standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    prompt = demo.prompt(tmp_path / "picture.png", question)
    sinks = lsg.find_sinks(demo, prompt)
    expected = demo.answer(prompt, lsg.read(demo, prompt, sinks), sinks).next_token[0][1]
    assert printed["next_token"][0]["probability"] == pytest.approx(expected, abs=1e-5)
    assert printed["v_sink"] == prompt.visual[sinks.v_sink].tolist()
    assert sinks.v_sink.sum() != sg.find_sinks(demo, prompt).v_sink.sum()


def test_compare(demo, lsg, samples):
    pytest.importorskip("anywidget")
    image, question = samples[0].images[0], samples[0].question
    compared = sg.compare(demo, image, question, {"LSG": lsg, "by hand": sg.Gates.preset("V-sinks off", demo)})
    prompt = demo.prompt(image, question)
    sinks = lsg.find_sinks(demo, prompt)
    expected = demo.answer(prompt, lsg.read(demo, prompt, sinks), sinks)
    assert torch.allclose(compared.traces["LSG"].probabilities, expected.probabilities, atol=1e-6)
    assert torch.equal(compared.warm.sinks.v_sink, sinks.v_sink)
