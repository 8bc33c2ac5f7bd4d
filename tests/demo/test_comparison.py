"""The comparison: a small run of it, and its statistics on marks made by hand."""

import json

import pytest
import torch

import sinkgate as sg
from sinkgate.demo import comparison
from sinkgate.demo.comparison_card import Comparison, main, main_table
from sinkgate.methods import Fixed
from sinkgate.methods.lsg import LSG
from sinkgate.scenes.questions import KINDS


def few_learners(vlm):
    return {
        "LSG": LSG.for_vlm(vlm, range(vlm.num_layers)),
        "LSG from 1": LSG.for_vlm(vlm, range(vlm.num_layers), start="identity"),
        "LSG from 1, joint": LSG.for_vlm(vlm, [7], start="identity"),
        **{name: LSG.for_vlm(vlm, comparison.ABLATED, **options) for name, options in comparison.ABLATIONS.items()},
    }


def test_a_small_run_goes_on_and_becomes_a_card(demo, tmp_path, monkeypatch):
    def halves(vlm):
        plain, half = Fixed(sg.Gates.ones(vlm)), Fixed(sg.Gates.preset("Paper's midpoint", vlm))
        rivals = ("0.5 everywhere", "V-sinks suppressed", "V-sinks removed", "VAR", "sinks to the front")
        layers = [f"0.5, layer {layer}" for layer in range(vlm.num_layers)]
        return {comparison.UNMODIFIED: plain, **dict.fromkeys((*rivals, *layers), half)}

    monkeypatch.setattr(comparison, "load", lambda *_, **__: demo)
    monkeypatch.setattr(comparison, "learners", few_learners)
    monkeypatch.setattr(comparison, "fixed", halves)
    monkeypatch.setattr(comparison, "oracle", lambda vlm, points: [sg.Setting(7, *point) for point in points])
    comparison.main(tmp_path / "run", seeds="0", samples=2, choosing=13, asked=39)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.json")}
    assert sorted(times) == ["more-0.json", "oracle-0.json", "oracle.json", "seed-0.json"]
    comparison.main(tmp_path / "run", seeds="0", samples=2, choosing=13, asked=39)
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.json")}, "nothing twice"
    main(tmp_path / "run", tmp_path / "card", ship=0)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| unmodified |" in card and "| LoRA |" in card and "oracle, paper's line" in card
    told = json.loads((tmp_path / "card" / "comparison.json").read_text())
    run = json.loads((tmp_path / "run" / "seed-0.json").read_text())
    marks = run["worlds"]["hazed"]["marks"]
    for kind in KINDS:
        asked = [right for right, of in zip(marks["right"]["LoRA"], marks["kinds"], strict=True) if of == kind]
        assert told["accuracy"]["hazed"]["LoRA"][kind] == [pytest.approx(sum(asked) / len(asked), abs=1e-5)]
    rho = run["worlds"]["hazed"]["rho"]["LSG from 1"]
    assert set(rho) == set(KINDS) and all(0 <= scale <= 2 for of in rho.values() for scale in of)
    assert (tmp_path / "card" / "gains.svg").read_text().startswith("<svg")
    shipped = LSG.from_pretrained(tmp_path / "card" / "layer-7")
    trained = LSG.from_pretrained(tmp_path / "run" / "seed-0" / "LSG_from_1")
    assert torch.equal(shipped.gates["7"].up.weight, trained.gates["7"].up.weight)


def made_by_hand(folder, seeds):
    """Two kinds, four questions a seed: what ``method`` gains is counted below."""
    for seed, (plain, method) in enumerate(seeds):
        marks = {"kinds": ["count", "count", "color", "color"], "right": {"unmodified": plain, "method": method}}
        worlds = {world: {"marks": marks, "rho": {}} for world in ("hazed", "clear")}
        run = {"seed": seed, "worlds": worlds, "stacks": {}}
        (folder / f"seed-{seed}.json").write_text(json.dumps(run))
        (folder / f"oracle-{seed}.json").write_text("{}")
        (folder / f"more-{seed}.json").write_text(json.dumps({"worlds": {}, "stacks": {}}))
    (folder / "oracle.json").write_text("{}")
    return Comparison(folder)


def test_gains_are_paired_and_tested(tmp_path):
    found = made_by_hand(
        tmp_path, [([1, 0, 0, 1], [1, 1, 1, 1]), ([0, 0, 0, 1], [0, 1, 0, 0]), ([0] * 4, [1, 0, 0, 0])]
    )
    gain = found.gain("hazed", "method")
    assert gain.seeds == [50, 0, 25] and gain.mean == 25 and gain.deviation == 25
    assert gain.accuracy == pytest.approx(100 * (4 + 1 + 1) / 12)
    assert gain.over_questions == pytest.approx(12 / 32), "four better and one worse of five that turned, two-sided"
    assert gain.over_seeds == pytest.approx(0.2254, abs=1e-3), "t = 25 / (25 / sqrt 3) = 1.732, 2 degrees of freedom"
    counts = found.gain("hazed", "method", lambda kind: kind == "count")
    assert counts.seeds == [50, 50, 50] and counts.over_seeds == 0.0, "no spread at all"
    assert "| method | 50.00 % | +25.00 ± 25.00 | 0.225 | 0.375 |" in main_table(found, ["unmodified", "method"])
