"""Logits scaled in some rows and heads only: what is outside stays bit-identical, what is inside follows the rule."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

import sinkgate.attention.patch as attention_module
from sinkgate.attention import written_out
from sinkgate.attention.patch import attached
from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import LayerScales, LogitScales


class Attention(torch.nn.Module):
    """Stand-in for a module, with the attributes that transformers' attention function reads."""

    is_causal, layer_idx = True, 0

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups, self.config = groups, SimpleNamespace(_attn_implementation="sdpa")


@st.composite
def calls(draw):
    """A module, its tensors, a mask that hides left padding or none, and limits: scales of ones and others, rows, heads."""
    groups, key_heads = draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (1, 4)]))
    samples, beams, queries = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    heads, batch = groups * key_heads, samples * beams
    query = torch.randn(batch, heads, queries, 8, generator=generator).to(dtype)
    key, value = (torch.randn(batch, key_heads, queries, 8, generator=generator).to(dtype) for _ in range(2))
    mask = torch.ones(queries, queries, dtype=torch.bool).tril()[None, None].expand(batch, 1, -1, -1)
    one = draw(st.booleans())
    scales = torch.rand(1, samples, 1 if one else heads, draw(st.integers(1, 9)), generator=generator) * 2
    scales = scales * (torch.rand(scales.shape[2], generator=generator) < 0.7)[:, None]
    scales[:, :, (scales == 0).all((0, 1, 3))] = 1
    rows = torch.rand(samples, draw(st.integers(1, queries)), generator=generator) < draw(st.sampled_from([0.3, 1.0]))
    later, monotone = (torch.rand(samples, generator=generator) < 0.5 for _ in range(2))
    tensors = (query, key, value, mask if draw(st.booleans()) else None)
    return Attention(groups), tensors, LogitScales(scales, rows, later, monotone)


def attend(module, tensors, scales=None, recorder=None):
    with torch.no_grad(), attached([module], key_scales=scales, recorder=recorder):
        return AttentionInterface._global_mapping["sdpa"](module, *tensors)[0]


def inside(limits, queries, heads, beams):
    """Return the rows and heads that may change, (B n, Q, H) boolean."""
    later = limits.later[:, None].expand(-1, queries - limits.rows.shape[1])
    rows = torch.cat([limits.rows, later], 1).repeat_interleave(beams, 0)
    changed = (limits.scales[0] != 1).any(-1).any(0).expand(heads)
    return rows[:, :, None] & changed


@settings(max_examples=150, deadline=None)
@given(calls())
def test_rows_and_heads_outside_the_limit_are_bit_identical(call):
    module, tensors, limits = call
    plain, limited = attend(module, tensors), attend(module, tensors, limits)
    beams = len(plain) // len(limits.rows)
    outside = ~inside(limits, plain.shape[1], plain.shape[2], beams)
    assert torch.equal(limited[outside], plain[outside])


@settings(max_examples=150, deadline=None)
@given(calls(), st.integers(1, 60))
def test_rows_inside_follow_the_rule_and_are_recorded(call, chunk):
    """Computed here logit by logit; in chunks of rows of any size, too."""
    module, tensors, limits = call
    query, key, value, _ = (x.double() if x is not None and x.is_floating_point() else x for x in tensors)
    batch, heads, queries, _ = query.shape
    recorder = Recorder("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written_out, "CHUNK", chunk)
        output = attend(module, tensors, limits, recorder)
    logits = query @ key.repeat_interleave(heads // key.shape[1], 1).mT * 8**-0.5
    beams = batch // len(limits.rows)
    for b in range(batch):
        sample = b // beams
        for row in range(queries):
            within = limits.rows[sample, row] if row < limits.rows.shape[1] else limits.later[sample]
            for h in range(heads if within else 0):
                scales = limits.scales[0, sample, h % limits.scales.shape[2]]
                for k in range(min(queries, len(scales))):
                    z, s = float(logits[b, h, row, k]), float(scales[k])
                    logits[b, h, row, k] = z + (s - 1) * abs(z) if limits.monotone[sample] else s * z
    rows = logits.masked_fill(~torch.ones(queries, queries, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    expected = (rows @ value.repeat_interleave(heads // key.shape[1], 1)).transpose(1, 2)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 0.05}[tensors[0].dtype]
    assert torch.allclose(output.double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.allclose(recorder.attention[0][0].double(), rows, atol=tolerance, rtol=tolerance)


@settings(max_examples=60, deadline=None)
@given(calls())
def test_all_heads_together_equal_the_plain_gate(call):
    """Bit for bit where Keys can say the same; within rounding where every row is listed."""
    module, tensors, limits = call
    scales, heads, queries = limits.scales[:, :, :1], tensors[0].shape[1], tensors[0].shape[2]
    plain = attend(module, tensors, scales[:, :, 0])
    everywhere = LogitScales.unlimited(scales[:, :, 0], queries)
    for table in (scales, scales.repeat(1, 1, heads, 1)):
        assert torch.equal(attend(module, tensors, replace(everywhere, scales=table)), plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerScales, "of_keys", lambda *_: None)
        tolerance = 0.05 if plain.dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(attend(module, tensors, everywhere), plain, atol=tolerance, rtol=tolerance)


@settings(max_examples=60, deadline=None)
@given(calls())
def test_heads_that_share_keys_are_scaled_with_their_keys(call):
    """A whole group of heads costs no second computation, and the other groups stay bit-identical."""
    module, tensors, limits = call
    key_heads, groups, queries = tensors[1].shape[1], module.num_key_value_groups, tensors[0].shape[2]
    scales = torch.ones(1, len(limits.rows), key_heads, limits.scales.shape[-1])
    scales[:, :, 0] = limits.scales[:, :, 0]
    everywhere = LogitScales.unlimited(scales[:, :, 0], queries)
    shared = replace(everywhere, scales=scales.repeat_interleave(groups, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "limited_output", None)  # not to be called
        cheap = attend(module, tensors, shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerScales, "of_keys", lambda *_: None)
        exact = attend(module, tensors, shared)
    tolerance = 0.05 if cheap.dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(cheap, exact, atol=tolerance, rtol=tolerance)
    assert torch.equal(cheap[:, :, groups:], attend(module, tensors)[:, :, groups:])


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 4), st.floats(-1e4, 1e4), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_monotone_rule_never_raises_what_it_lowers(s, z, dtype):
    true = torch.tensor([True])
    layer = LogitScales(torch.tensor([[[[s]]]]), true[None], true, true).layer(0)
    logit = torch.tensor([[[[z]]]], dtype=dtype)
    scaled = layer.scaled(logit, true[None], 0)
    assert scaled <= logit if s < 1 else scaled >= logit
    assert s != 1 or torch.equal(scaled, logit)


def test_the_paper_s_rule_raises_negative_logits_that_it_is_to_lower():
    """The limit that the monotone rule is for."""
    true = torch.tensor([True])
    logit = torch.tensor([[[[-2.0]]]])
    for monotone, expected in ((~true, -1.0), (true, -3.0)):
        layer = LogitScales(torch.tensor([[[[0.5]]]]), true[None], true, monotone).layer(0)
        assert layer.scaled(logit, true[None], 0).item() == expected
