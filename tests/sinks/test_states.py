"""Hidden states reduced layer by layer: the same verdicts as on whole states, in one run, with nothing wide held."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import noise_image, tiny_llava
from whole_states import dimensions, mask_and_score
from zoo import ZOO

import sinkgate as sg
from sinkgate.models.vlm import VLM
from sinkgate.sinks import states as states_module
from sinkgate.sinks.criteria import CRITERIA, AttentionShare, MassiveActivations, NormOutliers, Signals, SinkDimensions
from sinkgate.sinks.evidence import discover_dimensions, median
from sinkgate.sinks.states import HiddenStates, Reduction

RULES = (
    SinkDimensions((5, 40), tau=5.0),
    SinkDimensions((3,), tau=20.0),
    SinkDimensions(),
    MassiveActivations(),
    MassiveActivations(ratio=60.0, minimum=1.0),
    MassiveActivations(dims=(5,)),
    NormOutliers(),
)


def prompt_states(seed: int, width: int, tokens: int, spikes: int, dtype: torch.dtype) -> torch.Tensor:
    """Noise whose scale drifts, with spikes of any size, sign and extent in a few channels."""
    generator = np.random.default_rng(seed)
    layers = int(generator.integers(1, 6))
    hidden = (
        generator.standard_normal((layers, tokens, width))
        * np.logspace(0, generator.uniform(0, 3), layers)[:, None, None]
    )
    for _ in range(spikes):
        channel = int(generator.integers(width))
        who = generator.random(tokens) < generator.choice([0.05, 0.3, 0.9])
        who[0] |= bool(generator.random() < 0.5)
        first = int(generator.integers(layers))
        size = 10 ** generator.uniform(1, 4.5) * (1 + 2 * generator.random((layers - first, int(who.sum()))))
        signs = generator.choice([-1, 1], size.shape) if generator.random() < 0.3 else generator.choice([-1, 1])
        hidden[first:, who, channel] = size * signs
    return torch.tensor(hidden, dtype=torch.float32).to(dtype)


@given(
    st.integers(0, 100_000),
    st.sampled_from([64, 97, 400]),
    st.integers(2, 60),
    st.integers(0, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=12, deadline=None)
def test_verdicts_are_those_on_whole_states(seed, width, tokens, spikes, dtype):
    hidden = prompt_states(seed, width, tokens, spikes, dtype)
    judged = torch.arange(tokens)[tokens // 3 :]
    assert discover_dimensions(hidden) == dimensions(hidden)
    for rule in RULES:
        verdict = rule(Signals(hidden, judged, torch.ones(len(hidden), len(judged))))
        mask, score = mask_and_score(rule, hidden, judged)
        assert torch.allclose(verdict.score, score, rtol=1e-5)
        tie = (score - verdict.threshold).abs() < 1e-5 * score  # float rounding decides
        assert torch.equal(verdict.mask | tie, mask | tie), rule


@given(st.integers(0, 100_000), st.integers(1, 400), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_the_median_is_exact(seed, count, dtype):
    magnitude = torch.randn(count, generator=torch.Generator().manual_seed(seed)).abs().to(dtype)
    assert median(magnitude) == magnitude.float().median()


def test_the_sampled_median_is_within_two_percent():
    layer = torch.randn(600, 4096, generator=torch.Generator().manual_seed(0))
    estimate = HiddenStates.of(layer[None]).sampled_medians[0]
    assert float(estimate / layer.abs().median()) == pytest.approx(1, abs=0.02)


def compared(vlm: VLM, prompt: sg.Prompt) -> None:
    """Every criterion on one run's summaries, and on the whole states of another."""
    observation = vlm.observe(prompt)
    hidden = observation.hidden
    assert observation.states.dimensions() == dimensions(hidden)
    everything = torch.arange(hidden.shape[1])
    for rule in (*RULES[2:], SinkDimensions((0, 7), tau=3.0)):
        streamed = rule(Signals(observation.states, everything, torch.ones(hidden.shape[:2])))
        mask, score = mask_and_score(rule, hidden, everything)
        assert torch.equal(streamed.mask, mask) and torch.allclose(streamed.score, score, rtol=1e-4)


