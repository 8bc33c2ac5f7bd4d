"""Hidden states for probes: the mean of each group of visual tokens, at every place of the model, for every picture (paper, section 3.2).

A place is the input of an LLM layer ("0", "1", ...) or "encoder": the patch features before the projector, where they can be looked into
and each patch belongs to a token. Groups are V-sinks, the layer's L-sinks, and the paper's ordinary tokens: those that are sinks at no
layer, a few of them drawn and averaged, several times over.

Shapes: n pictures, G = 2 + draws groups (V-sinks, L-sinks, draws of ordinary tokens), D width, V visual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sinkgate.data import Pictured
from sinkgate.data.probe_example import Target
from sinkgate.errors import SinkgateError
from sinkgate.models.dimensions import sink_criteria
from sinkgate.models.vlm import VLM
from sinkgate.sinks.classify import Merged, Observation, SinkMasks, classify
from sinkgate.sinks.criteria import Choice, Criterion, SinkCriteria, reduction_of
from sinkgate.studies.provenance import checksum, facts_of, mark_of
from sinkgate.studies.runner import chunks

Precision = Literal["float32", "float16"]
ENCODER = "encoder"
QUESTION = "Describe the picture."


@dataclass(frozen=True)
class Features:
    """The study that runs the model.

    Parts hold the table ``targets`` (a row a picture: its number as ``sample``, and each target as JSON) and the tensors
    ``states``: place -> (n, G, D), NaN for a group that the picture does not have. In float32 they take 3.8 MB a picture
    at the sizes of LLaVA-1.5-7B; float16 takes half, and refuses states beyond its range.

    Args:
        vlm: the model.
        pictures: what it is shown, with their targets.
        data: what the pictures are, in words.
        question: what is asked of all of them. It stands behind the image in most models, and then the states of visual tokens do
            not depend on it; what attention calls an L-sink does.
        layers: LLM layers whose inputs are kept; None is all. Ordinary tokens are sinks at no layer at all.
        v_sink: criterion of V-sinks, as in `sinkgate.find_sinks`.
        l_sink: criterion of L-sinks, likewise.
        merged: when a token of several patches is a V-sink, likewise.
        tokens: how many ordinary tokens are averaged (5 in the paper); a picture that has fewer goes without.
        draws: how often they are drawn (5 in the paper).
        dtype: "float32" or "float16".
        seed: of the draws. A draw depends on it and on the picture's number alone.
        chunk: pictures in a unit of work.

    Raises:
        SinkgateError: an argument is wrong; in the work, a picture or the question cannot be used, or a state does not fit ``dtype``.
    """

    vlm: VLM
    pictures: Sequence[Pictured]
    data: dict[str, Any] = field(default_factory=dict)
    question: str = QUESTION
    layers: Sequence[int] | None = None
    v_sink: str | Criterion | Choice = "auto"
    l_sink: str | Criterion | Choice = "auto"
    merged: Merged = "any"
    tokens: int = 5
    draws: int = 5
    dtype: Precision = "float32"
    seed: int = 0
    chunk: int = 8
    kind: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        for name in ("tokens", "draws", "chunk"):
            if getattr(self, name) < 1:
                raise SinkgateError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if wrong := [layer for layer in self._layers if not 0 <= layer < self.vlm.num_layers]:
            raise SinkgateError(
                f"there is no layer {wrong[0]}; {self.vlm.name} has {self.vlm.num_layers}, counted from 0"
            )
        if self.dtype not in get_args(Precision):
            raise SinkgateError(f"dtype is {self.dtype!r}; expected {' or '.join(get_args(Precision))}")

    @cached_property
    def criteria(self) -> SinkCriteria:
        """The criteria of sinks, the same for every picture."""
        return sink_criteria(self.vlm, v_sink=self.v_sink, l_sink=self.l_sink)

    @property
    def settings(self) -> dict[str, Any]:
        names = ("question", "merged", "tokens", "draws", "dtype", "seed", "chunk")
        values = {name: getattr(self, name) for name in names}
        told = {name: value if isinstance(value, str | int) else repr(value) for name, value in values.items()}
        marks = [[mark_of(each.image), _written(each.targets)] for each in self.pictures]
        return {**told, **self.criteria.settings, "layers": self._layers, "pictures": checksum(marks)}

    @property
    def model(self) -> dict[str, Any]:
        return facts_of(self.vlm)

    @property
    def units(self) -> int:
        return chunks(len(self.pictures), self.chunk)

    @property
    def _layers(self) -> list[int]:
        return list(range(self.vlm.num_layers) if self.layers is None else self.layers)

    def work(self, unit: int) -> dict[str, pd.DataFrame | dict[str, Tensor]]:
        first = unit * self.chunk
        chunk = dict(enumerate(self.pictures[first : first + self.chunk], first))
        pooled = [self._pooled(number, picture) for number, picture in chunk.items()]
        told = [{"sample": number, **_written(picture.targets)} for number, picture in chunk.items()]
        states = {place: torch.stack([each[place] for each in pooled]) for place in pooled[0]}
        return {"targets": pd.DataFrame(told), "states": {place: self._stored(each) for place, each in states.items()}}

    def _pooled(self, number: int, picture: Pictured) -> dict[str, Tensor]:
        """Place -> (G, D) of one picture."""
        try:
            prompt = self.vlm.prompt(picture.image, self.question)
        except SinkgateError as error:
            raise SinkgateError(f"picture {number}: {error}") from error
        held = self.criteria
        seen = self.vlm.observe(prompt, reduction_of([held.l_sink.criterion]))
        if not seen.states.finite:
            raise SinkgateError(
                f"picture {number}: hidden states are not finite in {self.vlm.model.dtype}; load the model in float32 or bfloat16"
            )
        sinks = classify(seen, prompt.sheets, v_sink=held.v_sink, l_sink=held.l_sink, merged=self.merged)
        drawn = draw_ordinary(sinks, self.tokens, self.draws, f"{self.seed}/{number}")
        pooled = {}
        if (tokens := encoder_states(seen)) is not None:
            pooled[ENCODER] = _means(tokens, [sinks.v_sink, torch.zeros_like(sinks.v_sink), *drawn])
        groups = ([sinks.v_sink, l_sink, *drawn] for l_sink in sinks.l_sink)  # layer by layer
        visual = prompt.visual
        means = self.vlm.each_layer(prompt, lambda states: _means(states[visual].float().cpu(), next(groups)))
        return pooled | {str(layer): means[layer] for layer in self._layers}

    def _stored(self, states: Tensor) -> Tensor:
        stored = states.to(getattr(torch, self.dtype))
        if stored.isinf().any():
            largest = states.nan_to_num(0).abs().max()
            raise SinkgateError(f'a hidden state is {largest:.3g}, which float16 does not hold; use dtype="float32"')
        return stored


def draw_ordinary(sinks: SinkMasks, tokens: int, draws: int, seed: str) -> list[Tensor]:
    """``draws`` times the numbers of ``tokens`` visual tokens that are sinks at no layer; empty where there are not so many."""
    ordinary = (~sinks.v_sink & ~sinks.l_sink.any(0)).nonzero()[:, 0].tolist()
    enough = len(ordinary) >= tokens
    drawn = [Random(f"{seed}/{draw}").sample(ordinary, tokens) if enough else [] for draw in range(draws)]
    return [torch.tensor(each, dtype=torch.long) for each in drawn]


def encoder_states(seen: Observation) -> Tensor | None:
    """The encoder's features of each visual token, its patches averaged, (V, D); None where they cannot be told."""
    if seen.features is None or seen.token_of_patch is None:
        return None
    feeds = seen.token_of_patch >= 0
    token, features = seen.token_of_patch[feeds], seen.features[feeds]
    count = len(seen.visual)
    summed = torch.zeros(count, features.shape[1]).index_add(0, token, features)
    return summed / torch.bincount(token, minlength=count)[:, None]


