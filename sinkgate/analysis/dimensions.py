"""The sink dimensions of a model, found on the model itself: on several prompts, with evidence and confidence.

Dimensions do not transfer: not between models, and not even between two models with the same LLM (paper, section 1).
"None" is an answer; most models have none. Not known here: what a model would show on other pictures than these.

Shapes: L LLM layers, P prompt positions, N patches, D and E channels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
import transformers
from PIL import Image, ImageDraw

from sinkgate._version import __version__
from sinkgate.errors import SinkgateError
from sinkgate.models.vlm import VLM, Prompt
from sinkgate.sinks.classify import ranges
from sinkgate.sinks.criteria import (
    AGREE,
    DOMINANT,
    RATIO,
    SHARP,
    DimensionEvidence,
    Evidence,
    confidence,
    gather_evidence,
)
from sinkgate.sinks.known_dimensions import SIDES, Side

FORMAT = "sinkgate-dimensions"
VERSION = 1
RULE = 2  # of ``gather_evidence``: results of an earlier rule are not taken from the cache
HIGH, FAIR = 0.7, 0.4  # of confidence; ours
QUESTIONS = ("What is in the picture?", "How many objects are there?", "What color is the background?")
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


@dataclass(frozen=True)
class Discovery:
    """What was found on both sides of a model, and on what: enough to say it again, or to see that it is out of date.

    ``vision`` is None where the encoder cannot be looked into; ``revision`` is the commit on the Hub, None for local weights.
    """

    model: str
    revision: str | None
    prompts: int
    sinkgate: str
    transformers: str
    vision: Evidence | None
    llm: Evidence

    def dimensions(self, side: Side, at_least: float = FAIR) -> tuple[int, ...]:
        """Sink dimensions for ``SinkDimensions``, surest first; ``at_least`` is a confidence in [0, 1], 0.4 by our choice."""
        found = self.vision if side == "vision" else self.llm
        return tuple(e.dimension for e in found.dimensions if e.confidence >= at_least) if found else ()

    def summary(self) -> str:
        """A sentence for each dimension, or why there is none, in plain words."""
        lines = [f"Sink dimensions of {self.model}, measured on {_count(self.prompts, 'prompt')}:"]
        lines += (
            ["The vision encoder cannot be looked into."] if self.vision is None else self._side("vision", self.vision)
        )
        return "\n".join(lines + self._side("llm", self.llm))

    def _side(self, side: Side, found: Evidence) -> list[str]:
        if not found.dimensions:
            return [f"The {SIDES[side]} has no sink dimensions: {_why_none(found.loudest)}."]
        return [f"The {SIDES[side]} spikes in {_describe(e, self.prompts, side)}." for e in found.dimensions]

    def to_json(self) -> str:
        """The discovery as JSON text; ``from_json`` reads it back."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Discovery:
        """Read what ``to_json`` wrote.

        Raises:
            SinkgateError: no JSON, another format or version, or a field that is missing, unknown or out of range.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SinkgateError(
                f"sink dimensions: this is no JSON ({error}); write it with Discovery.to_json()"
            ) from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise SinkgateError(
                f'sink dimensions are a JSON object with "format": "{FORMAT}"; write one with Discovery.to_json()'
            )
        if (version := content.pop("version", None)) != VERSION:
            raise SinkgateError(
                f"sink dimensions: format version {version!r}, expected {VERSION}; measure again with discover()"
            )
        _check(cls, content, "sink dimensions")
        vision = None if content["vision"] is None else _read_evidence(content["vision"], "vision")
        return cls(**{**content, "vision": vision, "llm": _read_evidence(content["llm"], "llm")})


def discover(vlm: VLM, prompts: Prompt | Iterable[Prompt] | None = None, *, cache: bool = True) -> Discovery:
    """Look for the sink dimensions of a model on several prompts.

    All tokens are looked at, since the text sink shows the LLM's dimensions best; which visual tokens are sinks is
    another question (see ``find_sinks``). Each prompt is reduced to a few numbers before the next one runs.

    Args:
        vlm: the model, run once unmodified for each prompt.
        prompts: one or several; six made-up pictures with plain questions where None.
        cache: keep the result of the default prompts on disk (``cache_file``) and take it from there. Weights changed in
            memory after loading are not noticed: say False for such a model.

    Raises:
        SinkgateError: no prompts, or hidden states that are not finite numbers.
    """
    place = cache_file(vlm) if cache and prompts is None else None
    if place and (kept := _read_cache(place)):
        return kept
    both = [_look(vlm, prompt) for prompt in (default_prompts(vlm) if prompts is None else listed(prompts))]
    from sinkgate import __version__

    found = Discovery(
        model=vlm.name,
        revision=getattr(vlm.model.config, "_commit_hash", None),
        prompts=len(both),
        sinkgate=__version__,
        transformers=transformers.__version__,
        vision=combine(vision) if (vision := [seen for seen, _ in both if seen]) else None,
        llm=combine([llm for _, llm in both]),
    )
    if place:
        _write_cache(place, found)
    return found


def _look(vlm: VLM, prompt: Prompt) -> tuple[Evidence | None, Evidence]:
    seen = vlm.observe(prompt)
    if not seen.hidden.isfinite().all():
        raise SinkgateError(
            f"{vlm.name}: hidden states are not finite in {vlm.model.dtype}; load it in float32 or bfloat16"
        )
    vision = None if seen.features is None else gather_evidence(seen.features[None])
    return vision, gather_evidence(seen.hidden)


def combine(evidence: Sequence[Evidence]) -> Evidence:
    """The evidence of several prompts as one: medians over the prompts that show a dimension, layers that half of them show.

    With ``gather_evidence`` this is discovery on hidden states of any origin, no model needed:
    ``combine([gather_evidence(hidden) for hidden in ...])``, each hidden (L, P, D).

    Raises:
        SinkgateError: no prompts.
    """
    if not evidence:
        raise SinkgateError("no prompts to look at; give at least one, several for a confidence worth the name")
    by_dimension: dict[int, list[DimensionEvidence]] = {}
    for one in evidence:
        for found in one.dimensions:
            by_dimension.setdefault(found.dimension, []).append(found)
    joined = [_join(found, len(evidence)) for found in by_dimension.values()]
    joined.sort(key=lambda found: (-found.confidence, -found.ratio))
    return Evidence(tuple(joined), max((one.loudest for one in evidence), key=lambda loudest: loudest.ratio))


def _join(shown: list[DimensionEvidence], prompts: int) -> DimensionEvidence:
    times = Counter(layer for one in shown for layer in one.layers)
    ratio = median(one.ratio for one in shown)
    return replace(
        shown[0],
        ratio=ratio,
        sharpness=median(one.sharpness for one in shown),
        distinctiveness=median(one.distinctiveness for one in shown),
        layers=tuple(layer for layer in sorted(times) if 2 * times[layer] >= len(shown)),
        share=median(one.share for one in shown),
        prompts=len(shown),
        confidence=confidence(ratio, len(shown), prompts),
        dominance=median(one.dominance or 0.0 for one in shown),
        agreement=median(one.agreement or 0.0 for one in shown),
        first=2 * sum(bool(one.first) for one in shown) >= len(shown),
    )


# --- prompts


def default_prompts(vlm: VLM) -> Iterator[Prompt]:
    """Six plain prompts, one at a time, the same in every run: noise, a ramp, one grey, a checkerboard and two drawings."""
    for index, picture in enumerate(_pictures()):
        yield vlm.prompt(picture, QUESTIONS[index % len(QUESTIONS)])


def _pictures(side: int = 336) -> Iterator[Image.Image]:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    board = np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((side // 8, side // 8))).astype(np.uint8)
    yield Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    yield Image.fromarray(
        np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], side), np.full((side, side), 90, np.uint8)], -1)
    )
    yield Image.new("RGB", (side, side), (128, 128, 128))
    yield Image.fromarray(board).convert("RGB")
    for sky, ground in (((150, 190, 235), (70, 130, 60)), ((245, 245, 240), (225, 220, 210))):
        drawing = Image.new("RGB", (side, side), sky)
        draw = ImageDraw.Draw(drawing)
        draw.rectangle((0, side * 2 // 3, side, side), fill=ground)
        for _ in range(5):
            x, y, size = (int(value) for value in rng.integers((10, 60, 25), (side - 90, side - 100, 80)))
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x, y, x + size, y + size), fill=tuple(int(part) for part in rng.integers(0, 256, 3)))
        yield drawing


# --- cache


def cache_file(vlm: VLM) -> Path | None:
    """Where the discovery of a model is kept; None where nothing says which weights it has.

    The folder is SINKGATE_CACHE, else sinkgate/ in XDG_CACHE_HOME, else ~/.cache/sinkgate. A model is known by its
    name with its commit on the Hub, or by its folder with the sizes and times of the weight files in it.
    """
    config = vlm.model.config
    name, revision = config._name_or_path, getattr(config, "_commit_hash", None)
    files = sorted(file for file in Path(name).glob("*") if file.suffix in WEIGHTS) if name else []
    if not name or not (revision or files):
        return None
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([RULE, __version__, name, revision, stats]).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinkgate"
    folder = Path(os.environ.get("SINKGATE_CACHE") or base)
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', vlm.name)[-60:]}-{key}.json"


def _read_cache(place: Path) -> Discovery | None:
    with suppress(OSError, SinkgateError, UnicodeDecodeError):  # missing or broken: measured again, and replaced
        return Discovery.from_json(place.read_text(encoding="utf-8"))
    return None


def _write_cache(place: Path, found: Discovery) -> None:
    part = place.with_name(f".{place.name}.{uuid4().hex}")  # renamed when complete: no reader sees half a file
    with suppress(OSError):  # a folder that cannot be written costs the next run a measurement, nothing else
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(found.to_json() + "\n", encoding="utf-8")
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)


# --- JSON


_IS: dict[str, Any] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int and value >= 0,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
    "tuple[int, ...]": lambda value: isinstance(value, list) and all(_IS["int"](one) for one in value),
    "tuple[DimensionEvidence, ...]": lambda value: isinstance(value, list),
    "str | None": lambda value: value is None or isinstance(value, str),
    "float | None": lambda value: value is None or _IS["float"](value),
    "bool | None": lambda value: value is None or isinstance(value, bool),
    "Evidence | None": lambda value: value is None or isinstance(value, dict),
}


def _check(kind: Any, content: Any, where: str) -> None:
    """Whether these are the fields of a dataclass, each of its type; an object inside is checked when it is read."""
    if not isinstance(content, dict):
        raise SinkgateError(f"{where}: got {content!r}, expected an object")
    types = {field.name: str(field.type) for field in fields(kind)}
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    if odd := sorted((types.keys() - optional - content.keys()) | (content.keys() - types.keys())):
        raise SinkgateError(
            f"{where}: {'unknown' if odd[0] in content else 'missing'} field {odd[0]!r}; expected {', '.join(types)}"
        )
    for name, expected in types.items():
        if name in content and expected in _IS and not _IS[expected](content[name]):
            raise SinkgateError(
                f"{where}: {name} is {content[name]!r}; expected {expected}, numbers finite and at least 0"
            )


def _read_evidence(content: Any, where: str) -> Evidence:
    _check(Evidence, content, where)
    found = [_read_dimension(one, f"{where}: dimensions") for one in content["dimensions"]]
    return Evidence(tuple(found), _read_dimension(content["loudest"], f"{where}: loudest"))


def _read_dimension(content: Any, where: str) -> DimensionEvidence:
    _check(DimensionEvidence, content, where)
    for name in ("share", "confidence", "dominance", "agreement"):
        if (content.get(name) or 0) > 1:
            raise SinkgateError(f"{where}: {name} is {content[name]!r}; expected a number from 0 to 1")
    return DimensionEvidence(**{**content, "layers": tuple(content["layers"])})


# --- words


def _describe(found: DimensionEvidence, prompts: int, side: Side) -> str:
    level = "high" if found.confidence >= HIGH else "fair" if found.confidence >= FAIR else "low"
    layers = ranges(list(found.layers))
    where = f", at the input of layer{'s' * (len(found.layers) > 1)} {layers}" if side == "llm" else ""
    also = ", the first of the sequence among them" if found.first else ""
    return (
        f"dimension {found.dimension}, confidence {found.confidence:.2f} ({level}): {found.ratio:,.0f} x the layer's median"
        f" in {found.prompts} of {_count(prompts, 'prompt')}{where}; {found.share:.1%} of the tokens carry it{also}"
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


def listed(prompts: Prompt | Iterable[Prompt]) -> Iterable[Prompt]:
    """Return one or several prompts as several."""
    return [prompts] if isinstance(prompts, Prompt) else prompts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
