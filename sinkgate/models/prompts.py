"""Prompts: images and a question as a model's inputs, with the positions and patches of its visual tokens.

Shapes: V visual tokens, S separators, N patches, U rows that the images put into the prompt.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sinkgate.errors import ImageError, PromptError, UnsupportedModelError
from sinkgate.images.io import Picture, open_images
from sinkgate.images.layout import Sheet, Size, lay_out, list_sheet, measure_frames, measure_places
from sinkgate.images.video import Video, as_video
from sinkgate.models.adapters import Adapter
from sinkgate.models.adapters.base import PIXELS, RULES
from sinkgate.models.chat import ChatFormat, stripped
from sinkgate.models.token_map import measure_tokens
from sinkgate.sinks.classify import SinkMap

MAX_QUESTION = 20_000  # characters
#: A question with its answer: a text, or texts with None at the place of each image.
Turn = tuple[str | Sequence[str | None], str]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FIXED_TOWERS = ("clip_vision_model", "siglip_vision_model")  # take pictures of one size only


@dataclass(repr=False)
class Prompt:
    """Images and a question, ready for the model.

    Shapes: inputs as ``generate`` takes them, batch 1; visual (V,) positions of the visual tokens among the Keys, and
    separators (S,): newline, tile and break tokens between them, which carry no patch and are never gated; token_of_patch (N,) index into
    ``visual``, negative where a patch feeds no token, None where tokens mix patches. ``sheets`` lay the visual tokens out as
    they lie in the pictures. ``note`` says what of this is not exact, or is empty. Of a video ``images`` are the frames.
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
    system: str = ""  # the system turn, where one was given
    earlier: tuple[tuple[str, str], ...] = ()  # earlier questions with their answers
    video: Video | None = None  # whose frames the images are
    kind: str = "image"  # "video" where the model reads it as a video, not as pictures
    encoded: Any = None  # the encoder's output, once it has run
    encoded_under: int = 0  # the `encoder_state` at that time
    sinks: SinkMap | None = None  # by the default criteria, once they were computed
    sinks_under: int = 0  # the `model_state` at that time

    @property
    def has_pixels(self) -> bool:
        """True where the inputs hold the processed images or the video, so that they can be encoded anew."""
        return bool(self.inputs.keys() & PIXELS.values())

    def __repr__(self) -> str:
        images = f"images: {', '.join(f'{image.width} x {image.height}' for image in self.images) or 'none'}"
        places = " and ".join(f"{rows} x {columns}" for rows, columns in (sheet.grid for sheet in self.sheets))
        if self.video is not None:
            images = f"{self.video!r}"
            grids = Counter(f"{rows} x {columns}" for rows, columns in (sheet.grid for sheet in self.sheets))
            places = " and ".join(f"{times} times {grid}" if times > 1 else grid for grid, times in grids.items())
        return (
            f"Prompt({self.question!r}, {images}, {len(self.visual)} visual tokens"
            f"{f' in {places}' if places else ''}, {self.length} positions)"
        )

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


def is_one_prompt(prompts: Any) -> bool:
    """Return whether this is one prompt; False for a list of prompts.

    Raises:
        PromptError: it is neither.
    """
    if isinstance(prompts, Prompt):
        return True
    # an iterator would be empty once it has been looked through
    many = isinstance(prompts, Collection) and not isinstance(prompts, str | bytes | Mapping)
    odd = [part for part in cast(Collection[Any], prompts if many else [prompts]) if not isinstance(part, Prompt)]
    if not odd:
        return False
    raise PromptError(
        f"got {type(odd[0]).__name__}, expected a Prompt or a list of them; make one with vlm.prompt(image, question)"
    )


def refuse_several(prompt: Any, call: str) -> None:
    """Raise PromptError where this is not one prompt."""
    if not is_one_prompt(prompt):
        raise PromptError(f"{call} takes one prompt, got a list of {len(prompt)}; call it for each")


