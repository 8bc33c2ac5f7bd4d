"""Gated logits against plain hooks, and warm sessions against cold ones: ``python tests/reference/check_gating.py MODEL IMAGES...``.

Rotary embedding is linear, so to scale the output of ``k_proj`` (of ``k_norm`` where a model normalises its Keys) is the same
intervention as `sinkgate.Gates`: the reference shares no code with sinkgate but the table of scales. Exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

import sinkgate as sg

QUESTION = "What is in the picture?"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of what the gates change; for half precision:
HALF = 0.1


@dataclass(frozen=True)
class Result:
    """One prompt. Differences are the largest over the vocabulary; ``decode`` over all tokens, ``cached`` with Keys scaled once in the cache.

    ``effect``: how much the gates change logits at most. ``layers``: those at which a warm session differs from a cold one in any bit.
    """

    sinks: str
    logits: float
    effect: float
    prefill: float
    decode: float
    cached: float
    layers: list[int]

    def passes(self, tolerance: float) -> bool:
        """Return whether all differences are below a share of the effect, and no layer differs."""
        return max(self.prefill, self.decode, self.cached) <= tolerance * self.effect and not self.layers


def random_gates(vlm: sg.VLM, seed: int = 0) -> sg.Gates:
    """Scales of every layer and group, drawn from 0 to 2."""
    scales = 2 * torch.rand(vlm.num_layers, 3, generator=torch.Generator().manual_seed(seed))
    return sg.Gates(scales, vlm.name)


@contextmanager
def scaled_by_hooks(layers: Sequence[nn.Module], scales: Tensor) -> Iterator[None]:
    """Scale what ``k_proj`` (``k_norm``) of each layer gives, by position; later positions keep 1. Shapes: scales (L, 1, P)."""
    hooks = []
    for layer, scale in zip(layers, scales, strict=True):
        attention: Any = layer
        keys = _Keys(scale[0])
        hooks.append(attention.k_proj.register_forward_hook(keys.count))
        last = getattr(attention, "k_norm", None) or attention.k_proj
        hooks.append(last.register_forward_hook(keys.scale))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Keys:
    """Hooks on one layer, which keep count of positions: one call is the prefill, each further one a token."""

    def __init__(self, scales: Tensor) -> None:
        self.scales = scales
        self.before, self.now = 0, 0  # positions before this call, and in it
        self.axis: int | None = None  # of positions: models normalise Keys before or behind the transposition of heads

    def count(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.before, self.now = self.before + self.now, output.shape[1]

    def scale(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if self.axis is None:
            self.axis = 1 if output.shape[1] == self.now else 2
        window = torch.ones(self.now, device=output.device)
        known = self.scales[self.before : self.before + self.now].to(window)
        window[: len(known)] = known
        shape = [self.now if axis == self.axis else 1 for axis in range(output.dim())]
        return (output.float() * window.view(shape)).to(output.dtype)


def written(
    vlm: sg.VLM, inputs: dict[str, Any], tokens: int, forced: Sequence[int] | None = None
) -> tuple[list[int], Tensor]:
    """Ids and logits (tokens, vocabulary) of a greedy answer of so many tokens, or of these."""
    start = inputs["input_ids"].shape[1]
    follow = None if forced is None else lambda _sample, ids: [forced[len(ids) - start]]
    with torch.no_grad():
        output = vlm.model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens if forced is None else None,
            do_sample=False,
            prefix_allowed_tokens_fn=follow,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return output.sequences[0, start:].tolist(), torch.cat(output.logits).float().cpu()


def check(vlm: sg.VLM, prompt: sg.Prompt, sinks: sg.SinkMap | None = None, tokens: int = 20) -> Result:
    """Compare on one prompt.

    Args:
        vlm: a model whose attention has ``k_proj`` and rotary embedding behind it.
        prompt: what to answer.
        sinks: the groups; found by the default criteria where None.
        tokens: to generate behind the prompt.
    """
    sinks = sinks or sg.find_sinks(vlm, prompt)
    gates = random_gates(vlm)
    scales = gates.key_scales(sinks, prompt.visual, prompt.num_keys)
    with vlm.gated(prompt, sinks, gates):
        ids, gated = written(vlm, prompt.inputs, tokens)
    with scaled_by_hooks(vlm.attention, scales):
        _, reference = written(vlm, prompt.inputs, tokens, ids)
    with vlm.attached(scales.to(vlm.device), None, own_cache=True):  # as vlm.answer does
        _, cached = written(vlm, prompt.inputs if vlm.adapter.cross_attention else vlm.warm_inputs(prompt), tokens, ids)
    _, plain = written(vlm, prompt.inputs, tokens, ids)
    difference = (gated - reference).abs().amax(1)
    return Result(
        sinks.summary(),
        logits=float(reference.abs().max()),
        effect=float((plain - reference).abs().max()),
        prefill=float(difference[0]),
        decode=float(difference[1:].max()) if tokens > 1 else 0.0,
        cached=float((cached - reference).abs().max()),
        layers=layers_that_differ(vlm, prompt, sinks),
    )


def layers_that_differ(vlm: sg.VLM, prompt: sg.Prompt, sinks: sg.SinkMap, tokens: int = 3) -> list[int]:
    """Layers at which a session that resumes there gives another bit than a fresh one: probabilities, attention rows, tokens."""
    warm, differ = sg.Session(vlm, prompt, sinks), []
    if not warm.resumes:
        raise sg.UnsupportedModelError(f"{vlm.name} cannot start a forward in the middle; there is nothing to compare")
    warm.predict()
    for layer in reversed(range(vlm.num_layers)):  # from the top: the next setting differs from its own layer on
        gates = sg.Gates.ones(vlm).set("rest", 0.4, layer).set("v_sink", 1.7, layer)
        before = warm.layers_run
        first = warm.answer(gates, max_new_tokens=tokens, min_new_tokens=tokens)
        assert warm.layers_run - before <= len(vlm.adapter.all_layers) - vlm.adapter.layer_numbers[layer], "it resumed"
        second = sg.Session(vlm, prompt, sinks).answer(gates, max_new_tokens=tokens, min_new_tokens=tokens)
        same = first.ids == second.ids and torch.equal(first.probabilities, second.probabilities)
        if not (same and torch.equal(first.attention, second.attention)):
            differ.append(layer)
    return differ[::-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every image and print a line for each; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder, Hub id or short name")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--tokens", type=int, default=20, help="to decode behind the prompt (default: %(default)s)")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference as a share of the gates' effect (default: 1e-3 in float32, 0.1 in half)",
    )
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        vlm = sg.load(options.model, device=options.device, dtype=options.dtype)
        tolerance = options.tolerance or TOLERANCE.get(vlm.model.dtype, HALF)
        good = True
        for image in options.images:
            result = check(vlm, vlm.prompt(image, options.question), tokens=options.tokens)
            good &= result.passes(tolerance)
            resumed = (
                f"differs at layers {result.layers}" if result.layers else f"bit for bit at all {vlm.num_layers} layers"
            )
            print(
                f"{image}: {result.sinks}\n  largest difference to the hooks: prefill {result.prefill:.2e}, {options.tokens} tokens "
                f"{result.decode:.2e}, Keys scaled in the cache {result.cached:.2e} (logits up to {result.logits:.1f}, changed by the "
                f"gates up to {result.effect:.1f}); sessions resume {resumed}: {'equal' if result.passes(tolerance) else 'DIFFERENT'}",
                flush=True,
            )
    except sg.SinkgateError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
