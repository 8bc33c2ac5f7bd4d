"""Tiny random LLaVA models with real processors, as real models are put together."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import sinkgate as sg
from sinkgate.attention.cache import CACHE_NAMES, cache_in
from sinkgate.demo.build import CHAT_TEMPLATE, IMAGE, build_tokenizer
from sinkgate.images.layout import list_sheet

TOWERS = ("clip", "siglip")


def tiny_llava(
    tower: str = "clip", *, dtype: torch.dtype = torch.float32, attn: str = "sdpa", layers: int = 3, seed: int = 0
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Three-layer towers and a LLaMA of three layers or more with grouped KV heads; weights scaled up so that a gate shows."""
    pair = copy.deepcopy(_tiny_llava(tower, dtype, attn, layers, seed))  # a third of the time that building takes
    torch.manual_seed(seed)
    return pair


@functools.cache
def _tiny_llava(
    tower: str, dtype: torch.dtype, attn: str, layers: int, seed: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    }
    vision = CLIPVisionConfig(**shape) if tower == "clip" else SiglipVisionConfig(**shape, vision_use_head=False)
    strategy = "default" if tower == "clip" else "full"
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=16,
        vision_feature_layer=-2 if tower == "clip" else -1,
        vision_feature_select_strategy=strategy,
    )
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(6)
    model.set_attn_implementation(attn)
    model.generation_config.eos_token_id = None  # a random model must not stop on its own
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    side = {"height": 28, "width": 28}
    if tower == "clip":
        images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side)
    else:
        images = SiglipImageProcessorPil(size=side)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if tower == "clip" else 0,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def noise_image(seed: int = 0, size: tuple[int, int] = (28, 28)) -> Image.Image:
    """A picture of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8).numpy())


def bare_prompt(question: str = "", images: list[Image.Image] | None = None, tokens: int = 4) -> sg.Prompt:
    """A prompt of visual tokens only, for models that a test makes up."""
    visual = torch.arange(tokens)
    return sg.Prompt(images or [], question, {}, visual, visual[:0], tokens, visual, (list_sheet(tokens),))


def some_sinks(vlm: sg.VLM, prompt: sg.Prompt, seed: int = 0, share: float = 0.3) -> sg.SinkMap:
    """A SinkMap whose groups are drawn at random: what is done with sinks must not care how they were found."""
    sinks = sg.find_sinks(vlm, prompt, v_sink="attention", l_sink="attention")  # no sink dimensions are looked for
    generator = torch.Generator().manual_seed(seed)
    v_sink = torch.rand(sinks.v_sink.shape, generator=generator) < share
    l_sink = (torch.rand(sinks.l_sink.shape, generator=generator) < share) & ~v_sink
    return sg.SinkMap(**{**vars(sinks), "v_sink": v_sink, "l_sink": l_sink})


def rename_cache(decoder: nn.Module, name: str) -> None:
    """Give the cache that name among the decoder's arguments, for hooks registered later and the forward."""

    def rename(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {key: value for key, value in kwargs.items() if key not in CACHE_NAMES} | {name: cache_in(kwargs)}

    decoder.register_forward_pre_hook(rename, with_kwargs=True)


def shaken(method: nn.Module, seed: int = 0, size: float = 1.0) -> Any:
    """Draw every parameter anew, so that the module is no longer at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return method
