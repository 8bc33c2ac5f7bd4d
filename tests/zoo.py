"""Tiny random models of every architecture that sinkgate knows, and prompts for them: one entry a family.

Weights are scaled up so that a gate visibly moves the logits. A prompt is three words, the image's rows (between
two marks where the family has them) and a few words more; the second of two samples is shorter and padded on the left.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as T
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sinkgate.models.vlm import VLM

IMAGE, PAD = 100, 0
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SQUARE = {"image_size": 28, "patch_size": 7}  # 4 x 4 patches
SIGLIP = {**TOWER, **SQUARE, "vision_use_head": False}
QWEN_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
PINPOINTS = [[28, 56], [56, 28], [56, 56]]

Images = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One architecture: its tiny configuration and the image inputs of one sample, with the rows they fill in the prompt.

    ``rule`` is the way from patches to tokens that sinkgate must find; ``types`` names the tensor of token types that the
    model wants, if any.
    """

    config: Callable[[], Any]
    images: Callable[[torch.Generator], Images]
    rows: int
    rule: str = "blocks"
    marks: tuple[int, ...] = ()
    words: int = 4
    types: str | None = None

    def model(self, *, dtype: torch.dtype = torch.float32, attn: str | None = None, seed: int = 0) -> Any:
        """A model in evaluation mode that never ends an answer by itself."""
        model = copy.deepcopy(self._model(dtype, attn, seed))  # a third of the time that building takes
        torch.manual_seed(seed)
        return model

    @functools.cache  # noqa: B019 (families live as long as the tests)
    def vlm(self, dtype: torch.dtype = torch.float32) -> VLM:
        """One model for all tests of a process: none may leave anything on it."""
        return self.own_vlm(dtype)

    def own_vlm(self, dtype: torch.dtype = torch.float32) -> VLM:
        """A model for a test that changes it."""
        model = self.model(dtype=dtype)
        return VLM(model, None, model.config.model_type)

    @functools.cache  # noqa: B019 (likewise)
    def _model(self, dtype: torch.dtype, attn: str | None, seed: int) -> Any:
        torch.manual_seed(seed)
        config = self.config()
        config.get_text_config()._experts_implementation = "eager"  # the grouped kernels have no float64
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn).to(dtype).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.any() and parameter.dim() >= 2:  # Gemma 3's projector starts at zero
                    torch.nn.init.normal_(parameter, std=0.02)
                if parameter.dim() >= 2:
                    parameter.mul_(6)
                if "gate" in name and parameter.numel() == 1:  # Mllama's image gates start closed
                    parameter.fill_(0.5)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        return model

    def sample(self, seed: int = 0, words: int = 3) -> dict[str, Tensor]:
        """One prompt of ``words`` words before the image; the same seed gives the same image."""
        generator = torch.Generator().manual_seed(seed)
        images = self.images(generator)
        before, after = (torch.randint(5, 90, (n,), generator=generator) for n in (words, self.words))
        first, last = (torch.tensor(self.marks[i : i + 1], dtype=torch.long) for i in range(2))
        ids = torch.cat([before, first, torch.full((self.rows,), IMAGE), last, after])[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
        if self.types:
            inputs[self.types] = (ids == IMAGE).long()
        if "cross_attention_mask" in inputs:
            reads = (ids[0] == IMAGE).long().cumsum(0)
            inputs["cross_attention_mask"] = inputs["aspect_ratio_mask"][:, None] * reads[None, :, None, None]
        return inputs


VIDEO = 101
#: Families that read a video as one input, with rows of its own in the prompt.
VIDEO_FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "llava_onevision",
    "llava_next_video",
)
#: Families whose processors write each frame of a video as an image, so that the model sees images; checked with those processors.
FRAMES_AS_IMAGES = ("internvl", "smolvlm")


