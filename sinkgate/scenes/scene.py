"""Scenes of flat shapes: data from which small pictures are drawn.

A scene holds one to five objects that do not overlap, on a plain background; a crowded one up to eight.
Coordinates are fractions of the picture's side, so that one scene renders at any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from random import Random
from reprlib import repr as short
from typing import Any

from PIL import Image, ImageDraw

from sinkgate.errors import SceneError

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (217, 48, 48),
    "green": (46, 160, 67),
    "blue": (45, 100, 220),
    "yellow": (242, 200, 40),
    "purple": (150, 70, 190),
    "orange": (240, 130, 35),
}
SIZES = {"small": 7 / 64, "large": 12 / 64}
BACKGROUNDS = {
    "white": (250, 250, 248),
    "gray": (150, 152, 156),
    "black": (24, 24, 28),
    "brown": (110, 84, 62),
}
MAX_OBJECTS = 5  # of the demo model's own scenes, and of edited ones
MAX_CROWD = 8  # with more, hardly an arrangement fits
GAP = 2 / 64  # between the bounding boxes of two objects
MARGIN = 1 / 64  # between a bounding box and the picture's edge

_SLACK = 1e-4  # tolerance for gaps and margins after rounding
_SQUARE, _TRIANGLE, _ARM = 0.88, 2 / math.sqrt(3), 0.36  # half widths, in radii
_FAR = 0.3  # of a clip's motion at least, along one axis
_MIDLINE = 3 / 64  # no centre lies nearer than this to a midline, so that corners are unambiguous


@dataclass(frozen=True)
class SceneObject:
    """One shape; ``x`` and ``y`` are its centre in [0, 1], from the top left."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Return half the side of the bounding box, as a fraction of the picture's side."""
        return SIZES[self.size]

    @property
    def place(self) -> str:
        """Return the quadrant that holds the centre, such as ``top left``."""
        return f"{'top' if self.y < 0.5 else 'bottom'} {'left' if self.x < 0.5 else 'right'}"

    @property
    def in_corner(self) -> bool:
        """Return whether the centre is clearly inside one quadrant: always in a random scene, off the midlines in an edited one."""
        return min(abs(self.x - 0.5), abs(self.y - 0.5)) >= _MIDLINE

    def covers(self, x: float, y: float) -> bool:
        """Return whether the object's bounding box holds the point (x, y)."""
        return abs(self.x - x) <= self.radius and abs(self.y - y) <= self.radius