class Prompter:
    """Make prompts for one model. Measurements of the model (by gradients) and of pictures of one size are cached."""

    def __init__(self, adapter: Adapter, processor: Any, name: str) -> None:
        self.adapter, self.processor, self.name = adapter, processor, name
        self.chat = ChatFormat(processor, adapter.model, name)
        # by kind of picture: one of RULES, "measured" where none holds, "mixed" where tokens mix patches
        self.rules: dict[str, str] = {}
        self._tokens: dict[tuple[Any, ...], Tensor] = {}
        self._sheets: dict[tuple[Any, ...], tuple[Sheet, ...]] = {}

    @property
    def rule(self) -> str | None:
        """The rule by which patches of images become tokens; None before the first prompt."""
        return self.rules.get("image")

    def ask(
        self,
        images: Picture | Video | Sequence[Picture],
        question: str | Sequence[str | None],
        system: str = "",
        frames: int | None = None,
        earlier: Sequence[Turn] = (),
    ) -> Prompt:
        """See `sinkgate.VLM.prompt`."""
        if not isinstance(question, list | tuple):
            _refuse_swapped(images, question)
        _refuse_mixed(images)
        video = as_video(images, frames)
        pictures = list(video.frames) if video else open_images(cast(Any, images))
        system = stripped(system, "system turn")
        past = _read_turns(earlier)
        turns = _placed([*(each for each, _ in past), question], 1 if video else len(pictures), video is not None)
        if video and not self.chat.has_video_input:  # such a model reads frames as pictures
            turns = [
                [each for part in turn for each in ([part] if part is not None else [None] * len(pictures))]
                for turn in turns
            ]
        # line breaks stay: benchmarks list options on lines
        texts = ["".join(part for part in turn if part is not None) for turn in turns]
        answers = [stripped(answer, "earlier answer") for _, answer in past]
        if not pictures:
            raise PromptError("there is no image; a prompt needs at least one")
        for text in texts:
            if not text.strip():
                raise PromptError("the question is empty; ask something about the image")
            if len(text) > MAX_QUESTION:
                raise PromptError(f"the question has {len(text)} characters; at most {MAX_QUESTION:,} can be asked")
            self.chat.refuse_commands(text, "question")
        for answer in answers:
            if not answer:
                raise PromptError("an earlier answer is empty; leave its question out")
            self.chat.refuse_commands(answer, "earlier answer")
        self.chat.refuse_commands(system, "system turn")
        as_one = video is not None and self.chat.has_video_input
        render = self.chat.text_of_video if as_one else self.chat.text
        text = render(turns[-1], system, list(zip(turns, answers, strict=False)))
        try:
            inputs = self.chat.inputs(text, pictures, video.fps if video and as_one else None)
        except Exception as error:  # processors raise any error for pictures that they cannot process
            video_error = PromptError(f"the processor of {self.name} refuses the video: {error}")
            if refusal := video_error if as_one else self._refusal(pictures, error):
                raise refusal from error
            raise
        read = self._read(inputs, pictures, texts[-1], video)
        return replace(read, system=system, earlier=tuple(zip(texts, answers, strict=False)))

    def _refusal(self, pictures: Sequence[Image.Image], error: Exception) -> ImageError | PromptError | None:
        """Return an error that names what the processor refused: a picture, their number or the text; None where it takes no picture at all."""
        reason = str(error).strip() or type(error).__name__
        if not self._takes(Image.new("RGB", (224, 224))):
            return None
        for number, picture in enumerate(pictures, 1):
            if not self._takes(picture):
                label = "the picture" if len(pictures) == 1 else f"picture {number} of {len(pictures)}"
                return ImageError(
                    f"the processor of {self.name} refuses {label}, {picture.width} x {picture.height} pixels: {reason}"
                )
        if len(pictures) > 1:
            return PromptError(f"{self.name} cannot take {len(pictures)} images in one prompt: {reason}")
        return PromptError(f"the processor of {self.name} refuses the question: {reason}")

    def _takes(self, picture: Image.Image) -> bool:
        try:
            self._process([picture])
        except Exception:  # noqa: BLE001 - the caller has reported its error
            return False
        return True

    def _process(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the inputs of a placeholder question, for measurements that depend on the images alone."""
        return self.chat.inputs(self.chat.text([None] * len(images) + ["?"]), images)

    @property
    def max_length(self) -> int | None:
        """Positions that the LLM was made for, prompt and answer together; None where its config names none."""
        return getattr(self.adapter.model.config.get_text_config(), "max_position_embeddings", None)

    def refuse_length(self, length: int, kind: str) -> None:
        """Raise PromptError where so many positions are more than the model has."""
        if self.max_length is not None and length > self.max_length:
            raise PromptError(
                f"the {kind} has {length:,} positions and {self.name} has {self.max_length:,}; shorten the text, or give fewer or "
                "smaller images"
            )

    def read(
        self, inputs: Mapping[str, Any], images: Picture | Video | Sequence[Picture] = (), question: str = ""
    ) -> Prompt:
        """See `sinkgate.VLM.read`."""
        video = as_video(images, None)
        pictures = list(video.frames) if video else open_images(cast(Any, images))
        return self._read(_as_tensors(inputs, self.adapter.model), pictures, question, video)

    def _read(
        self, inputs: Mapping[str, Any], images: Sequence[Image.Image], question: str, video: Video | None
    ) -> Prompt:
        adapter = self.adapter
        kind = adapter.kind(inputs)
        both = all(name in inputs for name in PIXELS.values())
        if both or (kind == "video" and not len(adapter.rows_in_prompt(inputs))):
            reason = (
                "images beside a video" if both else "this model's form of videos, without video tokens of their own,"
            )
            raise PromptError(
                f"{self.name}: {reason} cannot be read; give the frames as pictures, vlm.prompt(video.frames, question)"
            )
        _refuse_wrong_size(inputs, adapter)
        self.refuse_length(inputs["input_ids"].shape[1], "prompt")
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
        sheets = self._lay_out(inputs, images, token, len(visual), video) if images and token is not None else ()
        separators: Tensor = cast(Any, torch.cat([rows[~fed], self._between(visual, sheets)])).unique()
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return Prompt(
            list(images),
            question,
            tensors,
            visual,
            separators,
            adapter.num_keys(inputs),
            token,
            sheets or (list_sheet(len(visual)),),
            note,
            video=video,
            kind=kind,
        )

    def _token_of_patch(self, inputs: Mapping[str, Any]) -> tuple[Tensor | None, str]:
        """Return the image's row that each patch feeds, and a note on it for users."""
        adapter = self.adapter
        if not adapter.encoder_layers:
            return None, "this encoder's layers cannot be looked into, so no visual token has a place in the picture"
        nearest = adapter.nearest_token_of_patch(inputs)
        if nearest is not None:
            noun = "frames are" if adapter.kind(inputs) == "video" else "this large picture is"
            return nearest, f"{noun} resized after the encoder: patches are shown at the nearest token"
        if (kind := adapter.kind(inputs)) not in self.rules:
            measured = self._measured(inputs)
            maps = ((rule, adapter.token_of_patch(inputs, rule)) for rule in RULES)
            follows = (rule for rule, token in maps if token is not None and torch.equal(token, measured))
            self.rules[kind] = next(follows, "mixed" if bool((measured == -2).any()) else "measured")
        rule = self.rules[kind]
        token = adapter.token_of_patch(inputs, rule) if rule in RULES else None
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
        self,
        inputs: Mapping[str, Any],
        images: Sequence[Image.Image],
        token: Tensor,
        count: int,
        video: Video | None,
    ) -> tuple[Sheet, ...]:
        sizes: list[Size] = [image.size for image in images]
        grids = self.adapter.grids(inputs)
        key = (video is not None, *sizes, *grids, count)
        if key not in self._sheets:
            as_one = self.chat.has_video_input
            places = (
                measure_places(self._pixels, sizes)
                if video is None
                else measure_frames(self._frame_pixels if as_one else self._pixels, sizes[0], len(sizes))
            )
            if len(places.image) != len(token):
                raise PromptError(
                    f"the inputs hold {len(token)} patches, this model's processor makes {len(places.image)} of the images "
                    f"({_sizes(images)}); give the images that the inputs were made of, in their order, or none"
                )
            crop = torch.cat([torch.full((rows * columns,), i) for i, (rows, columns) in enumerate(grids)])
            self._sheets[key] = lay_out(token, places, crop, sizes, count)
        return self._sheets[key]

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.adapter.pixels(self._process(images)).cpu()

    def _frame_pixels(self, frames: Sequence[Image.Image]) -> Tensor:
        return self.adapter.pixels(self.chat.inputs(self.chat.text_of_video([None, "?"]), frames, 1.0)).cpu()

    def _between(self, visual: Tensor, sheets: tuple[Sheet, ...]) -> Tensor:
        """Return positions between visual tokens of one image: its break and tile tokens."""
        if self.adapter.cross_attention or not sheets:
            return torch.empty(0, dtype=torch.long)
        image = torch.full((len(visual),), -1)
        for sheet in sheets:
            image[sheet.tokens[sheet.tokens >= 0]] = sheet.image
        gaps = ((visual.diff() > 1) & (image.diff() == 0)).nonzero()[:, 0]
        ranges = [torch.arange(int(visual[gap]) + 1, int(visual[gap + 1])) for gap in gaps]
        return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.long)


