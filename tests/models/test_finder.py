"""Finders of sinks: criteria as text, decided for a model, found on prompts and put in words."""

from dataclasses import replace

import pytest
import torch

import sinkgate as sg
from sinkgate.data import scene_samples
from sinkgate.errors import SinkgateError
from sinkgate.methods import Fixed, finder_of
from sinkgate.methods.lsg import LSGConfig
from sinkgate.models.finder import SinkFinder
from sinkgate.sinks.criteria import CRITERIA, SinkDimensions, by_side, read_criterion, tau_for
from sinkgate.studies.evaluation import Evaluation
from sinkgate.studies.sweep import Sweep


@pytest.fixture(scope="module")
def prompt(demo):
    sample = next(iter(scene_samples(1, 3, split="test", haze=(0.3, 0.6), size=64)))
    return demo.prompt(sample.images, sample.question)


def test_criteria_are_read_from_text():
    assert {name: read_criterion(name) for name in CRITERIA} == CRITERIA
    assert read_criterion("dimensions 1415,2533 tau 12.5") == SinkDimensions((1415, 2533), 12.5)
    assert read_criterion("dimensions 1415 2533") == SinkDimensions((1415, 2533))
    assert read_criterion("dimensions tau 3e-2") == SinkDimensions(tau=0.03)
    for text in ("dimensions a", "dimensions 3 tau", "dimensions 3 tau 0", "dimensions -3", "dimensions tau nan"):
        with pytest.raises(SinkgateError, match="expected such as"):
            read_criterion(text)
    for text in ("magic", "norm 3", "dimensions3", "norm; massive", ""):
        with pytest.raises(SinkgateError, match="no criterion is called"):
            read_criterion(text)
    assert by_side("norm") == ("norm", "norm") and by_side("norm ;dimensions 3") == ("norm", "dimensions 3")
    with pytest.raises(SinkgateError, match="two at most"):
        by_side("norm; norm; norm")


def test_tau_is_that_of_the_width_unless_given(demo):
    width = demo.model.config.get_text_config().hidden_size
    chosen = SinkFinder(l_sink="dimensions 3 tau 5").criteria(demo).l_sink.criterion
    assert chosen == SinkDimensions((3,), 5.0)
    assert SinkFinder(l_sink="dimensions 3").criteria(demo).l_sink.criterion == SinkDimensions((3,), tau_for(width))
    assert tau_for(width) < 20
    with pytest.raises(SinkgateError, match=f"no dimension {width} in the LLM of demo: .* {width} wide"):
        SinkFinder(l_sink=f"dimensions {width}").settings(demo)


def test_a_finder_finds_what_find_sinks_finds(demo, prompt):
    criteria = {"v_sink": "attention", "l_sink": "dimensions 3 tau 0.5"}
    finder, sinks = SinkFinder(**criteria), sg.find_sinks(demo, prompt, **criteria)
    assert torch.equal(finder(demo, prompt).v_sink, sinks.v_sink) and sinks.v_sink.any()
    assert torch.equal(finder(demo, prompt).l_sink, sinks.l_sink) and sinks.l_sink.any()
    one_text = SinkFinder("attention; dimensions 3 tau 0.5", "attention; dimensions 3 tau 0.5")
    assert torch.equal(one_text(demo, prompt).l_sink, sinks.l_sink) and one_text.settings(demo) == finder.settings(demo)
    alone = replace(finder, v_only=True)
    assert torch.equal(alone(demo, prompt).v_sink, sinks.v_sink) and not alone(demo, prompt).l_sink.any()
    assert finder.describe(demo) == "V-sinks by attention share, L-sinks by sink dimensions, dimension 3 (tau 0.5)."
    assert alone.describe(demo) == "V-sinks by attention share." and [*alone.settings(demo)] == ["v_sink"]


def test_gates_name_criteria_of_both_sides(demo):
    lsg = sg.LSG.for_vlm(demo, [1], criterion="norm; dimensions 3 tau 5")
    assert LSGConfig.from_json(lsg.config.to_json()) == lsg.config
    assert finder_of([lsg]).settings(demo) == SinkFinder("norm", "dimensions 3 tau 5").settings(demo)
    other = finder_of([lsg], l_sink="massive")
    assert other.settings(demo) == SinkFinder("norm", "massive").settings(demo)
    with pytest.raises(SinkgateError, match="different criteria"):
        finder_of([lsg, sg.LSG.for_vlm(demo, [1])], v_sink="norm")
    assert finder_of([lsg, sg.LSG.for_vlm(demo, [1])], v_sink="norm", l_sink="norm") == SinkFinder("norm", "norm")
    for wrong in ("norm; magic", "dimensions x"):
        with pytest.raises(sg.GateError, match="criterion: "):
            sg.LSG.for_vlm(demo, [1], criterion=wrong)


def test_studies_are_identified_by_the_criteria_that_they_use(demo):
    from sinkgate.benchmarks import SCENES

    items = SCENES.items(limit=2)
    two, three = ([(0.0, 1.0)], [(0.0, 1.0, 0.5)])
    held = sg.sink_criteria(demo).settings
    assert Sweep(demo, items, [1], three).settings.items() >= held.items()
    assert Sweep(demo, items, [1], three, find=sg.find_sinks).settings.items() >= held.items()
    least = Sweep(demo, items, [1], two).settings
    assert least["v_sink"] == held["v_sink"] and "l_sink" not in least
    by_norm = Sweep(demo, items, [1], two, find=SinkFinder("norm", "massive")).settings
    assert by_norm["v_sink"] == "NormOutliers(times=2.0, threshold=None)" and "l_sink" not in by_norm
    gates = sg.LSG.for_vlm(demo, [1], criterion="norm; massive")
    study = Evaluation(demo, SCENES, items, {"unmodified": Fixed(sg.Gates.ones(demo)), "gates": gates})
    assert study.settings.items() >= SinkFinder("norm", "massive").settings(demo).items()
