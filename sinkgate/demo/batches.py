"""Training batches of the demo world, drawn on the fly: pure functions of (seed, stage, step).

Nothing is stored and no scene is used twice. A resumed run draws the same scenes as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from random import Random
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from sinkgate.demo.build import ASSISTANT, END, IMAGE, IMAGE_SIZE, PAD, PATCH_SIZE, PATCHES, USER, token_id
from sinkgate.models.batch import IGNORED
from sinkgate.scenes.questions import DESCRIBE, KINDS, Question, ask, describe, line_up
from sinkgate.scenes.scene import BACKGROUNDS, COLORS, MAX_OBJECTS, SHAPES, SIZES, Scene

GRID = IMAGE_SIZE // PATCH_SIZE


@dataclass(frozen=True)
class TurnMix:
    """The turns after each image, and the weights of their tokens in the loss.

    Attributes:
        questions: questions after each image, at least 1.
        kinds: relative frequency of each kind of question; 1.5 for kinds left out.
        long_turns: long answers after the questions: "both" for a description and a line-up of the objects for every
            image; "seldom" for one of them in a third of the batches, in place of as many questions as have its length.
        long_weight: weight of a token of a long answer; a token of a question's answer has 1.
        question_weight: weight of the mean loss on the words of questions; the loss on answers has 1.
        tower_weight: weight of the tower's loss.
    """

    questions: int = 6
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {
            "count": 1,
            "majority_color": 1,
            "background": 0.5,
            "colors": 0.7,
            "shapes": 1,
            "relation": 4,
        }
    )
    long_turns: Literal["both", "seldom"] = "both"
    long_weight: float = 1.0
    question_weight: float = 0.2  # so that positions without an answer are trained, too
    tower_weight: float = 0.2


def scenes_for(stream: str, count: int) -> tuple[list[Scene], Random]:
    """Return ``count`` scenes of a named stream, and the stream's generator for further draws."""
    rng = Random(stream)
    return [Scene.random(rng) for _ in range(count)], rng


def pixels(scenes: list[Scene], rng: Random | None = None) -> Tensor:
    """Return normalised pixels of scenes, with slight changes of light and noise if ``rng`` is given.

    Shapes: scenes B -> (B, 3, IMAGE_SIZE, IMAGE_SIZE), in [-1, 1] as the image processor makes them.
    """
    side = (IMAGE_SIZE, IMAGE_SIZE)
    drawn = [scene.render(2 * IMAGE_SIZE).resize(side, Image.Resampling.BICUBIC) for scene in scenes]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).permute(0, 3, 1, 2) / 127.5 - 1
    if rng is None:
        return values
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    gain = 1 + 0.06 * torch.randn(len(scenes), 1, 1, 1, generator=generator)
    return (values * gain + 0.02 * torch.randn(values.shape, generator=generator)).clamp(-1, 1)


@dataclass(frozen=True)
class Targets:
    """Targets of the vision tower for each scene and each patch.

    Shapes: count (B), background (B), color_counts (B, colours), pairs (B, colours * shapes) in {0, 1};
    patches (B, PATCHES, 5): shape, colour and size under the patch (last class: none), its row, its column.
    """

    count: Tensor
    background: Tensor
    color_counts: Tensor
    pairs: Tensor
    patches: Tensor

    def to(self, device: torch.device) -> Targets:
        """Return the targets on a device."""
        return Targets(*(getattr(self, field.name).to(device) for field in fields(self)))


SCENE_CLASSES = (MAX_OBJECTS + 1, len(BACKGROUNDS), len(COLORS) * (MAX_OBJECTS + 1), len(COLORS) * len(SHAPES))
PATCH_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, GRID, GRID)


def tower_targets(scenes: list[Scene]) -> Targets:
    """Return the content of scenes as classes."""
    pairs = list(product(COLORS, SHAPES))
    present = [{(item.color, item.shape) for item in scene.objects} for scene in scenes]
    return Targets(
        count=torch.tensor([len(scene.objects) for scene in scenes]),
        background=torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes]),
        color_counts=torch.tensor(
            [[sum(item.color == color for item in scene.objects) for color in COLORS] for scene in scenes]
        ),
        pairs=torch.tensor([[float(pair in of_scene) for pair in pairs] for of_scene in present]),
        patches=torch.tensor([_patch_classes(scene) for scene in scenes]),
    )


def _patch_classes(scene: Scene) -> list[tuple[int, ...]]:
    classes = []
    for row, column in product(range(GRID), range(GRID)):
        under = next((o for o in scene.objects if o.covers((column + 0.5) / GRID, (row + 0.5) / GRID)), None)
        if under:
            item = (SHAPES.index(under.shape), list(COLORS).index(under.color), list(SIZES).index(under.size))
        else:
            item = (len(SHAPES), len(COLORS), len(SIZES))
        classes.append((*item, row, column))
    return classes


