"""Methods on several architectures: effect, nothing left behind, batches, decode steps, refusals in words."""

import pytest
import torch
from method_cases import (
    SOME,
    check_batched_equals_single,
    check_leaves_nothing,
    check_teacher_forcing_equals_steps,
    logits,
    no_sinks,
    prompts_of,
    some_sinks,
    vlm_of,
)
from tiny import shaken

import sinkgate as sg
from sinkgate.attention.partial_forward import each_input, resumed
from sinkgate.attention.recorder import Recorder
from sinkgate.methods import (
    PAI,
    VAF,
    VAR,
    AdaptVis,
    FastV,
    Fixed,
    LoRA,
    Remove,
    Reweight,
    ScalingVis,
    SinkToTheFront,
    Suppress,
)
from sinkgate.methods.registry import PUBLISHED

ANY_HEAD = {"min_image_attention": 0.0, "min_non_sink_share": 0.0}
METHODS = {
    # registers act in few encoders; test_registers.py has their tests
    **{name: lambda _, method=method: method() for name, method in PUBLISHED.items() if name != "registers"},
    "var": lambda vlm: VAR(layers=(0, vlm.num_layers - 1), **ANY_HEAD),
    "var by dimensions": lambda vlm: VAR(layers=(1,), dimensions=(3, 5), tau=1.5, **ANY_HEAD),
    "scalingvis": lambda vlm: ScalingVis(0.2),
    "adaptvis": lambda vlm: AdaptVis(0.2, 2.0, threshold=0.02),
    "vaf": lambda vlm: VAF(2.0, 0.2),
    "fastv": lambda vlm: FastV(1, 0.5),
    "pai": lambda vlm: PAI(0.5, guidance=1.5 if vlm.name not in NO_TEXT_ALONE else 1.0),
    "fastv without sinks": lambda vlm: FastV(1, 0.25, sinks="dropped"),
    "front, old positions": lambda vlm: SinkToTheFront(keep_positions=True),
    "reweight": lambda vlm: shaken(Reweight.for_vlm(vlm)),
    "lora": lambda vlm: shaken(LoRA.for_vlm(vlm, 1), size=0.2),  # large updates blow rounding up
}
NO_TEXT_ALONE = ("blip-2",)
MASKS_OF_ITS_OWN = ("gemma3", "gemma4", "paligemma")


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


@pytest.fixture(params=SOME, scope="module")
def case(request):
    name = request.param
    vlm = vlm_of(name)
    prompts = prompts_of(name, vlm, 2 if vlm.adapter.takes_encoded else 1)
    return vlm, prompts, [some_sinks(vlm, prompt, seed) for seed, prompt in enumerate(prompts)]


def test_acts_and_leaves_nothing_behind_batched_and_in_steps(case, make):
    vlm, prompts, sinks = case
    method = make(vlm)
    if isinstance(method, Remove) and vlm.name in MASKS_OF_ITS_OWN:
        with pytest.raises(sg.UnsupportedModelError, match="complete attention masks.*Suppress"):
            logits(vlm, vlm.batch(prompts, sinks), method)
        return
    plain, changed = check_leaves_nothing(vlm, method, prompts, sinks)
    assert (changed - plain).abs().max() > 1e-3, "it must act, or the test shows nothing"
    check_batched_equals_single(vlm, method, prompts, sinks)
    check_teacher_forcing_equals_steps(vlm, method, prompts, sinks)


def test_below_the_layer_where_it_begins_all_is_as_without_it(case, make):
    vlm, prompts, sinks = case
    method, layers = make(vlm), vlm.adapter.all_layers
    if isinstance(method, Remove) and vlm.name in MASKS_OF_ITS_OWN:
        return
    batch, first = vlm.batch(prompts, sinks), method.first_layer(vlm)
    plain, inside = [], []
    with torch.no_grad():
        with each_input(layers, plain.append):
            logits(vlm, batch)
        with each_input(layers, inside.append):
            expected = logits(vlm, batch, method)
        assert all(torch.equal(a, b) for a, b in zip(plain[:first], inside[:first], strict=True))
        with resumed(layers, first, plain[first] if first else None):
            assert torch.equal(logits(vlm, batch, method), expected)


