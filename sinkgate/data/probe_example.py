"""A picture with what is known of it: what probes are trained to read off hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from sinkgate.images.io import Picture

#: A text is one class of many; a frozenset holds those of many labels that are present.
Target = str | frozenset[str]


@dataclass(frozen=True)
class Pictured:
    """An image (whatever `open_image` reads) and what is true of it, by target; a target that is not known of it is left out.

    Any target may be probed for: ``{"count": "3", "colors": frozenset({"red", "blue"})}``.
    """

    image: Picture
    targets: dict[str, Target]
