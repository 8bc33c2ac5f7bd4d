"""Sink dimensions of a model, measured on several prompts, with evidence and confidence.

Dimensions do not transfer: not between models, and not even between two models with the same LLM (paper, section 1).
"None" is an answer; most models have none. Other pictures than those measured may show others.

Shapes: L LLM layers, P prompt positions, N patches, D and E channels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import transformers
from PIL import Image, ImageDraw

from sinkgate._version import __version__
from sinkgate.errors import SinkgateError
from sinkgate.models.base import BaseVLM
from sinkgate.models.prompts import Prompt, refuse_several
from sinkgate.sinks.classify import Observation, classify_patches, criterion
from sinkgate.sinks.criteria import Choice, Criterion, Signals, SinkCriteria, SinkDimensions, by_side, tau_for
from sinkgate.sinks.discovery import AUTO, Discovery, known_criterion
from sinkgate.sinks.evidence import RATIO, Evidence, combine, gather_evidence
from sinkgate.sinks.known_dimensions import Side
from sinkgate.sinks.states import Reduction

RULE = 4  # of ``gather_evidence`` and ``_measured``: results of an earlier rule are not taken from the cache
QUESTIONS = ("What is in the picture?", "How many objects are there?", "What color is the background?")
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def discover(vlm: BaseVLM, prompts: Prompt | Iterable[Prompt] | None = None, *, cache: bool = True) -> Discovery:
    """Measure the sink dimensions of a model on several prompts.

    All tokens are measured, since the text sink shows the LLM's dimensions best; ``find_sinks`` decides which visual tokens are
    sinks. Each prompt is reduced to a few numbers before the next one runs.

    Args:
        vlm: the model, run once unmodified for each prompt.
        prompts: one or several; twelve made-up pictures with plain questions where None, with which a confidence is 0.92 at most.
        cache: keep the result of the default prompts on disk (``cache_file``) and take it from there. Weights changed in
            memory after loading do not change the file: pass False for such a model.

    Raises:
        PromptError: something else than prompts is given.
        SinkgateError: no prompts, or hidden states that are not finite numbers.
    """
    file = cache_file(vlm) if cache and prompts is None else None
    if file and (cached := _read_cache(file)):
        return cached
    both = [_measured(vlm, prompt) for prompt in (default_prompts(vlm) if prompts is None else _each(prompts))]
    discovery = Discovery(
        model=vlm.name,
        revision=getattr(vlm.model.config, "_commit_hash", None),
        prompts=len(both),
        sinkgate=__version__,
        transformers=transformers.__version__,
        vision=combine(vision) if (vision := [evidence for evidence, _ in both if evidence]) else None,
        llm=combine([llm for _, llm in both]),
    )
    if file:
        _write_cache(file, discovery)
    return discovery


def _measured(vlm: BaseVLM, prompt: Prompt) -> tuple[Evidence | None, Evidence]:
    observation = vlm.observe(prompt, Reduction(ratio=RATIO))
    if not observation.states.finite:
        raise SinkgateError(
            f"{vlm.name}: hidden states are not finite in {vlm.model.dtype}; load it in float32 or bfloat16"
        )
    vision = None if observation.features is None else gather_evidence(observation.features[None])
    llm = observation.states.evidence()
    return vision and replace(vision, finds=_finds(observation, vision, "vision")), replace(
        llm, finds=_finds(observation, llm, "llm")
    )


def _finds(observation: Observation, evidence: Evidence, side: Side) -> dict[str, int]:
    """Return 1 for each criterion of ``AUTO`` that finds a sink on this side, else 0."""

    def has_sinks(name: str) -> bool:
        if name == "massive" and not evidence.dimensions:  # it needs dimensions of ten times the spike
            return False
        if side == "llm":
            return criterion(name)(Signals(observation.states, observation.visual, observation.attention)).has_sinks
        verdict = classify_patches(observation, len(observation.visual), name).verdict
        return verdict is not None and verdict.has_sinks

    return {name: int(has_sinks(name)) for name in AUTO}


# --- the criteria of a model


def sink_criteria(
    vlm: BaseVLM,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
    prompt: Prompt | None = None,
) -> SinkCriteria:
    """Resolve names of criteria for one model: they hold for all its images.

    Here "auto" and "dimensions" become criteria with all their arguments, for ``find_sinks`` and for the records of
    studies, gates and reports (``SinkCriteria.settings``).

    "auto" is decided once for each model and side, held in ``vlm.criteria``, and may find no sink in an image:
    see `sinkgate.sinks.discovery.Discovery.criterion` for the order. "dimensions", and ``SinkDimensions`` without ``dims``, take the model's dimensions:
    those known for it by its name, else those that ``discover`` measures on several prompts and keeps on disk by the weights.

    To decide on prompts of your own, set ``vlm.criteria = sg.discover(vlm, prompts).criteria``; to hold any other criteria,
    ``vlm.criteria = sg.sink_criteria(vlm, v_sink=..., l_sink=...)``. Weights changed in memory do not change the decision; to decide
    again, set ``criteria`` and ``discovery`` to None.

    Args:
        vlm: the model; its ``criteria`` and ``discovery`` are set where they are needed and None.
        v_sink: criterion of V-sinks, a name of ``CRITERIA`` or an object.
        l_sink: criterion of L-sinks.
        prompt: decides for a model that comes without a processor, so that no other prompts can be made.

    Raises:
        SinkgateError: no criterion has that name, or hidden states are not finite.

    Example:
        >>> import sinkgate as sg
        >>> vlm = sg.load("demo")
        >>> sg.sink_criteria(vlm, l_sink="norm").l_sink.criterion
        NormOutliers(times=2.0, threshold=None)
    """
    return SinkCriteria(
        _resolve(vlm, v_sink, "vision", prompt),
        _resolve(vlm, l_sink, "llm", prompt),
    )


def _resolve(vlm: BaseVLM, choice: str | Criterion | Choice, side: Side, prompt: Prompt | None) -> Choice:
    if isinstance(choice, Choice):
        return choice
    if isinstance(choice, str):
        choice = by_side(choice)[side == "llm"]
    if choice == "auto":
        with vlm.lock:
            if vlm.criteria is None:
                vlm.criteria = _known_criteria(vlm) or held_discovery(vlm, prompt).criteria
            return vlm.criteria.v_sink if side == "vision" else vlm.criteria.l_sink
    decide = criterion(choice)
    if not isinstance(decide, SinkDimensions):
        return Choice(decide)
    width = _width(vlm, side)
    if decide.dims is not None:
        dims, reason = decide.dims, ""
        outside = [each for each in dims if not 0 <= each < (width or math.inf)]
        if outside and side == "llm":  # the features of some encoders are several of its states side by side
            raise SinkgateError(
                f"there is no dimension {outside[0]} in the LLM of {vlm.name}: hidden states are {width} wide; give dimensions of this model, as `sinkgate dimensions` and sg.discover() find them"
            )
    elif known_choice := known_criterion(vlm.name, side, width):
        dims, reason = known_choice.dims, known_choice.reason
    else:
        discovery = held_discovery(vlm, prompt)
        dims, reason = discovery.dimensions(side), discovery.origin
    tau = tau_for(width) if isinstance(choice, str) and "tau" not in choice and width else decide.tau
    return Choice(replace(decide, dims=dims, tau=tau), reason if dims else "")


def _known_criteria(vlm: BaseVLM) -> SinkCriteria | None:
    """Return the paper's criterion on both sides where the model's dimensions are known for both: nothing has to run."""
    vision = known_criterion(vlm.name, "vision", _width(vlm, "vision"))
    llm = known_criterion(vlm.name, "llm", _width(vlm, "llm"))
    return SinkCriteria(vision, llm) if vision and llm else None


def _width(vlm: BaseVLM, side: Side) -> int | None:
    config = vlm.model.config
    return getattr(config.get_text_config() if side == "llm" else config.vision_config, "hidden_size", None)


def held_discovery(vlm: BaseVLM, prompt: Prompt | None = None) -> Discovery:
    """Return the discovery that is held for a model, run once; ``prompt`` serves a model that comes without a processor."""
    with vlm.lock:
        if vlm.discovery is None:
            vlm.discovery = discover(vlm, prompt if vlm.processor is None else None)
        return vlm.discovery


# --- prompts


def _each(prompts: Prompt | Iterable[Prompt]) -> Iterator[Prompt]:
    for prompt in prompts if isinstance(prompts, Iterable) else [prompts]:
        refuse_several(prompt, "discover")
        yield prompt


def default_prompts(vlm: BaseVLM) -> Iterator[Prompt]:
    """Yield twelve plain prompts, the same in every run: two of noise, ramps, greys and checkerboards, and four drawings."""
    for index, picture in enumerate(chain(_pictures(0), _pictures(1))):
        yield vlm.prompt(picture, QUESTIONS[index % len(QUESTIONS)])


def _pictures(variant: Literal[0, 1], side: int = 336) -> Iterator[Image.Image]:
    rng = np.random.default_rng(variant)
    ramp = np.linspace(0, 255, side, dtype=np.uint8)[:: (1, -1)[variant]]
    board = ((np.indices((side, side)) // (side // (8, 16)[variant])).sum(0) % 2 * 255).astype(np.uint8)
    yield Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    yield Image.fromarray(
        np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], side), np.full((side, side), 90, np.uint8)], -1)
    )
    yield Image.new("L", (side, side), (128, 250)[variant]).convert("RGB")
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


def cache_file(vlm: BaseVLM) -> Path | None:
    """Return the file that caches the discovery of a model; None where its weights cannot be identified.

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


def _read_cache(file: Path) -> Discovery | None:
    with suppress(OSError, SinkgateError, UnicodeDecodeError):  # missing or broken: measured again, and replaced
        return Discovery.from_json(file.read_text(encoding="utf-8"))
    return None


def _write_cache(file: Path, discovery: Discovery) -> None:
    part = file.with_name(f".{file.name}.{uuid4().hex}")  # renamed when complete, so that no one reads half a file
    with suppress(OSError):  # a folder that cannot be written only makes the next run measure again
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(discovery.to_json() + "\n", encoding="utf-8")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
