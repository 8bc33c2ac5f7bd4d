"""Description of a model in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from sinkgate.errors import PromptError
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM

_RULES = {
    "blocks": "{m} x {m} neighbours become one visual token",
    "runs": "{m} x {m} neighbours, put together by the processor, become one visual token",
    "measured": "no known rule: the visual token of each is measured by gradients, for each size of picture",
    "mixed": "every visual token gathers from many",
    None: "not known, since the vision encoder cannot be looked into",
}


def describe(vlm: VLM, prompt: Prompt) -> dict[str, str | int]:
    """Describe a model's parts, the rule from patches to visual tokens, the layers that can be gated and the sinks that can be named.

    Args:
        vlm: the model.
        prompt: any prompt of it; making one determines the rule of the patches.
    """
    config, adapter, rule = vlm.model.config, vlm.adapter, vlm.prompter.rules.get(prompt.kind)
    text, vision, encoder = config.get_text_config(), config.vision_config, len(adapter.encoder_layers)
    quantized = getattr(vlm.model, "is_quantized", False)
    devices = sorted({str(device) for device in getattr(vlm.model, "hf_device_map", {"": vlm.device}).values()})
    return {
        "model": vlm.name,
        "architecture": f"{config.model_type}, {type(vlm.model).__name__}",
        "vision_encoder": f"{vision.model_type}, {f'{encoder} layers' if encoder else 'cannot be looked into'}",
        "features": f"the output of layer {adapter.feature_layer} of 0 to {encoder - 1}" if encoder else "out of reach",
        "patches": _rule(rule, prompt),
        "chat_format": vlm.prompter.chat.source if vlm.processor else "no processor",
        "answers": greedy_answer(vlm, prompt).sentence if vlm.processor else "no processor",
        "image_encoded": "once a prompt" if adapter.takes_encoded else "in every call",
        "llm": f"{text.model_type}, {text.num_hidden_layers} layers, {vlm.num_heads} heads, {text.hidden_size} wide",
        "gated_layers": _gated(adapter.layer_numbers, text.num_hidden_layers),
        "v_sinks": _v_sinks(rule, bool(encoder)),
        "l_sinks": _l_sinks(adapter.cross_attention),
        "parameters": vlm.model.num_parameters(),
        "dtype": str(vlm.model.dtype).removeprefix("torch.") + (", weights quantized" if quantized else ""),
        "device": ", ".join(devices),
        "attention": text._attn_implementation,
    }


@dataclass(frozen=True)
class GreedyAnswer:
    """A model's own answer beside its encoding.

    Args:
        written: pieces that the model wrote, without blanks around them.
        encoded: pieces of the same text as `VLM.encode_answer` gives them.
        same: True where both agree; None where there is nothing to compare.
    """

    written: list[str]
    encoded: list[str]
    same: bool | None

    @property
    def sentence(self) -> str:
        """The result in words."""
        if self.same is None:
            return "not compared with what the model writes, which is no text"
        if self.same:
            return "encoded as the model writes them"
        return f"encoded as {self.encoded[:8]} where the model writes {self.written[:8]}"


def greedy_answer(vlm: VLM, prompt: Prompt, max_new_tokens: int = 16) -> GreedyAnswer:
    """Compare the first tokens of a model's greedy answer with how its text is encoded for training and scores.

    Random weights write what no tokenizer would; a trained model whose answers differ has a chat template that prints past turns in
    another way than the model was trained on.

    Args:
        vlm: the model.
        prompt: its question.
        max_new_tokens: tokens to generate; the last is not compared where the answer is cut off.
    """
    written = vlm.answer(prompt, max_new_tokens=max_new_tokens, max_rows=1).ids
    try:
        encoded = vlm.encode_answer(prompt, vlm.tokenizer.decode(written, skip_special_tokens=True))
    except PromptError:
        return GreedyAnswer([], [], None)
    while not vlm.tokenizer.decode(written[:1]).strip():
        written = written[1:]
    if written[-1] not in vlm.prompter.chat.ends:  # cut off, perhaps within a word
        shorter = min(len(written), len(encoded)) - 1
        written, encoded = written[:shorter], encoded[:shorter]
    names = vlm.tokenizer.convert_ids_to_tokens
    return GreedyAnswer(names(written), names(encoded), written == encoded)


def _rule(rule: str | None, prompt: Prompt) -> str:
    fed = 0 if prompt.token_of_patch is None else int((prompt.token_of_patch >= 0).sum())
    m = isqrt(fed // len(prompt.visual))
    return "each becomes one visual token" if m == 1 and rule in ("blocks", "runs") else _RULES[rule].format(m=m)


def _gated(numbers: list[int], layers: int) -> str:
    if len(numbers) == layers:
        return f"all {layers}"
    return f"{len(numbers)} of {layers}, those that attend to the image: {', '.join(map(str, numbers))}"


def _v_sinks(rule: str | None, encoder: bool) -> str:
    if not encoder:
        return "cannot be named, since the vision encoder cannot be looked into"
    return "patches can be named, visual tokens cannot, since each mixes patches" if rule == "mixed" else "can be named"


def _l_sinks(cross_attention: bool) -> str:
    if cross_attention:
        return "can be named; visual tokens are the same at every gated layer, only the attention to them differs"
    return "can be named, layer by layer"
