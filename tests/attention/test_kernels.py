"""Kernels that take no 4-D mask and give no probabilities: flash kernels, stood in for, and flex attention itself."""

import functools

import pytest
import torch
from tiny import noise_image, some_sinks, tiny_llava
from torch.nn.attention import flex_attention as torch_flex
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.integrations import flex_attention as flex
from transformers.masking_utils import flash_attention_mask
from zoo import ZOO, together

import sinkgate as sg
from sinkgate.attention.cache import CACHE_NAME, cache_in
from sinkgate.attention.masks import row_mask
from sinkgate.attention.patch import attached
from sinkgate.attention.recorder import Recorder
from sinkgate.methods import FastV
from sinkgate.methods.var import VAR

FLASH = ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2")
KERNELS = (*FLASH, "flex_attention")


class FlashStandIn:
    """The contract of transformers' flash kernels in plain torch: padding (B, K) or none, queries aligned with the last Keys, sliding windows, sequences end to end.

    It fails on the 4-D masks of sdpa, so a silent fallback cannot pass; calls are counted.
    """

    def __init__(self):
        self.calls = 0

    def __call__(
        self, module, query, key, value, attention_mask, scaling=None, is_causal=None, sliding_window=None, **more
    ):
        self.calls += 1
        assert attention_mask is None or attention_mask.dim() == 2
        heads, count = query.shape[1:3]
        repeat = heads // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        keys = key.shape[2] if attention_mask is None else attention_mask.shape[1]
        key, value = key[:, :, :keys], value[:, :, :keys]
        rows, columns = torch.arange(keys - count, keys)[:, None], torch.arange(keys)
        visible = torch.ones(count, keys, dtype=torch.bool)
        if module.is_causal if is_causal is None else is_causal:
            visible = columns <= rows
        if sliding_window is not None:
            visible = visible & (rows - columns < sliding_window)
        if (bounds := more.get("cu_seq_lens_k")) is not None:
            sequence = torch.bucketize(columns, bounds[1:], right=True)
            visible = sequence[:, None] == sequence
        if attention_mask is not None:
            visible = visible & attention_mask[:, None, None].bool()
        scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~visible, -1e9)
        output = scores.softmax(-1) @ value
        return output.transpose(1, 2), None


@pytest.fixture
def kernel(monkeypatch):
    """A function that puts the LLM of a model, or all of it, on a kernel, and returns the stand-in, None for flex attention."""

    def use(model, name, whole=False):
        stand_in = None
        if name == "flex_attention":  # transformers' own forward and masks, not compiled

            def not_compiled(query, key, value, training=False, **options):
                return torch_flex.flex_attention(query, key, value, **options)

            monkeypatch.setattr(flex, "compile_friendly_flex_attention", not_compiled)
            make = functools.partial(torch_flex.create_block_mask)

            def make_mask(*args, **options):
                return make(*args, **{**options, "_compile": False})

            monkeypatch.setattr(masking_utils, "create_block_mask", make_mask)
        else:
            stand_in = FlashStandIn()
            monkeypatch.setitem(AttentionInterface._global_mapping, name, stand_in)
            monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, flash_attention_mask)
        text = model.config.get_text_config()
        for config in (text, model.config, *([model.config.vision_config] if whole else [])):
            if config is text or whole:
                monkeypatch.setattr(config, "_attn_implementation_internal", name)
        return stand_in

    return use


def both(kernel, name, run, family=None, **options):
    """Return the results of ``run`` on sdpa and on the kernel, and the stand-in."""
    results, stand_in = [], None
    for on_kernel in (False, True):
        source = (ZOO[family].model(), None) if family else tiny_llava("clip")
        vlm = sg.VLM(source[0], source[1], "tiny") if family else sg.load(source)
        if on_kernel:
            stand_in = kernel(vlm.model, name, **options)
        results.append(run(vlm))
    return *results, stand_in


