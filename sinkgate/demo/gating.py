"""What gates do to right answers: accuracy by kind at every layer and scale, and the headroom above the plain model.

Accuracies are shares in [0, 1]. Shapes: B scenes, T tokens of a packed row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sinkgate.attention.patch import attached
from sinkgate.demo.batches import PATCHES, Packed, pack
from sinkgate.demo.scoring import Asked, KindScore, by_kind, dialogues, right_answers
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.sinks.classify import SinkMap
from sinkgate.sinks.gates import Gates, Group

SCALES = (0.0, 0.25, 0.5, 1.5, 2.0)  # 1 is the plain model
GROUPS: tuple[Group, ...] = ("v_sink", "rest")


@dataclass(frozen=True)
class Setting:
    """One group's Key scale in one layer, all other scales one."""

    group: Group
    layer: int
    scale: float

    def gates(self, vlm: VLM) -> Gates:
        """The setting as a table of gates.

        Raises:
            GateError: the model has no such layer, or the scale is out of range.
        """
        return Gates.ones(vlm).set(self.group, self.scale, [self.layer])


def settings(layers: int) -> list[Setting]:
    """Every group, layer and scale of the card's table."""
    return [Setting(*choice) for choice in product(GROUPS, range(layers), SCALES)]


@dataclass(frozen=True)
class Batch:
    """Packed scenes with the encoder's output and their sinks, ready to run under any gates.

    Shapes: data and sinks B; packed (B, T); image B projected images of (PATCHES, LLM width). Without sinks no gates can run.
    """

    data: list[Asked]
    packed: Packed
    image: BaseModelOutputWithPooling
    sinks: list[SinkMap]


def batches(vlm: VLM, data: list[Asked], size: int = 32, sinks: bool = True) -> list[Batch]:
    """Encode the images once, ``size`` at a time, and find their sinks by the default criteria, unless no gates will run."""
    made = []
    for start in tqdm(range(0, len(data), size), desc="images"):
        chunk = data[start : start + size]
        pictures = [scene.render() for scene, _ in chunk]
        values = vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            image = vlm.model.model.get_image_features(values.to(vlm.device, vlm.model.dtype), return_dict=True)
        first = [(picture, asked[0].question) for picture, (_, asked) in zip(pictures, chunk, strict=True) if sinks]
        packed = pack(dialogues(chunk), vlm.tokenizer, vlm.model.dtype)
        made.append(Batch(chunk, packed, image, [find_sinks(vlm, vlm.prompt(*pair)) for pair in first]))
    return made


def accuracy(vlm: VLM, made: Iterable[Batch], gates: Gates | None = None) -> dict[str, KindScore]:
    """Accuracy of greedy answers by kind, plain or under gates that treat L-sinks and ordinary tokens alike.

    L-sinks depend on the question, and sinks were found with the first one of each image.

    Raises:
        GateError: the gates do not fit this model.
    """
    data: list[Asked] = []
    right: list[list[bool]] = []
    for batch in made:
        data += batch.data
        right += right_answers(_logits(vlm, batch, gates), batch.packed)
    return by_kind(data, right)


def sweep(vlm: VLM, made: list[Batch], chosen: Iterable[Setting]) -> Iterator[tuple[Setting, dict[str, float]]]:
    """Accuracy by kind under each setting, as soon as it is measured.

    Raises:
        GateError: as ``Setting.gates``.
    """
    for setting in tqdm(list(chosen), desc="settings"):
        scores = accuracy(vlm, made, setting.gates(vlm))
        yield setting, {kind: score.accuracy for kind, score in scores.items()}


def _logits(vlm: VLM, batch: Batch, gates: Gates | None) -> Tensor:
    """Shapes: (B, T, vocabulary)."""
    packed, scales = batch.packed, None
    if gates is not None:
        table, visual, length = gates.for_model(vlm), torch.arange(PATCHES), packed.input_ids.shape[1]
        rows = [table.key_scales(sinks, visual, length) for sinks in batch.sinks]  # B of (L, 1, T)
        scales = torch.cat(rows, 1).to(vlm.device)
    with vlm.lock, torch.no_grad(), attached(vlm.attention, decoder=vlm.decoder, key_scales=scales):
        return vlm.model(
            input_ids=packed.input_ids.to(vlm.device),
            mm_encoder_outputs={"image": batch.image},
            attention_mask=packed.attention_mask.to(vlm.device),
            position_ids=packed.position_ids.to(vlm.device),
            use_cache=False,
        ).logits
