"""Sink gates on a transformers model, without sinkgate: copy this file and `sink_gates.json` beside your code.

`sinkgate export-runtime` writes this file with `sink_gates.json` and, for learned gates, `sink_gates.safetensors`. It imports torch and
transformers only:

    from sink_runtime import apply_gates

    gates = apply_gates(model)  # of AutoModelForImageTextToText.from_pretrained(...)
    model.generate(**processor(...))  # gated from now on, in batches too
    gates.remove()

In each prefill the sinks are marked by the criteria in `sink_gates.json`: V-sinks from the vision encoder's features as the model encodes
its images, L-sinks from one more, unmodified pass of the LLM, which only gates that treat them apart need. Key scales are applied inside
the attention function, out of place, so the KV cache holds the model's own Keys; the scales stay with the cache through decoding.

Limits: the attention function is one that transformers registers (sdpa or a flash kernel, not eager; sdpa where a criterion reads
attention); no continuous batching; the whole prompt in one prefill; calls on one model do not overlap.

Shapes: B samples, P prompt positions, K Keys, V visual tokens of a sample, N patches of a sample, E and D widths.
"""

from __future__ import annotations

import functools
import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # comes with transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

FORMAT, VERSION = "sinkgate-runtime", 1
TINY = 1e-12
ROWS = 256  # attention rows computed at once
CACHE_NAMES = ("cache", "past_key_values")  # from transformers 5.24 on, and before
ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}

_interface: Any = AttentionInterface  # its table of functions is private
_gated: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any]] = weakref.WeakKeyDictionary()


