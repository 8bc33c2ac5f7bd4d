"""What gates do to right answers: accuracy by kind at every layer and scale, and the headroom above the plain model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from sinkgate.attention import attached
from sinkgate.demo.batches import PATCHES, Packed, pack
from sinkgate.demo.scoring import Asked, KindScore, by_kind, dialogues, right_answers
from sinkgate.gates import Gates, Group
from sinkgate.vlm import VLM, find_sinks

SCALES = (0.0, 0.25, 0.5, 1.5, 2.0)  # 1 is the plain model
GROUPS: tuple[Group, ...] = ("v_sink", "rest")


@dataclass(frozen=True)
class Setting:
    """One group's Key scale in one layer, all other scales one."""

    group: Group
    layer: int
    scale: float

    def gates(self, vlm: VLM) -> Gates:
        """The setting as a table of gates."""
        return Gates.ones(vlm).set(self.group, self.scale, [self.layer])


def settings(layers: int) -> list[Setting]:
    """Every group, layer and scale of the card's table."""
    return [Setting(*choice) for choice in product(GROUPS, range(layers), SCALES)]


@dataclass(frozen=True)
class Batch:
    """Packed scenes with their projected images and V-sinks, ready to run under any gates.

    Shapes: image the encoder's output; v_sink (B, PATCHES) boolean.
    """

    data: list[Asked]
    packed: Packed
    image: object
    v_sink: Tensor


def batches(vlm: VLM, data: list[Asked], size: int = 32, sinks: bool = True) -> list[Batch]:
    """Encode the images once and find their V-sinks by the default criteria, unless no gates will run."""
    made = []
    for start in tqdm(range(0, len(data), size), desc="images"):
        chunk = data[start : start + size]
        pictures = [scene.render() for scene, _ in chunk]
        values = vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            image = vlm.model.model.get_image_features(values.to(vlm.device, vlm.model.dtype), return_dict=True)
        v_sink = torch.zeros(len(chunk), PATCHES, dtype=torch.bool)
        for row, (picture, (_, asked)) in enumerate(zip(pictures, chunk, strict=True)):
            if sinks:
                v_sink[row] = find_sinks(vlm, vlm.prompt(picture, asked[0].question)).v_sink
        packed = pack(dialogues(chunk), vlm.tokenizer, vlm.model.dtype)
        made.append(Batch(chunk, packed, image, v_sink))
    return made


def accuracy(vlm: VLM, made: Iterable[Batch], gates: Gates | None = None) -> dict[str, KindScore]:
    """Accuracy of greedy answers by kind under gates that treat L-sinks and ordinary tokens alike."""
    data: list[Asked] = []
    right: list[list[bool]] = []
    for batch in made:
        data += batch.data
        right += right_answers(_logits(vlm, batch, gates), batch.packed)
    return by_kind(data, right)


def sweep(vlm: VLM, made: list[Batch], chosen: Iterable[Setting]) -> Iterator[tuple[Setting, dict[str, float]]]:
    """Accuracy by kind under each setting."""
    for setting in tqdm(list(chosen), desc="settings"):
        scores = accuracy(vlm, made, setting.gates(vlm))
        yield setting, {kind: score.accuracy for kind, score in scores.items()}


def _logits(vlm: VLM, batch: Batch, gates: Gates | None) -> Tensor:
    packed = batch.packed
    scales = None
    if gates is not None and not gates.is_identity:
        v_sink, _, rest = gates.scales.unbind(-1)  # (L,) each
        scales = torch.ones(len(gates.scales), *packed.input_ids.shape)
        scales[:, :, :PATCHES] = torch.where(batch.v_sink, v_sink[:, None, None], rest[:, None, None])
        scales = scales.to(vlm.device)
    with vlm.lock, torch.no_grad(), attached(vlm.attention, decoder=vlm.decoder, key_scales=scales):
        return vlm.model(
            input_ids=packed.input_ids.to(vlm.device),
            mm_encoder_outputs={"image": batch.image},
            attention_mask=packed.attention_mask.to(vlm.device),
            position_ids=packed.position_ids.to(vlm.device),
            use_cache=False,
        ).logits
