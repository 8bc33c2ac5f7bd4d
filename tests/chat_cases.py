"""Small tokenizers and chat templates with the traits of published ones."""

from __future__ import annotations

import json
from typing import Any

from tiny import tiny_llava
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

import sinkgate as sg

BOS, EOS, IMAGE = "<s>", "</s>", "<image>"
MARKS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>")
WORDS = [
    "two dogs and a cat",
    "What is in the picture?",
    "USER: ASSISTANT: yes no",
    "first line\nsecond line",
    "system user",
    "<think> why </think>",
]


def byte_level(**options: Any) -> PreTrainedTokenizerFast:
    """Pieces of bytes, a blank at the start of a word, nothing added: GPT-2, Qwen, SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, IMAGE, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return _wrapped(tokenizer, **options)


def sentencepiece(**options: Any) -> PreTrainedTokenizerFast:
    """Pieces of words behind a blank that is written in front of a text too, bytes for the rest, BOS added: LLaMA."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = [BOS, EOS, IMAGE, *MARKS, "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([line for text in WORDS for line in text.split("\n")], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**learned["vocab"], **{f"<0x{byte:02X}>": len(learned["vocab"]) + byte for byte in range(256)}}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return _wrapped(tokenizer, unk_token="<unk>", **options)


def _wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    options = {"additional_special_tokens": [IMAGE, *MARKS], **options}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, padding_side="left", **options
    )


TOKENIZERS = {"byte-level": byte_level, "sentencepiece": sentencepiece}

_PARTS = "{% for c in m.content %}{% if c.type == 'image' %}" + IMAGE + "{% else %}{{ c.text }}{% endif %}{% endfor %}"
_TEXT = "{% if m.content is string %}{{ m.content }}{% else %}" + _PARTS + "{% endif %}"
#: LLaVA-1.5: images first, a blank behind every text, no end.
BLANK = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}"
    "{% for c in m.content if c.type == 'image' %}{{ '" + IMAGE + "\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
#: ChatML with a system turn of its own and a line break behind the generation prompt: Qwen.
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n" + _TEXT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The answer's list of parts printed as it is, no end but the next turn's mark: GLM-4.1V.
LISTED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n" + _TEXT + "{% else %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_THOUGHT = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
#: A past turn shows an empty thought: Qwen3.
THOUGHT = CHATML.replace(_TEXT, _THOUGHT + _TEXT)
#: The generation prompt opens a thought: Qwen3-VL-Thinking.
OPENED = THOUGHT.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
#: The generation prompt opens a thought, past turns show none: DeepSeek-R1.
DROPPED = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
#: Texts only, as of LLMs, a blank in front of the answer: Mistral.
TEXT_ONLY = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
#: Questions alone.
QUESTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    + _TEXT
    + "{% else %}{{ raise_exception('no answers') }}{% endif %}{% endfor %}:"
)

#: One image always, in front of all turns.
FIRST = IMAGE + "\n" + CHATML.replace(_PARTS, "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}")

TEMPLATES = {
    "blank": BLANK,
    "bos": "{{ bos_token }}" + BLANK,
    "chatml": CHATML,
    "listed": LISTED,
    "thought": THOUGHT,
    "opened": OPENED,
    "dropped": DROPPED,
    "first": FIRST,
    "questions": QUESTIONS,
}


def vlm_with(
    tokenizer: PreTrainedTokenizerFast, template: str | None, *, ends: tuple[str, ...] = (EOS,), seed: int = 0
) -> sg.VLM:
    """A tiny LLaVA that reads and writes with a tokenizer and a template; ``ends``: tokens that end its answers."""
    model, processor = tiny_llava(seed=seed)
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(ends))
    processor = LlavaProcessor(
        processor.image_processor,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return sg.load((model, processor), check=False)
