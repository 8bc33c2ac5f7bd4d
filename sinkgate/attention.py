"""One wrapper inside transformers' attention function: it scales Keys and records attention rows.

It sits where every architecture passes (after QK-norm and rotary embedding, before the KV heads are
repeated), so the model stays on its own kernel and the KV cache keeps the unscaled Keys. This module
knows modules, positions and numbers; it knows nothing of sinks, images or sliders.

Two things are put off because a decode step has no time for them. Where the caller owns the KV cache (``own_cache``), the
Keys are scaled once, where they are stored, and later steps find them scaled. And the rows of decode steps are computed
from the kept queries when the block ends, all steps of a layer at once.

Shapes: L layers, B samples, H heads, Q queries, K keys, R recorded rows, P prompt positions, d head width.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from sinkgate.errors import UnsupportedModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
IMPLEMENTATIONS = ("sdpa", "eager")
_SMALL = 1 << 16  # elements; below, the allocator hands out memory at no cost

_taps: dict[nn.Module, _Tap] = {}
_originals: dict[str, AttentionFunction | None] = {}  # what a wrapped name stood for; None: no entry (eager)
_registry_lock = threading.RLock()
_model_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def model_lock(model: nn.Module) -> threading.RLock:
    """The lock that makes calls on one model take turns, the same for everyone who holds the model."""
    with _registry_lock:
        return _model_locks.setdefault(model, threading.RLock())


@dataclass
class Recorder:
    """Collects attention rows while a model runs, and how long the Values are if asked.

    ``rows`` are absolute query positions, ``"all"``, or ``"last"``: the last query of every forward
    call, which in generation is the row that produces the next token; ``most`` bounds how many calls are kept. ``mean`` keeps
    only the mean over heads and rows of each call. Per layer, one entry a forward call that held a wanted row:
    attention (B, H, R, K), or (B, K) with ``mean``; value_norms (B, K), the mean over heads of the L2 norm.
    """

    rows: Sequence[int] | Literal["last", "all"] = "last"
    mean: bool = False
    values: bool = False
    most: int | None = None
    attention: dict[int, list[Tensor]] = field(default_factory=dict)
    value_norms: dict[int, list[Tensor]] = field(default_factory=dict)

    def wanted(self, first: int, count: int) -> slice | Tensor | None:
        """Which of the ``count`` queries that start at position ``first`` to record; None for none."""
        if self.rows == "last":
            return slice(count - 1, count)
        if self.rows == "all":
            return slice(0, count)
        local = [row - first for row in self.rows if first <= int(row) < first + count]
        return torch.tensor(local) if local else None

    def add(self, layer: int, rows: Tensor, value: Tensor | None = None) -> None:
        """Take in the rows (B, H, R, K) and the Values (B, KV, K, d) of one call."""
        self.attention.setdefault(layer, []).append(rows.mean((1, 2)) if self.mean else rows)
        if self.values and value is not None:
            norms = torch.linalg.vector_norm(value.float(), dim=-1).mean(1)
            self.value_norms.setdefault(layer, []).append(norms)


@dataclass
class _Call:
    """One attached call: what all its layers share."""

    recorder: Recorder | None
    cross: bool = False  # Keys are no positions of the queries' sequence
    own_cache: bool = False  # the cache may hold scaled Keys
    stored: int = 0  # positions that it holds so already
    seen: int | None = None  # positions known after the running forward, cached ones included
    cache: Any = None  # the KV cache of the running forward
    scratch: Tensor | None = None  # scaled Keys of the layer at work; fresh memory a layer would cost more than scaling

    def memory_for(self, key: Tensor) -> Tensor | None:
        """Memory for the scaled Keys; None where they need their own: for gradients, or being too small to matter."""
        if key.numel() < _SMALL or (torch.is_grad_enabled() and key.requires_grad):
            return None
        old = self.scratch
        if (
            old is None
            or old.numel() < key.numel()
            or (old.dtype, old.device, old.is_inference()) != (key.dtype, key.device, key.is_inference())
        ):
            self.scratch = torch.empty(key.numel() * 5 // 4, dtype=key.dtype, device=key.device)
        return self.scratch


@dataclass
class _Tap:
    call: _Call
    layer: int
    scales: Tensor | None  # (B, P); None where all are one
    stored: int | None = None  # positions whose Keys lie scaled in the cache; None: none may
    later: list[_Step] = field(default_factory=list)  # decode steps whose rows are computed at the end
    calls: int = 0  # recorded so far

    def scale(self, module: nn.Module, key: Tensor) -> Tensor:
        """The Keys of this call's running forward, scaled."""
        assert self.scales is not None
        keys = key.shape[2]
        seen = keys if self.call.cross else self.call.seen or keys
        first = max(0, seen - keys)
        self.scales = self.scales.to(key.device)  # layers may lie on several devices
        if self.stored is None and self.call.own_cache and self._lies_in_cache(module, key):
            self.stored = self.call.stored
        if self.stored is not None:
            start, end = max(first, self.stored), min(seen, self.scales.shape[1])
            if start < end:
                part = key[:, :, start - first : end - first]
                torch.mul(part, _window(self.scales, start, part), out=part)
            self.stored = seen
            return key
        if self.scales.shape[1] < first + keys:  # room for many tokens at once: decoding asks again and again
            self.scales = nn.functional.pad(self.scales, (0, first + keys), value=1.0)
        out = None if self.scales.requires_grad else self.call.memory_for(key)
        return scale_keys(key, self.scales, first, out)

    def _lies_in_cache(self, module: nn.Module, key: Tensor) -> bool:
        """Whether these very Keys are what the next step will find; some caches keep others and make Keys of them."""
        layers: Any = getattr(self.call.cache, "layers", ())
        index = getattr(module, "layer_idx", None)
        kept = layers[index].keys if index is not None and index < len(layers) else None
        same = isinstance(kept, Tensor) and kept.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
        return same and not torch.is_grad_enabled()

    def put_off(self, step: _Step, mask: Tensor | None) -> bool:
        """Whether the row of a decode step can wait for the end: it sees all Keys so far, and all of them stay."""
        call, recorder = self.call, self.call.recorder
        sees_all = call.own_cache and not call.cross and mask is None and step.key.shape[2] == call.seen
        if not sees_all or recorder is None or recorder.rows != "last" or recorder.values:
            self.catch_up()  # rows keep their order
            return False
        self.later.append(step)
        return True

    def catch_up(self) -> None:
        """Compute the rows that were put off, all steps at once."""
        if not self.later or self.call.recorder is None:
            return
        last = self.later[-1]
        query = torch.cat([step.query for step in self.later], 2)
        ends = [step.key.shape[2] for step in self.later]
        seen = torch.arange(ends[-1]) < torch.tensor(ends)[:, None]
        mask = seen[None, None].to(query.device)
        with torch.no_grad():
            rows = attention_rows(last.module, query, last.key, mask, scaling=last.scaling, softcap=last.softcap)
        for index, end in enumerate(ends):
            self.call.recorder.add(self.layer, rows[:, :, index : index + 1, :end])
        self.later.clear()