@pytest.mark.parametrize("name", ["demo", "demo-large"])
def test_a_trained_model_gets_the_same_verdicts(demo, name):
    vlm = demo if name == "demo" else sg.load(name)
    compared(vlm, vlm.prompt(noise_image(1), "How many objects are there?"))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama", "gemma3", "lfm2_vl", "kimi_k25", "qwen3_5"])
def test_every_kind_of_model_gets_the_same_verdicts(name):
    model = ZOO[name].model()
    vlm = VLM(model, None, name)
    compared(vlm, vlm.read(ZOO[name].sample()))


# --- runs and memory


@pytest.fixture
def vlm() -> VLM:
    return VLM(*tiny_llava("clip"), "tiny")


def runs_of(vlm: VLM, monkeypatch) -> list[object]:
    runs, run = [], vlm.each_layer
    monkeypatch.setattr(vlm, "each_layer", lambda prompt, *rest: runs.append(rest[0]) or run(prompt, *rest))
    return runs


@pytest.mark.parametrize(
    "criterion",
    [SinkDimensions((3, 7)), MassiveActivations(dims=(3,)), NormOutliers(), AttentionShare(), CRITERIA["dimensions"]],
)
def test_one_run_is_enough(vlm, criterion, monkeypatch):
    vlm.discovery = sg.discover(vlm, cache=False)
    runs = runs_of(vlm, monkeypatch)
    sg.find_sinks(vlm, vlm.prompt(noise_image(), "count"), v_sink="norm", l_sink=criterion)
    assert len(runs) == 1


def test_dimensions_of_the_prompt_itself_take_a_second_run_once(vlm, monkeypatch):
    vlm.decoder.layers[0].mlp.register_forward_hook(_spike)
    runs = runs_of(vlm, monkeypatch)
    for expected in (2, 3):
        sinks = sg.find_sinks(
            vlm, vlm.prompt(noise_image(), "count"), v_sink="norm", l_sink=MassiveActivations(ratio=50)
        )
        assert 5 in sinks.l_verdict.dimensions and len(runs) == expected


def _spike(_module, _inputs, output):
    output = output.clone()
    output[:, 0, 5] = 1e5
    return output


def test_an_observation_holds_no_state(vlm, monkeypatch):
    """Views of a state keep all of it alive, so storages are counted."""
    monkeypatch.setattr(states_module, "SAMPLED", 8)
    observation = vlm.observe(vlm.prompt(noise_image(), "count"), Reduction((1, 2), ratio=100))
    assert "hidden" not in vars(observation)
    tokens = observation.value_norms.shape[1]
    for layer in observation.states._summaries:
        held = [layer.norms, layer.values, layer.sample]
        assert sum(each.untyped_storage().nbytes() for each in held) < 4 * (4 * tokens + 64)
        assert layer.measures.shape == (10, layer.width)


def test_states_are_fetched_where_they_are_read(vlm):
    prompt = vlm.prompt(noise_image(), "count")
    observation = vlm.observe(prompt)
    hooks = []
    hook = vlm.adapter.layers[1].register_forward_pre_hook(
        lambda _module, args, kwargs: hooks.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    hidden = observation.hidden
    hook.remove()
    assert torch.equal(hidden[1], hooks[0][0].float()) and observation.hidden is hidden
    assert torch.allclose(observation.states.norms, hidden.norm(dim=-1))


def test_a_wrong_dimension_leaves_the_model_usable(vlm):
    prompt = vlm.prompt(noise_image(), "count")
    observation = vlm.observe(prompt)
    with pytest.raises(sg.SinkgateError, match="there is no dimension 9999: hidden states here are"):
        observation.states.values((9999,))
    assert vlm.observe(prompt).states.values((0,)).shape[-1] == 1
