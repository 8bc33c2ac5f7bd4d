"""Wrapper around transformers' attention function that scales Keys or logits, rewrites probabilities and passes queries to a recorder.

Every architecture calls that function after QK-norm and rotary embedding and before KV heads are
repeated, so the model stays on its own kernel and the KV cache keeps the unscaled Keys. If the caller owns
the cache (``own_cache``), Keys are scaled once, in the cache, and decode steps use the scaled Keys. Scales limited to rows or heads
(`LogitScales`) leave the kernel and the Keys alone: `sinkgate.attention.written_out` computes the limited rows and heads again. This module depends on modules and positions only, not on sinks, images or the app.

Shapes: L layers, B samples, H heads, Q queries, K keys, R recorded rows, P prompt positions, d head width.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.hub_kernels import is_kernel

from sinkgate.attention.cache import cache_in
from sinkgate.attention.masks import row_mask
from sinkgate.attention.recorder import Recorder, attention_rows
from sinkgate.attention.scales import LayerScales, LogitScales, Scales
from sinkgate.attention.written_out import AttentionCall, limited_output, mixed_output, without_keys
from sinkgate.errors import UnsupportedModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
#: Attention rows (B, H, R, K), the positions of their queries (R,) and that of the first Key -> the rows to use instead.
Rewrite = Callable[[Tensor, Tensor, int], Tensor]
#: Implementations whose logits and probabilities may be computed anew; all others take scales of Keys and are recorded.
WRITTEN_OUT = ("sdpa", "eager")
_SMALL = 1 << 16  # elements; allocating smaller tensors costs nothing

_interface: Any = AttentionInterface  # its table of functions is private
_taps: dict[nn.Module, _Tap] = {}
_originals: dict[str, AttentionFunction | None] = {}  # functions registered before wrapping; None: no entry (eager)
_registry_lock = threading.RLock()
_model_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def model_lock(model: nn.Module) -> threading.RLock:
    """Return the lock that serialises calls on a model; one lock for each model."""
    with _registry_lock:
        return _model_locks.setdefault(model, threading.RLock())


@dataclass
class _Call:
    """State shared by all layers of one attached call."""

    recorder: Recorder | None
    cross: bool = False  # Keys are not positions of the queries' sequence
    own_cache: bool = False  # the cache may hold scaled Keys
    stored: int = 0  # positions whose Keys are already scaled in the cache
    end: int | None = None  # positions after the running forward, cached ones included
    cached: int = 0  # positions before the running forward
    cache: Any = None  # the KV cache of the running forward
    scratch: Tensor | None = None  # buffer of scaled Keys; allocating it in each layer would cost more than scaling

    def memory_for(self, key: Tensor) -> Tensor | None:
        """Return a buffer for the scaled Keys; None if they need a tensor of their own (gradients) or are too small to matter."""
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
    scales: Tensor | None = None  # of the Keys, (B, 1 or KV, P, 1); None if all are 1
    limited: LayerScales | None = None  # of the logits
    stored: int | None = None  # positions whose Keys are scaled in the cache; None: the cache must stay unscaled
    rewrite: Rewrite | None = None
    rewrite_from: int = 0  # position of the first query that ``rewrite`` may change
    hidden: Tensor | None = None  # (B, P) boolean, Keys that no other query attends to

    @property
    def only_keys(self) -> bool:
        """Return whether scaled Keys are all that the call needs."""
        return self.call.recorder is None and self.limited is None and self.rewrite is None and self.hidden is None

    def span(self, keys: int) -> tuple[int, int]:
        """Return the positions of the first of the running forward's Keys and of the one behind the last; static caches have more room."""
        end = keys if self.call.cross else self.call.end or keys
        return max(0, end - keys), end

    def scale(self, module: nn.Module, key: Tensor) -> Tensor:
        """Return the scaled Keys of the running forward."""
        assert self.scales is not None
        first, end = self.span(key.shape[2])
        self.scales = self.scales.to(key.device)  # layers may lie on several devices
        if self.stored is None and self.call.own_cache and self._lies_in_cache(module, key):
            self.stored = self.call.stored
        if self.stored is not None:
            start, stop = max(first, self.stored), min(end, self.scales.shape[2])
            if start < stop:
                _part(key, start - first, stop - first).mul_(_part(self.scales, start, stop))
            self.stored = end
            return key
        if self.scales.shape[2] < first + key.shape[2]:  # pad for many decode steps at once
            self.scales = nn.functional.pad(self.scales, (0, 0, 0, first + key.shape[2]), value=1.0)
        out = None if self.scales.requires_grad else self.call.memory_for(key)
        return scale_keys(key, self.scales[..., 0], first, out)

    def _lies_in_cache(self, module: nn.Module, key: Tensor) -> bool:
        """Return whether the cache holds these very Keys; some caches hold others and compute Keys from them."""
        layers: Any = getattr(self.call.cache, "layers", ())
        index = getattr(module, "layer_idx", None)
        stored = layers[index].keys if index is not None and index < len(layers) else None
        same = isinstance(stored, Tensor) and stored.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
        return same and not torch.is_grad_enabled()


