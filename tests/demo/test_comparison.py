"""The comparison: small runs, and its statistics on marks written by hand."""

import json
from dataclasses import replace

import pytest
import torch

import sinkgate as sg
from sinkgate.data import scene_samples
from sinkgate.demo import comparison
from sinkgate.demo.comparison_card import main_table, write_comparison
from sinkgate.demo.comparison_results import Comparison
from sinkgate.methods import Fixed
from sinkgate.methods.lsg import LSG
from sinkgate.scenes.questions import KINDS
from sinkgate.training.dataset import ExampleCache


def few_gates(vlm, setup):
    layers = range(vlm.num_layers) if setup.layers is None else setup.layers
    return {
        "LSG": LSG.for_vlm(vlm, layers),
        "LSG from 1": LSG.for_vlm(vlm, layers, start="identity"),
        "LSG from 1, joint": LSG.for_vlm(vlm, [7], start="identity"),
        **{name: LSG.for_vlm(vlm, setup.ablated, **comparison.ABLATIONS[name]) for name in setup.ablations},
    }


def halves(vlm, setup):
    unmodified, half = Fixed(sg.Gates.ones(vlm)), Fixed(sg.Setting(7, 0.5, 0.5).gates(vlm))
    baselines = ("0.5 everywhere", "V-sinks suppressed", "V-sinks removed", "VAR", "sinks to the front")
    layers = [f"0.5, layer {layer}" for layer in range(vlm.num_layers) if setup.further]
    return {comparison.UNMODIFIED: unmodified, **dict.fromkeys((*baselines, *layers), half)}


@pytest.fixture
def small_run(demo, monkeypatch):
    monkeypatch.setattr(comparison, "load", lambda *_, **__: demo)
    monkeypatch.setattr(comparison, "learned_gates", few_gates)
    monkeypatch.setattr(comparison, "fixed_methods", halves)
    monkeypatch.setattr(comparison, "oracle", lambda vlm, points: [sg.Setting(7, *point) for point in points])


def test_a_small_run_is_resumed_and_becomes_a_card(small_run, tmp_path):
    setup = replace(
        comparison.SETUPS["demo-small"],
        layers=(6, 7),
        ablated=(7,),
        samples=2,
        validation=13,
        questions=13,
        seeds=(0,),
    )
    comparison.run_comparison(setup, tmp_path / "run")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.json")}
    assert sorted(times) == ["more-0.json", "oracle-0.json", "oracle.json", "seed-0.json"]
    comparison.run_comparison(setup, tmp_path / "run")
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.json")}, "nothing twice"
    write_comparison(setup, tmp_path / "run", tmp_path / "card", publish=0)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| unmodified |" in card and "| LoRA |" in card and "oracle, paper's line" in card
    numbers = json.loads((tmp_path / "card" / "comparison.json").read_text())
    run = json.loads((tmp_path / "run" / "seed-0.json").read_text())
    marks = run["worlds"]["hazed"]["marks"]
    for kind in KINDS:
        right = [mark for mark, of in zip(marks["right"]["LoRA"], marks["kinds"], strict=True) if of == kind]
        assert numbers["accuracy"]["hazed"]["LoRA"][kind] == [pytest.approx(sum(right) / len(right), abs=1e-5)]
    rho = run["worlds"]["hazed"]["rho"]["LSG from 1"]
    assert set(rho) == set(KINDS) and all(0 <= scale <= 2 for of in rho.values() for scale in of)
    assert (tmp_path / "card" / "gains.svg").read_text().startswith("<svg")
    published = LSG.from_pretrained(tmp_path / "card" / "layer-7")
    trained = LSG.from_pretrained(tmp_path / "run" / "seed-0" / "LSG_from_1")
    assert torch.equal(published.gates["7"].up.weight, trained.gates["7"].up.weight)


@pytest.mark.parametrize("name", comparison.SETUPS)
def test_published_comparisons_have_a_gate_in_every_layer(demo, name):
    setup = comparison.SETUPS[name]
    layers = {name: gates.config.layers for name, gates in comparison.learned_gates(demo, setup).items()}
    assert {layers.pop(form) for form in ("LSG", "LSG from 1", "LSG from 1, joint")} == {tuple(range(demo.num_layers))}
    assert layers == dict.fromkeys(comparison.ABLATIONS, setup.ablated)


