"""Hidden states for probes: the mean of each group of visual tokens, at every place of the model, for every picture (paper, section 3.2).

A place is the input of an LLM layer ("0", "1", ...) or "encoder": the patch features before the projector, if they are available and each
patch belongs to a token. Groups are V-sinks, the layer's L-sinks, and the paper's ordinary tokens: a few of those that are sinks in no
layer, drawn at random and averaged, several times.

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
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sinkgate.data import Pictured
from sinkgate.data.identity import checksum, mark_of
from sinkgate.data.probe_example import Target
from sinkgate.errors import SinkgateError, with_remedy
from sinkgate.models.dimensions import sink_criteria
from sinkgate.models.vlm import VLM
from sinkgate.output import steps
from sinkgate.sinks.classify import Merged, Observation, SinkMasks, classify
from sinkgate.sinks.criteria import Choice, Criterion, SinkCriteria, reduction_of
from sinkgate.studies.base import OfModel
from sinkgate.studies.runner import chunks
from sinkgate.training.dataset import ImageSinks

Precision = Literal["float32", "float16"]
ENCODER = "encoder"
QUESTION = "Describe the picture."


@dataclass(frozen=True)
class Features(OfModel):
    """Study that runs the model and stores hidden states.

    Parts hold the table ``targets`` (a row for each picture: its number as ``sample``, and each target as JSON) and the tensors
    ``states``: place -> (n, G, D), NaN for a group that the picture does not have. In float32 they take 3.8 MB for each picture
    at the sizes of LLaVA-1.5-7B; float16 takes half, and states beyond its range raise an error.

    Args:
        vlm: the model.
        pictures: images with their targets.
        data: description of the pictures for the record.
        question: prompt text for all pictures. In most models it follows the image, so the states of visual tokens do not depend on
            it; L-sinks by attention do.
        layers: LLM layers to store; all if None. Ordinary tokens are sinks in no layer of the model, stored or not.
        v_sink: criterion of V-sinks, as in `sinkgate.find_sinks`.
        l_sink: criterion of L-sinks, likewise.
        merged: when a token of several patches is a V-sink, likewise.
        tokens: number of ordinary tokens to average (5 in the paper); a picture with fewer has none.
        draws: number of draws (5 in the paper).
        dtype: "float32" or "float16".
        seed: of the draws. A draw depends on it and on the picture's number alone.
        chunk: pictures in a unit of work.

    Raises:
        SinkgateError: an argument is wrong; in ``work``, a picture or the question cannot be used, or a state does not fit ``dtype``.

    Example:
        >>> features = run(Features(vlm, list(scene_facts(200))), "runs/features")
        >>> probes = run(Probes.of(features), "runs/probes")
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
        settings = {name: getattr(self, name) for name in names}
        marks = [[mark_of(each.image), _written(each.targets)] for each in self.pictures]
        return {**settings, **self.criteria.settings, "layers": self._layers, "pictures": checksum(marks)}

    @property
    def units(self) -> int:
        return chunks(len(self.pictures), self.chunk)

    @property
    def _layers(self) -> list[int]:
        return list(range(self.vlm.num_layers) if self.layers is None else self.layers)

    def work(self, unit: int) -> dict[str, pd.DataFrame | dict[str, Tensor]]:
        numbered = self.numbered(unit, self.pictures)
        pooled = [self._pooled(number, picture) for number, picture in steps(numbered, "pictures")]
        targets = [{"sample": number, **_written(picture.targets)} for number, picture in numbered]
        states = {place: torch.stack([each[place] for each in pooled]) for place in pooled[0]}
        return {
            "targets": pd.DataFrame(targets),
            "states": {place: self._stored(each) for place, each in states.items()},
        }

    def sinks(self, tables: Mapping[str, pd.DataFrame | dict[str, Tensor]]) -> list[ImageSinks]:
        """See `sinkgate.studies.runner.Study`."""
        states = cast(dict[str, Tensor], tables["states"])
        present = torch.stack([each[:, :2, 0].isfinite() for each in states.values()]).any(0)  # n, 2: V-sinks, L-sinks
        return [ImageSinks(*each) for each in present.int().tolist()]

    def _pooled(self, number: int, picture: Pictured) -> dict[str, Tensor]:
        """Return place -> (G, D) of one picture."""
        try:
            prompt = self.vlm.prompt(picture.image, self.question)
        except SinkgateError as error:
            raise SinkgateError(f"picture {number}: {error}") from error
        criteria = self.criteria
        observation = self.vlm.observe(prompt, reduction_of([criteria.l_sink.criterion]))
        if not observation.states.finite:
            raise SinkgateError(
                f"picture {number}: hidden states are not finite in {self.vlm.model.dtype}; load the model in float32 or bfloat16"
            )
        sinks = classify(observation, prompt.sheets, v_sink=criteria.v_sink, l_sink=criteria.l_sink, merged=self.merged)
        drawn = draw_ordinary(sinks, self.tokens, self.draws, f"{self.seed}/{number}")
        pooled = {}
        if (tokens := encoder_states(observation)) is not None:
            pooled[ENCODER] = _means(tokens, [sinks.v_sink, torch.zeros_like(sinks.v_sink), *drawn])
        groups = ([sinks.v_sink, l_sink, *drawn] for l_sink in sinks.l_sink)  # layer by layer
        visual = prompt.visual
        means = self.vlm.each_layer(prompt, lambda states: _means(states[visual].float().cpu(), next(groups)))
        return pooled | {str(layer): means[layer] for layer in self._layers}

    def _stored(self, states: Tensor) -> Tensor:
        stored = states.to(getattr(torch, self.dtype))
        if stored.isinf().any():
            largest = states.nan_to_num(0).abs().max()
            raise SinkgateError(f'a hidden state is {largest:.3g}, beyond the range of float16; use dtype="float32"')
        return stored


