"""Models to measure: the demo model, and random weights in the shapes of well-known models.

The cost of a gate depends on widths, depths and the number of visual tokens, and not on the values of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

import sinkgate as sg
from sinkgate.models.vlm import VLM
from sinkgate.scenes.scene import Scene
from sinkgate.sinks.criteria import CRITERIA, Choice, SinkCriteria, Verdict
from sinkgate.sinks.sink_map import SinkMap, TextTokens

IMAGE, WORDS = 5, 40  # the image token's id; words of the question
Options = dict[str, Any]  # of a configuration
SIGLIP: Options = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN2: Options = {
    "vocab_size": 8000,  # 151,936 in the original: memory only, one row of logits is computed
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}


@dataclass
class Subject:
    """A model with a prompt and its sinks; ``pixels`` are the inputs as a processor makes them."""

    name: str
    vlm: VLM
    prompt: sg.Prompt
    sinks: SinkMap

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.vlm.model

    @property
    def pixels(self) -> dict[str, Tensor]:
        """The prompt with its picture not yet encoded."""
        return self.prompt.inputs

    @property
    def encoded(self) -> dict[str, Any]:
        """The prompt with its picture encoded."""
        return self.vlm.warm_inputs(self.prompt)

    def scales(self, gates: sg.Gates | sg.FineGates) -> Any:
        """Return scales of the Keys by layer and position, (L, 1, K); or limited ones."""
        return self.vlm.scales(self.prompt, gates, self.sinks)

    def prefill(self, use_cache: bool = False) -> Any:
        """Run the whole model on the prompt, from the pixels."""
        with torch.no_grad():
            return self.model(**self.pixels, use_cache=use_cache, logits_to_keep=1)


def demo() -> Subject:
    """The model that comes with sinkgate: 64 visual tokens, 8 layers, 128 wide."""
    vlm = sg.load("demo")
    prompt = vlm.prompt(Scene.random(Random(71)).render(), "How many objects are there?")
    return Subject("demo", vlm, prompt, sg.find_sinks(vlm, prompt))


def open_folder(folder: Path) -> Subject:
    """Return the model in a folder, with a question about noise."""
    vlm = sg.load(str(folder))
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    prompt = vlm.prompt(Image.fromarray(noise), "What is in the picture?")
    return Subject(folder.name, vlm, prompt, sg.find_sinks(vlm, prompt, v_sink="norm", l_sink="norm"))


def onevision(side: int = 27, layers: int = 24, encoder_layers: int = 26) -> Subject:
    """LLaVA-OneVision-0.5B's shape, one crop: SigLIP-so400m, 27 x 27 = 729 visual tokens, Qwen2 of 24 layers, 896 wide."""
    vision = SiglipVisionConfig(**SIGLIP, num_hidden_layers=encoder_layers, image_size=side * SIGLIP["patch_size"])
    text = Qwen2Config(**QWEN2, num_hidden_layers=layers)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return random_llava("OneVision-0.5B shape", config)


def narrow(side: int, layers: int) -> Subject:
    """A LLaVA 64 wide with one head, for many tokens and layers on a CPU; ``side`` patches along the picture's edge."""
    shape: Options = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            **shape, num_hidden_layers=1, image_size=4 * side, patch_size=4, vision_use_head=False
        ),
        text_config=LlamaConfig(
            **shape, vocab_size=200, num_hidden_layers=layers, max_position_embeddings=side**2 + 100
        ),
        image_token_index=IMAGE,
        image_seq_length=side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return random_llava(f"{layers} layers, 64 wide", config)


def llava_7b() -> Subject:
    """LLaVA-1.5-7B's shape in bfloat16 on a GPU."""
    return random_llava("LLaVA-1.5-7B shape", llava_7b_config(), torch.bfloat16, "cuda")


def llava_7b_config(tiny: bool = False) -> LlavaConfig:
    """CLIP-L at 336 pixels, 576 visual tokens, LLaMA of 32 layers, 4096 wide; ``tiny``: 16 visual tokens, 4 layers, 64 wide."""
    vision: Options = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    text: Options = {"vocab_size": 32064}
    if tiny:
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {
            "vocab_size": 200,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
    side = 4 if tiny else 24
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=14 * side, patch_size=14),
        text_config=LlamaConfig(**text),
        image_token_index=IMAGE,
        image_seq_length=side**2,
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {"demo": demo, "onevision": onevision}
if torch.cuda.is_available():
    SUBJECTS["llava-7b"] = llava_7b


def random_llava(
    name: str, config: LlavaConfig, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Subject:
    """Return a LLaVA with random weights and a prompt of noise."""
    vlm = random_weights(name, LlavaForConditionalGeneration, config, dtype, device)
    return with_prompt(vlm, "blocks", llava_inputs(config))


def random_weights(name: str, kind: Any, config: Any, dtype: torch.dtype, device: torch.device | str) -> VLM:
    """Return a model of a class of transformers, its weights drawn on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None  # random weights must not end an answer
    model.generation_config.pad_token_id = 0
    return VLM(model, None, name)


def llava_inputs(config: LlavaConfig) -> dict[str, Tensor]:
    """Return a picture of noise and a question as a LLaVA's inputs."""
    vision: Any = config.vision_config
    words = torch.randint(10, 60, (1, WORDS))
    ids = torch.cat([torch.full((1, config.image_seq_length), IMAGE), words], 1)
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def with_prompt(vlm: VLM, rule: str, inputs: dict[str, Tensor]) -> Subject:
    """Return a model with the prompt of these inputs; ``rule`` maps patches to visual tokens."""
    vlm.prompter.rules["image"] = rule  # measuring it by gradients through the whole tower would take long
    floats = {name: value.to(vlm.model.dtype) for name, value in inputs.items() if value.is_floating_point()}
    prompt = vlm.read({name: value.to(vlm.device) for name, value in (inputs | floats).items()})
    return Subject(vlm.name, vlm, prompt, some_sinks(vlm, prompt))


def some_sinks(vlm: VLM, prompt: sg.Prompt, count: int = 5) -> SinkMap:
    """Return sinks with V-sinks at even distances, as many as a real picture has (three to five): random weights grow none."""
    tokens, layers = len(prompt.visual), vlm.num_layers
    v_sink = torch.zeros(tokens, dtype=torch.bool)
    v_sink[:: -(-tokens // count)] = True
    none, by_layer, norm = torch.zeros(tokens), torch.zeros(layers, tokens), Choice(CRITERIA["norm"])
    verdict = Verdict("none", "", by_layer.bool(), by_layer, torch.ones(layers, 1))
    return SinkMap(
        v_sink=v_sink,
        l_sink=by_layer.bool(),
        v_verdict=None,
        l_verdict=verdict,
        sheets=prompt.sheets,
        loudest=None,
        encoder_share=none,
        llm_share=by_layer,
        norm_ratio=none,
        value_ratio=by_layer,
        criteria=SinkCriteria(norm, norm),
        positions=prompt.visual,
        text=TextTokens(torch.zeros(0, dtype=torch.long), torch.zeros(layers, 0)),
    )
