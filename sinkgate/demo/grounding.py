"""Grounding of noun phrases: a training objective on the language model's hidden states.

At each noun of a question, linear classifiers on the trained layers' states predict how many objects match the phrase and, if one does, its
shape, color, size, row and column. Comparing and counting then start from hidden states that hold their operands. The classifiers are not
part of the trained model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from sinkgate.demo.batches import GRID, IGNORED, TurnMix
from sinkgate.demo.objectives import Answerer, Run, Tower
from sinkgate.scenes.questions import plural
from sinkgate.scenes.scene import COLORS, MAX_OBJECTS, SHAPES, SIZES, Scene, SceneObject

CLASSES = (MAX_OBJECTS + 1, len(SHAPES), len(COLORS), len(SIZES), GRID, GRID)
_CLASS_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)
GROUNDING_WEIGHT = 0.15  # weight of the classifiers' loss; the loss on answers has 1

_PLURALS = {plural(shape): shape for shape in SHAPES}
_GENERIC = {"object", "objects", "thing", "things", "shapes"}


def noun_phrases(words: list[str], scene: Scene) -> Iterator[tuple[int, list[SceneObject]]]:
    """Yield each noun's index among a question's words, and the objects that it matches with the adjectives before it.

    Example:
        ``[(i, len(fitting)) for i, fitting in noun_phrases("how many red circles are there".split(), scene)]``
    """
    for index, word in enumerate(words):
        shape = _PLURALS.get(word, word if word in SHAPES else None)
        if shape is None and word not in _GENERIC:
            continue
        adjectives = takewhile(lambda before: before in COLORS or before in SIZES, reversed(words[:index]))
        attributes = {*adjectives, *([shape] if shape else [])}
        yield index, [item for item in scene.objects if attributes <= {item.size, item.color, item.shape}]


def phrase_classes(fitting: list[SceneObject]) -> tuple[int, ...]:
    """Return the classes of ``CLASSES`` for the objects that match a phrase; all but the first are ``IGNORED`` unless one object does."""
    if len(fitting) != 1:
        return (len(fitting), *[IGNORED] * (len(CLASSES) - 1))
    (item,) = fitting
    row, column = (min(GRID - 1, int(value * GRID)) for value in (item.y, item.x))
    return 1, SHAPES.index(item.shape), list(COLORS).index(item.color), list(SIZES).index(item.size), row, column


class ReadOut(nn.Module):
    """Linear classifiers of a noun's hidden state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, sum(CLASSES))

    def forward(self, states: Tensor, truth: Tensor) -> tuple[Tensor, list[float]]:
        """Return the loss and each class's accuracy; shapes (nouns, width), (nouns, 6) with ``IGNORED`` for no truth."""
        loss, accuracies = states.new_zeros((), dtype=torch.float32), []
        guesses = self.classes(self.norm(states)).float().split(CLASSES, -1)
        for guess, target, weight in zip(guesses, truth.unbind(-1), _CLASS_WEIGHTS, strict=True):
            labelled = target != IGNORED
            if labelled.any():
                loss = loss + weight * F.cross_entropy(guess[labelled], target[labelled])
                accuracies.append((guess.argmax(-1) == target)[labelled].float().mean().item())
        return loss, accuracies


class GroundedAnswerer(Answerer):
    """``Answerer`` with classifiers after each layer from ``first_trained`` on, except the last."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tower: Tower,
        tokenizer: PreTrainedTokenizerFast,
        mix: TurnMix,
        first_trained: int,
    ) -> None:
        super().__init__(model, tower, tokenizer, mix)
        text: Any = model.config.text_config
        self.layers = range(first_trained, text.num_hidden_layers - 1)
        self.readouts = nn.ModuleList(ReadOut(text.hidden_size) for _ in self.layers)
        self.words = {index: word for word, index in tokenizer.get_vocab().items()}

    def objective(self, run: Run) -> tuple[Tensor, dict[str, float]]:
        """Return the loss on answers and on phrases, and the accuracies of both."""
        loss, accuracies = super().objective(run)
        nouns, truth = self._phrases(run)
        device = loss.device
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            phrase_loss, phrase = readout(run.states[layer + 1][nouns.unbind(-1)], truth.to(device))
            loss = loss + GROUNDING_WEIGHT * phrase_loss
            accuracies[f"phrase_{layer}"] = sum(phrase) / len(phrase)
        return loss, accuracies

    def _phrases(self, run: Run) -> tuple[Tensor, Tensor]:
        """Return row and column of each noun, (nouns, 2), and its classes, (nouns, 6)."""
        nouns, truth = [], []
        segments = run.packed.segments
        in_question = (segments > 0) & (segments <= run.questions)
        for row, (scene, ids) in enumerate(zip(run.scenes, run.packed.input_ids.tolist(), strict=True)):
            words = [self.words[i] if inside else "" for i, inside in zip(ids, in_question[row].tolist(), strict=True)]
            for column, fitting in noun_phrases(words, scene):
                nouns.append((row, column))
                truth.append(phrase_classes(fitting))
        return torch.tensor(nouns), torch.tensor(truth)