def video_sample(name: str, frames: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """One prompt of a family of `VIDEO_FAMILIES` with a video of 32 patches (Qwen) or 16 patches (LLaVA) a frame."""
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.tensor([102]), torch.tensor([103])

    def words(count: int) -> Tensor:
        return torch.randint(5, 90, (count,), generator=generator)

    def rows(count: int) -> Tensor:
        return torch.full((count,), VIDEO)

    if name.startswith("llava"):
        videos = {"pixel_values_videos": torch.randn(1, frames, 3, 28, 28, generator=generator)}
        parts = [rows(4 * frames + (name == "llava_onevision"))]
    else:
        times = -(-frames // 2)  # two frames become one
        videos = {
            "pixel_values_videos": torch.randn(32 * times, 96, generator=generator),
            "video_grid_thw": torch.tensor([[times, 4, 8]]),
        }
        by_time = [part for _ in range(times) for part in (words(2), start, rows(8), end)]
        parts = [start, rows(8 * times), end] if name.startswith("qwen2") else by_time
    ids = torch.cat([words(3), *parts, words(4)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **videos}
    return inputs if name.startswith("llava") else {**inputs, "mm_token_type_ids": (ids == VIDEO).long() * 2}


def together(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Samples as one batch, padded on the left."""
    longest = max(sample["input_ids"].shape[1] for sample in samples)

    def padded(sample: dict[str, Tensor], name: str) -> Tensor:
        value, length = sample[name], sample["input_ids"].shape[1]
        if value.dim() < 2 or value.shape[1] != length or name in ("pixel_values", "qformer_input_ids"):
            return value
        filler = torch.zeros(1, longest - length, *value.shape[2:], dtype=value.dtype)
        return torch.cat([filler, value], 1)

    return {name: torch.cat([padded(sample, name) for sample in samples]) for name in samples[0]}


def _square(generator: torch.Generator) -> Images:
    return {"pixel_values": torch.randn(1, 3, 28, 28, generator=generator)}


def _crops(generator: torch.Generator) -> Images:
    return {"pixel_values": torch.randn(1, 2, 3, 28, 28, generator=generator)}


def _tiles(generator: torch.Generator) -> Images:
    return {"pixel_values": torch.randn(1, 3, 3, 28, 28, generator=generator), "image_sizes": torch.tensor([[28, 56]])}


def _wide(generator: torch.Generator) -> Images:
    return {"pixel_values": torch.randn(1, 3, 28, 56, generator=generator), "image_sizes": torch.tensor([[28, 56]])}


def _flat(width: int) -> Callable[[torch.Generator], Images]:
    def images(generator: torch.Generator) -> Images:
        return {
            "pixel_values": torch.randn(32, width, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 8]]),
        }

    return images


def _qwen(**changes: Any) -> dict[str, Any]:
    return {"images": _flat(96), "rows": 8, "rule": "runs", "marks": (102, 103), "types": "mm_token_type_ids"} | changes


def _llava() -> Any:
    return T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**TOWER, **SQUARE),
        text_config=T.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
    )


def _qianfan_ocr() -> Any:
    return T.QianfanOCRConfig(
        vision_config={**TOWER, **SQUARE}, text_config=T.Qwen3Config(**TEXT, head_dim=8), image_token_id=IMAGE
    )


def _llava_pixtral() -> Any:
    return T.LlavaConfig(
        vision_config=T.PixtralVisionConfig(image_size=56, patch_size=7, head_dim=8, **TOWER),
        text_config=T.MistralConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _vipllava() -> Any:
    return T.VipLlavaConfig(
        vision_config=T.CLIPVisionConfig(**TOWER, **SQUARE),
        text_config=T.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )


def _llava_next() -> Any:
    return T.LlavaNextConfig(
        vision_config=T.CLIPVisionConfig(**TOWER, **SQUARE),
        text_config=T.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )


def _llava_onevision() -> Any:
    return T.LlavaOnevisionConfig(
        vision_config=T.SiglipVisionConfig(**SIGLIP),
        text_config=T.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=101,
        image_grid_pinpoints=PINPOINTS,
    )


def _qwen2_vl() -> Any:
    tower = {key: value for key, value in QWEN_TOWER.items() if key not in ("intermediate_size", "out_hidden_size")}
    return T.Qwen2VLConfig(
        vision_config={**tower, "embed_dim": 32, "mlp_ratio": 2}, text_config=dict(QWEN_TEXT), **QWEN_IDS
    )


def _qwen2_5_vl() -> Any:
    tower = {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [2]}
    return T.Qwen2_5_VLConfig(vision_config=tower, text_config=dict(QWEN_TEXT), **QWEN_IDS)


def _qwen3_vl() -> Any:
    tower = {**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return T.Qwen3VLConfig(vision_config=tower, text_config={**QWEN_TEXT, "head_dim": 8}, **QWEN_IDS)


def _internvl() -> Any:
    return T.InternVLConfig(
        vision_config={**TOWER, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config=T.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )


def _idefics3(kind: type, **extra: Any) -> Callable[[], Any]:
    return lambda: kind(
        vision_config={**TOWER, **SQUARE},
        text_config=T.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        **extra,
    )


def _idefics2() -> Any:
    resampler = {
        "hidden_size": 32,
        "resampler_n_latents": 4,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 16,
        "num_key_value_heads": 1,
    }
    return T.Idefics2Config(
        vision_config={**TOWER, **SQUARE},
        text_config=T.MistralConfig(**TEXT),
        perceiver_config=resampler,
        image_token_id=IMAGE,
    )


def _paligemma() -> Any:
    return T.PaliGemmaConfig(
        vision_config=T.SiglipVisionConfig(**SIGLIP, projection_dim=32),
        text_config=T.GemmaConfig(head_dim=8, **TEXT),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
        vocab_size=120,
    )


def _gemma3() -> Any:
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    text = {**TEXT, "head_dim": 8, "sliding_window": 12, "layer_types": layers, "query_pre_attn_scalar": 8}
    return T.Gemma3Config(
        vision_config=T.SiglipVisionConfig(**SIGLIP),
        text_config=text,
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
        boi_token_index=102,
        eoi_token_index=103,
    )


def _gemma4() -> Any:
    text = {
        **TEXT,
        "head_dim": 8,
        "global_head_dim": 8,
        "sliding_window": 12,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 120,
    }
    tower = {**TOWER, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2, "patch_size": 4}
    return T.Gemma4Config(
        vision_config={**tower, "position_embedding_size": 64},
        text_config=text,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=101,
        audio_token_id=104,
        boi_token_id=102,
        eoi_token_id=103,
        boa_token_id=105,
        eoa_token_index=106,
    )


def _gemma4_images(generator: torch.Generator) -> Images:
    row, column = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
    at = torch.stack([column, row], -1).flatten(0, 1)
    at = torch.cat([at, torch.full((4, 2), -1)])[None]  # four rows of padding
    return {"pixel_values": torch.rand(1, 36, 48, generator=generator), "image_position_ids": at}


def _mistral3() -> Any:
    return T.Mistral3Config(
        vision_config=T.PixtralVisionConfig(image_size=56, patch_size=7, head_dim=8, **TOWER),
        text_config=T.MistralConfig(**TEXT),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def _aya_vision() -> Any:
    return T.AyaVisionConfig(
        vision_config=T.SiglipVisionConfig(**SIGLIP),
        text_config=T.Cohere2Config(**TEXT, sliding_window=12),
        image_token_index=IMAGE,
        downsample_factor=2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


def _cohere2_vision() -> Any:
    return T.Cohere2VisionConfig(
        vision_config=T.SiglipVisionConfig(**SIGLIP),
        text_config=T.Cohere2Config(**TEXT, sliding_window=12),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


def _deepseek_vl() -> Any:
    return T.DeepseekVLConfig(
        vision_config=T.SiglipVisionConfig(**SIGLIP), text_config=T.LlamaConfig(**TEXT), image_token_id=IMAGE
    )


def _janus() -> Any:
    tower = {**TOWER, **SQUARE, "mlp_ratio": 2, "projection_dim": 32, "depth": 2, "num_image_tokens": 16}
    del tower["intermediate_size"]
    codebook = {
        "embed_dim": 8,
        "num_embeddings": 16,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "num_patches": 4,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
    }
    return T.JanusConfig(
        vision_config=tower, text_config=T.LlamaConfig(**TEXT), vq_config=codebook, image_token_id=IMAGE
    )


def _ovis2() -> Any:
    tower = {**TOWER, **SQUARE, "hidden_stride": 2, "vocab_size": 64, "num_visual_indicator_tokens": 5}
    return T.Ovis2Config(
        vision_config=tower,
        text_config=T.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[105, 106, 107, 108, 109],
        hidden_size=32,
        vocab_size=120,
    )


def _llama4() -> Any:
    text = {
        **TEXT,
        "head_dim": 8,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "moe_layers": [1, 3],
        "attention_chunk_size": 16,
    }
    tower = {
        **TOWER,
        **SQUARE,
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    return T.Llama4Config(
        vision_config=tower, text_config=text, image_token_index=IMAGE, boi_token_index=102, eoi_token_index=103
    )


def _mllama() -> Any:
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    }
    text = {**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    return T.MllamaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE)


def _mllama_images(generator: torch.Generator) -> Images:
    pixels = torch.randn(1, 1, 2, 3, 28, 28, generator=generator)
    pixels[:, :, 1] = 0  # the second tile is padding
    mask = torch.tensor([[[1, 0]]])
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": mask,  # `Family.sample` spreads it over the prompt
    }


def _got_ocr2() -> Any:
    tower = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 4,
        "mlp_dim": 64,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    return T.GotOcr2Config(
        vision_config=tower, text_config=T.Qwen2Config(**TEXT), image_token_index=IMAGE, image_seq_length=16
    )


def _lfm2_vl() -> Any:
    return T.Lfm2VlConfig(
        vision_config=T.Siglip2VisionConfig(num_patches=64, patch_size=4, vision_use_head=False, **TOWER),
        text_config=T.Lfm2Config(**TEXT, layer_types=["conv", "full_attention", "full_attention"]),
        image_token_id=IMAGE,
        downsample_factor=2,
        projector_hidden_size=32,
    )


def _lfm2_images(generator: torch.Generator) -> Images:
    mask = torch.ones(1, 36, dtype=torch.long)
    mask[:, 32:] = 0  # filled up
    return {
        "pixel_values": torch.randn(1, 36, 48, generator=generator),
        "spatial_shapes": torch.tensor([[4, 8]]),
        "pixel_attention_mask": mask,
    }


def _kimi() -> Any:
    text = {
        **TEXT,
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "qk_nope_head_dim": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    }
    tower = {**TOWER, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}
    return T.Kimi_K25Config(
        vision_config=tower, text_config=T.DeepseekV3Config(**text), projection_hidden_size=32, **QWEN_IDS
    )


def _kimi_images(generator: torch.Generator) -> Images:
    return {
        "pixel_values": torch.randn(32, 3, 4, 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 8]]),
    }


QUERIES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "encoder_hidden_size": 32,
}


def _instructblip() -> Any:
    return T.InstructBlipConfig(
        vision_config={**TOWER, **SQUARE},
        qformer_config={**QUERIES, "vocab_size": 120},
        text_config=T.LlamaConfig(**TEXT),
        num_query_tokens=6,
        image_token_index=IMAGE,
    )


def _instructblip_images(generator: torch.Generator) -> Images:
    return {**_square(generator), "qformer_input_ids": torch.randint(5, 90, (1, 4), generator=generator)}


def _blip2() -> Any:
    text = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 120}
    return T.Blip2Config(
        vision_config={**TOWER, **SQUARE},
        qformer_config=QUERIES,
        text_config=T.OPTConfig(**text, word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=PAD),
        num_query_tokens=6,
        image_token_index=IMAGE,
    )


def _qwen3_vl_moe() -> Any:
    tower = {**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    return T.Qwen3VLMoeConfig(vision_config=tower, text_config={**QWEN_TEXT, **experts, "head_dim": 8}, **QWEN_IDS)


def _qwen3_5() -> Any:
    text = {
        **QWEN_TEXT,
        "rope_parameters": {**QWEN_TEXT["rope_parameters"], "partial_rotary_factor": 1.0},
        "head_dim": 8,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 2,
    }
    return T.Qwen3_5Config(vision_config={**QWEN_TOWER, "num_position_embeddings": 64}, text_config=text, **QWEN_IDS)


def _glm(kind: type, **text: Any) -> Callable[[], Any]:
    rope = {**QWEN_TEXT["rope_parameters"], "partial_rotary_factor": 1.0}
    marks = ("image_start", "image_end", "video_start", "video_end")
    return lambda: kind(
        vision_config={**QWEN_TOWER, "image_size": 32},
        text_config={**TEXT, "rope_parameters": rope, **text},
        image_token_id=IMAGE,
        video_token_id=101,
        **{f"{mark}_token_id": 102 + i for i, mark in enumerate(marks)},
    )


GLM_EXPERTS = {
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def _lighton_ocr() -> Any:
    tower = {"model_type": "pixtral", "image_size": 56, "patch_size": 7, "head_dim": 8, **TOWER}
    text = {"model_type": "qwen3", "head_dim": 8, **TEXT}
    return T.LightOnOcrConfig(vision_config=tower, text_config=text, image_token_id=IMAGE, spatial_merge_size=2)


def _aria() -> Any:
    return T.AriaConfig(
        vision_config={"model_type": "idefics3_vision", **TOWER, **SQUARE},
        text_config={**TEXT, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        projector_patch_to_query_dict={16: 4},
        image_token_index=IMAGE,
    )


def _llava_next_video() -> Any:
    return T.LlavaNextVideoConfig(
        vision_config=T.CLIPVisionConfig(**TOWER, **SQUARE),
        text_config=T.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=101,
        image_grid_pinpoints=PINPOINTS,
    )


#: Every architecture under test. To add one: its configuration and image inputs above, one line here.
ZOO: dict[str, Family] = {
    "aria": Family(_aria, _square, rows=4, rule="mixed"),
    "aya_vision": Family(_aya_vision, _square, rows=4, words=14),
    "blip-2": Family(_blip2, _square, rows=6, rule="mixed"),
    "cohere2_vision": Family(_cohere2_vision, _square, rows=4, words=14),
    "deepseek_vl": Family(_deepseek_vl, _square, rows=16),
    "gemma3": Family(_gemma3, _square, rows=4, words=14, marks=(102, 103), types="token_type_ids"),
    "gemma4": Family(_gemma4, _gemma4_images, rows=8, marks=(102, 103), types="mm_token_type_ids"),
    "glm4v": Family(_glm(T.Glm4vConfig), **_qwen()),
    "glm4v_moe": Family(_glm(T.Glm4vMoeConfig, **GLM_EXPERTS), **_qwen()),
    "glm_ocr": Family(_glm(T.GlmOcrConfig, head_dim=8), **_qwen()),
    "got_ocr2": Family(
        _got_ocr2, lambda g: {"pixel_values": torch.randn(1, 3, 64, 64, generator=g)}, rows=16, rule="none"
    ),
    "idefics2": Family(_idefics2, _crops, rows=8, rule="mixed"),
    "idefics3": Family(_idefics3(T.Idefics3Config), _crops, rows=8),
    "instructblip": Family(_instructblip, _instructblip_images, rows=6, rule="mixed"),
    "internvl": Family(_internvl, _square, rows=4),
    "janus": Family(_janus, _square, rows=16),
    "kimi_k25": Family(_kimi, _kimi_images, rows=8, marks=(102, 103)),
    "lfm2_vl": Family(_lfm2_vl, _lfm2_images, rows=8),
    "lighton_ocr": Family(_lighton_ocr, _wide, rows=8),
    "llama4": Family(_llama4, _square, rows=4, words=14),
    "llava": Family(_llava, _square, rows=16),
    "llava (pixtral)": Family(_llava_pixtral, _wide, rows=32),
    "llava_next": Family(_llava_next, _tiles, rows=16 + 4 * (8 + 1)),
    "llava_next_video": Family(_llava_next_video, _tiles, rows=16 + 4 * (8 + 1)),
    "llava_onevision": Family(_llava_onevision, _tiles, rows=16 + 4 * (8 + 1)),
    "mistral3": Family(_mistral3, _wide, rows=8),
    "mllama": Family(_mllama, _mllama_images, rows=1),
    "ovis2": Family(_ovis2, _square, rows=4),
    "paligemma": Family(_paligemma, _square, rows=16, types="token_type_ids"),
    "qianfan_ocr": Family(_qianfan_ocr, _square, rows=4),
    "qwen2_5_vl": Family(_qwen2_5_vl, **_qwen()),
    "qwen2_vl": Family(_qwen2_vl, **_qwen()),
    "qwen3_5": Family(_qwen3_5, **_qwen()),
    "qwen3_vl": Family(_qwen3_vl, **_qwen()),
    "qwen3_vl_moe": Family(_qwen3_vl_moe, **_qwen()),
    "smolvlm": Family(_idefics3(T.SmolVLMConfig), _crops, rows=8),
    "vipllava": Family(_vipllava, _square, rows=16),
}
