"""One thing to learn from, or to be examined on: images, a question, its right answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sinkgate.images.io import Picture, is_one_picture


@dataclass(frozen=True)
class Sample:
    """Images (whatever `open_image` reads) with a question and its answer; ``kind`` is what accuracy is told apart by.

    ``options``: what may be said, such as "A" to "D", the answer among them; () where the answer is open.
    """

    images: tuple[Picture, ...]
    question: str
    answer: str
    kind: str = ""
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Sample | tuple[Any, ...]) -> Sample:
        """A sample from itself or from ``(image or images, question, answer[, kind[, options]])``."""
        if isinstance(value, Sample):
            return value
        images, *rest = value
        return cls((images,) if is_one_picture(images) else tuple(images), *rest)

    @classmethod
    def list_of(cls, values: Iterable[Sample | tuple[Any, ...]]) -> list[Sample]:
        """``of`` for each of an iterable."""
        return [cls.of(value) for value in values]
