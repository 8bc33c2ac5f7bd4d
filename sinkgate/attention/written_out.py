"""Attention output computed anew beside the kernel, in O(rows x Keys): limited scales, rewritten probabilities, hidden Keys.

Rows and heads that are not affected stay bit-identical to the kernel's.

Shapes: B samples, n beams of a sample, H heads, KV Key heads, Q queries, K keys, R rows, P prompt positions, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sinkgate.attention.masks import is_causal
from sinkgate.attention.recorder import CHUNK, attention_rows, chunks
from sinkgate.attention.scales import LayerScales


@dataclass(slots=True)
class AttentionCall:
    """One call of an attention function.

    Shapes: query (B n, H, Q, d); key and value (B n, KV, K, d); mask (B n or 1, 1 or H, Q, >= K), boolean or additive, or None.
    ``options``: ``scaling``, ``softcap`` and ``is_causal``. ``end``: positions after its queries; ``first_key``: that of the first Key.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: dict[str, Any]
    end: int
    first_key: int

    @property
    def causal(self) -> bool:
        """True where queries attend to no later Key."""
        return is_causal(self.module, self.options)


def limited_output(scales: LayerScales, limited: Tensor, call: AttentionCall, output: Tensor) -> Tensor:
    """Return the kernel's output (B n, Q, H, d) with the limited rows and heads computed from scaled logits.

    Args:
        scales: of the layer.
        limited: (B, Q) boolean, the limited rows among the call's queries.
        call: the call.
        output: the kernel's, (B n, Q, H, d).
    """
    query, key, value, mask = call.query, call.key, call.value, call.mask
    rows, heads = limited.any(0).nonzero()[:, 0], scales.heads
    if not len(rows):
        return output
    samples, width = query.shape[0], torch.promote_types(query.dtype, torch.float32)
    if heads is not None:
        shared = heads * key.shape[1] // query.shape[1]  # the Key head of each
        query, key, value = query[:, heads], key[:, shared], value[:, shared]
        mask = mask[:, heads] if mask is not None and mask.shape[1] > 1 else mask
    output = output.clone() if output.requires_grad else output
    span = slice(int(rows[0]), int(rows[-1]) + 1)  # slices cost no copies
    selection = span if span.stop - span.start == len(rows) else rows
    kernel = heads is not None and _kernel_serves(scales, call, selection)
    if kernel:
        window = scales.window(call.first_key, key[..., 0], heads)[..., None]
        key, most = (key * window).to(key.dtype), len(rows)
    else:
        query, key, value = query.to(width), key.to(width), value.to(width)
        most = max(1, CHUNK // (samples * query.shape[1] * key.shape[2]))
    for index, _ in chunks(selection, most):
        if kernel:
            part = None if mask is None else mask[:, :, index, : key.shape[2]]
            causal = mask is None and query.shape[2] > 1
            mixed = nn.functional.scaled_dot_product_attention(
                query[:, :, index], key, value, part, is_causal=causal, scale=call.options["scaling"]
            ).transpose(1, 2)
        else:
            rule = partial(scales.scaled, rows=limited[:, index], first_key=call.first_key, heads=heads)
            weights = attention_rows(call.module, query, key, mask, rows=index, rule=rule, **call.options)
            mixed = _mixed(weights, value)
        mixed = mixed.to(output.dtype)  # B n, R, H, d
        at = (
            slice(None),
            index if heads is None else _indices(index)[:, None],
            slice(None) if heads is None else heads,
        )
        if not limited[:, index].all():
            inside = limited[:, index].to(output.device).repeat_interleave(samples // len(limited), 0)
            mixed = torch.where(inside[:, :, None, None], mixed, output[at])
        output[at] = mixed
    return output


def _kernel_serves(scales: LayerScales, call: AttentionCall, rows: slice | Tensor) -> bool:
    """Return whether torch's kernel computes these rows from scaled Keys, faster than logits that are written out."""
    if scales.bends or call.options["softcap"]:
        return False
    count = call.query.shape[2]
    if call.mask is not None or count == 1:
        return True
    return call.causal and isinstance(rows, slice) and rows == slice(0, count) and count == call.key.shape[2]


def without_keys(hidden: Tensor, call: AttentionCall, additive: bool) -> Tensor:
    """Return the call's mask (B n, 1 or H, Q, K) without hidden Keys; each query keeps its own.

    Args:
        hidden: (B, P) boolean.
        call: the call.
        additive: return a mask that is added to logits, as eager attention takes it.
    """
    query, keys, first_key, device = call.query, call.key.shape[2], call.first_key, call.query.device
    window = hidden[:, first_key : first_key + keys].to(device)
    window = nn.functional.pad(window, (0, keys - window.shape[1])).repeat_interleave(len(query) // len(hidden), 0)
    rows = torch.arange(call.end - query.shape[2], call.end, device=device)[:, None]
    columns = torch.arange(first_key, first_key + keys, device=device)
    gone = window[:, None, None] & (rows != columns)
    mask = None if call.mask is None else call.mask[..., :keys]
    if mask is None:
        mask = columns <= rows if call.causal else torch.ones_like(gone)
    elif mask.dtype != torch.bool:
        return mask.masked_fill(gone, torch.finfo(mask.dtype).min)
    visible = mask & ~gone
    if additive:
        return torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
    return visible


def mixed_output(old: Tensor, new: Tensor, value: Tensor, output: Tensor) -> Tensor:
    """Return Values mixed by the rewritten rows, and the kernel's output for unchanged rows: (B, H, R, K) -> (B, R, H, d)."""
    return torch.where((new != old).any(-1).transpose(1, 2)[..., None], _mixed(new.to(value.dtype), value), output)


def _mixed(rows: Tensor, value: Tensor) -> Tensor:
    """Return Values mixed by attention rows: (B, H, R, K), (B, KV, K, d) -> (B, R, H, d)."""
    grouped = rows.reshape(len(rows), value.shape[1], -1, rows.shape[-1])  # heads that share Values
    return (grouped @ value).view(*rows.shape[:3], -1).transpose(1, 2)


def _indices(rows: slice | Tensor) -> Tensor:
    return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
