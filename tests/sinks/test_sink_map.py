"""Groups in words and tables: made-up observations whose sinks are known."""

import math
from dataclasses import replace
from html import unescape

import pytest
import torch

import sinkgate as sg
from sinkgate.images.layout import Sheet, list_sheet
from sinkgate.sinks.classify import Observation, classify
from sinkgate.sinks.criteria import AttentionShare, Choice, NormOutliers, SinkDimensions
from sinkgate.sinks.states import HiddenStates
from sinkgate.sinks.words import count, layers, listed, number, numbered, ranges, span

LAYERS, VISUAL, TEXT, WIDTH = 6, 12, 4, 600
PAPER = SinkDimensions((7,))
GRID = (Sheet(torch.arange(VISUAL).view(3, 4), box=(0, 0, 40, 30)),)


def observed(text_first: bool = False, spikes=((0, 2, 6, 3000.0), (5, 3, 5, 1000.0)), dim=7) -> Observation:
    """Noise of magnitude 1; each spike: visual token, first layer, layer behind the last, size."""
    hidden = torch.randn(LAYERS, VISUAL + TEXT, WIDTH, generator=torch.Generator().manual_seed(0))
    visual = torch.arange(VISUAL) + (TEXT if text_first else 0)
    for token, first, end, size in spikes:
        hidden[first:end, visual[token], dim] = size
    if text_first:
        hidden[2:, 0, dim] = 5000
    values = torch.ones(LAYERS, VISUAL + TEXT)
    values[3, visual[5]] = 0.5
    keys = torch.full((LAYERS, VISUAL + TEXT), 0.01)
    keys[4, visual[5]] = 0.2
    if text_first:
        keys[3, 0] = 0.4
    return Observation(
        torch.ones(VISUAL, 8),
        torch.ones(VISUAL),
        torch.arange(VISUAL),
        HiddenStates.of(hidden),
        visual,
        keys,
        values,
    )


def judged(observation=None, l_sink=PAPER, **options) -> sg.SinkMap:
    return classify(observed() if observation is None else observation, GRID, v_sink="norm", l_sink=l_sink, **options)


def test_an_l_sink_is_named_without_its_layer():
    text = judged().explain(5)
    assert text.startswith("L-sink in layers 3-4 (patch row 1, column 1): dimension 7, up to 1,4"), text
    assert "|h[d]| / RMS(h) is 24.5, at least 20 is a sink (layer " in text
    assert text.endswith("there attention up to 20 x the median, Value 0.516-1 x the mean."), text
    assert "L-sink in layer 3 (" in judged(observed(spikes=((5, 3, 4, 1000.0),))).explain(5)
    assert judged().explain(4).startswith("ordinary (patch row 1, column 0)")
    assert judged().explain(5, 1).startswith("ordinary (patch row 1, column 1, L-sink in layers 3-4): ")
    assert judged().explain(5, 3).startswith("L-sink (patch row 1, column 1): |h[d]| / RMS(h) is 24.")


def test_the_first_position_is_marked():
    sinks = judged()
    assert "column 0, at the first position of the sequence): dimension 7, up to 4," in sinks.explain(0)
    assert "first position" not in sinks.explain(5)
    assert "The image comes first: visual token 0 stands at the first position" in sinks.summary()
    after_text = judged(observed(text_first=True))
    assert "first position" not in after_text.explain(0) and "image comes first" not in after_text.summary()


def test_the_text_sink_has_a_sentence():
    (sentence,) = [each for each in judged(observed(text_first=True)).sentences() if each.startswith("Text sink")]
    assert sentence.startswith("Text sink: position 0, in layers 2-5, dimension 7, up to 7,"), sentence
    observation = observed(text_first=True)
    hidden = observation.hidden
    hidden[4, 1:4, 7] = 2000
    summary = judged(replace(observation, states=HiddenStates.of(hidden))).summary()
    assert "Text sinks: positions 0, 1, 2, 3, in layers 2-5" in summary
    hidden[:, :4, 7] = 0
    assert "No text token is a sink." in judged(replace(observation, states=HiddenStates.of(hidden))).summary()
    by_attention = judged(observed(text_first=True), "attention").summary()
    assert "The first text token receives 40% of the attention of the text in layer 3" in by_attention


def test_massive_activations_judge_text_by_the_same_dimensions():
    summary = judged(observed(text_first=True), "massive").summary()
    assert "(massive activations, dimension 7)" in summary and "Text sink: position 0, in layers 2-5" in summary


def test_a_v_sink_that_is_an_l_sink_too_says_so():
    observation = observed()
    observation.features[0] *= 5
    text = judged(observation).explain(0)
    assert text.startswith("V-sink (") and "an L-sink too in layers 2-5, dimension 7, up to 4," in text
    observation = observed(spikes=((0, 2, 6, 3000.0),))
    observation.features[0] *= 5
    assert "No L-sinks beside the V-sinks" in judged(observation).summary()


