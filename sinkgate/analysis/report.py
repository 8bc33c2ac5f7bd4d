"""What every criterion says about one prompt, side by side and in plain words: for a reader without the paper at hand.

Shapes: L LLM layers, V visual tokens, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkgate.analysis.dimensions import Discovery, discover
from sinkgate.models.vlm import VLM, Prompt
from sinkgate.sinks.classify import SinkMap, classify, ranges
from sinkgate.sinks.criteria import (
    CRITERIA,
    AttentionShare,
    Criterion,
    MassiveActivations,
    NormOutliers,
    SinkDimensions,
)

_MEANING = {
    MassiveActivations.name: f"one channel spikes to {MassiveActivations.ratio:.0f} times the layer's median, and to {MassiveActivations.minimum:.0f}",
    NormOutliers.name: f"the vector is {NormOutliers.times:.0f} times as long as the median one",
    AttentionShare.name: f"it receives {AttentionShare.times:.0f} times the median attention",
    SinkDimensions.name: f"a sink dimension reaches {SinkDimensions.tau:.0f} times the token's own RMS",
}
_INTRODUCTION = (
    "An attention sink draws far more attention than its share. V-sinks leave the vision encoder as sinks;"
    " L-sinks become sinks inside the LLM, layer by layer."
)


@dataclass(frozen=True)
class Report:
    """The verdicts of all criteria on one prompt; ``str`` tells them.

    Shapes: vision (N,) by criterion name, over the patches that feed tokens, empty where the encoder cannot be looked
    into; llm (L, V) by criterion name, V-sinks counted too. "sink dimensions" is missing where the model has none.
    ``sinks``: by the default criteria.
    """

    question: str
    sinks: SinkMap
    vision: dict[str, Tensor]
    llm: dict[str, Tensor]
    discovery: Discovery

    def __str__(self) -> str:
        found, tokens = self.sinks, len(self.sinks.v_sink)
        asked = f', asked "{self.question}"' if self.question else ""
        lines = [
            f"Attention sinks in {self.discovery.model}{asked} ({tokens} visual tokens, {len(found.l_sink)} LLM layers)",
            "",
            _INTRODUCTION,
            "",
            found.summary(),
        ]
        if AttentionShare.name in _decided(found):
            lines.append("Where attention alone decides, a token may be looked at for what it shows, and be no sink.")
        lines += ["", "Criterion by criterion, V-sinks counted in the LLM too:"]
        for name, meaning in _MEANING.items():
            lines += [f"  {name}: {meaning}", f"    encoder: {self._patches(name)}; LLM: {self._tokens(name)}"]
        lines += ["", "Where they disagree:", *(self._disagreements() or ["  nowhere"])]
        return "\n".join([*lines, "", self.discovery.summary()])

    def _patches(self, name: str) -> str:
        if not self.vision:
            return "cannot be looked into"
        if name not in self.vision:
            return "has no sink dimensions"
        mask = self.vision[name]
        return f"{int(mask.sum()) or 'none'} of {len(mask)} patches"

    def _tokens(self, name: str) -> str:
        if name not in self.llm:
            return "has no sink dimensions"
        mask = self.llm[name]
        layers = mask.any(1).nonzero()[:, 0].tolist()
        where = f", in layers {ranges(layers)}" if layers else ""
        return f"{int(mask.any(0).sum()) or 'none'} of {mask.shape[1]} visual tokens{where}"

    def _disagreements(self) -> list[str]:
        """The other criteria against the one that decided: in the encoder by patch, in the LLM by token in any layer."""
        lines = []
        if self.sinks.v_verdict:
            lines += _compare("encoder", "patch", self.sinks.v_verdict.criterion, self.vision)
        in_any_layer = {name: mask.any(0) for name, mask in self.llm.items()}
        return lines + _compare("LLM", "visual token", self.sinks.l_verdict.criterion, in_any_layer)


def report(vlm: VLM, prompt: Prompt, discovery: Discovery | None = None) -> Report:
    """All criteria on one prompt; the model runs once for it.

    Args:
        vlm: the model.
        prompt: image and question.
        discovery: the model's sink dimensions; ``discover(vlm)`` where None, which runs six prompts unless it has them on disk.

    Raises:
        SinkgateError: as ``discover``.
    """
    discovery = discovery or discover(vlm)
    seen = vlm.observe(prompt)
    criteria: list[tuple[Criterion, Criterion]] = [
        (CRITERIA[name], CRITERIA[name]) for name in ("massive", "norm", "attention")
    ]
    criteria.append((SinkDimensions(discovery.dimensions("vision")), SinkDimensions(discovery.dimensions("llm"))))
    vision: dict[str, Tensor] = {}
    llm: dict[str, Tensor] = {}
    for v_sink, l_sink in criteria:
        found = classify(seen, prompt.sheets, v_sink=v_sink, l_sink=l_sink)
        if found.v_verdict and v_sink != SinkDimensions(()):
            vision[v_sink.name] = found.v_verdict.mask[0]
        if l_sink != SinkDimensions(()):
            llm[l_sink.name] = found.l_verdict.mask
    return Report(prompt.question, classify(seen, prompt.sheets), vision, llm, discovery)


def _decided(found: SinkMap) -> set[str]:
    """The criteria that named any sink."""
    return {verdict.criterion for verdict in (found.v_verdict, found.l_verdict) if verdict and verdict.found}


def _compare(place: str, thing: str, decided: str, masks: dict[str, Tensor]) -> list[str]:
    """A line for each set of tokens that is called sinks on one side only, with all criteria that agree on it."""
    more: dict[tuple[int, ...], list[str]] = {}
    fewer: dict[tuple[int, ...], list[str]] = {}
    for name, mask in masks.items():
        for sets, difference in ((more, mask & ~masks[decided]), (fewer, masks[decided] & ~mask)):
            if difference.any():
                sets.setdefault(tuple(difference.nonzero()[:, 0].tolist()), []).append(name)
    lines = []
    for sinks, names in more.items():
        call = "call" if len(names) > 1 else "calls"
        lines.append(f"  {place}: {_listed(names)} {call} {_sinks(len(sinks), thing)} where {decided} does not")
    for sinks, names in fewer.items():
        do = "do" if len(names) > 1 else "does"
        lines.append(f"  {place}: {decided} calls {_sinks(len(sinks), thing)} where {_listed(names)} {do} not")
    return lines


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _sinks(number: int, thing: str) -> str:
    return f"1 {thing} a sink" if number == 1 else f"{number} {thing}{'es' if thing == 'patch' else 's'} sinks"
