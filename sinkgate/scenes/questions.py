"""Questions about scenes: kinds with paraphrases and ground truth.

*Global* kinds need an overview of the whole picture, *local* kinds the detail of one place: the paper
reports that sinks help the former and hurt the latter (section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from sinkgate.scenes.scene import COLORS, SHAPES, SIZES, Scene, SceneObject

Scope = Literal["global", "local"]
QuestionAndAnswer = tuple[str, str] | None  # None if the scene does not allow the kind
Ask = Callable[[Scene, Random], QuestionAndAnswer]

_APART = 0.16  # least distance along an axis for left-of, above, ...


@dataclass(frozen=True)
class Question:
    """A question about one scene with its only correct answer."""

    question: str
    answer: str
    kind: str
    scope: Scope


@dataclass(frozen=True)
class Kind:
    """A kind of question. ``ask`` returns a question about a scene, or None if the scene has no single answer."""

    name: str
    scope: Scope
    ask: Ask


def ask(scene: Scene, kind: str, rng: Random) -> Question | None:
    """Return a question of one kind about a scene; None if the scene does not allow the kind."""
    pair = KINDS[kind].ask(scene, rng)
    return pair and Question(*pair, kind, KINDS[kind].scope)


def ask_all(scene: Scene, rng: Random) -> list[Question]:
    """Return one question of every kind that the scene allows."""
    questions = (ask(scene, kind, rng) for kind in KINDS)
    return [question for question in questions if question]


def describe(scene: Scene) -> str:
    """Describe the scene in words, objects in reading order: by rows of the picture, then from left to right.

    Every object is said to be in a corner, even one on a midline of an edited scene (where ``SceneObject.in_corner`` is false),
    since the demo model was trained on such texts.
    """
    ordered = sorted(scene.objects, key=lambda item: (item.y >= 0.5, item.x >= 0.5, item.x))
    parts = [f"a {item.size} {item.color} {item.shape} at the {item.place}" for item in ordered]
    return " and ".join(parts) + f" on a {scene.background} background"


DESCRIBE = ("Describe the scene.", "Describe the picture.", "What do you see?", "What is in the picture?")


def line_up(scene: Scene, rng: Random) -> tuple[str, str]:
    """Return a request to list the objects along an axis, and its answer. It trains the meaning of left-of and above."""
    words, axis = rng.choice((("from left to right", "x"), ("from top to bottom", "y")))
    request = rng.choice(("Name the objects {}.", "List the objects {}.", "What are the objects {}?"))
    ordered = sorted(scene.objects, key=lambda item: getattr(item, axis))
    return request.format(words), " and ".join(f"{item.size} {item.color} {item.shape}" for item in ordered)


def majority_color(scene: Scene) -> str | None:
    """Return the most frequent color; None if two colors tie."""
    (color, most), *others = Counter(item.color for item in scene.objects).most_common()
    return None if others and others[0][1] == most else color


def _asked(answer: Callable[[Scene], str | None], *texts: str) -> Ask:
    """Build a question about the whole scene; None where it has no answer."""

    def ask(scene: Scene, rng: Random) -> QuestionAndAnswer:
        reply = answer(scene)
        return None if reply is None else (rng.choice(texts), reply)

    return ask


def _which(attribute: str, names: Iterable[str], *texts: str) -> Ask:
    """Build a question for the names that some object has; the answer lists them in the order of the names."""

    def ask(scene: Scene, rng: Random) -> QuestionAndAnswer:
        present = {getattr(item, attribute) for item in scene.objects}
        return rng.choice(texts), " and ".join(name for name in names if name in present)

    return ask


def _of_object(attribute: str, named_by: tuple[str, ...], *texts: str) -> Ask:
    """Build a question for an attribute of an object that the other attributes name."""

    def ask(scene: Scene, rng: Random) -> QuestionAndAnswer:
        reference = _refer(scene, rng, named_by)
        return reference and (rng.choice(texts).format(reference[1]), getattr(reference[0], attribute))

    return ask


def _number(attribute: str, names: Iterable[str], plural: Callable[[str], str], *texts: str) -> Ask:
    """Build a question for the number of objects of a colour or shape, for the most part one that is there."""

    def ask(scene: Scene, rng: Random) -> QuestionAndAnswer:
        counts = Counter(getattr(item, attribute) for item in scene.objects)
        name = rng.choice(list(counts if rng.random() < 0.75 else names))
        return rng.choice(texts).format(plural(name)), str(counts[name])

    return ask


def _place(scene: Scene, rng: Random) -> QuestionAndAnswer:
    reference = _refer(scene, rng, ("size", "color", "shape"))
    if not reference or not reference[0].in_corner:
        return None
    item, name = reference
    text = rng.choice(("Where is the {}?", "In which corner is the {}?", "Which part of the picture is the {} in?"))
    return text.format(name), item.place


def _relation(scene: Scene, rng: Random) -> QuestionAndAnswer:
    words, axis, sign = rng.choice((
        ("left of", "x", 1), ("to the left of", "x", 1), ("right of", "x", -1), ("to the right of", "x", -1), ("above", "y", 1), ("below", "y", -1),
    ))  # fmt: skip
    either = rng.random() < 0.5
    pairs = [(a, b) for a in scene.objects for b in scene.objects if abs(getattr(a, axis) - getattr(b, axis)) >= _APART]
    rng.shuffle(pairs)
    for a, b in pairs:
        first, second = _name(scene, a, rng), _name(scene, b, rng)
        if first and second:
            before = getattr(a, axis) < getattr(b, axis)
            if either and axis == "x":
                return f"Is the {first} left or right of the {second}?", "left" if before else "right"
            if either:
                return f"Is the {first} above or below the {second}?", "above" if before else "below"
            true = before == (sign > 0)
            return f"Is the {first} {words} the {second}?", "yes" if true else "no"
    return None


def _presence(scene: Scene, rng: Random) -> QuestionAndAnswer:
    present = {(item.color, item.shape) for item in scene.objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(present))
    else:  # half of the absent pairs share a colour or a shape with an object: the case that needs binding
        absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
        near = [(c, s) for c, s in absent if any(c == x or s == y for x, y in present)]
        color, shape = rng.choice(near if rng.random() < 0.5 else absent)
    text = rng.choice(("Is there a {}?", "Is there any {}?", "Can you see a {}?", "Does the picture contain a {}?"))
    return text.format(f"{color} {shape}"), "yes" if (color, shape) in present else "no"


def plural(shape: str) -> str:
    """Return the name of several objects of a shape."""
    return "crosses" if shape == "cross" else f"{shape}s"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("count", "global", _asked(
            lambda scene: str(len(scene.objects)),
            "How many objects are there?", "How many things are in the picture?", "How many shapes can you see?",
            "Count the objects.", "What is the number of objects?",
        )),
        Kind("majority_color", "global", _asked(
            majority_color,
            "What is the most common color?", "Which color appears most often?", "What color are most of the objects?",
            "Which color is the most frequent?",
        )),
        Kind("background", "global", _asked(
            lambda scene: scene.background,
            "What color is the background?", "What is the color of the background?", "Which color is behind the objects?",
            "What is the background color?",
        )),
        Kind("colors", "global", _which(
            "color", COLORS,
            "Which colors are there?", "What colors do the objects have?", "Which colors can you see?",
            "Name the colors of the objects.",
        )),
        Kind("shapes", "global", _which(
            "shape", SHAPES,
            "Which shapes are there?", "What shapes are in the picture?", "Which shapes can you see?", "Name the shapes.",
        )),
        Kind("count_color", "local", _number(
            "color", COLORS, str,
            "How many {} objects are there?", "How many {} things can you see?", "Count the {} objects.",
            "How many {} shapes are in the picture?",
        )),
        Kind("count_shape", "local", _number(
            "shape", SHAPES, plural,
            "How many {} are there?", "How many {} can you see?", "Count the {}.", "What is the number of {}?",
        )),
        Kind("presence", "local", _presence),
        Kind("color", "local", _of_object(
            "color", ("size", "shape"),
            "What color is the {}?", "Which color is the {}?", "What is the color of the {}?", "Tell me the color of the {}.",
        )),
        Kind("shape", "local", _of_object(
            "shape", ("size", "color"),
            "What shape is the {}?", "Which shape is the {}?", "What is the shape of the {}?", "What is the {}?",
        )),
        Kind("size", "local", _of_object(
            "size", ("color", "shape"),
            "What size is the {}?", "How big is the {}?", "Is the {} small or large?", "What is the size of the {}?",
        )),
        Kind("place", "local", _place),
        Kind("relation", "local", _relation),
    )
}  # fmt: skip


def _refer(scene: Scene, rng: Random, attributes: tuple[str, ...]) -> tuple[SceneObject, str] | None:
    """Choose an object that attributes identify uniquely, and a phrase that does so."""
    items = list(scene.objects)
    rng.shuffle(items)
    for item in items:
        name = _name(scene, item, rng, attributes)
        if name:
            return item, name
    return None


def _name(
    scene: Scene, item: SceneObject, rng: Random, attributes: tuple[str, ...] = ("size", "color", "shape")
) -> str | None:
    """Return a phrase that only ``item`` fits, with the fewest attributes, or sometimes one more."""
    choices = [subset for subset in _subsets(attributes) if _is_unique(scene, item, subset)]
    if not choices:
        return None
    fewest = min(map(len, choices))
    subset = rng.choice([c for c in choices if len(c) == fewest or rng.random() < 0.3])
    noun = item.shape if "shape" in subset else rng.choice(("object", "thing"))
    adjectives = [getattr(item, name) for name in ("size", "color") if name in subset]
    return " ".join([*adjectives, noun])


def _subsets(attributes: tuple[str, ...]) -> list[tuple[str, ...]]:
    masks = range(1, 2 ** len(attributes))
    return [tuple(a for i, a in enumerate(attributes) if mask >> i & 1) for mask in masks]


def _is_unique(scene: Scene, item: SceneObject, attributes: tuple[str, ...]) -> bool:
    return sum(all(getattr(o, a) == getattr(item, a) for a in attributes) for o in scene.objects) == 1


@cache
def words() -> tuple[str, ...]:
    """Return the vocabulary of questions, answers and descriptions, sorted."""
    vocabulary = set(" ".join(DESCRIBE).split()) | set(COLORS) | set(SHAPES) | set(SIZES) | {str(n) for n in range(10)}
    rng = Random("vocabulary")
    for _ in range(300):  # the last word is new in the 87th
        scene = Scene.random(rng)
        vocabulary.update(describe(scene).split())
        vocabulary.update(" ".join(line_up(scene, rng)).split())
        for question in ask_all(scene, rng):
            vocabulary.update(f"{question.question} {question.answer}".split())
    return tuple(sorted({word.strip("?.,").lower() for word in vocabulary}))