def _means(tokens: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """(V, D) and G groups, as masks or numbers -> (G, D); NaN for an empty one."""
    return torch.stack([tokens[group].mean(0) for group in groups])


def _written(targets: Mapping[str, Target]) -> dict[str, str]:
    return {name: json.dumps(truth if isinstance(truth, str) else sorted(truth)) for name, truth in targets.items()}


# --- reading them again


def places_of(part: Path) -> list[str]:
    """Where a part holds states, in the order of the model."""
    with _opened(part) as states:
        return sorted(states.keys(), key=lambda place: -1 if place == ENCODER else int(place))


@contextmanager
def _opened(part: Path) -> Iterator[Any]:
    try:
        with safe_open(part / "states.safetensors", "np") as states:
            yield states
    except (OSError, SafetensorError) as error:
        raise SinkgateError(
            f"the states in {part} cannot be read ({error}); delete that folder and run again"
        ) from error


def read_states(parts: Sequence[Path], place: str) -> np.ndarray:
    """All pictures' states at one place, (G, n, D) float32; the other places stay on the disk."""
    read = []
    for part in parts:
        with _opened(part) as states:
            read.append(np.ascontiguousarray(states.get_tensor(place).swapaxes(0, 1), dtype=np.float32))
    return np.concatenate(read, 1)


def read_targets(parts: Sequence[Path]) -> dict[str, list[str | list[str] | None]]:
    """What is true of each picture, by target: a class, the labels that are present, or None where it is not known."""
    told = pd.concat([pd.read_parquet(part / "targets.parquet") for part in parts])
    return {
        str(name): [json.loads(each) if isinstance(each, str) else None for each in column]
        for name, column in told.items()
        if name != "sample"
    }