def close(mine, peer, atol=2e-5):
    torch.testing.assert_close(mine, peer, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_gates_and_rows_equal_those_on_sdpa(kernel, name):
    def run(vlm):
        prompt = vlm.prompt(noise_image(1), "count")
        sinks = some_sinks(vlm, prompt)
        gates = sg.Gates.ones(vlm).set("v_sink", 0.3).set("rest", 0.6, [0, 2])
        trace = vlm.answer(prompt, gates, sinks, max_new_tokens=2)
        plain = vlm.predict(prompt)
        assert (trace.probabilities - plain.probabilities).abs().max() > 1e-3, "the gates must matter"
        return trace.probabilities, trace.attention, plain.probabilities, plain.attention, trace.ids

    on_sdpa, on_kernel, stand_in = both(kernel, name, run)
    for mine, peer in zip(on_kernel[:4], on_sdpa[:4], strict=True):
        close(mine, peer)
    assert on_kernel[4] == on_sdpa[4]
    assert stand_in is None or stand_in.calls >= 3 * (2 + 1), "every layer of every forward runs on the kernel"


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_prompts_side_by_side_are_padded_in_the_kernels_form(kernel, name):
    def run(vlm):
        prompts = [vlm.prompt(noise_image(1), "count"), vlm.prompt(noise_image(2), "what color is the circle")]
        gates = sg.Gates.ones(vlm).set("v_sink", 0.3).set("rest", 0.5)
        sinks = [some_sinks(vlm, prompt) for prompt in prompts]
        traces = vlm.predict(prompts, gates, sinks)
        return [each.probabilities for each in traces], [each.attention for each in traces]

    on_sdpa, on_kernel, _ = both(kernel, name, run)
    close(on_kernel[0], on_sdpa[0])
    close(on_kernel[1], on_sdpa[1])


@pytest.mark.parametrize("name", ["flash_attention_3", "flex_attention"])
def test_sessions_and_sweeps_run_on_the_kernel(kernel, name):
    def run(vlm):
        prompt = vlm.prompt(noise_image(1), "count")
        session = sg.Session(vlm, prompt, some_sinks(vlm, prompt))
        tables = [sg.Gates.ones(vlm).set("rest", scale, layer) for layer in (1, 2) for scale in (0.2, 0.7)]
        logits = session.predict_all(tables)
        assert session.resumes
        close(session.predict(tables[0]).probabilities, logits[0].softmax(-1))
        return logits

    on_sdpa, on_kernel, _ = both(kernel, name, run)
    close(on_kernel, on_sdpa, atol=1e-4)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("family", ["llava", "cohere2_vision"])
@torch.no_grad()
def test_rows_of_sliding_windows_and_of_steps_over_a_cache(kernel, name, family):
    """All rows, with padding, then two tokens at once over the cache: queries that are not aligned with the first Key."""

    def run(vlm):
        inputs = together([ZOO[family].sample(0, words=5), ZOO[family].sample(1, words=3)])
        length = inputs["input_ids"].shape[1]
        scales = torch.rand(vlm.num_layers, 2, length, generator=torch.Generator().manual_seed(0)) * 2
        recorder = Recorder("all")
        with attached(vlm.attention, decoder=vlm.decoder, key_scales=scales, recorder=recorder):
            first = vlm.model(**inputs, use_cache=True)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
            more = torch.tensor([[7, 8], [9, 10]])
            second = vlm.model(input_ids=more, attention_mask=mask, **{CACHE_NAME: cache_in(first)})
        real = inputs["attention_mask"].bool()
        rows = [calls[0].transpose(1, 2)[real] for calls in recorder.attention.values()]
        return first.logits[real], second.logits, rows, [calls[1] for calls in recorder.attention.values()]

    on_sdpa, on_kernel, _ = both(kernel, name, run, family)
    for mine, peer in zip(on_kernel, on_sdpa, strict=True):
        close(mine, peer, atol=1e-4)


@pytest.mark.parametrize("name", FLASH)
def test_an_encoder_that_a_flash_kernel_reads_end_to_end_is_recorded_window_by_window(kernel, name):
    def run(vlm):
        return vlm.observe_encoder(vlm.read(ZOO["qwen2_5_vl"].sample(0))).encoder_attention

    on_sdpa, on_kernel, stand_in = both(kernel, name, run, "qwen2_5_vl", whole=True)
    close(on_kernel, on_sdpa)
    assert stand_in.calls


def test_a_mask_that_is_shorter_than_a_static_cache_ends_the_keys():
    """Three queries at positions 3 to 5, six Keys in a cache of eight, the first one padding."""
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 8, 4)
    padding = torch.tensor([[0, 1, 1, 1, 1, 1]])
    visible = row_mask("flash_attention_2", padding, query, key, causal=True, window=3)
    assert visible(torch.arange(3))[0, 0].int().tolist() == [
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
    ]
    assert row_mask("flash_attention_2", None, query, query, causal=True) is None
    mask = torch.ones(1, 1, 3, 8, dtype=torch.bool)
    assert row_mask("sdpa", mask, query, key, causal=True, window=3) is mask


@pytest.mark.parametrize("name", FLASH[1:])
@pytest.mark.parametrize("rule", ["rows", "heads", "rewriting", "hidden Keys"])
def test_rules_that_need_probabilities_are_refused_by_the_kernels_name(kernel, name, rule):
    vlm = sg.load(tiny_llava("clip"))
    prompt = vlm.prompt(noise_image(1), "count")
    sinks = some_sinks(vlm, prompt)
    kernel(vlm.model, name)
    gates = sg.FineGates.ones(vlm, rows="text" if rule == "rows" else "all").set("visual", 0.5, heads=[0])
    with pytest.raises(sg.UnsupportedModelError, match=f"'{name}'.*attn_implementation=\"sdpa\""):
        if rule in ("rows", "heads"):
            vlm.predict(prompt, gates, sinks)
        else:
            method = VAR(layers=(1,)) if rule == "rewriting" else FastV(1, 0.5)
            with method.applied(vlm, vlm.batch([prompt], [sinks])), torch.no_grad():
                vlm.model(**prompt.inputs)
    unlimited = sg.FineGates.ones(vlm).set("visual", 0.5)  # as scales of Keys
    assert not torch.equal(vlm.predict(prompt, unlimited, sinks).probabilities, vlm.predict(prompt).probabilities)


def test_gradients_pass_through_the_kernel(kernel):
    def run(vlm):
        prompt = vlm.prompt(noise_image(1), "count")
        scales = torch.full((3, 1, prompt.num_keys), 0.5, requires_grad=True)
        with attached(vlm.attention, decoder=vlm.decoder, key_scales=scales):
            vlm.model(**prompt.inputs).logits.logsumexp(-1).sum().backward()
        return scales.grad

    on_sdpa, on_kernel, _ = both(kernel, "flash_attention_2", run)
    close(on_kernel, on_sdpa, atol=1e-3)
    assert on_kernel.abs().sum() > 0


@torch.no_grad()
def test_compiled_flex_attention_is_gated():
    """In the extended tier: compiling takes half a minute."""
    vlm = sg.load(tiny_llava("clip"))
    prompt = vlm.prompt(noise_image(1), "count")
    sinks, gates = some_sinks(vlm, prompt), sg.Gates.ones(vlm).set("rest", 0.4)
    on_sdpa = vlm.predict(prompt, gates, sinks)
    vlm.model.set_attn_implementation({"text_config": "flex_attention"})
    on_flex = vlm.predict(prompt, gates, sinks)
    close(on_flex.probabilities, on_sdpa.probabilities)
    close(on_flex.attention, on_sdpa.attention)