def test_what_was_tried_is_said_once_for_both_sides():
    tried = ("sink dimensions", "norm outliers")
    same = Choice(AttentionShare(), tried=tried)
    sinks = classify(observed(), GRID, v_sink=same, l_sink=same)
    assert sinks.sentences()[0] == "No V-sinks (attention share)."
    assert sinks.sentences()[2] == "Sink dimensions and norm outliers find none on this model."
    other = classify(observed(), GRID, v_sink=same, l_sink=Choice(NormOutliers(), tried=tried[:1])).summary()
    assert "Sink dimensions and norm outliers find none in the encoder on this model." in other
    assert "Sink dimensions finds none in the LLM on this model." in other
    known = Choice(SinkDimensions((7, 9)), "known for llava-1.5-7b")
    text = classify(observed(), GRID, v_sink="norm", l_sink=known).summary()
    assert "(sink dimensions, dimensions 7, 9 known for llava-1.5-7b)" in text
    assert "find none" not in judged().summary(), "a criterion that was given needs no excuse"


@pytest.mark.parametrize("arguments", [(12,), (-1,), (0, 6), (0, -1), ("0",), (0.0,), (None,), (0, "1")])
def test_tokens_and_layers_that_do_not_exist_are_refused(arguments):
    sinks = judged()
    with pytest.raises(sg.SinkgateError, match=r"there is no (visual token|layer) .*expected a whole number from 0 to"):
        sinks.explain(*arguments)
    with pytest.raises(sg.SinkgateError, match="there is no visual token 99; expected a whole number from 0 to 11"):
        sinks.where(99)


def test_numbers_of_tensors_are_taken():
    sinks = judged()
    assert sinks.explain(torch.tensor(5), torch.tensor(3)) == sinks.explain(5, 3)


def test_short_forms_for_a_notebook():
    sinks = judged()
    assert repr(sinks) == "SinkMap(12 visual tokens, 6 layers: 0 V-sinks; L-sinks in layers 2-5, at most 2 in one)"
    html = sinks._repr_html_()
    assert unescape(html).count("<li>") == len(sinks.sentences()) and len(html) < 1000 and "&lt;" not in html


def test_a_table_of_layers_and_tokens():
    frame = judged().to_frame()
    assert len(frame) == LAYERS * VISUAL and list(frame.columns[:7]) == [
        *("layer", "token", "position", "sheet", "row", "column", "group")
    ]
    l_sinks = frame.query("group == 'l_sink'")
    assert sorted(zip(l_sinks.layer, l_sinks.token, strict=True)) == [(2, 0), (3, 0), (3, 5), (4, 0), (4, 5), (5, 0)]
    row = frame.query("layer == 4 and token == 5").iloc[0]
    assert (row.row, row.column, row.dimension, row.threshold) == (1, 1, 7, 20)
    assert row.attention == pytest.approx(20) and 1400 < row.spike < 1600 and row.score > 24
    unplaced = classify(observed(), (list_sheet(4),), v_sink="norm", l_sink="norm").to_frame()
    assert unplaced.query("token == 9").row.isna().all() and unplaced.spike.isna().all()


def test_the_estimated_median_is_close_to_the_exact_one():
    observation = observed(spikes=((5, 3, 5, 1000.0),))
    hidden = torch.randn(2, 600, 1024, generator=torch.Generator().manual_seed(1))
    hidden[1, 0, 7] = 1000
    exact = 1000 / float(hidden[1].abs().median())
    wide = replace(observation, states=HiddenStates.of(hidden))
    wide = replace(wide, key_attention=torch.ones(2, 600), value_norms=torch.ones(2, 600))
    assert float(judged(wide).spike[1, 0]) == pytest.approx(exact, rel=0.02)


def test_words():
    assert [number(x) for x in (1124.7, 0.8449, 23.75, 5250, 999.6, 1e-7, 0, math.inf)] == [
        *("1,120", "0.845", "23.8", "5,250", "1,000", "1e-07", "0", "inf")
    ]
    assert (count(1, "patch"), count(3, "patch"), count(1200, "layer")) == ("1 patch", "3 patches", "1,200 layers")
    assert (numbered("dimension", [7]), numbered("dimension", [7, 9])) == ("dimension 7", "dimensions 7, 9")
    assert (layers([4]), layers([1, 2, 3, 7])) == ("layer 4", "layers 1-3, 7") and ranges([5]) == "5"
    assert (listed(["a"]), listed(["a", "b"]), listed(("a", "b", "c"))) == ("a", "a and b", "a, b and c")
    assert (span(0.1, 0.5), span(1, 1.0001)) == ("0.1-0.5", "1")
