"""Test-time registers: against an encoder with an explicit extra row; the neurons of V-sinks; refusals."""

import pytest
import torch
from method_cases import (
    check_batched_equals_single,
    check_leaves_nothing,
    check_teacher_forcing_equals_steps,
    logits,
    prompts_of,
    some_sinks,
    vlm_of,
)
from tiny import noise_image, tiny_llava

import sinkgate as sg
from sinkgate.methods import Registers, find_register_neurons
from sinkgate.methods.registers import down_projection, mlp_activations
from sinkgate.methods.registry import published
from sinkgate.models.vlm import find_v_sinks

NEURONS = ((0, 3), (1, 5), (1, 40))
PLAIN_ROWS = ("llava", "gemma3", "llava_next")  # the rows of a tiny BLIP-2 hardly depend on its encoder
OTHER_ROWS = ("qwen2_5_vl", "qwen3_vl", "kimi_k25", "qwen3_5")


@pytest.fixture(scope="module")
def tiny():
    model, processor = tiny_llava("clip", dtype=torch.float64)
    return sg.VLM(model, processor, "tiny")


@pytest.fixture(scope="module")
def prompts(tiny):
    return [tiny.prompt(noise_image(seed), "count") for seed in range(3)]


def explicit(vlm, prompt, neurons):
    """Rows of the image by a CLIP tower written out, with one more row of zeros behind the others."""
    tower = vlm.model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    states = tower.pre_layrnorm(tower.embeddings(prompt.inputs["pixel_values"].double()))
    states = torch.cat([states, torch.zeros_like(states[:, :1])], 1)
    for number, layer in enumerate(tower.encoder.layers[:-1]):  # features of the layer before the last
        attended, _ = layer.self_attn(layer.layer_norm1(states))
        states = states + attended
        inside = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(states)))
        for at, unit in neurons:
            if at == number:
                inside[:, -1, unit] = inside[:, :-1, unit].max()
                inside[:, :-1, unit] = 0
        states = states + layer.mlp.fc2(inside)
    return vlm.model.model.multi_modal_projector(states[:, 1:-1])[0]


@pytest.mark.parametrize("neurons", [(), NEURONS], ids=["token alone", "neurons"])
def test_rows_are_those_of_an_encoder_with_an_explicit_row(tiny, prompts, neurons):
    with torch.no_grad():
        expected = explicit(tiny, prompts[0], neurons)
    rows = Registers(neurons).encoded(tiny, prompts[0])
    assert torch.allclose(rows, expected, atol=1e-9)
    plain = tiny.adapter.projected(tiny.encode(prompts[0]))
    assert rows.shape == plain.shape and (rows - plain).abs().max() > 1e-4, "it must act, or the test shows nothing"


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_acts_and_leaves_nothing_behind_batched_and_in_steps(name):
    vlm, method = vlm_of(name), Registers(NEURONS[:2])
    prompts = prompts_of(name, vlm, 2 if vlm.adapter.takes_encoded else 1)
    sinks = [some_sinks(vlm, prompt) for prompt in prompts]
    plain, changed = check_leaves_nothing(vlm, method, prompts, sinks)
    assert (changed - plain).abs().max() > 1e-4, "it must act, or the test shows nothing"
    check_batched_equals_single(vlm, method, prompts, sinks)
    check_teacher_forcing_equals_steps(vlm, method, prompts, sinks)


@pytest.mark.parametrize("name", [*OTHER_ROWS, "mllama"])
def test_other_encoders_are_refused_in_words(name):
    vlm = vlm_of(name)
    prompts = prompts_of(name, vlm)
    batch = vlm.batch(prompts, [some_sinks(vlm, prompts[0])])
    with torch.no_grad():
        plain = logits(vlm, batch)
        with pytest.raises(sg.UnsupportedModelError, match="test-time registers cannot act on"):
            logits(vlm, batch, Registers())
        assert torch.equal(logits(vlm, batch), plain)


def test_neurons_are_the_most_active_ones_in_the_patches_of_v_sinks(tiny, prompts):
    totals, patches = {}, 0
    for prompt in prompts:
        chosen = find_v_sinks(tiny, prompt, "attention").v_sink[prompt.token_of_patch]
        patches += int(chosen.sum())
        for layer, values in mlp_activations(tiny, prompt, [0, 1]).items():
            assert values.shape == (16, 64)
            totals[layer] = totals.get(layer, 0) + values[chosen].sum(0)
    assert patches
    table = torch.stack([totals[0], totals[1]]).abs()
    best = [divmod(int(at), 64) for at in table.flatten().argsort(descending=True)[:4]]
    method = find_register_neurons(tiny, prompts, count=4, v_sink="attention")
    one = [find_register_neurons(tiny, each, count=4, v_sink="attention") for each in (prompts[0], prompts[:1])]
    assert one[0] == one[1]
    assert method.neurons == tuple(best)
    assert published(str(method)) == method and published(str(Registers())) == Registers()
    only = find_register_neurons(tiny, prompts, count=4, layers=[0], v_sink="attention")
    assert {layer for layer, _ in only.neurons} == {0}


def test_activations_move_to_the_extra_token(tiny, prompts):
    held = []
    with Registers(NEURONS).in_encoder(tiny):
        hook = down_projection(tiny, 1).register_forward_pre_hook(lambda _, args: held.append(args[0]))
        tiny.encode(prompts[0])
        hook.remove()
    (inside,) = held
    assert inside.shape == (1, 18, 64)  # CLS, 16 patches, the extra token
    assert (inside[:, :-1, [5, 40]] == 0).all() and (inside[:, :-1, 6] != 0).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vlm, _: Registers(((0,),)), "is not a pair"),
        (lambda vlm, _: Registers(((-1, 2),)), "is not a pair"),
        (lambda vlm, _: Registers((5,)), "is not a pair"),
        (
            lambda vlm, prompts: Registers(((0, 64),)).encoded(vlm, prompts[0]),
            "has no unit 64: its MLP has units 0 to 63",
        ),
        (lambda vlm, prompts: Registers(((7, 0),)).encoded(vlm, prompts[0]), "no encoder layer 7; expected 0 to 2"),
        (lambda vlm, prompts: find_register_neurons(vlm, prompts, count=0), "count is 0"),
        (lambda vlm, prompts: find_register_neurons(vlm, prompts, count=2.5), "number of neurons is a whole number"),
        (lambda vlm, prompts: find_register_neurons(vlm, prompts, layers=[9]), r"encoder layer \[9\]; expected whole"),
        (lambda vlm, prompts: find_register_neurons(vlm, prompts, layers="1"), "encoder layer"),
        (lambda vlm, prompts: find_register_neurons(vlm, [], v_sink="norm"), "no prompt has V-sinks"),
    ],
)
def test_errors_name_the_value(tiny, prompts, call, message):
    with pytest.raises(sg.SinkgateError, match=message):
        call(tiny, prompts)
