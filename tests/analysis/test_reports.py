"""The report in plain words: counts, layers and disagreements agree with the criteria; the model runs once."""

from types import SimpleNamespace

import pytest
import torch
from tiny import bare_prompt

import sinkgate as sg
from sinkgate.analysis.report import report
from sinkgate.models.dimensions import discover
from sinkgate.sinks.classify import Observation
from sinkgate.sinks.discovery import Discovery
from sinkgate.sinks.states import HiddenStates

LAYERS, VISUAL, TEXT, WIDTH = 4, 40, 8, 64


class Seen:
    """Stands for a model that shows what a test made up, once."""

    def __init__(self, observed):
        self.observed, self.name, self.runs = observed, "made up", 0
        self.model = SimpleNamespace(config=SimpleNamespace(_name_or_path="", _commit_hash=None), dtype=torch.float32)

    def observe(self, prompt, reduction=None):
        self.runs += 1
        return self.observed


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def observation(**changes) -> Observation:
    usual = {
        "features": noise(VISUAL, WIDTH),
        "encoder_attention": torch.ones(VISUAL),
        "token_of_patch": torch.arange(VISUAL),
        "states": HiddenStates.of(noise(LAYERS, TEXT + VISUAL, WIDTH)),
        "visual": torch.arange(TEXT, TEXT + VISUAL),
        "key_attention": torch.full((LAYERS, TEXT + VISUAL), 0.01),
        "value_norms": torch.ones(LAYERS, TEXT + VISUAL),
    }
    return Observation(**{**usual, **changes})


def discovery(observed: Observation) -> Discovery:
    return discover(Seen(observed), [bare_prompt()])


def report_of(observed: Observation) -> str:
    vlm = Seen(observed)
    text = str(report(vlm, bare_prompt("Why?", tokens=VISUAL), discovery(observed)))
    assert vlm.runs == 1 and text.startswith(
        'Attention sinks in made up for the question "Why?" (40 visual tokens, 4 LLM layers)'
    )
    return text


def test_sinks_of_every_kind():
    """The spikes sit at the text sink (position 0, no visual token) and at two visual tokens; three more are only long."""
    features, hidden = noise(VISUAL, WIDTH), noise(LAYERS, TEXT + VISUAL, WIDTH)
    features[7, 30] = 5000
    features[[1, 2, 3]] *= 4
    hidden[2:, [0, TEXT + 5, TEXT + 6], 11] = 8000
    text = report_of(observation(features=features, states=HiddenStates.of(hidden)))
    assert "1 of 40 visual tokens is a V-sink (sink dimensions, dimension 30 discovered on 1 prompt)" in text
    assert "L-sinks in layers 2-3, at most 2 in one (sink dimensions, dimension 11 discovered on 1 prompt)" in text
    assert "Text sink: position 0, in layers 2-3, dimension 11, up to 11," in text
    assert "encoder: 1 of 40 patches; LLM: 2 of 40 visual tokens, in layers 2-3" in text
    assert "encoder: norm outliers calls 3 patches sinks where sink dimensions does not" in text
    assert "LLM: sink dimensions calls 2 visual tokens sinks where attention share does not" in text
    assert "dimension 11, confidence 0.50 (fair)" in text and "dimension 30" in text
    assert "Attention share alone" not in text


def test_no_sinks_at_all():
    text = report_of(observation())
    assert "No V-sinks" in text and "No L-sinks" in text and "Disagreements:\n  none" in text
    assert text.count("none of 40") == 6 and "encoder: has no sink dimensions; LLM: has no sink dimensions" in text


def test_attention_share_alone_is_marked_as_weak_evidence():
    attention = torch.full((LAYERS, TEXT + VISUAL), 0.01)
    attention[1, TEXT + 9] = 0.2
    text = report_of(observation(key_attention=attention))
    assert "Attention share alone does not separate a sink from a token that is attended to for its content" in text
    assert "attention share calls 1 visual token a sink where massive activations and norm outliers do not" in text


def test_an_encoder_without_available_states():
    text = report_of(observation(features=None, encoder_attention=None, token_of_patch=None))
    assert "V-sinks cannot be named" in text and text.count("encoder: states not available") == 4


@pytest.mark.parametrize("tokens", [1, 3])
def test_dimensions_of_low_confidence_are_reported_but_not_used(tokens):
    hidden = noise(LAYERS, TEXT + VISUAL, WIDTH)
    hidden[2:, TEXT : TEXT + tokens, 11] = 90
    text = report_of(observation(states=HiddenStates.of(hidden)))
    assert "dimension 11, confidence 0.3" in text and "(low)" in text and "LLM: has no sink dimensions" in text


def test_on_the_demo_model(demo: sg.VLM, tmp_path, monkeypatch):
    monkeypatch.setenv("SINKGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "discovery", None)
    monkeypatch.setattr(demo, "criteria", None)
    from PIL import Image

    text = str(report(demo, demo.prompt(Image.new("RGB", (64, 64), "red"), "How many objects are there?")))
    assert "Sink dimensions of demo, measured on 12 prompts" in text and len(list(tmp_path.iterdir())) == 1
    prompts = [demo.prompt(Image.new("RGB", (64, 64), color), "What is there?") for color in ("red", "blue")]
    several = report(demo, prompts)
    assert [str(each) for each in several] == [str(report(demo, each)) for each in prompts]
    with pytest.raises(sg.SinkgateError, match="got str, expected a Prompt"):
        report(demo, "What is there?")  # type: ignore[arg-type]
