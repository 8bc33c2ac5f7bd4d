"""Verdicts of all criteria on one prompt, side by side and in plain words.

Shapes: L LLM layers, V visual tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from sinkgate.models.dimensions import held_discovery, sink_criteria
from sinkgate.models.prompts import Prompt, is_one_prompt
from sinkgate.models.vlm import VLM
from sinkgate.sinks.classify import classify
from sinkgate.sinks.criteria import (
    CRITERIA,
    TAU,
    AttentionShare,
    Choice,
    Criterion,
    MassiveActivations,
    NormOutliers,
    SinkDimensions,
    reduction_of,
    tau_for,
)
from sinkgate.sinks.discovery import AUTO, Discovery
from sinkgate.sinks.known_dimensions import Side
from sinkgate.sinks.sink_map import SinkMap
from sinkgate.sinks.words import count, layers, listed

_MEANING = {
    MassiveActivations.name: f"one channel spikes to {MassiveActivations.ratio:.0f} times the layer's median, and to {MassiveActivations.minimum:.0f}",
    NormOutliers.name: f"the vector is {NormOutliers.times:.0f} times as long as the median one",
    AttentionShare.name: f"it receives {AttentionShare.times:.0f} times the median attention",
    SinkDimensions.name: f"a sink dimension reaches {TAU:.0f} times the token's own RMS (less where states are narrow)",
}
_INTRODUCTION = (
    "An attention sink draws far more attention than its share. V-sinks leave the vision encoder as sinks;"
    " L-sinks become sinks inside the LLM, layer by layer."
)


@dataclass(frozen=True)
class Report:
    """The verdicts of all criteria on one prompt; ``str`` puts them in words.

    Shapes: vision (N,) by criterion name, over the patches that feed tokens, empty if the encoder's states are not
    available; llm (L, V) by criterion name, V-sinks included. "sink dimensions" is missing if the model has none.
    ``sinks``: by the criteria of the call, those stored for the model by default.
    """

    question: str
    sinks: SinkMap
    vision: dict[str, Tensor]
    llm: dict[str, Tensor]
    discovery: Discovery

    def __str__(self) -> str:
        sinks, tokens = self.sinks, len(self.sinks.v_sink)
        question = f' for the question "{self.question}"' if self.question else ""
        lines = [
            f"Attention sinks in {self.discovery.model}{question} ({count(tokens, 'visual token')}, {count(len(sinks.l_sink), 'LLM layer')})",
            "",
            _INTRODUCTION,
            "",
            sinks.summary(),
        ]
        if AttentionShare.name in _decided(sinks):
            lines.append(
                "Attention share alone does not separate a sink from a token that is attended to for its content."
            )
        lines += ["", "Each criterion, V-sinks included in the LLM:"]
        for name, meaning in _MEANING.items():
            lines += [f"  {name}: {meaning}", f"    encoder: {self._patches(name)}; LLM: {self._tokens(name)}"]
        lines += ["", "Disagreements:", *(self._disagreements() or ["  none"])]
        return "\n".join([*lines, "", self.discovery.summary()])

    def _patches(self, name: str) -> str:
        if not self.vision:
            return "states not available"
        if name not in self.vision:
            return "has no sink dimensions"
        mask = self.vision[name]
        return f"{int(mask.sum()) or 'none'} of {len(mask)} patches"

    def _tokens(self, name: str) -> str:
        if name not in self.llm:
            return "has no sink dimensions"
        mask = self.llm[name]
        with_sinks = mask.any(1).nonzero()[:, 0].tolist()
        where = f", in {layers(with_sinks)}" if with_sinks else ""
        return f"{int(mask.any(0).sum()) or 'none'} of {mask.shape[1]} visual tokens{where}"

    def _disagreements(self) -> list[str]:
        """Compare the other criteria with the one that decided: in the encoder by patch, in the LLM by token in any layer."""
        lines = []
        if self.sinks.v_verdict:
            lines += _compare("encoder", "patch", self.sinks.v_verdict.criterion, self.vision)
        in_any_layer = {name: mask.any(0) for name, mask in self.llm.items()}
        return lines + _compare("LLM", "visual token", self.sinks.l_verdict.criterion, in_any_layer)


@overload
def report(
    vlm: VLM,
    prompt: Prompt,
    discovery: Discovery | None = None,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
) -> Report: ...


@overload
def report(
    vlm: VLM,
    prompt: Iterable[Prompt],
    discovery: Discovery | None = None,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
) -> list[Report]: ...


def report(
    vlm: VLM,
    prompt: Any,
    discovery: Discovery | None = None,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
) -> Any:
    """Classify a prompt's tokens by all criteria; the model runs once for it.

    Args:
        vlm: the model.
        prompt: image and question, or several such prompts.
        discovery: the model's sink dimensions, which select its criteria; if None, those stored for the model (see
            `sinkgate.sink_criteria`): twelve prompts run unless the result is on disk.
        v_sink: criterion of V-sinks to compare with all others, as in `sinkgate.find_sinks`.
        l_sink: criterion of L-sinks, likewise.

    Returns:
        One report for a prompt, a list for several.

    Raises:
        PromptError: this is no prompt, and no list of prompts.
        SinkgateError: as ``discover``.

    Example:
        >>> print(sg.report(vlm, vlm.prompt("cat.png", "What is this?")))
    """
    prompt = list(prompt) if isinstance(prompt, Iterator) else prompt
    if not is_one_prompt(prompt):
        return [report(vlm, each, discovery, v_sink=v_sink, l_sink=l_sink) for each in prompt]
    if discovery:
        v_sink = discovery.criteria.v_sink if v_sink == "auto" else v_sink
        l_sink = discovery.criteria.l_sink if l_sink == "auto" else l_sink
    held = sink_criteria(vlm, v_sink=v_sink, l_sink=l_sink, prompt=prompt)
    discovery = discovery or held_discovery(vlm, prompt)
    criteria: list[tuple[Criterion, Criterion]] = [(CRITERIA[name], CRITERIA[name]) for name in AUTO]
    criteria.append((_dimensions(held.v_sink, discovery, "vision"), _dimensions(held.l_sink, discovery, "llm")))
    observation = vlm.observe(prompt, reduction_of([held.l_sink.criterion, *(l_sink for _, l_sink in criteria)]))
    vision: dict[str, Tensor] = {}
    llm: dict[str, Tensor] = {}
    for v_sink, l_sink in criteria:
        by_criterion = classify(observation, prompt.sheets, v_sink=v_sink, l_sink=l_sink)
        if by_criterion.v_verdict and getattr(v_sink, "dims", None) != ():
            vision[v_sink.name] = by_criterion.v_verdict.mask[0]
        if getattr(l_sink, "dims", None) != ():
            llm[l_sink.name] = by_criterion.l_verdict.mask
    sinks = classify(observation, prompt.sheets, v_sink=held.v_sink, l_sink=held.l_sink)
    if sinks.v_verdict:
        vision[sinks.v_verdict.criterion] = sinks.v_verdict.mask[0]
    llm[sinks.l_verdict.criterion] = sinks.l_verdict.mask
    return Report(prompt.question, sinks, vision, llm, discovery)


def _dimensions(held: Choice, discovery: Discovery, side: Side) -> SinkDimensions:
    """Return the paper's criterion for one side, with the model's stored dimensions or else the measured ones."""
    if isinstance(held.criterion, SinkDimensions):
        return held.criterion
    evidence = discovery.side(side)
    return SinkDimensions(discovery.dimensions(side), tau_for(evidence.width) if evidence and evidence.width else TAU)


def _decided(sinks: SinkMap) -> set[str]:
    """Return the criteria that named any sink."""
    return {verdict.criterion for verdict in (sinks.v_verdict, sinks.l_verdict) if verdict and verdict.has_sinks}


def _compare(heading: str, noun: str, decided: str, masks: dict[str, Tensor]) -> list[str]:
    """Return a line for each set of tokens that only one side calls sinks, with all criteria that agree on it."""
    more: dict[tuple[int, ...], list[str]] = {}
    fewer: dict[tuple[int, ...], list[str]] = {}
    for name, mask in masks.items():
        for sets, difference in ((more, mask & ~masks[decided]), (fewer, masks[decided] & ~mask)):
            if difference.any():
                sets.setdefault(tuple(difference.nonzero()[:, 0].tolist()), []).append(name)
    lines = []
    for sinks, names in more.items():
        call = "call" if len(names) > 1 else "calls"
        lines.append(f"  {heading}: {listed(names)} {call} {_sinks(len(sinks), noun)} where {decided} does not")
    for sinks, names in fewer.items():
        do = "do" if len(names) > 1 else "does"
        lines.append(f"  {heading}: {decided} calls {_sinks(len(sinks), noun)} where {listed(names)} {do} not")
    return lines


def _sinks(number: int, noun: str) -> str:
    return f"{count(number, noun)} {'a sink' if number == 1 else 'sinks'}"