@dataclass(frozen=True)
class Attached:
    """Handle of an active block, to set scales, rewriting and hidden Keys while the model runs."""

    _call: _Call
    _taps: dict[int, _Tap]
    _modules: Sequence[nn.Module] = ()

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Run the model as if nothing were attached, for another forward in the midst of one."""
        call = self._call
        before = call.end, call.cached, call.cache
        with _registry_lock:
            taps = {module: _taps.pop(module) for module in self._modules if module in _taps}
        try:
            yield
        finally:
            call.end, call.cached, call.cache = before
            with _registry_lock:
                _taps.update(taps)

    def set_scales(self, layer: int, scales: Tensor) -> None:
        """Set the Key scales (B, P) of a ``live`` layer, from its next attention call on; gradients flow through them."""
        self._taps[layer].scales = scales[:, None, :, None]

    def set_rewrite(self, layer: int, first: int, rewrite: Rewrite) -> None:
        """Rewrite a ``live`` layer's attention probabilities, from its next attention call on, for queries from position ``first`` on.

        Only those rows are computed, in O(rows x Keys); a row that ``rewrite`` returns unchanged stays bit-identical to the kernel's.
        """
        self._taps[layer].rewrite, self._taps[layer].rewrite_from = rewrite, first

    def set_hidden(self, layer: int, keys: Tensor) -> None:
        """Mask Keys (B, P) of a ``live`` layer, boolean, out of attention, from its next attention call on.

        A query still attends to its own Key, so that no row is left without any: nothing attends to what such a token becomes.
        """
        self._taps[layer].hidden = keys

    @property
    def begins(self) -> bool:
        """Return whether the running forward is the first, without cached positions."""
        return self._call.cached == 0


@contextmanager
def attached(
    modules: Sequence[nn.Module],
    *,
    decoder: nn.Module | None = None,
    key_scales: Scales | None = None,
    recorder: Recorder | None = None,
    cross: bool = False,
    own_cache: bool = False,
    stored: int = 0,
    live: Collection[int] = (),
) -> Generator[Attached]:
    """Scale the Keys of, and record, the given attention modules while the block runs.

    Attn(Q, diag(s) K, V) = softmax(Q (diag(s) K)^T / sqrt(d)) V (paper, section 2): the same s for all
    heads, Values untouched. Positions after the scaled ones (generated tokens) keep 1; a batch expanded
    into beams repeats each sample's scales. Nothing is attached if all scales are 1 and nothing is
    recorded; everything attached is removed when the block ends, also by an exception.

    Shapes: modules L; key_scales (L, B, P), finite.

    Args:
        modules: attention modules in layer order; entry i is layer i.
        decoder: the model whose forward runs these layers, from which the number of cached positions is
            read; needed for scales or rows by position. None for a vision encoder.
        key_scales: scales of the Keys by layer, sample and position; or scales of the logits limited to rows and heads.
        recorder: receives the attention rows, after scaling.
        cross: the modules attend to separate Keys, numbered from 0, not to positions of the sequence.
        own_cache: the KV cache is used with these scales alone, one row for each sample: it may hold scaled Keys, and rows of decode
            steps may be computed at the end of the block. Not for layers that share Keys, nor for beams.
        stored: positions whose Keys an earlier block left scaled in the cache.
        live: layers whose scales, rewriting or hidden Keys are set while the model runs, through the `Attached` that the block yields.

    Raises:
        RuntimeError: a block is already active on one of the modules.
        UnsupportedModelError: the model runs an attention implementation that transformers does not dispatch; or, in the forward, one
            that cannot take limited scales, rewriting or hidden Keys.
    """
    call = _Call(recorder, cross, own_cache, stored)
    # one comparison for all layers: each synchronises with the device
    table = key_scales.scales if isinstance(key_scales, LogitScales) else key_scales
    changed: Any = None if table is None else (table != 1).flatten(1).any(1)
    scaled: list[bool] = [False] * len(modules) if changed is None else changed.tolist()
    taps = {
        module: _Tap(call, layer)
        for layer, module in enumerate(modules)
        if recorder is not None or scaled[layer] or layer in live
    }
    if not taps:
        yield Attached(call, {})
        return
    of_keys = key_scales[:, :, None, :, None].unbind() if isinstance(key_scales, Tensor) else ()
    for tap in taps.values():
        if isinstance(key_scales, LogitScales) and scaled[tap.layer]:
            tap.limited = key_scales.layer(tap.layer)
        elif scaled[tap.layer]:
            tap.scales = of_keys[tap.layer]
    names = {_implementation(config) for config in {id(config): config for config in map(_config, modules)}.values()}
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
        yield Attached(call, {tap.layer: tap for tap in taps.values()}, modules)
        if recorder is not None:
            recorder.catch_up()
    finally:
        if hook is not None:
            hook.remove()
        with _registry_lock:
            for module in modules:
                _taps.pop(module, None)
            if not _taps:
                _uninstall()


def _part(keys: Tensor, start: int, stop: int) -> Tensor:
    """Return some of the Keys or of their scales, (B, KV, K, d); without a new tensor where these are all."""
    return keys if start == 0 and stop == keys.shape[2] else keys[:, :, start:stop]


def scale_keys(key: Tensor, scales: Tensor, first: int = 0, out: Tensor | None = None) -> Tensor:
    """Return diag(s) K for the Keys from absolute position ``first`` on; multiplied in at least float32.

    Shapes: key (B n, KV, K, d), scales (B, P) or (B, 1 or KV, P) -> (B n, KV, K, d); n beams for each sample; positions past P keep 1.
    ``out``, of the key's dtype and at least its number of elements, receives the result.
    """
    keys = key.shape[2]
    window = scales[..., first : first + keys]
    if window.shape[-1] < keys:
        window = nn.functional.pad(window, (0, keys - window.shape[-1]), value=1.0)
    if window.shape[0] != key.shape[0]:
        window = window.repeat_interleave(key.shape[0] // window.shape[0], dim=0)
    window = window[:, None, :, None] if window.dim() == 2 else window.unsqueeze(3)
    if out is None:
        return (key * window).to(key.dtype)
    return torch.mul(key, window, out=out.view(-1)[: key.numel()].view(key.shape))


def _attend(name: str, original: AttentionFunction | None) -> AttentionFunction:
    """Return the function to register under an implementation's name; ``original`` is the one before, None for eager attention."""

    def sinkgate_attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        attend, tap = original or _eager_of(module), _taps.get(module)
        if tap is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        if kwargs.get("cache") is not None:
            raise UnsupportedModelError(
                "continuous batching stores Keys inside the attention function and would keep them scaled; use generate() instead"
            )
        if tap.limited is not None and (of_keys := tap.limited.of_keys(key.shape[1])) is not None:
            tap.scales, tap.limited = of_keys[..., None], None  # no limit that Keys could not express
        if tap.scales is not None:
            key = tap.scale(module, key)
        if tap.only_keys:
            return attend(module, query, key, value, attention_mask, **kwargs)
        if name not in WRITTEN_OUT:
            _refuse_to_write_out(name, tap)
        count, end = query.shape[2], tap.call.end or key.shape[2]
        first, (first_key, _) = end - count, tap.span(key.shape[2])
        options = {option: kwargs.get(option) for option in ("scaling", "softcap", "is_causal")}
        call = AttentionCall(module, query, key, value, attention_mask, options, end, first_key)
        if tap.hidden is not None:
            call.mask = attention_mask = without_keys(tap.hidden, call, additive=name == "eager")
        visible = row_mask(name, attention_mask, query, key, causal=call.causal, window=kwargs.get("sliding_window"))
        limited = tap.limited.limited(first, end) if tap.limited is not None else None

        def rows_of(index: slice | Tensor) -> tuple[Tensor, Tensor]:
            """Return rows with their logits scaled, and as rewritten."""
            rule = None
            if tap.limited is not None and limited is not None:
                rule = partial(tap.limited.scaled, rows=limited[:, index], first_key=first_key)
            rows = attention_rows(module, query, key, visible, rows=index, rule=rule, **options)
            if tap.rewrite is None:
                return rows, rows
            position = torch.arange(first, end, device=query.device)[index]
            return rows, tap.rewrite(rows, position, first_key)

        recorder = tap.call.recorder
        wanted = recorder and recorder.wanted(tap.layer, first, count)
        if recorder is not None and wanted is not None:
            # one query over all Keys of a growing cache: its row can be computed later
            whole = tap.call.own_cache and not tap.call.cross and visible is None and key.shape[2] == end
            segments = kwargs.get("cu_seq_lens_k")
            if segments is not None:
                _record_segments(recorder, tap.layer, module, query, key, value, segments.tolist(), options)
            elif whole and count == 1 and recorder.defers and tap.rewrite is None and tap.limited is None:
                recorder.defer(tap.layer, module, query, key, options)
            else:
                with torch.no_grad():
                    size = query.shape[0] * query.shape[1] * key.shape[2]
                    recorder.record(tap.layer, wanted, lambda which: rows_of(which)[1], size, value)
        output, weights = attend(module, query, key, value, attention_mask, **kwargs)
        if tap.limited is not None and limited is not None:
            output = limited_output(tap.limited, limited, call, output)
        start = max(0, tap.rewrite_from - first)
        if tap.rewrite is not None and start < count:
            old, new = rows_of(slice(start, count))
            output = torch.cat([output[:, :start], mixed_output(old, new, value, output[:, start:])], 1)
        if recorder is not None and recorder.outputs is not None:
            with torch.no_grad():
                recorder.add_output(tap.layer, output, first)
        return output, weights

    return sinkgate_attention


