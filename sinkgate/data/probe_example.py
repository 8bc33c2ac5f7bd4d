"""Examples for probes: a picture with its targets."""

from __future__ import annotations

from dataclasses import dataclass

from sinkgate.images.io import Picture

#: A text is a class; a frozenset holds the present ones of many labels.
Target = str | frozenset[str]


@dataclass(frozen=True)
class Pictured:
    """An image (any type that `open_image` reads) and its targets by name; unknown targets are left out.

    Any name is possible: ``{"count": "3", "colors": frozenset({"red", "blue"})}``.
    """

    image: Picture
    targets: dict[str, Target]