@dataclass
class _Step:
    """One decode step of a layer, kept for its row: query (B, H, 1, d), key (B, KV, K, d)."""

    module: nn.Module
    query: Tensor
    key: Tensor
    scaling: float | None
    softcap: float | None


@contextmanager
def attached(
    modules: Sequence[nn.Module],
    *,
    decoder: nn.Module | None = None,
    key_scales: Tensor | None = None,
    recorder: Recorder | None = None,
    cross: bool = False,
    own_cache: bool = False,
    stored: int = 0,
) -> Iterator[None]:
    """Scale the Keys of, and record, the given attention modules while the block runs.

    Attn(Q, diag(s) K, V) = softmax(Q (diag(s) K)^T / sqrt(d)) V (paper, section 2): the same s for all
    heads, Values untouched. Positions after the scaled ones (generated tokens) keep 1; a batch expanded
    into beams repeats each sample's scales. Nothing is attached where all scales are one and nothing is
    recorded; whatever was attached is gone when the block ends, also by an exception.

    Shapes: modules L; key_scales (L, B, P), finite.

    Args:
        modules: attention modules in layer order; entry i is layer i.
        decoder: the model whose forward runs these layers; needed for scales or rows by position, since
            it knows how many positions the KV cache holds. None for a vision encoder.
        key_scales: scales of the Keys by layer, sample and position.
        recorder: takes the attention rows, after scaling.
        cross: the modules attend to Keys of their own, numbered from 0, not to positions of the sequence.
        own_cache: the KV cache is begun and ended with these scales, in one row a sample: it may hold scaled Keys, and rows of decode
            steps may be put off to the end of the block. Not for layers that share their Keys, nor for beams.
        stored: positions whose Keys an earlier such block has left scaled in the cache.

    Raises:
        RuntimeError: a block is already active on one of the modules.
        UnsupportedModelError: the model runs an attention implementation other than sdpa or eager.
    """
    call = _Call(recorder, cross, own_cache, stored)
    # one look at all layers: each look waits for the device
    active = [] if key_scales is None else (key_scales != 1).flatten(1).any(1).nonzero()[:, 0].tolist()
    if recorder is None and not active:
        yield
        return
    names = {_implementation(module) for module in modules}
    taps = {
        module: _Tap(call, layer, key_scales[layer] if key_scales is not None and layer in active else None)
        for layer, module in enumerate(modules)
        if recorder is not None or layer in active
    }
    with _registry_lock:
        if any(module in _taps for module in modules):
            raise RuntimeError(
                "a gated or recorded call is already running on this model; leave its `with` block before starting another"
            )
        _taps.update(taps)
    hook = None
    try:
        with _registry_lock:
            for name in names:
                _install(name)
        if decoder is not None:
            hook = decoder.register_forward_pre_hook(_count_positions(call), with_kwargs=True)
        yield
        for tap in taps.values():
            tap.catch_up()
    finally:
        if hook is not None:
            hook.remove()
        with _registry_lock:
            for module in modules:
                _taps.pop(module, None)
            if not _taps:
                _uninstall()