def _placed(questions: Sequence[str | Sequence[str | None]], places: int, video: bool) -> list[list[str | None]]:
    """Return the questions of a conversation as parts: images in front of the first one, unless some part marks a place.

    Raises:
        PromptError: a question is no text, or there are not as many places as images.
    """
    marked = any(not isinstance(question, str) for question in questions)
    turns: list[list[str | None]] = [
        [stripped(each, "question")] if isinstance(each, str) else list(each) for each in questions
    ]
    if not marked:
        turns[0] = [*[None] * places, *turns[0]]
    if (count := sum(turn.count(None) for turn in turns)) != places:
        noun = "the video; expected 1" if video else f"images; expected {places}, as many as images"
        subject = "question has" if len(turns) == 1 else "questions have"
        raise PromptError(f"the {subject} {count} places for {noun}")
    return turns


def _read_turns(earlier: Any) -> list[Turn]:
    """Return earlier turns as pairs; raise PromptError where they are none."""
    if isinstance(earlier, str) or not isinstance(earlier, Collection):
        raise PromptError(
            f"the earlier turns are a {type(earlier).__name__}; expected pairs of a question and its answer, in a list"
        )
    turns: list[Any] = list(cast(Collection[Any], earlier))
    for number, turn in enumerate(turns, 1):
        match turn:
            case [str() | list() | tuple(), str()]:
                pass
            case _:
                raise PromptError(
                    f"earlier turn {number} is {short(turn)}; expected a question and its answer, two texts"
                )
    return [(question, answer) for question, answer in turns]


