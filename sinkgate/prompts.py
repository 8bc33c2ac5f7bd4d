"""Images and a question made ready for a model, with where its visual tokens are and which patches they came from.

Shapes: V visual tokens, S separators, N patches, U rows that the images put into the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from sinkgate.adapters import Adapter
from sinkgate.adapters.generic import RULES
from sinkgate.errors import ImageError, PromptError, UnsupportedModelError
from sinkgate.images import Picture, open_images
from sinkgate.patches import Sheet, Size, lay_out, list_sheet, measure_places
from sinkgate.probe import measure_tokens
from sinkgate.sinks import SinkMap

MAX_QUESTION = 20_000  # characters
#: What to write where a processor has no chat template, by model type; the families' own forms.
PLAIN_TEMPLATES = {
    "llava": "USER: {image}\n{question} ASSISTANT:",
    "vipllava": "###Human: {image}\n{question}###Assistant:",
    "llava_next": "[INST] {image}\n{question} [/INST]",
    "paligemma": "{image}answer en {question}\n",
    "blip-2": "Question: {question} Answer:",
    "instructblip": "{question}",
}
FIXED_TOWERS = ("clip_vision_model", "siglip_vision_model")  # take pictures of one size only
PLAIN_TEMPLATE = "{image}\n{question}\n"


@dataclass
class Prompt:
    """Images and a question, ready for the model.

    Shapes: inputs as ``generate`` takes them, batch 1; visual (V,) positions of the visual tokens among the Keys, and
    separators (S,): newline, tile and break tokens between them, which carry no patch and are never gated; token_of_patch (N,) index into
    ``visual``, negative where a patch feeds no token, None where tokens mix patches. ``sheets`` lay the visual tokens out as
    they lie in the pictures. ``note`` says what of this is not exact, or is empty.
    """

    images: list[Image.Image]
    question: str
    inputs: dict[str, Tensor]
    visual: Tensor
    separators: Tensor
    num_keys: int
    token_of_patch: Tensor | None
    sheets: tuple[Sheet, ...]
    note: str = ""
    encoded: Any = field(default=None, repr=False)  # the encoder's output, once it has run
    sinks: SinkMap | None = field(default=None, repr=False)  # by the default criteria, once they were asked for

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return self.images[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first sheet."""
        return self.sheets[0].grid

    @property
    def view(self) -> Image.Image:
        """The part of the image that the first sheet covers."""
        return self.sheets[0].view(self.images) or self.image

    @property
    def length(self) -> int:
        """Positions in the prompt, P."""
        return self.inputs["input_ids"].shape[1]