def test_records_rows_that_sum_to_one(case, make):
    vlm, prompts, sinks = case
    method, recorder = make(vlm), Recorder("last")
    if isinstance(method, Remove) and vlm.name in MASKS_OF_ITS_OWN:
        return
    batch = vlm.batch(prompts, sinks)
    with torch.no_grad(), method.applied(vlm, batch, recorder):
        vlm.model(**batch.inputs, use_cache=False)
    for layer in range(vlm.num_layers):
        assert torch.allclose(recorder.attention[layer][0].sum(-1), torch.ones(()), atol=1e-5)


def test_without_sinks_the_model_is_unmodified(case):
    vlm, prompts, _ = case
    none = [no_sinks(vlm, prompt) for prompt in prompts]
    batch = vlm.batch(prompts, none)
    with torch.no_grad():
        plain = logits(vlm, batch)
        for method in (Suppress(), VAR(layers=(0, 1), **ANY_HEAD), VAR(layers=(0,), dimensions=()), SinkToTheFront()):
            assert torch.equal(logits(vlm, batch, method), plain)


def test_learning_methods_begin_at_the_unmodified_model_and_learn(case):
    vlm, prompts, sinks = case
    answers = [[7, 8, 9], [11, 12]][: len(prompts)]
    batch = vlm.batch(prompts, sinks, answers)
    with torch.no_grad():
        plain = logits(vlm, batch)
    for method in (Reweight.for_vlm(vlm), Reweight.for_vlm(vlm, weighing="sigmoid"), LoRA.for_vlm(vlm, 1)):
        with torch.no_grad():
            assert torch.equal(logits(vlm, batch, method), plain)
        shaken(method)
        values = logits(vlm, batch, method)[:, batch.length - 1 : -1]
        labels = batch.labels[:, batch.length :]
        loss = torch.nn.functional.cross_entropy(values.flatten(0, 1), labels.flatten(), ignore_index=-100)
        gradients = torch.autograd.grad(loss, list(method.parameters()))
        assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("kind", ["remove", "var", "front", "reweight", "fastv", "pai"])
def test_cross_attention_models_are_refused_in_words(kind):
    vlm = vlm_of("mllama")
    prompts = prompts_of("mllama", vlm)
    batch = vlm.batch(prompts, [some_sinks(vlm, prompts[0])])
    with (
        pytest.raises(sg.UnsupportedModelError, match="cross-attention.*Gates can"),
        METHODS[kind](vlm).applied(vlm, batch),
    ):
        pass


def test_guidance_is_refused_where_a_prompt_needs_an_image():
    (name,) = NO_TEXT_ALONE
    vlm = vlm_of(name)
    prompts = prompts_of(name, vlm)
    batch = vlm.batch(prompts, [some_sinks(vlm, prompts[0])])
    before = sum(len(part._forward_hooks) for part in vlm.model.modules())
    with pytest.raises(
        sg.UnsupportedModelError, match="blip-2 cannot read a prompt without an image.*set guidance to 1"
    ):
        logits(vlm, batch, PAI())
    assert before == sum(len(part._forward_hooks) for part in vlm.model.modules())


@pytest.mark.parametrize("kind", ["suppress", "lora"])
def test_on_cross_attention_models_keys_are_scaled_and_projections_updated(kind):
    vlm = vlm_of("mllama")
    prompts = prompts_of("mllama", vlm)
    sinks = [some_sinks(vlm, prompts[0])]
    plain, changed = check_leaves_nothing(vlm, METHODS[kind](vlm), prompts, sinks)
    assert (changed - plain).abs().max() > 1e-3


def test_on_the_demo_model(demo, make):
    from random import Random

    from sinkgate.scenes.scene import Scene

    prompts = [demo.prompt(Scene.random(Random(seed)).render(), "How many objects are there?") for seed in (71, 72)]
    sinks = [sg.find_sinks(demo, prompt) for prompt in prompts]
    assert all(values.v_sink.any() for values in sinks)
    method = make(demo)
    plain, changed = check_leaves_nothing(demo, method, prompts, sinks)
    assert not torch.equal(plain, changed)
    check_batched_equals_single(demo, method, prompts, sinks)


def test_suppress_is_the_fixed_gates_it_stands_for(demo):
    gates = sg.Gates.ones(demo).set("v_sink", 0.25, layers=[2])
    assert Suppress(0.25, (2,)).first_layer(demo) == Fixed(gates).first_layer(demo) == 2
    assert Suppress(1.0).first_layer(demo) == len(demo.adapter.all_layers)
    with pytest.raises(sg.GateError, match="5"):
        Suppress(5.0).first_layer(demo)
