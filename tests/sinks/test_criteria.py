"""Criteria on made-up activations whose sinks are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkgate.errors import SinkgateError
from sinkgate.sinks.classify import criterion as as_criterion
from sinkgate.sinks.criteria import (
    CRITERIA,
    AttentionShare,
    FirstThatFinds,
    MassiveActivations,
    NormOutliers,
    Signals,
    SinkDimensions,
)
from sinkgate.sinks.evidence import confidence, discover_dimensions, gather_evidence

LAYERS, TOKENS, WIDTH = 4, 40, 64


def quiet(seed=0) -> torch.Tensor:
    return torch.randn(LAYERS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def signals(hidden, attention=None) -> Signals:
    even = torch.full((hidden.shape[0], hidden.shape[1]), 1 / hidden.shape[1])
    return Signals(hidden, torch.arange(hidden.shape[1]), even if attention is None else attention)


def spiked(tokens=(3, 17), dims=(5, 50), size=2000.0) -> torch.Tensor:
    hidden = quiet()
    for token in tokens:
        hidden[:, token, list(dims)] = size
    return hidden


def where(verdict, layer=0):
    return verdict.mask[layer].nonzero()[:, 0].tolist()


def drifting(seed=0, growth=1.0, layers=6) -> torch.Tensor:
    """Noise whose scale grows from 1 to ``growth`` through the layers, as residual streams do."""
    noise = torch.randn(layers, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return noise * torch.logspace(0, math.log10(growth), layers)[:, None, None]


seeds = st.integers(0, 10_000)
growths = st.floats(1, 1000)
some_dims = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=3, unique=True)
some_tokens = st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=TOKENS // 10, unique=True)


@given(seeds, growths, some_dims, some_tokens, st.floats(300, 20_000), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_planted_dimensions_are_found_exactly(seed, growth, dims, tokens, size, first):
    hidden = drifting(seed, growth)
    signs = torch.where(torch.rand(len(dims), generator=torch.Generator().manual_seed(seed)) < 0.5, -1.0, 1.0)
    for token in tokens:
        hidden[first:, token, dims] = (size * signs * torch.logspace(0, math.log10(growth), 6)[:, None, None])[
            first:, 0
        ]
    evidence = gather_evidence(hidden).dimensions
    assert {e.dimension for e in evidence} == set(dims) == set(discover_dimensions(hidden))
    for e in evidence:
        assert e.layers == tuple(range(first, 6)), "only where it was planted"
        assert e.share == pytest.approx(len(tokens) / TOKENS) and e.prompts == 1
        assert e.ratio == pytest.approx(size / 0.67, rel=0.2) and e.confidence <= 0.5
    in_bf16 = gather_evidence(hidden.bfloat16()).dimensions
    assert {(e.dimension, e.layers) for e in in_bf16} == {(e.dimension, e.layers) for e in evidence}


@given(seeds, growths)
@settings(max_examples=40, deadline=None)
def test_none_is_found_where_nothing_was_planted(seed, growth):
    evidence = gather_evidence(drifting(seed, growth))
    assert evidence.dimensions == ()
    loudest = evidence.loudest
    assert 3 < loudest.ratio < 20 and loudest.layers == () and loudest.prompts == 0 and loudest.confidence == 0


@given(seeds, growths, st.sampled_from([0.15, 0.5, 1.0]), st.integers(0, WIDTH - 1))
@settings(max_examples=60, deadline=None)
def test_a_channel_that_many_tokens_are_loud_in_is_never_reported(seed, growth, part, channel):
    """Sign and size depend on the token, up to a factor of ten; beside a true sink dimension too."""
    hidden, generator = drifting(seed, growth), torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, math.log10(growth), 6)[:, None]
    who = torch.randperm(TOKENS, generator=generator)[: int(part * TOKENS)]
    sizes = 500 * 10 ** torch.rand(6, len(who), generator=generator) * scale
    hidden[:, who, channel] = sizes * (torch.randint(0, 2, sizes.shape, generator=generator) * 2 - 1)
    assert discover_dimensions(hidden) == ()
    assert gather_evidence(hidden).loudest.dimension == channel
    other = (channel + 1) % WIDTH
    hidden[:, 7, other] = 9000 * scale[:, 0]
    assert discover_dimensions(hidden) == (other,)


@pytest.mark.parametrize("factor", [10, 1000])
def test_a_token_that_is_loud_everywhere_names_no_dimension(factor):
    """A V-sink inside the LLM: a large norm without a spike, here with one channel that is strong for every token."""
    hidden = drifting()
    hidden[:, :, 9] *= 15
    hidden[:, 3] *= factor
    assert discover_dimensions(hidden) == ()
    hidden[:, 3, 5] = 2000 * factor
    assert discover_dimensions(hidden) == (5,), "what rides along with a spike is not reported"


def written(growth=1.0, layers=6, tokens=TOKENS, width=576, start=2, size=300.0, share=0.9, seed=0):
    """An LLM with the image in front, as SmolLM2 behaves: from layer ``start`` on most tokens, the first included, are
    loud in channel 7, by up to a factor of three and with one sign; channel 8 rides along at 17 % of it."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (
        torch.randn(layers, tokens, width, generator=generator)
        * torch.logspace(0, math.log10(growth), layers)[:, None, None]
    )
    loud = torch.zeros(tokens, dtype=torch.bool)
    loud[: int(share * tokens)] = True
    loud[1:] = loud[1:][torch.randperm(tokens - 1, generator=generator)]
    values = size * 3 ** torch.rand(int(loud.sum()), generator=generator) * growth
    hidden[start:, loud, 7] = values
    hidden[start:, loud, 8] = -0.17 * values
    return hidden