class Prompter:
    """Makes prompts for one model. What it measured of a model (by gradients) and of pictures of one size is kept."""

    def __init__(self, adapter: Adapter, processor: Any, name: str) -> None:
        self.adapter, self.processor, self.name = adapter, processor, name
        self.rule: str | None = None  # of RULES; "measured" where none holds, "mixed" where tokens mix patches
        self._tokens: dict[tuple[Any, ...], Tensor] = {}
        self._sheets: dict[tuple[Any, ...], tuple[Sheet, ...]] = {}

    def ask(self, images: Picture | Sequence[Picture], question: str) -> Prompt:
        """See `sinkgate.VLM.prompt`."""
        pictures = open_images(images)
        question = question.strip()  # line breaks within stay: benchmarks put options on lines of their own
        if not pictures:
            raise PromptError("there is no image; a prompt needs at least one")
        if not question:
            raise PromptError("the question is empty; ask something about the image")
        if len(question) > MAX_QUESTION:
            raise PromptError(f"the question has {len(question)} characters; at most {MAX_QUESTION:,} can be asked")
        for token in self.processor.tokenizer.all_special_tokens:
            if token in question:
                raise PromptError(f"the question holds {token}, which the model reads as a command; leave it out")
        text = self.text(question, len(pictures))
        try:
            inputs = self._process(pictures, text)
        except Exception as error:  # processors raise whatever a picture drives them to
            refusal = self._refusal(pictures, error)
            if refusal is None:
                raise
            raise refusal from error
        return self._read(inputs, pictures, question)

    def _refusal(self, pictures: Sequence[Image.Image], error: Exception) -> ImageError | PromptError | None:
        """The sentence about what the processor refused: a picture, their number or the text; None where it takes no picture at all."""
        said = str(error).strip() or type(error).__name__
        if not self._takes(Image.new("RGB", (224, 224))):
            return None
        for number, picture in enumerate(pictures, 1):
            if not self._takes(picture):
                which = "the picture" if len(pictures) == 1 else f"picture {number} of {len(pictures)}"
                return ImageError(
                    f"the processor of {self.name} refuses {which}, {picture.width} x {picture.height} pixels: {said}"
                )
        if len(pictures) > 1:
            return PromptError(f"{self.name} cannot take {len(pictures)} images in one prompt: {said}")
        return PromptError(f"the processor of {self.name} refuses the question: {said}")

    def _takes(self, picture: Image.Image) -> bool:
        try:
            self._process([picture], self.text("?"))
        except Exception:  # noqa: BLE001 - what it raises was said before
            return False
        return True

    def text(self, question: str, images: int = 1) -> str:
        """The question in the model's own chat format, with a place for each image."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        config = self.adapter.model.config
        place = getattr(self.processor, "image_token", None) or self.processor.tokenizer.decode(config.image_token_id)
        template = PLAIN_TEMPLATES.get(config.model_type, PLAIN_TEMPLATE)
        return template.format(image=str(place) * images, question=question)

    def spell(self, question: str, answer: str, images: int = 1) -> list[int]:
        """See `sinkgate.VLM.spell`. The chat template says what stands between question, answer and end."""
        answer = " ".join(answer.split())
        if not answer:
            raise PromptError("the answer is empty; there is nothing to learn from it")
        tokenizer = self.processor.tokenizer
        asked = self.text(question, images)
        told = self._conversation(question, answer, images)
        tail = told[len(asked) :] if told.startswith(asked) and answer in told[len(asked) :] else answer
        before, both = (tokenizer(text, add_special_tokens=False).input_ids for text in (asked, asked + tail))
        # a tokenizer may join words differently across the seam; then the answer is read on its own
        alone = tokenizer(tail, add_special_tokens=False).input_ids
        ids = both[len(before) :] if both[: len(before)] == before else alone
        ends = _ids(self.adapter.model.generation_config.eos_token_id) or _ids(tokenizer.eos_token_id)
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        return ids[: end + 1] if end is not None else [*ids, *ends[:1]]

    def _conversation(self, question: str, answer: str, images: int) -> str:
        """Question and answer in the model's own chat format; empty where it has none."""
        if not getattr(self.processor, "chat_template", None):
            return ""
        asked = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        told = [{"type": "text", "text": answer}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        try:
            return self.processor.apply_chat_template(turns)
        except (TypeError, ValueError, TemplateError):  # templates that know no answers, or only plain text
            return ""

    def read(self, inputs: Mapping[str, Any], images: Picture | Sequence[Picture] = (), question: str = "") -> Prompt:
        """See `sinkgate.VLM.read`."""
        return self._read(_as_tensors(inputs, self.adapter.model), open_images(images), question)

    def _read(self, inputs: Mapping[str, Any], images: Sequence[Image.Image], question: str) -> Prompt:
        adapter = self.adapter
        _refuse_wrong_size(inputs, adapter)
        rows = adapter.rows_in_prompt(inputs).cpu()
        if not len(rows):
            raise PromptError(f"{self.name}: the prompt holds no image token; does the chat template place the image?")
        token, note = self._token_of_patch(inputs)
        fed = torch.ones(len(rows), dtype=torch.bool)
        if token is not None:
            fed = torch.zeros_like(fed)
            fed[token[token >= 0]] = True
            token = torch.where(token >= 0, (fed.cumsum(0) - 1)[token.clamp_min(0)], token)
        visual = rows[fed]
        sheets = self._lay_out(inputs, images, token, len(visual)) if images and token is not None else ()
        separators = torch.cat([rows[~fed], self._between(visual, sheets)]).unique()
        kept = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return Prompt(
            list(images),
            question,
            kept,
            visual,
            separators,
            adapter.num_keys(inputs),
            token,
            sheets or (list_sheet(len(visual)),),
            note,
        )

    def _process(self, images: Sequence[Image.Image], text: str) -> dict[str, Any]:
        made = self.processor(images=[list(images)], text=[text], return_tensors="pt")
        model = self.adapter.model
        return dict(made.to(model.device, model.dtype))

    def _token_of_patch(self, inputs: Mapping[str, Any]) -> tuple[Tensor | None, str]:
        """Which of the images' rows each patch feeds, and what is to be said about it."""
        adapter = self.adapter
        if not adapter.encoder_layers:
            return None, "this encoder's layers cannot be looked into, so no visual token has a place in the picture"
        nearest = adapter.nearest_token_of_patch(inputs)
        if nearest is not None:
            return nearest, "this large picture is resized after the encoder: patches are shown at the nearest token"
        if self.rule is None:
            measured = self._measured(inputs)
            maps = ((rule, adapter.token_of_patch(inputs, rule)) for rule in RULES)
            follows = (rule for rule, token in maps if token is not None and torch.equal(token, measured))
            self.rule = next(follows, "mixed" if bool((measured == -2).any()) else "measured")
        token = adapter.token_of_patch(inputs, self.rule) if self.rule in RULES else None
        if token is None:
            token = self._measured(inputs)
        if bool((token == -2).any()):
            return None, "every visual token gathers from many patches, so none has a place in the picture"
        return token, ""

    def _measured(self, inputs: Mapping[str, Any]) -> Tensor:
        key = tuple((name, tuple(value.shape)) for name, value in inputs.items() if isinstance(value, Tensor))
        key += tuple(self.adapter.grids(inputs))
        if key not in self._tokens:
            self._tokens[key] = measure_tokens(self.adapter, inputs)
        return self._tokens[key]

    def _lay_out(
        self, inputs: Mapping[str, Any], images: Sequence[Image.Image], token: Tensor, count: int
    ) -> tuple[Sheet, ...]:
        sizes: list[Size] = [image.size for image in images]
        grids = self.adapter.grids(inputs)
        key = (*sizes, *grids, count)
        if key not in self._sheets:
            places = measure_places(self._pixels, sizes)
            if len(places.image) != len(token):
                raise PromptError(
                    f"the inputs hold {len(token)} patches, this model's processor makes {len(places.image)} of the images "
                    f"({_sizes(images)}); give the images that the inputs were made of, in their order, or none"
                )
            crop = torch.cat([torch.full((rows * columns,), i) for i, (rows, columns) in enumerate(grids)])
            self._sheets[key] = lay_out(token, places, crop, sizes, count)
        return self._sheets[key]

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.adapter.pixels(self._process(images, self.text("?", len(images)))).cpu()

    def _between(self, visual: Tensor, sheets: tuple[Sheet, ...]) -> Tensor:
        """Positions between visual tokens of one image: its break and tile tokens."""
        if self.adapter.cross_attention or not sheets:
            return torch.empty(0, dtype=torch.long)
        image = torch.full((len(visual),), -1)
        for sheet in sheets:
            image[sheet.tokens[sheet.tokens >= 0]] = sheet.image
        gaps = ((visual.diff() > 1) & (image.diff() == 0)).nonzero()[:, 0].tolist()
        ranges = [torch.arange(int(visual[gap]) + 1, int(visual[gap + 1])) for gap in gaps]
        return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.long)


