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

    ``question``: one ``<image>`` for each image marks its place; without these marks, images come before the question.
    ``options``: the permitted answers, such as "A" to "D", the right one among them; () if the answer is open.
    ``earlier``: earlier questions with their answers. The marks of images are then those in all questions together; without any, images come
    before the first question.
    """

    images: tuple[Picture, ...]
    question: str
    answer: str
    kind: str = ""
    options: tuple[str, ...] = ()
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def parts(self) -> str | list[str | None]:
        """The question as `VLM.prompt` takes it: a text, or parts of it with None at the place of each image."""
        return self._parts(self.question)

    @property
    def turns(self) -> list[tuple[str | list[str | None], str]]:
        """The earlier questions, likewise, with their answers."""
        return [(self._parts(question), answer) for question, answer in self.earlier]

    def _parts(self, text: str) -> str | list[str | None]:
        texts = text.split(PLACEHOLDER)
        places = sum(each.count(PLACEHOLDER) for each in (self.question, *(question for question, _ in self.earlier)))
        if len(texts) == 1 or places != len(self.images):
            return text
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