@dataclass(frozen=True)
class Scene:
    """A background and its objects, the complete description of a picture."""

    background: str
    objects: tuple[SceneObject, ...]

    @classmethod
    def random(cls, rng: Random, counts: tuple[int, int] = (1, MAX_OBJECTS)) -> Scene:
        """Draw a scene, half of the time from a palette of two or three colours.

        Args:
            rng: random generator; the same state draws the same scene.
            counts: least and most objects, every number in between equally likely. More than five make the scene *crowded*: the
                demo model was not trained on such scenes, and most objects are small, to fit (98 in 100 of eight).

        Raises:
            SceneError: ``counts`` is no range within 1 to 8.
        """
        least, most = counts
        if not 1 <= least <= most <= MAX_CROWD:
            raise SceneError(
                f"counts is ({least}, {most}), not a range from 1 to {MAX_CROWD}: give the least and the most objects."
            )
        palette = list(COLORS)
        if rng.random() < 0.5:
            palette = rng.sample(palette, rng.choice((2, 3)))
        count = rng.randint(least, most)
        while True:
            objects: list[SceneObject] = []
            for _ in range(40 if count <= MAX_OBJECTS else 200):
                candidate = _random_object(rng, palette)
                if all(_apart(candidate, other) for other in objects):
                    objects.append(candidate)
                if len(objects) == count:
                    return cls(rng.choice(list(BACKGROUNDS)), tuple(objects))

    @classmethod
    def from_dict(cls, value: Any) -> Scene:
        """Read a scene from the value of `to_dict`; raise `sinkgate.SceneError` for anything else.

        For untrusted values, such as those of a browser. Gaps and margins are those of random scenes, but objects may stand on the
        midlines of the picture.
        """
        if not isinstance(value, Mapping):
            raise SceneError(f"A scene is a background and a list of objects, but this is {short(value)}: send both.")
        background = _known("The background", value.get("background"), BACKGROUNDS)
        items = value.get("objects")
        if not isinstance(items, (list, tuple)) or not 1 <= len(items) <= MAX_OBJECTS:
            number = f"{len(items)}" if isinstance(items, (list, tuple)) else short(items)
            raise SceneError(
                f"A scene holds 1 to {MAX_OBJECTS} objects, but this one holds {number}: add or remove some."
            )
        objects = tuple(_read_object(f"Object {number}", item) for number, item in enumerate(items, 1))
        for a, b in combinations(objects, 2):
            if not _apart(a, b, _SLACK):
                raise SceneError(
                    f"The {a.size} {a.color} {a.shape} at ({a.x:.2f}, {a.y:.2f}) and the {b.size} {b.color} {b.shape} at "
                    f"({b.x:.2f}, {b.y:.2f}) are nearer than {GAP:.3f} to each other: move one of them away."
                )
        return cls(background, objects)

    def render(self, size: int = 448) -> Image.Image:
        """Draw the scene as an RGB picture of ``size`` x ``size`` pixels, with smooth edges."""
        scale = 2 * size
        image = Image.new("RGB", (scale, scale), BACKGROUNDS[self.background])
        draw = ImageDraw.Draw(image)
        for item in self.objects:
            _draw_object(draw, item, scale)
        return image.reduce(2)

    def clip(self, rng: Random, frames: int = 8) -> list[Scene]:
        """Return the scenes of a clip: one object moves along a straight line, apart from the others and within the picture.

        Args:
            rng: random generator; the same state moves the same object to the same point.
            frames: number of scenes, from 2; the first is this one.

        Raises:
            SceneError: fewer than two frames, or no object has room to move.

        Example:
            >>> rng = Random(1)
            >>> len(Scene.random(rng, (1, 2)).clip(rng, 6))
            6
        """
        if frames < 2:
            raise SceneError(f"a clip of {frames} frames shows no motion; give at least 2")
        for _ in range(500):
            number = rng.randrange(len(self.objects))
            mover, others = self.objects[number], self.objects[:number] + self.objects[number + 1 :]
            low, high = mover.radius + MARGIN, 1 - mover.radius - MARGIN
            x, y = rng.uniform(low, high), rng.uniform(low, high)
            shares = [index / (frames - 1) for index in range(frames)]
            path = [replace(mover, x=mover.x + (x - mover.x) * t, y=mover.y + (y - mover.y) * t) for t in shares]
            far = max(abs(x - mover.x), abs(y - mover.y)) >= _FAR
            if far and all(_apart(step, other, _SLACK) for step in path for other in others):
                before, after = self.objects[:number], self.objects[number + 1 :]
                return [replace(self, objects=(*before, step, *after)) for step in path]
        raise SceneError("no object of the scene has room to move; take one with fewer objects")

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain JSON types."""
        return {"background": self.background, "objects": [asdict(item) for item in self.objects]}


def _random_object(rng: Random, palette: list[str]) -> SceneObject:
    size = rng.choice(list(SIZES))
    low, high = SIZES[size] + MARGIN, 1 - SIZES[size] - MARGIN

    def coordinate() -> float:
        while True:
            value = rng.uniform(low, high)
            if abs(value - 0.5) >= _MIDLINE:
                return round(value, 4)

    return SceneObject(rng.choice(SHAPES), rng.choice(palette), size, coordinate(), coordinate())


def _apart(a: SceneObject, b: SceneObject, slack: float = 0.0) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP - slack


def _read_object(name: str, value: Any) -> SceneObject:
    if not isinstance(value, Mapping):
        raise SceneError(f"{name} must have a shape, color, size, x and y, but it is {short(value)}: send all five.")
    shape = _known(f"{name}'s shape", value.get("shape"), SHAPES)
    color = _known(f"{name}'s color", value.get("color"), COLORS)
    size = _known(f"{name}'s size", value.get("size"), SIZES)
    low, high = SIZES[size] + MARGIN, 1 - SIZES[size] - MARGIN
    for axis in ("x", "y"):
        at = value.get(axis)
        if isinstance(at, bool) or not isinstance(at, (int, float)) or not low - _SLACK <= at <= high + _SLACK:
            raise SceneError(
                f"{name} is {size} and its {axis} is {short(at)}, not a number from {low:.3f} to {high:.3f}: "
                "move it into the picture."
            )
    return SceneObject(shape, color, size, float(value["x"]), float(value["y"]))


def _known(name: str, value: Any, choices: Iterable[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise SceneError(f"{name} is {short(value)}: choose one of {', '.join(choices)}.")


def outline(shape: str) -> str:
    """Return the SVG path of a shape as `Scene.render` draws it, centred on the origin, in units of the radius."""
    s, t, a = _SQUARE, _TRIANGLE, _ARM
    return {
        "circle": "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0z",
        "square": f"M{-s} {-s}H{s}V{s}H{-s}z",
        "triangle": f"M0 -1L{t} 1H{-t}z",
        "cross": f"M{-a} -1H{a}V{-a}H1V{a}H{a}V1H{-a}V{a}H-1V{-a}H{-a}z",
    }[shape]


def _draw_object(draw: ImageDraw.ImageDraw, item: SceneObject, scale: int) -> None:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
    fill = COLORS[item.color]
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        side = r * _SQUARE  # about the area of the circle, so that size is not read off the fill
        draw.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    elif item.shape == "triangle":
        half = r * _TRIANGLE
        draw.polygon([(x, y - r), (x - half, y + r), (x + half, y + r)], fill=fill)
    elif item.shape == "cross":
        arm = r * _ARM
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
    else:
        raise ValueError(f"unknown shape {item.shape!r}; expected one of {', '.join(SHAPES)}")