def test_a_short_comparison_has_a_card_without_the_parts_that_it_leaves_out(small_run, tmp_path):
    setup = replace(
        comparison.SETUPS["demo-large"], layers=(6, 7), ablated=(7,), samples=2, validation=13, questions=13, seeds=(0,)
    )
    comparison.run_comparison(setup, tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == ["seed-0.json"]
    write_comparison(setup, tmp_path, tmp_path / "card", publish=0)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "One seed" in card and "| LSG, layer 7 |" in card and "| three groups, layer 7 |" in card
    assert "±" not in card and "t-test over seeds" not in card and "--seed" not in card
    few = replace(setup, seeds=(0, 1))
    write_comparison(few, tmp_path, tmp_path / "partial")
    assert "compare demo-large --seed 0`" in (tmp_path / "partial" / "README.md").read_text()
    assert "Oracle" not in card and "5 x samples" not in card and "query reweighting" not in card
    layers = LSG.from_pretrained(tmp_path / "card" / "stack").config.layers
    assert layers == tuple(json.loads((tmp_path / "seed-0.json").read_text())["stacks"]["LSG from 1 by loss"]["layers"])
    assert {path.name for path in (tmp_path / "card").iterdir() if path.is_dir()} == {
        "layer-6",
        "layer-7",
        "stack",
        "joint",
    }


def test_mean_scales_are_those_that_single_gates_read(demo):
    torch.manual_seed(0)
    gates = {
        name: LSG.for_vlm(demo, [1, 6], start=start)
        for name, start in zip(comparison.FORMS, ("paper", "identity"), strict=True)
    }
    for lsg in gates.values():
        for gate in lsg.gates.values():
            torch.nn.init.normal_(gate.up.weight)
    samples = list(scene_samples(6, 0, kinds=("count", "place"), size=64))
    means = comparison.mean_rho(demo, gates, samples, ExampleCache(demo))
    for name, lsg in gates.items():
        for kind in ("count", "place"):
            prompts = [demo.prompt(each.images, each.question) for each in samples if each.kind == kind]
            for layer, mean in zip((1, 6), means[name][kind], strict=True):
                scales = [lsg.only([layer]).read(demo, prompt).scales[layer, 0].item() for prompt in prompts]
                assert mean == pytest.approx(sum(scales) / len(scales), abs=1e-5)


def hand_written(folder, seeds):
    """Two kinds, four questions a seed: what ``method`` gains is counted below."""
    for seed, (plain, method) in enumerate(seeds):
        marks = {"kinds": ["count", "count", "color", "color"], "right": {"unmodified": plain, "method": method}}
        worlds = {world: {"marks": marks, "rho": {}} for world in ("hazed", "clear")}
        run = {"seed": seed, "worlds": worlds, "stacks": {}}
        (folder / f"seed-{seed}.json").write_text(json.dumps(run))
    return Comparison(folder)


def test_gains_are_paired_and_tested(tmp_path):
    results = hand_written(
        tmp_path, [([1, 0, 0, 1], [1, 1, 1, 1]), ([0, 0, 0, 1], [0, 1, 0, 0]), ([0] * 4, [1, 0, 0, 0])]
    )
    gain = results.gain("hazed", "method")
    assert gain.seeds == [50, 0, 25] and gain.mean == 25 and gain.deviation == 25
    assert gain.accuracy == pytest.approx(100 * (4 + 1 + 1) / 12)
    assert gain.over_questions == pytest.approx(12 / 32), "four better and one worse of five that turned, two-sided"
    assert gain.over_seeds == pytest.approx(0.2254, abs=1e-3), "t = 25 / (25 / sqrt 3) = 1.732, 2 degrees of freedom"
    counts = results.gain("hazed", "method", ["count"])
    assert counts.seeds == [50, 50, 50] and counts.over_seeds == 0.0, "no spread at all"
    assert "| method | 50.00 % | +25.00 ± 25.00 | 0.225 | 0.375 |" in main_table(results, ["unmodified", "method"])
