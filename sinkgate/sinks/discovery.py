"""Record of a model's sink dimensions: evidence for both sides, as JSON and in words."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, cast

from sinkgate.errors import SinkgateError
from sinkgate.sinks.criteria import CRITERIA, Choice, SinkCriteria, SinkDimensions, tau_for
from sinkgate.sinks.evidence import AGREE, DOMINANT, RATIO, SHARP, DimensionEvidence, Evidence
from sinkgate.sinks.known_dimensions import SIDES, Side, known
from sinkgate.sinks.words import count, layers

AUTO = ("massive", "norm", "attention")  # tried in this order where a side has no sink dimensions; chosen by us
FORMAT = "sinkgate-dimensions"
VERSION = 1
HIGH, FAIR = 0.7, 0.4  # of confidence; defaults chosen by us


def known_criterion(model: str, side: Side, width: int | None) -> Choice | None:
    """Return the paper's criterion with the dimensions known for a model of this name; None where none are, or its states are too narrow."""
    try:
        dims = known(model, side)
    except SinkgateError:
        return None
    if width is None or max(dims) >= width:
        return None
    return Choice(SinkDimensions(dims, tau_for(width)), f"known for {model}")


@dataclass(frozen=True)
class Discovery:
    """Evidence for both sides of a model, with the model, prompts and versions that it was measured with.

    ``vision`` is None where the encoder cannot be observed; ``revision`` is the commit on the Hub, None for local weights.
    """

    model: str
    revision: str | None
    prompts: int
    sinkgate: str
    transformers: str
    vision: Evidence | None
    llm: Evidence

    def side(self, side: Side) -> Evidence | None:
        """Return the evidence for one side; None where the encoder cannot be observed."""
        return self.vision if side == "vision" else self.llm

    def dimensions(self, side: Side, at_least: float = FAIR) -> tuple[int, ...]:
        """Return sink dimensions for ``SinkDimensions``, surest first; ``at_least`` is a confidence in [0, 1], 0.4 is chosen by us."""
        evidence = self.side(side)
        return tuple(e.dimension for e in evidence.dimensions if e.confidence >= at_least) if evidence else ()

    def criterion(self, side: Side) -> Choice:
        """Choose the criterion that decides on the sinks of one side of the model, for all images.

        The paper's, with the sink dimensions known for the model by its name, else with those measured here, where their
        spikes reach tau; else the first of ``AUTO`` that finds a sink in at least half of the prompts; else the last of them.
        """
        evidence = self.side(side)
        if evidence is None:
            return Choice(CRITERIA[AUTO[-1]])
        if choice := known_criterion(self.model, side, evidence.width) or self._measured(side, evidence):
            return choice
        tried = [SinkDimensions.name]
        for name in AUTO[:-1]:
            if 2 * (evidence.finds or {}).get(name, 0) >= self.prompts:
                return Choice(CRITERIA[name], tried=tuple(tried))
            tried.append(CRITERIA[name].name)
        return Choice(CRITERIA[AUTO[-1]], tried=tuple(tried))

    @property
    def origin(self) -> str:
        """Origin of the dimensions, in words."""
        return f"discovered on {count(self.prompts, 'prompt')}"

    @property
    def criteria(self) -> SinkCriteria:
        """The criteria of both sides, as ``criterion`` decides them."""
        return SinkCriteria(self.criterion("vision"), self.criterion("llm"))

    def _measured(self, side: Side, evidence: Evidence) -> Choice | None:
        dims = self.dimensions(side)
        if not dims or evidence.width is None:
            return None
        tau = tau_for(evidence.width)
        filled = [1.0 if e.dominance is None else e.dominance for e in evidence.dimensions if e.dimension in dims]
        if max(filled) * evidence.width < tau**2:  # |h[d]| / RMS(h) at the spike is the root of the left side
            return None
        return Choice(SinkDimensions(dims, tau), self.origin)

    def summary(self) -> str:
        """Return a sentence for each dimension, or why there is none."""
        lines = [f"Sink dimensions of {self.model}, measured on {count(self.prompts, 'prompt')}:"]
        lines += (
            ["The vision encoder cannot be looked into."] if self.vision is None else self._side("vision", self.vision)
        )
        return "\n".join(lines + self._side("llm", self.llm))

    def _side(self, side: Side, evidence: Evidence) -> list[str]:
        if not evidence.dimensions:
            return [f"The {SIDES[side]} has no sink dimensions: {_why_none(evidence.loudest)}."]
        return [f"The {SIDES[side]} spikes in {_describe(e, self.prompts, side)}." for e in evidence.dimensions]

    def to_json(self) -> str:
        """Return the discovery as JSON text, which ``from_json`` reads."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Discovery:
        """Read what ``to_json`` wrote.

        Raises:
            SinkgateError: no JSON, another format or version, or a field that is missing, unknown or out of range.
        """
        try:
            read: Any = json.loads(text)
        except ValueError as error:
            raise SinkgateError(
                f"sink dimensions: this is no JSON ({error}); write it with Discovery.to_json()"
            ) from error
        content = cast(dict[str, Any], read) if isinstance(read, dict) else {}
        if content.pop("format", None) != FORMAT:
            raise SinkgateError(
                f'sink dimensions are a JSON object with "format": "{FORMAT}"; write one with Discovery.to_json()'
            )
        if (version := content.pop("version", None)) != VERSION:
            raise SinkgateError(
                f"sink dimensions: format version {version!r}, expected {VERSION}; measure again with discover()"
            )
        _check(cls, content, "sink dimensions")
        if content["vision"] is not None:
            content["vision"] = _read_evidence(content["vision"], "vision")
        content["llm"] = _read_evidence(content["llm"], "llm")
        return cls(**content)


# --- JSON


def _fits(value: Any, expected: str) -> bool:
    """Return whether a value is of a field's type; nested objects are checked when they are read."""
    if expected.endswith(" | None"):
        return value is None or _fits(value, expected.removesuffix(" | None"))
    if expected == "float":
        return type(value) in (int, float) and math.isfinite(value) and value >= 0
    if expected == "int":
        return type(value) is int and value >= 0
    if expected == "tuple[int, ...]":
        return isinstance(value, list) and all(_fits(each, "int") for each in cast(list[Any], value))
    if expected == "dict[str, int]":
        return isinstance(value, dict) and all(_fits(each, "int") for each in cast(dict[str, Any], value).values())
    return isinstance(value, {"str": str, "bool": bool, "tuple[DimensionEvidence, ...]": list}.get(expected, object))