def _ids(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _sizes(images: Sequence[Image.Image]) -> str:
    return ", ".join(f"{image.width} x {image.height}" for image in images)


def _as_tensors(inputs: Any, model: Any) -> dict[str, Tensor]:
    """What a processor has made, as the model takes it: tensors of its dtype on its device, one prompt."""
    if not isinstance(inputs, Mapping):
        raise PromptError(
            f"the inputs are a {type(inputs).__name__}; expected what a processor returns, names with tensors"
        )
    made: dict[str, Tensor] = {}
    for name, value in inputs.items():
        try:
            array = value if isinstance(value, Tensor) else np.asarray(value)
        except ValueError as error:  # lists of unequal length
            raise PromptError(
                f"{name} cannot be made a tensor ({error}); give return_tensors='pt' to the processor"
            ) from error
        if isinstance(array, Tensor) or array.dtype.kind in "buif":
            tensor = torch.as_tensor(array)
            made[name] = tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
    for name, maker in (("input_ids", "text"), ("pixel_values", "images")):
        if name not in made:
            raise PromptError(
                f"the inputs hold no {name}, only {', '.join(made) or 'nothing'}; the processor makes them of its {maker}"
            )
    shape = tuple(made["input_ids"].shape)
    if len(shape) != 2 or shape[0] != 1:
        many = f"{shape[0]} prompts" if len(shape) == 2 else f"input_ids of shape {shape}"
        raise PromptError(
            f"the inputs hold {many}; expected one, of shape (1, positions): read each on its own, `vlm.predict_all` runs many"
        )
    return made


def _refuse_wrong_size(inputs: Mapping[str, Any], adapter: Adapter) -> None:
    vision, pixels = adapter.model.config.vision_config, inputs["pixel_values"]
    if vision.model_type in FIXED_TOWERS and tuple(pixels.shape[-2:]) != (vision.image_size, vision.image_size):
        raise UnsupportedModelError(
            f"{adapter.name}: the processor makes pictures of {pixels.shape[-1]} x {pixels.shape[-2]} pixels, the vision tower "
            f"takes {vision.image_size} x {vision.image_size}; load the processor that belongs to the model"
        )