def _count_positions(call: _Call) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def before_forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = next(
            (x for x in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if isinstance(x, Tensor)), None
        )
        cache = cache_in(kwargs)
        cached = int(cache.get_seq_length()) if cache is not None else 0
        call.cache, call.cached = cache, cached
        call.end = cached + tokens.shape[1] if tokens is not None else None

    return before_forward


def can_be_gated(implementation: str) -> bool:
    """Return whether transformers dispatches an attention implementation of that name, or can fetch it from the Hub.

    The paged variants belong to continuous batching, which stores Keys inside the attention function.
    """
    registered = implementation == "eager" or implementation in _interface._global_mapping
    return not implementation.startswith("paged|") and (registered or is_kernel(implementation))


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _implementation(config: Any) -> str:
    name = getattr(config, "_attn_implementation", None)
    if name is None or not can_be_gated(name):
        raise UnsupportedModelError(
            f"the model runs attention implementation {name!r}, which transformers does not dispatch to; expected sdpa, eager, a flash "
            "kernel, flex_attention or a registered name: load it with attn_implementation='sdpa'"
        )
    return name


def _refuse_to_write_out(name: str, tap: _Tap) -> None:
    """Raise where a rule needs logits or probabilities, which this kernel does not give."""
    rules = {
        "scales limited to rows or heads": tap.limited,
        "rewritten probabilities": tap.rewrite,
        "hidden Keys": tap.hidden,
    }
    if needed := next((rule for rule, value in rules.items() if value is not None), None):
        raise UnsupportedModelError(
            f"the attention kernel {name!r} takes scaled Keys, but gives no logits or probabilities, and {needed} need them: load the "
            'model with attn_implementation="sdpa"'
        )


