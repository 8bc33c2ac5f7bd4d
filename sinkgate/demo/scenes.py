"""The demo world: small pictures of flat shapes, each described by data from which it was drawn.

A scene holds one to five objects that do not overlap, on a plain background. Coordinates
are fractions of the picture's side, so that one scene renders at any size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from PIL import Image, ImageDraw

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
MAX_OBJECTS = 5

_GAP = 2 / 64  # between the bounding boxes of two objects
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
        """Half the side of the bounding box, as a fraction of the picture's side."""
        return SIZES[self.size]

    @property
    def place(self) -> str:
        """The corner of the picture that holds the centre, such as ``top left``."""
        return f"{'top' if self.y < 0.5 else 'bottom'} {'left' if self.x < 0.5 else 'right'}"

    def covers(self, x: float, y: float) -> bool:
        """Whether the object's bounding box holds the point (x, y)."""
        return abs(self.x - x) <= self.radius and abs(self.y - y) <= self.radius


@dataclass(frozen=True)
class Scene:
    """A background and its objects: everything that there is to know about a picture."""

    background: str
    objects: tuple[SceneObject, ...]

    @classmethod
    def random(cls, rng: Random) -> Scene:
        """Draw a scene: one to five objects, half of the time from a palette of two or three colours."""
        palette = list(COLORS)
        if rng.random() < 0.5:
            palette = rng.sample(palette, rng.choice((2, 3)))
        count = rng.randint(1, MAX_OBJECTS)
        while True:
            objects: list[SceneObject] = []
            for _ in range(40):
                candidate = _random_object(rng, palette)
                if all(_apart(candidate, other) for other in objects):
                    objects.append(candidate)
                if len(objects) == count:
                    return cls(rng.choice(list(BACKGROUNDS)), tuple(objects))

    def render(self, size: int = 448) -> Image.Image:
        """Draw the scene as an RGB picture of ``size`` x ``size`` pixels, with smooth edges."""
        scale = 2 * size
        image = Image.new("RGB", (scale, scale), BACKGROUNDS[self.background])
        draw = ImageDraw.Draw(image)
        for item in self.objects:
            _draw_object(draw, item, scale)
        return image.reduce(2)

    def to_dict(self) -> dict[str, Any]:
        """The scene as plain JSON types."""
        return {"background": self.background, "objects": [asdict(item) for item in self.objects]}


def _random_object(rng: Random, palette: list[str]) -> SceneObject:
    size = rng.choice(list(SIZES))
    low, high = SIZES[size] + 1 / 64, 1 - SIZES[size] - 1 / 64

    def coordinate() -> float:
        while True:
            value = rng.uniform(low, high)
            if abs(value - 0.5) >= _MIDLINE:
                return round(value, 4)

    return SceneObject(rng.choice(SHAPES), rng.choice(palette), size, coordinate(), coordinate())


def _apart(a: SceneObject, b: SceneObject) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + _GAP


def _draw_object(draw: ImageDraw.ImageDraw, item: SceneObject, scale: int) -> None:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
    fill = COLORS[item.color]
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        side = r * 0.88  # about the area of the circle, so that size is not read off the fill
        draw.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    elif item.shape == "triangle":
        half = r * 2 / math.sqrt(3)
        draw.polygon([(x, y - r), (x - half, y + r), (x + half, y + r)], fill=fill)
    elif item.shape == "cross":
        arm = r * 0.36
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
    else:
        raise ValueError(f"unknown shape {item.shape!r}; expected one of {', '.join(SHAPES)}")
