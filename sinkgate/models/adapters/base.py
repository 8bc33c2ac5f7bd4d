"""Parts of a vision-language model, identified by their function, and the map from its patches to visual tokens.

No family is named here: a layer is a module that calls transformers' attention function, the size of a grid comes from the
inputs, and the rule by which patches are merged is measured once by gradients (`sinkgate.models.token_map`). Families that
differ have a small file beside this one.

Shapes: N patches, in the order of the pixels the processor makes; U rows that the image puts into the prompt
(visual tokens and separators); S rows of the encoder for one crop; E encoder width, D LLM width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from sinkgate.errors import UnsupportedModelError

Inputs = Mapping[str, Any]
Grid = tuple[int, int]  # rows and columns of patches
#: The input that holds the pixels, and the one that holds grids of patches by time, of each kind of picture.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
TIME_GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


class Adapter:
    """The parts of a model.

    Attributes: ``decoder`` runs the LLM layers; ``layers`` are those of them that attend to visual tokens (``all_layers``: with the
    others), ``attention`` their attention modules; ``encoder_layers`` and ``encoder_attention`` are those of the vision encoder.

    Raises:
        UnsupportedModelError: the model takes no images, or no layer is found that attends to them.
    """

    image_method = "get_image_features"  # what every model that reads images has
    image_rows = "pooler_output"  # where its output holds what goes into the prompt
    cross_attention = False  # whether visual tokens are Keys of cross-attention, apart from the text

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        owners = [part for part in (getattr(model, "model", None), model) if hasattr(part, self.image_method)]
        if not owners:
            raise UnsupportedModelError(f"{name} ({model.config.model_type}) takes no images")
        self.base: Any = owners[0]
        self.decoder: Any = model.get_decoder()
        self.encoder: Any = model.get_encoder(modality="image")
        pairs, encoder_pairs = self.attending_layers(self.decoder), self.attending_layers(self.encoder)
        if not pairs:
            raise UnsupportedModelError(
                f"{name} ({model.config.model_type}): no LLM layer goes through transformers' attention function, "
                "so nothing can be gated"
            )
        self.layers, self.attention = [layer for layer, _ in pairs], [attention for _, attention in pairs]
        self.encoder_layers = [layer for layer, _ in encoder_pairs]
        self.encoder_attention = [attention for _, attention in encoder_pairs]
        self.all_layers = _siblings(self.decoder, self.layers[0])
        self.layer_numbers = [self.all_layers.index(layer) for layer in self.layers]
        accepted = inspect.signature(inspect.unwrap(cast(Any, type(model)).forward)).parameters
        self.resumes: bool | None = None  # whether a forward can start in the middle; None until a session has tried
        optional = "pixel_values" in accepted and accepted["pixel_values"].default is None
        #: the argument of ``forward`` that takes an encoded image; None: it has to be encoded in every call
        self.takes_encoded = "mm_encoder_outputs" if optional and "mm_encoder_outputs" in accepted else None

    def attending_layers(self, module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Return the layers of a tower with their attention modules; layers without attention are left out."""
        return list(_attending(module))

    # --- the LLM's side

    @property
    def shares_keys(self) -> bool:
        """Return whether some layers attend to the Keys of another layer."""
        return bool(getattr(self.model.config.get_text_config(), "num_kv_shared_layers", 0))

    @property
    def image_token_id(self) -> int:
        """The id that holds a place for a row of the image in the prompt."""
        token = getattr(self.model.config, "image_token_id", None)
        if token is None:
            raise UnsupportedModelError(
                f"{self.name}: its config names no image token; save it again with a recent transformers"
            )
        return token

    @property
    def video_token_id(self) -> int:
        """The id that holds a place for a row of a video in the prompt; -1 where the model has none."""
        token = getattr(self.model.config, "video_token_id", None)
        return -1 if token is None else token

    def kind(self, inputs: Inputs) -> str:
        """Return "video" where the inputs hold a video, else "image"; by their tokens where the pixels were dropped."""
        pixels = [kind for kind, name in PIXELS.items() if name in inputs]
        if pixels or "input_ids" not in inputs:
            return pixels[-1] if pixels else "image"
        return "video" if bool((inputs["input_ids"] == self.video_token_id).any()) else "image"

    def rows_in_prompt(self, inputs: Inputs) -> Tensor:
        """Return the positions of the image's or video's rows among the Keys of the LLM's layers, (U,)."""
        token = self.video_token_id if self.kind(inputs) == "video" else self.image_token_id
        return (inputs["input_ids"][0] == token).nonzero()[:, 0]

    def num_keys(self, inputs: Inputs) -> int:
        """Return the number of Keys of a layer after the prompt."""
        return inputs["input_ids"].shape[1]

    def run(self, **inputs: Any) -> None:
        """Run one forward for its hooks: all positions in all layers, and no logits where the model allows it."""
        if self.base is self.model:
            self.model(**inputs, use_cache=False, logits_to_keep=1)
        else:  # with logits_to_keep=1 some models drop positions on the way
            self.base(**inputs, use_cache=False)

    def type_of_answers(self, types: Tensor) -> Tensor:
        """Return the token type of a generated token behind a prompt with these types: (B, P) -> (B, 1)."""
        grown = self.model._update_model_kwargs_for_generation(
            outputs=ModelOutput(), model_kwargs={"token_type_ids": types, "attention_mask": torch.ones_like(types)}
        )
        return grown["token_type_ids"][:, -1:]

    def rows_after_image(self, inputs: Inputs, visual: Tensor) -> range:
        """Return the positions of the text after the image: all after its last token, at least the last of the prompt."""
        length = inputs["input_ids"].shape[1]
        return range(min(int(visual[-1]) + 1, length - 1), length)

    def states_of_keys(self, hidden: Tensor, encoded: Any) -> Tensor:  # noqa: ARG002 - some families need it
        """Return the states that a layer's Keys are made from, out of the layer's input: (P, D) -> (Keys, D)."""
        return hidden

    # --- the encoder's side

    @property
    def feature_layer(self) -> int:
        """Index of the encoder layer whose output goes to the projector; the deepest where it joins several."""
        config, count = self.model.config, len(self.encoder_layers)
        configured = getattr(config, "vision_feature_layers", None) or getattr(config, "vision_feature_layer", None)
        indices = [-1] if configured is None else [configured] if isinstance(configured, int) else configured
        # counted as transformers counts hidden states: 0 is the embedding, -1 the last layer
        return max(index - 1 if index > 0 else count + index for index in indices)

    @property
    def reading_layer(self) -> int:
        """Index of the encoder layer that attends to those features: the next, or the same where that is the last."""
        return min(self.feature_layer + 1, len(self.encoder_layers) - 1)

    def encode(self, inputs: Inputs) -> Any:
        """Return the vision encoder's output, from which `projected` takes the projected rows."""
        method = getattr(self.base, f"get_{self.kind(inputs)}_features")
        taken = inspect.signature(inspect.unwrap(getattr(cast(Any, type(self.base)), method.__name__))).parameters
        return method(**{name: inputs[name] for name in taken if name in inputs}, return_dict=True)

    def as_input(self, encoded: Any, kind: str = "image") -> Any:
        """Return the encoded images or videos in the form of ``takes_encoded``."""
        return {kind: encoded}

    def join(self, encoded: Sequence[Any]) -> Any:
        """Join the encoded images of several prompts to those of one batch."""
        joined = copy(encoded[0])
        for name, first in encoded[0].items():
            values = [getattr(each, name) for each in encoded]
            if name == "deepstack_features":  # Qwen3-VL: rows for several layers, image by image
                joined[name] = [sum(level, ()) for level in zip(*values, strict=True)]
            elif name == self.image_rows:
                if not isinstance(first, Tensor):
                    joined[name] = [row for rows in values for row in rows]
                elif all(value.shape[1:] == first.shape[1:] for value in values):
                    joined[name] = torch.cat(values)
                else:  # videos of several lengths: the model takes their rows one after another
                    joined[name] = torch.cat([value.flatten(0, -2) for value in values])[None]
        return joined

    def projected(self, encoded: Any) -> Tensor:
        """Return the rows of the image in the prompt, (U, D)."""
        rows = encoded[self.image_rows]
        return rows.flatten(0, -2) if isinstance(rows, Tensor) else torch.cat([row.flatten(0, -2) for row in rows])

    # --- patches

    def grids(self, inputs: Inputs) -> list[Grid]:
        """Return rows and columns of patches of each crop, in the order of the encoder's input."""
        pixels, config = self.pixel_input(inputs), self.model.config.vision_config
        if (name := TIME_GRIDS[self.kind(inputs)]) in inputs:
            return [(int(rows), int(columns)) for times, rows, columns in inputs[name] for _ in range(int(times))]
        if "spatial_shapes" in inputs:
            return [(int(rows), int(columns)) for rows, columns in inputs["spatial_shapes"]]
        if "image_position_ids" in inputs:  # (crops, S, 2) column and row, -1 for padding
            return [(int(at[:, 1].max()) + 1, int(at[:, 0].max()) + 1) for at in inputs["image_position_ids"]]
        patch = self.patch_size
        if config.model_type == "pixtral":  # pictures of several sizes, padded to one
            return [(int(height) // patch, int(width) // patch) for height, width in inputs["image_sizes"]]
        crops = self.crops(inputs)
        return [(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * len(crops)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels of the processed image."""
        size = self.model.config.vision_config.patch_size
        return size if isinstance(size, int) else size[0]

    def pixel_input(self, inputs: Inputs) -> Tensor:
        """Return the pixels as the model takes them."""
        return inputs[PIXELS[self.kind(inputs)]]

    def crops(self, inputs: Inputs) -> Tensor:
        """Return the crops for the encoder, (crops, channels, height, width); of a video its frames."""
        pixels = self.pixel_input(inputs)
        if pixels.dim() == 4:
            return pixels
        crops = pixels.flatten(0, 1)
        if self.kind(inputs) == "video":
            return crops
        return crops[crops.flatten(1).any(1)]  # rows of a batch are filled up with crops of zeros

    def pixels(self, inputs: Inputs) -> Tensor:
        """Return the pixels of each patch of the processed image, (N, values)."""
        grids, patch = self.grids(inputs), self.patch_size
        pixels = self.pixel_input(inputs)
        if self.has_patch_rows(inputs):
            if pixels.dim() == 3 and pixels.shape[0] == len(grids):  # filled up to the largest crop
                pixels = torch.cat(
                    [crop[: rows * columns] for crop, (rows, columns) in zip(pixels, grids, strict=True)]
                )
            return pixels.flatten(1).float()
        patches: list[Tensor] = [
            cast(Any, crop)[:, : rows * patch, : columns * patch]
            .unflatten(1, (rows, patch))
            .unflatten(3, (columns, patch))
            .permute(1, 3, 0, 2, 4)
            .flatten(2)
            .flatten(0, 1)
            for crop, (rows, columns) in zip(self.crops(inputs), grids, strict=True)
        ]
        return torch.cat(patches).float()

    def has_patch_rows(self, inputs: Inputs) -> bool:
        """Return whether the processor cuts patches itself, so that the pixels come as one row a patch."""
        return TIME_GRIDS[self.kind(inputs)] in inputs or self.pixel_input(inputs).dim() < 4

    def in_patch_order(self, rows: Tensor, inputs: Inputs) -> Tensor:
        """Return the encoder's rows as patches: (crops, S, ...) or (N, ...) -> (N, ...), without CLS, registers and padding.

        Raises:
            UnsupportedModelError: there are not as many rows as patches.
        """
        counts = [height * width for height, width in self.grids(inputs)]
        if rows.dim() > 2 and rows.shape[0] == len(counts) and rows.shape[1] >= max(counts):
            first = 0 if self.has_patch_rows(inputs) else self.leading_rows(rows.shape[1] - counts[0])
            return torch.cat([crop[first : first + count] for crop, count in zip(rows, counts, strict=True)])
        flat = rows.flatten(0, 1) if rows.dim() > 2 else rows
        if len(flat) != sum(counts):
            raise UnsupportedModelError(
                f"{self.name}: the encoder has {len(flat)} rows for {sum(counts)} patches; is the processor this model's own?"
            )
        return flat

    def leading_rows(self, extra: int) -> int:
        """Return how many of the ``extra`` rows, those that are no patches (CLS, registers), come first."""
        return extra

    def token_of_patch(self, inputs: Inputs, rule: str) -> Tensor | None:
        """Return the image's row that each patch feeds by a rule of `RULES`, (N,); -1 for none; None where the rule does not fit."""
        return RULES[rule](self.grids(inputs), len(self.rows_in_prompt(inputs)))

    def nearest_token_of_patch(self, inputs: Inputs) -> Tensor | None:  # noqa: ARG002 - some families need it
        """Return the same where these pictures' features are resized after the encoder, so that no map is exact; else None."""
        return None


def one_block(grids: list[Grid], tokens: int) -> Tensor | None:
    """Return the token of each patch where m x m neighbouring patches become one, row by row (m = 1: a patch is a token)."""
    m = _side(grids, tokens)
    if m is None:
        return None
    maps: list[Tensor] = []
    first = 0
    for rows, columns in grids:
        row, column = torch.arange(rows // m).repeat_interleave(m), torch.arange(columns // m).repeat_interleave(m)
        maps.append((first + row[:, None] * (columns // m) + column).flatten())
        first += (rows // m) * (columns // m)
    return torch.cat(maps)


def one_run(grids: list[Grid], tokens: int) -> Tensor | None:
    """Return the token of each patch where m x m successive patches become one: the processor has put neighbours together."""
    m = _side(grids, tokens)
    return None if m is None else torch.arange(tokens).repeat_interleave(m * m)


#: Closed forms of the map from patches to visual tokens; `sinkgate.models.token_map` measures which of them a model follows.
RULES: dict[str, Callable[[list[Grid], int], Tensor | None]] = {"blocks": one_block, "runs": one_run}


def _side(grids: list[Grid], tokens: int) -> int | None:
    patches = sum(rows * columns for rows, columns in grids)
    m = isqrt(patches // tokens) if tokens else 0
    fits = m and patches == tokens * m * m and all(rows % m == columns % m == 0 for rows, columns in grids)
    return m if fits else None


def _attending(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for layer in child:
                attention = next((part for part in layer.modules() if _asks_for_attention(part)), None)
                if attention is not None:
                    yield layer, attention
        else:
            yield from _attending(child)


def _asks_for_attention(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _siblings(decoder: nn.Module, layer: nn.Module) -> list[nn.Module]:
    lists = (list(part) for part in decoder.modules() if isinstance(part, nn.ModuleList))
    return next(layers for layers in lists if layer in layers)