@given(seeds, growths, st.sampled_from([0.1, 0.3, 0.5, 0.9, 0.95]), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_most_tokens_may_be_sinks_where_the_first_one_is(seed, growth, share, start):
    """Share is no test of a sink dimension: with the image first 95 % of SmolLM2's tokens spike in layer 3."""
    (evidence,) = gather_evidence(written(growth, start=start, share=share, seed=seed)).dimensions
    assert evidence.dimension == 7 and evidence.layers == tuple(range(start, 6)) and evidence.first
    assert evidence.share == pytest.approx(share, abs=0.03)
    assert evidence.dominance > 0.9 and evidence.agreement == 1


def test_a_sink_dimension_without_a_gap():
    """The trained checkpoint with SmolLM2's layers: from 280 down to 10 times the median without a step."""
    hidden = torch.randn(4, 64, 576, generator=torch.Generator().manual_seed(0))
    hidden[2:, :, 7] = torch.logspace(math.log10(280), 1, 64).flip(0).roll(17)
    hidden[2:, 0, 7] = 140
    (evidence,) = gather_evidence(hidden).dimensions
    assert evidence.dimension == 7 and evidence.first and evidence.distinctiveness < 10


def _brought_along(hidden):
    hidden[:2] = hidden[2]


def _quiet_at_the_start(hidden):
    hidden[2:, 0, 7:9] = 1


def _loud_in_all(hidden):
    hidden[2:, :, 7] = hidden[2:, :, 7].abs().clamp_min(250)


def _of_both_signs(hidden):
    hidden[2:, 1::2, 7] *= -1


def _one_of_many(hidden):
    hidden[2:, :, 20:60] = hidden[2:, :, 7:8] * 0.9


@pytest.mark.parametrize("change", [_brought_along, _quiet_at_the_start, _loud_in_all, _of_both_signs, _one_of_many])
def test_a_content_channel_lacks_one_trait_of_a_sink(change):
    hidden = written()
    assert discover_dimensions(hidden) == (7,)
    change(hidden)
    assert discover_dimensions(hidden) == ()
    assert gather_evidence(hidden).loudest.ratio > 300


def test_a_single_spike_counts_in_the_shortest_prompt():
    hidden = drifting()[:, :2]
    hidden[:, 0, 5] = 3000
    assert discover_dimensions(hidden) == (5,)
    assert discover_dimensions(hidden[:, :1]) == (), "one token alone: nothing to compare with"


@pytest.mark.parametrize("hidden", [torch.zeros(2, 5, 8), torch.full((2, 5, 8), torch.inf), torch.eye(8)[None] * 1e6])
def test_nothing_to_compare_with_is_no_spike(hidden):
    assert discover_dimensions(hidden) == ()


def test_confidence_needs_prompts_and_size():
    assert confidence(1000, 1, 1) == 0.5 and confidence(1e6, 6, 6) == pytest.approx(6 / 7)
    assert confidence(100, 6, 6) == pytest.approx(6 / 7 * 2 / 3)
    assert confidence(1e6, 1, 6) < 0.15 and confidence(1e6, 0, 6) == 0 == confidence(0.5, 6, 6)


def test_dimensions_are_discovered_with_the_loudest_first():
    hidden = spiked()
    hidden[:, 3, 50] = 4000
    assert discover_dimensions(hidden) == (50, 5)


def test_a_content_channel_is_no_sink_dimension():
    hidden = quiet()
    hidden[:, :, 9] = 3000 + quiet()[:, :, 9]
    assert discover_dimensions(hidden) == ()


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_plain_noise_has_no_sinks_by_any_criterion(seed):
    for criterion in CRITERIA.values():
        verdict = criterion(signals(quiet(seed)))
        assert not verdict.has_sinks and not verdict.mask.any()


@pytest.mark.parametrize("drift", [1.0, 30.0, 1000.0])
def test_massive_activations_do_not_mind_norm_drift(drift):
    """A fixed threshold calls every token a sink once norms have grown; the ratio does not."""
    hidden = spiked() * drift
    verdict = MassiveActivations()(signals(hidden))
    assert where(verdict) == [3, 17]
    assert set(verdict.dimensions) == {5, 50}
    assert (verdict.dimension[0, 3] in verdict.dimensions) and verdict.score[0, 3] > 1000
    fixed = NormOutliers(threshold=100.0)(signals(quiet() * drift))
    assert bool(fixed.mask.any()) == bool(fixed.mask.all()) == (drift > 1)


def test_sun_et_al_need_an_absolute_size_too():
    assert not MassiveActivations()(signals(spiked() / 100)).has_sinks
    assert MassiveActivations(minimum=1.0)(signals(spiked() / 100)).has_sinks


def test_the_papers_criterion_with_given_dimensions():
    hidden = quiet()
    hidden[:, 7, 20] = 60
    assert where(SinkDimensions((20,), tau=50, normalize=False)(signals(hidden))) == [7]
    assert where(SinkDimensions((20,), tau=50)(signals(hidden))) == [], "60 over an RMS of about 7.6 is 8"
    assert where(SinkDimensions((20,), tau=7)(signals(hidden))) == [7]
    assert where(SinkDimensions((21,), tau=50, normalize=False)(signals(hidden))) == []


@given(st.floats(0.01, 1000))
@settings(max_examples=30, deadline=None)
def test_normalised_criterion_ignores_scale(factor):
    hidden = spiked()
    a, b = SinkDimensions((5,), tau=5)(signals(hidden)), SinkDimensions((5,), tau=5)(signals(hidden * factor))
    assert torch.equal(a.mask, b.mask) and torch.allclose(a.score, b.score, rtol=1e-3)


def test_dimensions_of_another_model_are_refused():
    with pytest.raises(SinkgateError, match="no dimension 650.*64 wide"):
        SinkDimensions((650,))(signals(quiet()))


def test_no_dimensions_is_an_answer():
    verdict = SinkDimensions()(signals(quiet()))
    assert verdict.dimensions == () and not verdict.has_sinks


def test_norm_and_attention_compare_with_the_median():
    hidden = quiet()
    hidden[1, 30] *= 5
    verdict = NormOutliers()(signals(hidden))
    assert where(verdict, 1) == [30] and where(verdict, 0) == []
    attention = torch.full((LAYERS, TOKENS), 0.01)
    attention[2, 11] = 0.06
    verdict = AttentionShare()(signals(quiet(), attention))
    assert where(verdict, 2) == [11] and verdict.score[2, 11] == pytest.approx(6.0)
    assert where(AttentionShare(times=7)(signals(quiet(), attention)), 2) == []


def test_auto_takes_the_first_that_finds():
    attention = torch.full((LAYERS, TOKENS), 0.01)
    attention[2, 11] = 0.06
    auto = FirstThatFinds()
    assert auto(signals(spiked(), attention)).criterion == "massive activations"
    assert auto(signals(quiet(), attention)).criterion == "attention share"


def test_only_judged_tokens_are_judged_but_all_are_seen():
    """The text sink names the dimensions; only visual tokens get a verdict."""
    alone = SinkDimensions()(Signals(spiked(tokens=(0,)), torch.arange(10, 30), torch.full((LAYERS, 20), 0.05)))
    assert set(alone.dimensions) == {5, 50} and not alone.has_sinks
    hidden = spiked(tokens=(0, 17))
    verdict = MassiveActivations()(Signals(hidden, torch.arange(10, 30), torch.full((LAYERS, 20), 0.05)))
    assert verdict.mask.shape == (LAYERS, 20) and where(verdict) == [7]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_dimensions_of_any_kind_become_pythons_own(make):
    assert SinkDimensions(make([5, 50])) == SinkDimensions((5, 50))
    assert MassiveActivations(dims=make([5, 50])).dims == (5, 50)


@pytest.mark.parametrize("dims", [5, "5", [-1], [1.5], [[1, 2]]])
def test_dimensions_that_are_none_are_refused(dims):
    with pytest.raises(SinkgateError, match="expected whole numbers"):
        SinkDimensions(dims)


@pytest.mark.parametrize("choice", [None, 5, {5}, SinkDimensions])
def test_other_things_than_criteria_are_refused(choice):
    with pytest.raises(SinkgateError, match="expected a name of sg.CRITERIA"):
        as_criterion(choice)