def _refuse_swapped(images: Any, question: Any) -> None:
    """Raise PromptError where the question is no text, or the arguments are in the wrong order."""
    name = isinstance(question, str) and question.lower().endswith(IMAGE_SUFFIXES)
    picture = isinstance(question, Path | bytes | Image.Image | np.ndarray | Tensor)
    if isinstance(images, str) and (picture or (name and not os.path.isfile(images))):  # noqa: PTH113 - no error for odd names
        raise PromptError(f"the image comes first, then the question; got {images[:100]!r} as the image")
    stripped(question, "question")


def _refuse_mixed(images: Any) -> None:
    """Raise PromptError where a video is in a list."""
    if isinstance(images, list | tuple) and any(isinstance(each, Video) for each in cast(Sequence[Any], images)):
        raise PromptError("a prompt takes one video alone; give it without a list, or its frames among the pictures")


def _sizes(images: Sequence[Image.Image]) -> str:
    return ", ".join(f"{image.width} x {image.height}" for image in images)


def _as_tensors(inputs: Any, model: Any) -> dict[str, Tensor]:
    """Convert a processor's output for one prompt to tensors of the model's dtype on its device."""
    if not isinstance(inputs, Mapping):
        raise PromptError(
            f"the inputs are a {type(inputs).__name__}; expected what a processor returns, names with tensors"
        )
    tensors: dict[str, Tensor] = {}
    for name, value in cast(Mapping[str, Any], inputs).items():
        try:
            array: Any = value if isinstance(value, Tensor) else np.asarray(value)
        except ValueError as error:  # lists of unequal length
            raise PromptError(
                f"{name} cannot be made a tensor ({error}); give return_tensors='pt' to the processor"
            ) from error
        if isinstance(array, Tensor) or array.dtype.kind in "buif":
            tensor = torch.as_tensor(array)
            tensors[name] = tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
    missing = [("input_ids", "text"), ("pixel_values", "images")][: 1 if PIXELS["video"] in tensors else 2]
    for name, maker in missing:
        if name not in tensors:
            raise PromptError(
                f"the inputs hold no {name}, only {', '.join(tensors) or 'nothing'}; the processor makes them of its {maker}"
            )
    shape = tuple(tensors["input_ids"].shape)
    if len(shape) != 2 or shape[0] != 1:
        many = f"{shape[0]} prompts" if len(shape) == 2 else f"input_ids of shape {shape}"
        raise PromptError(
            f"the inputs hold {many}; expected one, of shape (1, positions): read each on its own, `vlm.predict_all` runs many"
        )
    return tensors


def _refuse_wrong_size(inputs: Mapping[str, Any], adapter: Adapter) -> None:
    vision, pixels = adapter.model.config.vision_config, adapter.pixel_input(inputs)
    if vision.model_type in FIXED_TOWERS and tuple(pixels.shape[-2:]) != (vision.image_size, vision.image_size):
        raise UnsupportedModelError(
            f"{adapter.name}: the processor makes pictures of {pixels.shape[-1]} x {pixels.shape[-2]} pixels, the vision tower "
            f"takes {vision.image_size} x {vision.image_size}; load the processor that belongs to the model"
        )