@dataclass(frozen=True)
class Packed:
    """Images, each followed by several independent turns.

    Shapes: input_ids, labels, question_labels, position_ids, segments (B, T); attention_mask (B, 1, T, T) additive.
    ``labels`` are on answers only, ``question_labels`` on the rest of each turn but its first token. Segment 0 is
    the image, 1 the first turn and so on, -1 padding. A turn attends to the image and to itself only, and has the positions that it would
    have alone, so one packed row equals as many single prompts.
    """

    input_ids: Tensor
    labels: Tensor
    question_labels: Tensor
    position_ids: Tensor
    segments: Tensor
    attention_mask: Tensor

    def narrowed(self, turns: list[list[bool]], visible: Tensor) -> Tensor:
        """Return the attention mask in which some turns attend to the ``visible`` patches only.

        Shapes: turns, for each image one flag a turn, turns without a flag attend to all; visible (B, PATCHES) boolean.
        """
        numbers = [torch.tensor([i + 1 for i, narrow in enumerate(flags) if narrow]) for flags in turns]
        rows = torch.stack([torch.isin(segment, few) for segment, few in zip(self.segments, numbers, strict=True)])
        unseen = torch.zeros_like(self.segments, dtype=torch.bool)
        unseen[:, :PATCHES] = ~visible
        blocked = (rows[:, :, None] & unseen[:, None, :])[:, None]
        return self.attention_mask.masked_fill(blocked, torch.finfo(self.attention_mask.dtype).min)


def draw_questions(scene: Scene, rng: Random, count: int, frequencies: Mapping[str, float]) -> list[Question]:
    """Draw ``count`` questions, kinds by relative frequency (see ``TurnMix.kinds``)."""
    kinds = list(KINDS)
    weights = [frequencies.get(kind, 1.5) for kind in kinds]
    drawn: list[Question] = []
    while len(drawn) < count:
        question = ask(scene, rng.choices(kinds, weights)[0], rng)
        if question:
            drawn.append(question)
    return drawn


def _description(scene: Scene, rng: Random) -> tuple[str, str]:
    return rng.choice(DESCRIBE), describe(scene)


# Each with the number of questions of about the same length.
_LONG_TURNS: tuple[tuple[Callable[[Scene, Random], tuple[str, str]], int], ...] = ((_description, 5), (line_up, 2))


def draw_turns(
    scenes: list[Scene], rng: Random, mix: TurnMix
) -> tuple[list[list[Question]], list[list[tuple[str, str]]]]:
    """Draw the questions about each scene, and all its turns: those questions first, then the long turns.

    Example:
        ``questions, dialogues = draw_turns(scenes, Random(0), TurnMix())``
    """
    count, long_turns = mix.questions, _LONG_TURNS
    if mix.long_turns == "seldom":
        long_turns = (rng.choice(_LONG_TURNS),) if rng.random() < 1 / 3 else ()
        count = max(1, count - sum(length for _, length in long_turns))
    questions = [draw_questions(scene, rng, count, mix.kinds) for scene in scenes]
    return questions, [
        [(q.question, q.answer) for q in few] + [turn(scene, rng) for turn, _ in long_turns]
        for scene, few in zip(scenes, questions, strict=True)
    ]


def pack(dialogues: list[list[tuple[str, str]]], tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> Packed:
    """Put the turns of each image after its visual tokens; only answers have labels."""
    prompts = [f"{USER}{question}{ASSISTANT}" for turns in dialogues for question, _ in turns]
    answers = [f"{answer}{END}" for turns in dialogues for _, answer in turns]
    ids_of = (tokenizer(texts, add_special_tokens=False).input_ids for texts in (prompts, answers))
    encoded = iter(zip(*ids_of, strict=True))
    image = token_id(tokenizer, IMAGE)
    rows = []
    for turns_ in dialogues:
        ids, labels, segments, positions = [image] * PATCHES, [IGNORED] * PATCHES, [0] * PATCHES, list(range(PATCHES))
        for segment, (question, answer) in zip(range(1, len(turns_) + 1), encoded, strict=False):
            turn = question + answer
            ids += turn
            labels += [IGNORED] * len(question) + answer
            segments += [segment] * len(turn)
            positions += range(PATCHES, PATCHES + len(turn))
        rows.append((ids, labels, segments, positions))
    length = max(len(ids) for ids, *_ in rows)

    def padded(column: int, fill: int) -> Tensor:
        return torch.tensor([row[column] + [fill] * (length - len(row[column])) for row in rows])

    segments = padded(2, -1)
    same = segments[:, :, None] == segments[:, None, :]
    visible = (same | (segments[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    input_ids, labels = padded(0, token_id(tokenizer, PAD)), padded(1, IGNORED)
    inside = nn.functional.pad(segments[:, 1:] == segments[:, :-1], (1, 0)) & (segments > 0)
    question_labels = input_ids.where(inside & (labels == IGNORED), IGNORED)
    return Packed(input_ids, labels, question_labels, padded(3, 0), segments, mask[:, None])