def attention_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    rows: slice | Tensor = slice(None),
) -> Tensor:
    """Attention probabilities of some query rows, in O(R K), as eager attention would give them.

    Shapes: query (B, H, Q, d), key (B, KV, K, d), mask (B or 1, H or 1, Q, >= K) boolean or additive, or None
    -> (B, H, R, K), float32 (float64 for a float64 model), rows sum to one.
    """
    samples, heads, count, width = query.shape
    keys = key.shape[2]
    chosen = query[:, :, rows]  # B, H, R, d
    # heads that share Keys become rows of one product: no repeated Keys, no copies
    grouped = chosen.reshape(samples, key.shape[1], -1, width)
    scores = (grouped @ key.transpose(-1, -2)).view(samples, heads, -1, keys)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    lowest = torch.finfo(scores.dtype).min  # not -inf: a padded query sees no key, and must not turn NaN
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    last_only = isinstance(rows, slice) and rows == slice(count - 1, count)  # sees every key, needs no mask
    if mask is None and causal and count > 1 and not last_only:
        position = torch.arange(count, device=query.device)[rows]
        scores = scores.masked_fill(torch.arange(keys, device=query.device) > position[:, None], lowest)
    elif mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, rows, :keys], lowest)
    elif mask is not None:
        scores = scores + mask[:, :, rows, :keys]
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def scale_keys(key: Tensor, scales: Tensor, first: int = 0, out: Tensor | None = None) -> Tensor:
    """diag(s) K for the keys from absolute position ``first`` on; multiplied in at least float32.

    Shapes: key (B n, KV, K, d), scales (B, P) -> (B n, KV, K, d); n beams a sample; positions past P keep 1.
    ``out``, of the key's dtype and any shape of at least its size, is written to instead of new memory.
    """
    window = _window(scales, first, key)
    if out is None:
        return (key * window).to(key.dtype)
    return torch.mul(key, window, out=out.view(-1)[: key.numel()].view(key.shape))


def _window(scales: Tensor, first: int, key: Tensor) -> Tensor:
    """The scales of these Keys, (B n, 1, K, 1)."""
    window = scales[:, first : first + key.shape[2]]
    if window.shape[1] < key.shape[2]:
        window = nn.functional.pad(window, (0, key.shape[2] - window.shape[1]), value=1.0)
    if window.shape[0] != key.shape[0]:
        window = window.repeat_interleave(key.shape[0] // window.shape[0], dim=0)
    return window[:, None, :, None]


def _attend(original: AttentionFunction | None) -> AttentionFunction:
    def sinkgate_attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        attend = original or _eager_of(module)
        tap = _taps.get(module)
        if tap is None:
            return attend(module, query, key, value, *args, **kwargs)
        if kwargs.get("cache") is not None:
            raise UnsupportedModelError(
                "continuous batching stores Keys inside the attention function and would keep them scaled; use generate() instead"
            )
        seen = tap.call.seen if tap.call.seen is not None else key.shape[2]
        if tap.scales is not None:
            key = tap.scale(module, key)
        recorder = tap.call.recorder
        full = recorder is None or (recorder.most is not None and tap.calls >= recorder.most)
        wanted = None if recorder is None or full else recorder.wanted(seen - query.shape[2], query.shape[2])
        if recorder is not None and wanted is not None:
            tap.calls += 1
            mask = args[0] if args else kwargs.get("attention_mask")
            scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
            if query.shape[2] > 1 or not tap.put_off(_Step(module, query, key, scaling, softcap), mask):
                with torch.no_grad():
                    causal = kwargs.get("is_causal")
                    rows = attention_rows(
                        module, query, key, mask, scaling=scaling, softcap=softcap, is_causal=causal, rows=wanted
                    )
                    recorder.add(tap.layer, rows, value)
        return attend(module, query, key, value, *args, **kwargs)

    return sinkgate_attention


def _count_positions(call: _Call) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def before_forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = next(
            (x for x in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if isinstance(x, Tensor)), None
        )
        cache = kwargs.get("past_key_values")
        cached = int(cache.get_seq_length()) if cache is not None else 0
        call.cache = cache
        call.seen = cached + tokens.shape[1] if tokens is not None else None

    return before_forward


def _implementation(module: nn.Module) -> str:
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name not in IMPLEMENTATIONS:
        raise UnsupportedModelError(
            f"the model runs attention implementation {name!r}; expected sdpa or eager: load it with attn_implementation='sdpa'"
        )
    return name


def _install(name: str) -> None:
    if name not in _originals:
        _originals[name] = AttentionInterface._global_mapping.get(name)
        AttentionInterface.register(name, _attend(_originals[name]))


def _uninstall() -> None:
    for name, original in _originals.items():
        if original is None:
            AttentionInterface._global_mapping.pop(name, None)
        else:
            AttentionInterface.register(name, original)
    _originals.clear()


def _eager_of(module: nn.Module) -> AttentionFunction:
    """Each model file has its own eager function; the registry has none."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise UnsupportedModelError(
        f"{type(module).__name__} has no eager attention function; load with attn_implementation='sdpa'"
    )
