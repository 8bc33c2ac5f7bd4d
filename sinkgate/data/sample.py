"""Examples: images, a question and its right answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sinkgate.errors import SinkgateError
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
    def of(cls, value: Sample | tuple[Any, ...] | Mapping[str, Any]) -> Sample:
        """Return a sample: itself, or one from ``(image or images, question, answer[, kind[, options]])`` or a row with these columns.

        Raises:
            SinkgateError: a row lacks a column.
        """
        if isinstance(value, Sample):
            return value
        if isinstance(value, Mapping):
            missing = [name for name in ("question", "answer") if name not in value]
            if missing or not {"image", "images"} & value.keys():
                raise SinkgateError(
                    f"a row has the columns {', '.join(value)}; expected image or images, question and answer, and perhaps kind and options"
                )
            images = value["images"] if value.get("images") is not None else value["image"]
            more = (value.get("kind") or "", tuple(value.get("options") or ()))
            value = (images, value["question"], str(value["answer"]), *more)
        images, *rest = value
        return cls((images,) if is_one_picture(images) else tuple(images), *rest)

    @classmethod
    def list_of(cls, values: Iterable[Sample | tuple[Any, ...] | Mapping[str, Any]]) -> list[Sample]:
        """Apply ``of`` to each of an iterable."""
        return [cls.of(value) for value in values]