def draw_ordinary(sinks: SinkMasks, tokens: int, draws: int, seed: str) -> list[Tensor]:
    """Draw ``tokens`` visual tokens that are sinks in no layer, ``draws`` times; return empty draws if there are fewer."""
    ordinary = (~sinks.v_sink & ~sinks.l_sink.any(0)).nonzero()[:, 0].tolist()
    enough = len(ordinary) >= tokens
    drawn = [Random(f"{seed}/{draw}").sample(ordinary, tokens) if enough else [] for draw in range(draws)]
    return [torch.tensor(each, dtype=torch.long) for each in drawn]


def encoder_states(observation: Observation) -> Tensor | None:
    """Return the encoder's features of each visual token, averaged over its patches, (V, D); None if they are not available."""
    if observation.features is None or observation.token_of_patch is None:
        return None
    feeds = observation.token_of_patch >= 0
    token, features = observation.token_of_patch[feeds], observation.features[feeds]
    count = len(observation.visual)
    summed = torch.zeros(count, features.shape[1]).index_add(0, token, features)
    return summed / torch.bincount(token, minlength=count)[:, None]


def _means(tokens: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return the mean of (V, D) over each of G groups, given as masks or numbers: (G, D), NaN for an empty group."""
    return torch.stack([tokens[group].mean(0) for group in groups])


def _written(targets: Mapping[str, Target]) -> dict[str, str]:
    return {name: json.dumps(truth if isinstance(truth, str) else sorted(truth)) for name, truth in targets.items()}


# --- reading the results


def places_of(part: Path) -> list[str]:
    """Return the places whose states a part holds, in the order of the model."""
    with _opened(part) as states:
        return sorted(states.keys(), key=lambda place: -1 if place == ENCODER else int(place))


@contextmanager
def _opened(part: Path) -> Iterator[Any]:
    try:
        with safe_open(part / "states.safetensors", "np") as states:
            yield states
    except (OSError, SafetensorError) as error:
        remedy = "delete that folder and run again"
        raise SinkgateError(f"the states in {part} cannot be read: {with_remedy(error, remedy)}") from error


def read_states(parts: Sequence[Path], place: str) -> np.ndarray:
    """Return all pictures' states at one place, (G, n, D) float32, without reading the other places."""
    read = []
    for part in parts:
        with _opened(part) as states:
            read.append(np.ascontiguousarray(states.get_tensor(place).swapaxes(0, 1), dtype=np.float32))
    return np.concatenate(read, 1)


def read_targets(parts: Sequence[Path]) -> dict[str, list[str | list[str] | None]]:
    """Return the truth of each picture by target: a class, a list of labels, or None if it is unknown."""
    table = pd.concat([pd.read_parquet(part / "targets.parquet") for part in parts])
    return {
        str(name): [json.loads(each) if isinstance(each, str) else None for each in column]
        for name, column in table.items()
        if name != "sample"
    }
