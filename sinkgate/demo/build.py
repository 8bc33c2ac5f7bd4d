"""The demo model's parts before training: tokenizer, processor and an untrained LLaVA.

All of them are classes of transformers, so that the saved folder loads with ``AutoProcessor`` and ``AutoModelForImageTextToText``, and code
that works on it works on a model of the Hub.
"""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from sinkgate.scenes.questions import words

IMAGE_SIZE = 64
PATCH_SIZE = 8
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
FEATURE_LAYER = -2  # the LLM reads what the encoder's last layer reads, as LLaVA 1.5 does

PAD, UNK, END, IMAGE, USER, ASSISTANT = "<pad>", "<unk>", "</s>", "<image>", "<|user|>", "<|assistant|>"

# Image first, no start token: with a text sink before the image, no visual token would become a sink.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.content is string %}{% set parts = [{'type': 'text', 'text': message.content}] %}"
    "{% else %}{% set parts = message.content %}{% endif %}"
    "{% for part in parts if part.type == 'image' %}" + IMAGE + "{% endfor %}"
    "{% if message.role == 'user' %}" + USER + "{% elif message.role == 'assistant' %}" + ASSISTANT + "{% else %}"
    "{{ raise_exception('the demo models have no turn of the role ' + message.role) }}{% endif %}"
    "{% for part in parts if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{% if message.role != 'user' %}" + END + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word: lower case, no punctuation, British spellings read as American ones."""
    special = [PAD, UNK, END, IMAGE, USER, ASSISTANT]
    vocabulary = {word: index for index, word in enumerate([*special, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " "),
            normalizers.Replace("colour", "color"),
            normalizers.Replace("grey", "gray"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=[IMAGE, USER, ASSISTANT],
        padding_side="left",
        model_max_length=512,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return a token's id."""
    return tokenizer.get_vocab()[token]


def build_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> LlavaProcessor:
    """Return a LLaVA processor whose image processor needs only Pillow."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        SiglipImageProcessorPil(size=side),
        tokenizer or build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return the untrained small LLaVA: a two-layer projector before a LLaMA of 8 layers, 128 wide."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=token_id(tokenizer, PAD),
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END),
        tie_word_embeddings=True,
    )
    return build_llava(tokenizer, text, seed)


def build_llava(tokenizer: PreTrainedTokenizerFast, text: LlamaConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return an untrained LLaVA: a SigLIP-type tower without CLS, a two-layer projector and a LLaMA.

    Args:
        tokenizer: the demo's word-level tokenizer.
        text: the LLaMA's configuration; ``vocab_size`` is the tokenizer's.
        seed: seed of all weights.
    """
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token_id(tokenizer, IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = None
    return model
