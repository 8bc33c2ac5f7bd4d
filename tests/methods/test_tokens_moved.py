"""V-sinks removed or moved, against the same change by hand to the decoder's inputs."""

import copy
from dataclasses import replace

import pytest
import torch
from method_cases import logits, prompts_of, some_sinks, vlm_of
from zoo import ZOO

import sinkgate as sg
from sinkgate.methods import Remove, SinkToTheFront
from sinkgate.methods.sink_to_front import images, sources
from sinkgate.sinks.classify import SinkMasks

# the other three take no encoded image; idefics2's fresh resampler makes all its tokens alike
ENCODED = [name for name in ZOO if name not in ("blip-2", "instructblip", "mllama", "idefics2")]


def decoder_inputs(vlm, batch):
    calls = []
    hook = vlm.decoder.register_forward_pre_hook(lambda _m, _a, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    with torch.no_grad():
        vlm.model(**batch.inputs, use_cache=False)
    hook.remove()
    return calls[0]


def run_decoder(vlm, embeds, position, head=True):
    with torch.no_grad():
        states = vlm.decoder(
            inputs_embeds=embeds, position_ids=position, attention_mask=torch.ones(embeds.shape[:2]), use_cache=False
        ).last_hidden_state
        return vlm.model.get_output_embeddings()(states) if head else states


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3", "janus"])
def test_removed_v_sinks_are_as_if_dropped_and_the_others_keep_their_places(name):
    vlm = vlm_of(name, torch.float64)
    (prompt,) = prompts_of(name, vlm)
    sinks = some_sinks(vlm, prompt)
    batch = vlm.batch([prompt], [sinks])
    rest = torch.ones(prompt.length, dtype=torch.bool)
    rest[prompt.visual[sinks.v_sink]] = False
    inputs = decoder_inputs(vlm, batch)
    position = inputs.get("position_ids")
    position = torch.arange(prompt.length)[None] if position is None else position
    expected = run_decoder(vlm, inputs["inputs_embeds"][:, rest], position[..., rest])
    with torch.no_grad():
        assert torch.allclose(logits(vlm, batch, Remove())[:, rest], expected, atol=1e-6)


def test_removing_shows_in_the_recorded_rows(demo):
    from random import Random

    from sinkgate.scenes.scene import Scene

    prompt = demo.prompt(Scene.random(Random(71)).render(), "How many objects are there?")
    sinks, recorder = sg.find_sinks(demo, prompt), sg.Recorder("last")
    with torch.no_grad(), Remove().applied(demo, demo.batch([prompt], [sinks]), recorder):
        demo.model.generate(**prompt.inputs, max_new_tokens=3)
    gone = prompt.visual[sinks.v_sink]
    for calls in recorder.attention.values():
        assert len(calls) > 1 and all((rows[..., gone] == 0).all() and rows.sum() > 0 for rows in calls)


def in_front(encoded, vlm, order):
    """The encoded image with its rows in another order, wherever a family keeps them."""
    moved, name = copy.copy(encoded), vlm.adapter.image_rows

    def reordered(rows):
        parts = list(rows) if isinstance(rows, (list, tuple)) else None
        flat = torch.cat([part.flatten(0, -2) for part in parts]) if parts else rows.flatten(0, -2)
        flat = flat[order]
        if parts is None:
            return flat.view_as(rows)
        sizes = [part.flatten(0, -2).shape[0] for part in parts]
        return type(rows)(new.view_as(old) for new, old in zip(flat.split(sizes), parts, strict=True))

    moved[name] = reordered(encoded[name])
    if "deepstack_features" in encoded:
        moved["deepstack_features"] = [reordered(level) for level in encoded["deepstack_features"]]
    return moved


@pytest.mark.parametrize("name", ENCODED)
def test_in_front_is_the_encoded_image_in_another_order(name):
    """On every architecture: the same as handing in the image's rows reordered; separators stay."""
    vlm = vlm_of(name, torch.float64)
    (prompt,) = prompts_of(name, vlm)
    sinks = some_sinks(vlm, prompt)
    batch = vlm.batch([prompt], [sinks])
    rows = vlm.adapter.rows_in_prompt(prompt.inputs)
    order = torch.arange(len(rows))
    visual = torch.isin(rows, prompt.visual).nonzero()[:, 0]
    assert len(visual) == len(prompt.visual)
    order[visual] = torch.cat([visual[sinks.v_sink], visual[~sinks.v_sink]])
    by_hand = {**batch.inputs, "mm_encoder_outputs": {"image": in_front(prompt.encoded, vlm, order)}}
    with torch.no_grad():
        expected = vlm.model(**by_hand, use_cache=False).logits
        values = logits(vlm, batch, SinkToTheFront())
        moved = (values - logits(vlm, batch)).abs().max()
    assert (values - expected).abs().max() < 1e-2 * moved


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "smolvlm"])
def test_keep_positions_brings_the_old_rotary_positions(name):
    vlm = vlm_of(name, torch.float64)
    (prompt,) = prompts_of(name, vlm)
    sinks = some_sinks(vlm, prompt)
    batch, visual = vlm.batch([prompt], [sinks]), prompt.visual
    order = torch.arange(prompt.length)
    order[visual] = torch.cat([visual[sinks.v_sink], visual[~sinks.v_sink]])
    inputs = decoder_inputs(vlm, batch)
    position = inputs.get("position_ids")
    position = torch.arange(prompt.length)[None] if position is None else position
    expected = run_decoder(vlm, inputs["inputs_embeds"][:, order], position[..., order])
    with torch.no_grad():
        values = logits(vlm, batch, SinkToTheFront(keep_positions=True))
        assert torch.allclose(values, expected, atol=1e-6)
        bare = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
        with SinkToTheFront(keep_positions=True).applied(vlm, batch):
            assert torch.allclose(vlm.model(**bare, use_cache=False).logits, expected, atol=1e-6)
        assert (values - logits(vlm, batch, SinkToTheFront())).abs().max() > 1e-4


def test_each_image_has_a_front_of_its_own():
    """Two images with a word between them; newlines do not end an image."""
    vlm = vlm_of("llava_next")
    (prompt,) = prompts_of("llava_next", vlm)
    assert len(prompt.separators) and images(prompt).unique().tolist() == [0]
    visual = torch.tensor([1, 2, 3, 5, 6, 8, 9])
    prompt = replace(prompt, visual=visual, separators=torch.tensor([4]))
    assert images(prompt).tolist() == [0, 0, 0, 0, 0, 1, 1]
    v_sink = torch.tensor([False, False, False, True, False, False, True])
    batch = vlm.batch([prompt], [SinkMasks(v_sink, torch.zeros(3, 7, dtype=torch.bool))])
    assert sources(batch)[0, :11].tolist() == [0, 5, 1, 2, 4, 3, 6, 7, 9, 8, 10]
