"""Tiny models, saved for the app to load: one that cuts the picture into tiles, one whose tokens have no place in it."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_llava
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    OPTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

SIDE = {"height": 28, "width": 28}
SINK = (1, 1)  # row and column in every crop of 4 x 4 patches
QUERIES = 32


def save_tiled(folder: Path) -> Path:
    """A LLaVA-NeXT with the weights of the tiny LLaVA, and with one patch in every crop that its encoder makes a sink."""
    llava, processor = tiny_llava("siglip")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        vision_config=llava.config.vision_config,
        text_config=llava.config.text_config,
        image_token_index=llava.config.image_token_id,
        image_seq_length=16,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaNextForConditionalGeneration(config)
    model.load_state_dict(llava.state_dict(), strict=False)
    with torch.no_grad():
        model.model.image_newline.normal_(generator=torch.Generator().manual_seed(0))
        patch = SINK[0] * 4 + SINK[1]
        model.model.vision_tower.embeddings.position_embedding.weight[patch, 0] = 1000
    model.generation_config = llava.generation_config
    model.save_pretrained(folder)
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIDE, image_grid_pinpoints=pinpoints)
    LlavaNextProcessor(
        images,
        processor.tokenizer,
        patch_size=7,
        vision_feature_select_strategy="full",
        chat_template=processor.chat_template,
    ).save_pretrained(folder)
    return folder


def save_listed(folder: Path) -> Path:
    """A BLIP-2, whose visual tokens are queries that gather from all patches."""
    torch.manual_seed(0)
    llava, processor = tiny_llava("siglip")
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Blip2Config(
        vision_config={**shape, "intermediate_size": 64, "image_size": 28, "patch_size": 7},
        qformer_config={**shape, "intermediate_size": 64, "encoder_hidden_size": 32},
        text_config=OPTConfig(
            **shape, ffn_dim=64, word_embed_proj_dim=32, vocab_size=len(processor.tokenizer), pad_token_id=0
        ),
        num_query_tokens=QUERIES,
        image_token_index=llava.config.image_token_id,
    )
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(6)  # so that a gate shows
    model.generation_config = llava.generation_config
    model.save_pretrained(folder)
    Blip2Processor(BlipImageProcessorPil(size=SIDE), processor.tokenizer, num_query_tokens=QUERIES).save_pretrained(
        folder
    )
    return folder


MOST_TOKENS = 8  # of an answer, instead of the app's 32: these answers never end by themselves
FEWER_TOKENS = f"""
from app import engine, view_model
engine.MAX_NEW_TOKENS = view_model.MAX_NEW_TOKENS = {MOST_TOKENS}
"""
