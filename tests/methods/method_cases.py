"""Tiny models, prompts with sinks drawn at random and checks that the tests of methods share."""

from dataclasses import replace

import torch
from zoo import ZOO

from sinkgate.models.vlm import VLM
from sinkgate.sinks.classify import SinkMasks

SOME = ("llava", "qwen2_5_vl", "gemma3", "qwen3_vl", "llava_next", "kimi_k25", "qwen3_5", "blip-2")


def vlm_of(name, dtype=torch.float32):
    return VLM(ZOO[name].model(dtype=dtype), None, name)


def prompts_of(name, vlm, count=1):
    """Prompts of different images, with texts of different lengths before and after them."""
    families = [replace(ZOO[name], words=ZOO[name].words + 3 * seed) for seed in range(count)]
    samples = [family.sample(seed, words=5 - seed) for seed, family in enumerate(families)]
    dtype = next(vlm.model.parameters()).dtype
    return [
        vlm.read({key: value.to(dtype) if value.is_floating_point() else value for key, value in sample.items()})
        for sample in samples
    ]


def some_sinks(vlm, prompt, seed=0):
    """V-sinks and L-sinks drawn at random, one of each at least."""
    generator = torch.Generator().manual_seed(seed)
    count = len(prompt.visual)
    v_sink = torch.rand(count, generator=generator) < 0.3
    v_sink[1], v_sink[2] = True, False
    l_sink = (torch.rand(vlm.num_layers, count, generator=generator) < 0.2) & ~v_sink
    l_sink[:, 2] = True
    return SinkMasks(v_sink, l_sink)


def no_sinks(vlm, prompt):
    count = len(prompt.visual)
    return SinkMasks(torch.zeros(count, dtype=torch.bool), torch.zeros(vlm.num_layers, count, dtype=torch.bool))


def logits(vlm, batch, method=None):
    """Of every position, (B, T, vocabulary)."""
    if method is None:
        return vlm.model(**batch.inputs, use_cache=False).logits
    with method.applied(vlm, batch):
        return vlm.model(**batch.inputs, use_cache=False).logits


def greedy_steps(vlm, method, batch, count=3):
    """Greedy answers with the logits of every step: ids (B, count) and (B, count, vocabulary)."""
    options = {"max_new_tokens": count, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = [vlm.adapter.image_token_id]  # a random model may well say it
    with torch.no_grad(), method.applied(vlm, batch):
        output = vlm.model.generate(**batch.inputs, **options)
    return output.sequences[:, -count:], torch.stack(output.logits, 1)


def check_teacher_forcing_equals_steps(vlm, method, prompts, sinks):
    ids, stepwise = greedy_steps(vlm, method, vlm.batch(prompts, sinks))
    forced = vlm.batch(prompts, sinks, ids.tolist())
    with torch.no_grad():
        at_once = logits(vlm, forced, method)[:, forced.length - 1 : -1]
    assert torch.allclose(at_once, stepwise, atol=1e-4)


def check_batched_equals_single(vlm, method, prompts, sinks):
    """With left padding; positions of each prompt's own."""
    batch = vlm.batch(prompts, sinks)
    with torch.no_grad():
        together = logits(vlm, batch, method)
        for row, prompt, masks in zip(together, prompts, sinks, strict=True):
            alone = logits(vlm, vlm.batch([prompt], [masks]), method)[0]
            assert torch.allclose(row[-prompt.length :], alone, atol=1e-4)


def check_leaves_nothing(vlm, method, prompts, sinks):
    """Bit for bit the unmodified model afterwards, also by an exception; the same modules, flags and hooks."""

    def state():
        hooks = [
            (name, len(part._forward_pre_hooks), len(part._forward_hooks)) for name, part in vlm.model.named_modules()
        ]
        return hooks, [(name, p.requires_grad) for name, p in vlm.model.named_parameters()]

    batch, before = vlm.batch(prompts, sinks), state()
    with torch.no_grad():
        plain = logits(vlm, batch)
        try:
            with method.applied(vlm, batch):
                changed = vlm.model(**batch.inputs, use_cache=False).logits
                raise RuntimeError("out of the block")
        except RuntimeError as error:
            assert "out of the block" in str(error)
        assert state() == before
        assert torch.equal(logits(vlm, batch), plain)
    return plain, changed