def _record_segments(
    recorder: Recorder,
    layer: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Sequence[int],
    options: dict[str, Any],
) -> None:
    """Record each of the sequences that a flash kernel takes end to end, as other kernels are called on each."""
    for start, end in itertools.pairwise(bounds):
        part = slice(start, end)
        own_query, own_key = query[:, :, part], key[:, :, part]
        wanted = recorder.wanted(layer, 0, end - start)
        if wanted is None:
            continue

        def rows_of(index: slice | Tensor, query: Tensor = own_query, key: Tensor = own_key) -> Tensor:
            return attention_rows(module, query, key, None, rows=index, **options)

        with torch.no_grad():
            size = query.shape[0] * query.shape[1] * (end - start)
            recorder.record(layer, wanted, rows_of, size, value[:, :, part])


def _install(name: str) -> None:
    if name not in _originals:
        _originals[name] = _interface._global_mapping.get(name)
        _interface.register(name, _attend(name, _originals[name]))


def _uninstall() -> None:
    for name, original in _originals.items():
        if original is None:
            _interface._global_mapping.pop(name, None)
        else:
            _interface.register(name, original)
    _originals.clear()


def _eager_of(module: nn.Module) -> AttentionFunction:
    """Return the eager attention function of the model's own file; the registry has none."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise UnsupportedModelError(
        f"{type(module).__name__} has no eager attention function; load with attn_implementation='sdpa'"
    )