def apply_gates(model: Any, folder: str | Path | None = None) -> SinkGates:
    """Gate a model until ``remove()``.

    Args:
        model: the model that the gates were exported for, as transformers loads it.
        folder: of `sink_gates.json`; that of this file where None.

    Raises:
        ValueError: the model is another one, or runs attention that transformers does not dispatch.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    settings = json.loads((folder / "sink_gates.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "sink_gates.safetensors") if settings["learned"] else {}
    return SinkGates(model, settings, weights)


class SinkGates:
    """Gates on one model: hooks on its parts, and a function around its attention."""

    def __init__(self, model: Any, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
        _check(model, settings)
        self.settings, self.learned = settings, settings["learned"]
        self.table = None if self.learned else torch.tensor(settings["scales"])  # layers x 3
        self.weights = {name: value.to(model.device, torch.float32) for name, value in weights.items()}
        self.image_token = settings["image_token_id"]
        self.vision = settings["vision"] if settings["uses_v_sinks"] else None
        self.uses_l_sinks = settings["uses_l_sinks"]
        self.layers: list[int] = settings["gated_layers"]
        self.decoder = model.get_submodule(settings["decoder"])
        self._attention: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._encoder: Any = None  # the part of the model that encodes images
        self.encoding = False
        self.features: list[Tensor] = []  # of the newest images, a call of the encoder each
        self.received: list[Tensor] = []  # attention on each row of them
        self._start()
        try:
            self._attach(model)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        for module in self._attention:
            _gated.pop(module, None)
        if self._encoder is not None:
            vars(self._encoder).pop("get_image_features", None)

    def _attach(self, model: Any) -> None:
        paths = self.settings["layers"]
        self._hooks.append(model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        self._hooks.append(self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        self._hooks.append(self.decoder.register_forward_hook(self._after_decoder))
        for layer in self.layers:
            module = model.get_submodule(paths[layer]["layer"])
            self._hooks.append(module.register_forward_pre_hook(self._before_layer(layer), with_kwargs=True))
            self._gate(model.get_submodule(paths[layer]["attention"]), self._in_llm(layer))
        if self.vision:
            encoder_layer = model.get_submodule(self.vision["features"])
            self._hooks.append(encoder_layer.register_forward_hook(self._after_features))
            if self.settings["v_sink"]["name"] == "AttentionShare":
                self._gate(model.get_submodule(self.vision["attention"]), self._in_encoder)
            self._encoder = model.get_submodule(self.vision["encoder"])
            self._encoder.get_image_features = self._encoding(self._encoder.get_image_features)
        both = (self.vision and self.settings["v_sink"]["name"], self.uses_l_sinks and self.settings["l_sink"]["name"])
        for module in self._attention:
            _register(_implementation(module), reads_attention="AttentionShare" in both)

    def _gate(self, module: nn.Module, function: Callable[..., Any]) -> None:
        _gated[module] = function
        self._attention.append(module)

    # --- one forward of the model, in the order in which its parts run

    def _start(self) -> None:
        self.ids: Tensor | None = None
        self.mask: Tensor | None = None
        self.end = 0  # positions after this forward
        self.observing = False  # the unmodified pass that finds L-sinks
        self.prompt: _Prompt | None = None  # in a prefill
        self.scales: dict[int, Tensor] = {}  # (B, P) by layer

    def _before_model(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._start()
        self.ids = kwargs.get("input_ids", args[0] if args else None)
        self.mask = kwargs.get("attention_mask")

    def _encoding(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """Return the model's function that encodes images; ``generate`` calls it before the prefill, ``forward`` within."""

        @functools.wraps(encode)  # generate reads its parameters
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            self.features, self.received, self.encoding = [], [], True
            try:
                return encode(*args, **kwargs)
            finally:
                self.encoding = False

        return get_image_features

    def _after_features(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self.encoding:
            self.features.append((output if isinstance(output, Tensor) else output[0]).detach())

    def _in_encoder(self, attend: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.encoding:
            with torch.no_grad():
                share = _attention_received(module, query, key, _mask(args, kwargs), kwargs)
            self.received.append((share * key.shape[2]).flatten())  # 1 is an even share
        return attend(module, query, key, *args, **kwargs)

    def _before_decoder(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.observing:
            return
        embeds = kwargs.get("inputs_embeds")
        tokens: Any = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
        cache = _cache_in(kwargs)
        cached = int(cache.get_seq_length()) if cache is not None else 0
        self.end = cached + tokens.shape[1]
        has_images = self.ids is not None and bool((self.ids == self.image_token).any())
        if cached:
            if has_images and self.ids is not None and self.ids.shape[1] == tokens.shape[1]:
                raise ValueError("images stand behind a cached prompt; sink gates need the whole prompt in one prefill")
            self.scales = getattr(cache, "sink_scales", {})
            return
        if self.ids is None:
            raise ValueError("the model was called with inputs_embeds alone; sink gates need input_ids in the prefill")
        if has_images:
            self.prompt = _Prompt(self.ids, self.mask, self.ids == self.image_token)
            self._find_sinks(self.prompt, args, kwargs)
            if self.table is not None:
                for layer in self.layers:
                    self.scales[layer] = self.prompt.spread(layer, self.table[layer].tolist())

    def _after_decoder(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        cache = _cache_in(output) if isinstance(output, dict) else None
        if cache is not None and not self.observing:
            cache.sink_scales = self.scales

    def _find_sinks(self, prompt: _Prompt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.vision:
            features, received = _patches(self.features, self.received, self.vision)
            prompt.mark_v_sinks(features, received, self.settings["v_sink"], self.vision)
            self.features, self.received = [], []
        if self.uses_l_sinks:
            self.observing = True
            try:
                with torch.no_grad():
                    self.decoder(*args, **{**kwargs, **dict.fromkeys(kwargs.keys() & CACHE_NAMES), "use_cache": False})
            finally:
                self.observing = False

    def _before_layer(self, layer: int) -> Any:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.prompt is None:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            if self.observing:
                if self.settings["l_sink"]["name"] != "AttentionShare":
                    self.prompt.mark_l_sinks(layer, hidden, None, self.settings["l_sink"])
            elif self.learned:
                signal = self.prompt.signal(hidden, self.learned["signal"])
                groups = self._gate_outputs(layer, signal)  # B, G
                columns = [next(g for g, of in enumerate(self.learned["groups"]) if c in of) for c in range(3)]
                self.scales[layer] = self.prompt.spread(layer, [groups[:, g] for g in columns])

        return before

    def _gate_outputs(self, layer: int, signal: Tensor) -> Tensor:
        """Return the scales of a learned gate, (B, D) -> (B, G): LayerNorm, two linear layers, softmax."""
        own = {name.split(".", 2)[2]: value for name, value in self.weights.items() if name.split(".")[1] == str(layer)}
        signal = signal.to(own["down.weight"])
        signal = F.layer_norm(signal, signal.shape[-1:], own.get("norm.weight"), own.get("norm.bias"))
        inner = ACTIVATIONS[self.learned["activation"]](F.linear(signal, own["down.weight"], own.get("down.bias")))
        return self.learned["total"] * F.linear(inner, own["up.weight"], own.get("up.bias")).softmax(-1)

    def _in_llm(self, layer: int) -> Callable[..., Any]:
        def attention(attend: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("cache") is not None:
                raise ValueError("continuous batching would keep scaled Keys in its cache; use generate()")
            if self.observing and self.prompt is not None:
                if self.settings["l_sink"]["name"] == "AttentionShare":
                    rows = self.prompt.rows_after_image()
                    share = _attention_received(module, query, key, _mask(args, kwargs), kwargs, rows)
                    self.prompt.mark_l_sinks(layer, None, share, self.settings["l_sink"])
            elif layer in self.scales:
                key = self._scaled(key, self.scales[layer])
            return attend(module, query, key, *args, **kwargs)

        return attention

    def _scaled(self, key: Tensor, scales: Tensor) -> Tensor:
        """Return the scaled Keys (B n, KV, K, d); positions after the prompt have scale 1, beams of a sample share its scales."""
        first = max(0, self.end - key.shape[2])  # a sliding cache holds the last Keys alone
        window = scales.to(key.device)[:, first : first + key.shape[2]]
        window = F.pad(window, (0, key.shape[2] - window.shape[1]), value=1.0)
        window = window.repeat_interleave(len(key) // len(window), 0)
        return (key * window[:, None, :, None]).to(key.dtype)


class _Prompt:
    """A batch of prompts: which positions hold what, and which visual tokens are sinks."""

    def __init__(self, ids: Tensor, mask: Tensor | None, visual: Tensor) -> None:
        two_dim = mask is not None and mask.dim() == 2
        self.inside = mask[:, : ids.shape[1]].bool() if mask is not None and two_dim else torch.ones_like(ids).bool()
        self.visual = visual & self.inside
        self.v_sink = torch.zeros_like(visual)  # B, P
        self.l_sink: dict[int, Tensor] = {}  # by layer, V-sinks among them

    def spread(self, layer: int, scales: list[Any]) -> Tensor:
        """Return the Key scales (B, P) of a layer from the scales of V-sinks, L-sinks and ordinary tokens, numbers or (B,)."""
        l_sink = self.l_sink.get(layer, torch.zeros_like(self.v_sink)) & ~self.v_sink
        spread = torch.ones(self.visual.shape, device=self.visual.device)
        for group, scale in zip((self.v_sink, l_sink, self.visual & ~self.v_sink & ~l_sink), scales, strict=True):
            each = scale[:, None].to(spread.device) if isinstance(scale, Tensor) else torch.tensor(scale).to(spread)
            spread = torch.where(group, each, spread)
        return spread

    def signal(self, hidden: Tensor, name: str) -> Tensor:
        """Return what a learned gate reads, (B, D): the last token's state, or the mean of all or of the visual tokens."""
        inside = self.inside.to(hidden.device)
        if name == "last":
            last = inside.shape[1] - 1 - inside.flip(1).long().argmax(1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last - (inside.shape[1] - hidden.shape[1])]
        tokens = (inside if name == "mean" else self.visual.to(hidden.device)).to(hidden.dtype)
        return torch.einsum("bp,bpd->bd", tokens, hidden) / tokens.sum(1, keepdim=True).clamp_min(1)

    def rows_after_image(self) -> list[slice]:
        """Return the text rows of each sample that attend to its image: all after it, at least the last."""
        rows: list[slice] = []
        for inside, visual in zip(self.inside, self.visual, strict=True):
            end = int(inside.nonzero()[-1]) + 1
            after = int(visual.nonzero()[-1]) + 1 if visual.any() else end
            rows.append(slice(min(after, end - 1), end))
        return rows

    def mark_v_sinks(
        self, features: Tensor, received: Tensor | None, criterion: dict[str, Any], vision: dict[str, Any]
    ) -> None:
        """Mark V-sinks from the features (all N, E) of the batch's patches: a token is one if any of its patches is."""
        side, grid = vision["merge"], vision["grid"]
        counts: list[int] = self.visual.sum(1).tolist()
        beams = max(1, sum(counts) * side**2 // len(features))  # generate encodes images once and then repeats them
        counts = counts[::beams]
        if len(features) != sum(counts) * side**2:
            raise ValueError(
                f"the encoder gave {len(features)} patches for {sum(counts)} visual tokens; expected {side**2} for each"
            )
        if grid is None:  # the patches of a token follow one another
            token = torch.arange(sum(counts)).repeat_interleave(side**2)
        else:  # m x m neighbours of a crop of rows x columns patches
            crops, (rows, columns) = len(features) // math.prod(grid), grid
            row, column = torch.arange(rows) // side, torch.arange(columns) // side
            inner = (row[:, None] * (columns // side) + column).flatten()
            token = (torch.arange(crops)[:, None] * (inner.max() + 1) + inner).flatten()
        sinks, first = torch.zeros(sum(counts), dtype=torch.bool), 0
        for count in counts:
            of_sample = (token >= first) & (token < first + count)
            if count:
                own, share = features[of_sample], None if received is None else received[of_sample]
                sinks[token[of_sample][_verdict(criterion, own, own, share)]] = True
            first += count
        parts = [part for part in sinks.split(counts) for _ in range(beams)]
        self.v_sink[self.visual] = torch.cat(parts).to(self.visual.device)

    def mark_l_sinks(self, layer: int, hidden: Tensor | None, share: Tensor | None, criterion: dict[str, Any]) -> None:
        """Mark L-sinks of a layer from its input (B, P, D), or from the attention (B, P) that its Keys receive."""
        marks = torch.zeros_like(self.visual)
        for sample, visual in enumerate(self.visual):
            if visual.any():
                at, own, of_all = visual.cpu(), None, None
                if hidden is not None:
                    states = hidden[sample].float().cpu()
                    own, of_all = states[at], states[self.inside[sample].cpu()]
                received = None if share is None else share[sample].cpu()[at]
                marks[sample, visual] = _verdict(criterion, own, of_all, received).to(marks.device)
        self.l_sink[layer] = marks


# --- criteria


def _verdict(criterion: dict[str, Any], states: Tensor | None, of_all: Tensor | None, share: Tensor | None) -> Tensor:
    """Return a mask of the tokens that are sinks, (V,), from their states (V, E), or their attention; ``of_all``: states of every token."""
    name = criterion["name"]
    if name == "AttentionShare":
        assert share is not None
        return share.float() / share.float().median().clamp_min(TINY) >= criterion["times"]
    assert states is not None and of_all is not None
    norms = torch.linalg.vector_norm(states, dim=-1)
    if name == "NormOutliers":
        if criterion["threshold"] is not None:
            return norms >= criterion["threshold"]
        return norms / norms.median().clamp_min(TINY) >= criterion["times"]
    if not criterion["dims"]:
        return torch.zeros(len(states), dtype=torch.bool)
    spikes = states[:, criterion["dims"]].abs()
    if name == "SinkDimensions":
        rms = (norms / math.sqrt(states.shape[-1])).clamp_min(TINY) if criterion["normalize"] else torch.tensor(1.0)
        return spikes.amax(1) / rms >= criterion["tau"]
    median = of_all.abs().median().clamp_min(TINY)  # massive activations
    return spikes.amax(1) / median >= torch.maximum(torch.tensor(criterion["ratio"]), criterion["minimum"] / median)


def _patches(features: list[Tensor], received: list[Tensor], vision: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return features (all N, E) and attention (all N,) of patches, float32 on the CPU, without CLS and registers."""
    if not features:
        raise ValueError("the vision encoder did not run; sink gates need pixel_values in the prefill")
    rows = torch.cat(features)
    share = torch.cat(received).view(rows.shape[:-1]) if received else None
    if vision["grid"] is not None:
        first, wanted = vision["leading"], vision["leading"] + math.prod(vision["grid"])
        if rows.dim() != 3 or rows.shape[1] != wanted:
            raise ValueError(f"the encoder gave rows of shape {tuple(rows.shape)}; expected {wanted} for each crop")
        rows, share = rows[:, first:], None if share is None else share[:, first:]
    share = None if share is None else share.flatten().float().cpu()
    return rows.reshape(-1, rows.shape[-1]).float().cpu(), share


# --- attention


def _attention_received(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    rows: list[slice] | None = None,
) -> Tensor:
    """Return the attention that each Key receives, (B, K): the mean over heads and queries, some rows of each sample or all."""
    shares: list[Tensor] = []
    for sample in range(len(query)):
        wanted = rows[sample] if rows is not None else slice(0, query.shape[2])
        one = slice(sample, sample + 1)
        own_mask = mask[one] if mask is not None and len(mask) > 1 else mask
        total = torch.zeros(key.shape[2], device=key.device)
        for start in range(wanted.start, wanted.stop, ROWS):
            part = slice(start, min(start + ROWS, wanted.stop))
            total = total + _attention_rows(module, query[one], key[one], own_mask, part, options).mean(1).sum(1)[0]
        shares.append(total / (wanted.stop - wanted.start))
    return torch.stack(shares)


def _attention_rows(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, rows: slice, options: dict[str, Any]
) -> Tensor:
    """Return attention probabilities of some queries, (1, H, R, K)."""
    heads, count, width, keys = query.shape[1], query.shape[2], query.shape[3], key.shape[2]
    scaling, softcap, causal = (options.get(name) for name in ("scaling", "softcap", "is_causal"))
    grouped = query[:, :, rows].reshape(1, key.shape[1], -1, width)  # heads that share Keys side by side
    scores = (grouped @ key.transpose(-1, -2)).view(1, heads, -1, keys) * (width**-0.5 if scaling is None else scaling)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    lowest = torch.finfo(scores.dtype).min
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask[:, :, rows, :keys]
    elif mask is not None:
        scores = scores.masked_fill(~mask[:, :, rows, :keys], lowest)
    elif count > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        position = torch.arange(count, device=query.device)[rows]
        scores = scores.masked_fill(torch.arange(keys, device=query.device) > position[:, None], lowest)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _cache_in(values: dict[str, Any]) -> Any:
    """Return the cache in arguments or in an output; None where there is none."""
    held = dict(values.items())  # transformers 5.24 warns where an output is asked for the old name
    return next((cache for name in CACHE_NAMES if (cache := held.get(name)) is not None), None)


def _mask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the mask of an attention call; ``args`` are those after the Keys."""
    return args[1] if len(args) > 1 else kwargs.get("attention_mask")


def _implementation(module: nn.Module) -> str:
    return getattr(getattr(module, "config", None), "_attn_implementation", None) or "eager"


def _register(name: str, reads_attention: bool) -> None:
    """Wrap a registered attention function, once; the wrapper changes nothing for modules without gates."""
    original = _interface._global_mapping.get(name)
    if original is None or (reads_attention and name != "sdpa"):
        raise ValueError(
            f"the model runs attention {name!r}; expected {'sdpa' if reads_attention else 'sdpa or a flash kernel'}: "
            'load it with attn_implementation="sdpa"'
        )
    if getattr(original, "gated", None) is _gated:  # another copy of this file has a table of its own
        return

    def sink_attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        gated = _gated.get(module)
        if gated is None:
            return original(module, query, key, *args, **kwargs)
        return gated(original, module, query, key, *args, **kwargs)

    sink_attention.gated = _gated  # pyright: ignore[reportFunctionMemberAccess]
    _interface.register(name, sink_attention)


def _check(model: Any, settings: dict[str, Any]) -> None:
    """Raise ValueError where the gates were exported for another model."""
    if settings.get("format") != FORMAT or settings.get("version") != VERSION:
        raise ValueError(f"sink_gates.json is no {FORMAT} of version {VERSION}; export the gates again")
    text, wanted = model.config.get_text_config(), settings["model"]
    got = {"type": model.config.model_type, "layers": text.num_hidden_layers, "width": text.hidden_size}
    for name, value in got.items():
        if value != wanted[name]:
            raise ValueError(
                f"the gates were exported for {wanted['name']} ({name} {wanted[name]}); this model has {name} {value}"
            )
