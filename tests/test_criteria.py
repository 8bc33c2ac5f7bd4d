"""Criteria on made-up activations whose sinks are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkgate.criteria import (
    CRITERIA,
    AttentionShare,
    FirstThatFinds,
    MassiveActivations,
    NormOutliers,
    Signals,
    SinkDimensions,
    discover_dimensions,
)

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


def test_dimensions_are_discovered_with_the_loudest_first():
    hidden = spiked()
    hidden[:, 3, 50] = -4000
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
        assert not verdict.found and not verdict.mask.any()


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
    assert not MassiveActivations()(signals(spiked() / 100)).found
    assert MassiveActivations(minimum=1.0)(signals(spiked() / 100)).found


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
    with pytest.raises(ValueError, match="no dimension 650.*64 wide"):
        SinkDimensions((650,))(signals(quiet()))


def test_no_dimensions_is_an_answer():
    verdict = SinkDimensions()(signals(quiet()))
    assert verdict.dimensions == () and not verdict.found


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
    hidden = spiked(tokens=(0, 17))
    verdict = MassiveActivations()(Signals(hidden, torch.arange(10, 30), torch.full((LAYERS, 20), 0.05)))
    assert verdict.mask.shape == (LAYERS, 20) and where(verdict) == [7]
