"""Checks of a model before, while and after it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from sinkgate.errors import UnsupportedModelError
from sinkgate.models.load_errors import LESS_MEMORY, in_words
from sinkgate.models.vlm import VLM
from sinkgate.models.weights import size_on_disk
from sinkgate.sinks.gates import Gates
from sinkgate.sinks.sink_map import SinkMasks

BITS = {"4bit": 4, "8bit": 8}
#: Prefixes of tensor names in checkpoints saved from PEFT, data-parallel, compiled and sharded models.
WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "_fsdp_wrapped_module.")


def check_config(config: Any, name: str) -> None:
    """Refuse all but vision-language models with a decoder-only LLM, before anything large is loaded.

    Raises:
        UnsupportedModelError: an encoder-decoder, a model of text or of images alone, or one without a vision encoder.
    """
    kind = config.model_type
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} ({kind}) is an encoder-decoder: its text attends to the image in another way; expected a "
            "vision-language model with a decoder-only LLM, `sinkgate models` lists some"
        )
    remote = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not remote:
        raise UnsupportedModelError(
            f"{name} ({kind}) takes no images together with text; expected a vision-language model, `sinkgate models` lists some"
        )
    if getattr(config, "vision_config", None) is None:
        raise UnsupportedModelError(
            f"{name} ({kind}) has no vision encoder of its own; expected a vision-language model with one, "
            "`sinkgate models` lists some"
        )


def check_memory(
    config: Any,
    name: str,
    *,
    device: torch.device,
    location: str = "",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
) -> None:
    """Refuse a model whose weights alone exceed the free memory, before they are downloaded or read.

    The size of the files in the folder ``location`` bounds the number of parameters, a byte each at least; only where that bound does not
    suffice are they counted, on a model without memory. A dtype that neither the caller nor the config names is taken for
    half precision, and quantization for all parameters: what is refused would not have fitted. Not checked: checkpoints that
    are quantized already, and models that bring code of their own.

    Raises:
        UnsupportedModelError: there is not enough memory.
    """
    if getattr(config, "quantization_config", None) or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return
    stored: torch.dtype = dtype or config.dtype or config.get_text_config().dtype or torch.float16
    bytes_each, free = BITS.get(quantize or "", 8 * stored.itemsize) / 8, _free_memory(device)
    if 0 < size_on_disk(Path(location)) * bytes_each <= free:
        return
    with torch.device("meta"):
        parameters: int = cast(Any, AutoModelForImageTextToText).from_config(config).num_parameters()
    needed = parameters * bytes_each
    if needed > free:
        raise UnsupportedModelError(
            f"the weights of {name} need {needed / 1e9:.1f} GB ({parameters / 1e9:.1f} billion parameters, "
            f"{quantize or str(stored).removeprefix('torch.')}) and {free / 1e9:.1f} GB are free on {device}: {LESS_MEMORY}"
        )


def check_weights(report: Mapping[str, Any], name: str) -> None:
    """Refuse a model whose checkpoint lacks tensors or holds them in other sizes; they would be random.

    Args:
        report: loading info of ``from_pretrained``; tied tensors do not count as missing.
        name: of the model, for the message.

    Raises:
        UnsupportedModelError: a tensor is missing or of another size.
    """
    missing, unexpected = report["missing_keys"], sorted(report["unexpected_keys"])
    for tensor, got, expected in sorted(report["mismatched_keys"]):
        raise UnsupportedModelError(
            f"the weights of {name} do not fit its config.json: {tensor} is {tuple(got)} in the file, expected "
            f"{tuple(expected)}; take both files from the same checkpoint"
        )
    if not missing:
        return
    parts = Counter(".".join(tensor.split(".")[:2]) for tensor in sorted(missing))
    listed = ", ".join(part if part in missing else f"{part}.* ({count})" for part, count in parts.most_common(4))
    more = ", ..." if len(parts) > 4 else ""
    remedy = "copy or download the whole checkpoint; a (model, processor) is taken as it is"
    if unexpected:
        remedy = f"the file holds {len(unexpected)} tensors of other names, such as {unexpected[0]}; save it with the names of {name}'s own"
    if wrapper := next((each for each in WRAPPERS if unexpected and unexpected[0].startswith(each)), None):
        remedy = f"its names begin with {wrapper}, as a wrapper saves them; save the model inside the wrapper"
    raise UnsupportedModelError(
        f"{len(missing)} tensors of {name} are missing from its weights: {listed}{more}; {remedy}"
    )


def check_model(vlm: VLM) -> None:
    """Check on a small prompt that attention is recorded and gated in every layer.

    The attention of every layer is recorded, its rows sum to one, and halving every visual Key moves the next-token
    distribution. As at the first prompt of any model, gradients verify the closed form of the map from patches to visual tokens.

    Raises:
        UnsupportedModelError: one of these does not hold, or the model cannot run the prompt.
    """
    with in_words(f"{vlm.name} fails on a small prompt", vlm.name, "load the model's own processor, in float32"):
        prompt = vlm.prompt(noise_picture(), "What is this?")
        plain = vlm.predict(prompt)
        if len(plain.attention) != vlm.num_layers:
            raise UnsupportedModelError(
                f"{vlm.name}: attention is seen in {len(plain.attention)} of {vlm.num_layers} layers; load it with "
                "attn_implementation='eager'"
            )
        if not torch.allclose(plain.attention.sum(-1).float(), torch.ones(()), atol=1e-3):
            raise UnsupportedModelError(
                f"{vlm.name}: attention rows do not sum to one, as where numbers overflow; load it with dtype='float32'"
            )
        every = torch.ones(len(prompt.visual), dtype=torch.bool)
        everything = SinkMasks(every, torch.zeros(vlm.num_layers, len(every), dtype=torch.bool))
        halved = vlm.predict(prompt, Gates.ones(vlm).set("v_sink", 0.5), everything)
        if torch.equal(halved.probabilities, plain.probabilities):
            raise UnsupportedModelError(
                f"{vlm.name}: halving every visual Key does not move the next-token distribution, so its layers do not read "
                "the image; check that the weights are complete, or load it with dtype='float32'"
            )


def noise_picture() -> Image.Image:
    """Return a picture of random pixels that is no square: the rules by which patches become tokens differ only there."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (64, 96, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _free_memory(device: torch.device) -> int:
    """Return free bytes of an accelerator with memory of its own, else of the machine."""
    own = getattr(torch.get_device_module(device), "mem_get_info", None)
    return own(device)[0] if own else psutil.virtual_memory().available
