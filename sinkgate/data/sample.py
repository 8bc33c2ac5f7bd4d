"""Examples: images, a question and its right answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sinkgate.images.io import Picture, is_one_picture

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Sample:
    """Images (any type that `open_image` reads) with a question and its answer; accuracy is reported by ``kind``.

    ``question``: one ``<image>`` for each image marks its place; without them, images stand before the question.
    ``options``: the permitted answers, such as "A" to "D", the right one among them; () if the answer is open.
    """

    images: tuple[Picture, ...]
    question: str
    answer: str
    kind: str = ""
    options: tuple[str, ...] = ()

    @property
    def parts(self) -> str | list[str | None]:
        """The question as `VLM.prompt` takes it: a text, or parts of it with None at the place of each image."""
        texts = self.question.split(PLACEHOLDER)
        if len(texts) == 1 or len(texts) != len(self.images) + 1:
            return self.question
        return [part for text in texts for part in (text, None) if part != ""][:-1]

    @classmethod
    def of(cls, value: Sample | tuple[Any, ...]) -> Sample:
        """Return a sample: itself, or one from ``(image or images, question, answer[, kind[, options]])``."""
        if isinstance(value, Sample):
            return value
        images, *rest = value
        return cls((images,) if is_one_picture(images) else tuple(images), *rest)

    @classmethod
    def list_of(cls, values: Iterable[Sample | tuple[Any, ...]]) -> list[Sample]:
        """Apply ``of`` to each of an iterable."""
        return [cls.of(value) for value in values]