def _check(kind: Any, content: Any, where: str) -> None:
    """Raise SinkgateError unless these are the fields of a dataclass, each of its type; nested objects are checked when they are read."""
    if not isinstance(content, dict):
        raise SinkgateError(f"{where}: got {content!r}, expected an object")
    content = cast(dict[str, Any], content)
    types = {field.name: str(field.type) for field in fields(kind)}
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    if odd := sorted((types.keys() - optional - content.keys()) | (content.keys() - types.keys())):
        raise SinkgateError(
            f"{where}: {'unknown' if odd[0] in content else 'missing'} field {odd[0]!r}; expected {', '.join(types)}"
        )
    for name, expected in types.items():
        if name in content and not _fits(content[name], expected):
            raise SinkgateError(
                f"{where}: {name} is {content[name]!r}; expected {expected}, numbers finite and at least 0"
            )


def _read_evidence(content: Any, where: str) -> Evidence:
    _check(Evidence, content, where)
    content["dimensions"] = tuple(_read_dimension(one, f"{where}: dimensions") for one in content["dimensions"])
    content["loudest"] = _read_dimension(content["loudest"], f"{where}: loudest")
    return Evidence(**content)


def _read_dimension(content: Any, where: str) -> DimensionEvidence:
    _check(DimensionEvidence, content, where)
    for name in ("share", "confidence", "dominance", "agreement"):
        if (content.get(name) or 0) > 1:
            raise SinkgateError(f"{where}: {name} is {content[name]!r}; expected a number from 0 to 1")
    content["layers"] = tuple(content["layers"])
    return DimensionEvidence(**content)


# --- words


def _describe(evidence: DimensionEvidence, prompts: int, side: Side) -> str:
    level = "high" if evidence.confidence >= HIGH else "fair" if evidence.confidence >= FAIR else "low"
    where = f", at the input of {layers(list(evidence.layers))}" if side == "llm" else ""
    also = ", the first of the sequence among them" if evidence.first else ""
    return (
        f"dimension {evidence.dimension}, confidence {evidence.confidence:.2f} ({level}): {evidence.ratio:,.0f} x the layer's median"
        f" in {evidence.prompts} of {count(prompts, 'prompt')}{where}; {evidence.share:.1%} of the tokens carry it{also}"
    )


def _why_none(loudest: DimensionEvidence) -> str:
    reaches = f"the loudest channel ({loudest.dimension}) reaches {loudest.ratio:,.0f} x the layer's median"
    if loudest.ratio < RATIO:
        return f"{reaches}, {RATIO:.0f} x would be needed"
    if loudest.sharpness < SHARP:
        return f"{reaches}, but its token is loud in every channel, only {loudest.sharpness:.0f} x its own median there"
    if loudest.dominance is not None and loudest.dominance < DOMINANT:
        return f"{reaches}, but holds {loudest.dominance:.1%} of its token's squared norm: it rides along with others"
    if loudest.agreement is not None and loudest.agreement < AGREE:
        return f"{reaches}, but tokens loud in it have both signs ({loudest.agreement:.0%} agree): it carries content"
    return f"{reaches}, but {loudest.share:.0%} of the tokens are about as loud in it: it carries content"
