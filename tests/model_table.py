"""The table of architectures in the documentation, read off the tiny models that the tests run: ``python tests/model_table.py``.

A test compares the page with what is written here.
"""

from __future__ import annotations

from inspect import signature
from math import isqrt
from pathlib import Path

import torch
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from zoo import FRAMES_AS_IMAGES, VIDEO_FAMILIES, ZOO, Family, video_sample

import sinkgate as sg
from sinkgate.models.vlm import VLM
from sinkgate.sinks.classify import classify

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "models.md"
BEGIN, END = "<!-- models: written by tests/model_table.py -->", "<!-- end of models -->"
HEAD = (
    "| architecture (`model_type`) | Keys gated | attention rows | patch map | V-sinks | L-sinks | videos | image encoded once | resumes |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def table() -> str:
    """The whole table as Markdown."""
    return "\n".join([HEAD, *(row(name, family) for name, family in ZOO.items())])


def row(name: str, family: Family) -> str:
    """Return the row of one architecture, measured on its tiny model."""
    model = family.model()
    vlm = VLM(model, None, name)
    prompt = vlm.read(family.sample())
    observation = vlm.observe(prompt)
    sinks = classify(observation, prompt.sheets, v_sink="attention", l_sink="attention")
    plain = vlm.predict(prompt)
    halved = vlm.predict(prompt, sg.Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5), sinks)
    moved = bool((plain.probabilities - halved.probabilities).abs().max() > 1e-5)
    rows = torch.allclose(plain.attention.sum(-1), torch.ones(()), atol=1e-4)
    whole = len(vlm.adapter.layers) == model.config.get_text_config().num_hidden_layers
    layers = "all layers" if whole else "cross-attention layers" if vlm.adapter.cross_attention else "attention layers"
    cells = [
        f"`{name}`",
        layers if moved else "no",
        "yes" if rows else "no",
        patch_map(vlm, prompt),
        v_sinks(prompt, observation),
        "by the states its layers read" if vlm.adapter.cross_attention else "yes",
        videos(vlm, name),
        "yes" if vlm.adapter.takes_encoded else "no",
        "yes" if sg.Session(vlm, prompt, sinks).resumes else "no",
    ]
    return f"| {' | '.join(cells)} |"


def patch_map(vlm: VLM, prompt: sg.Prompt) -> str:
    """Return in a few words how patches become tokens."""
    if prompt.token_of_patch is None:
        return "none: tokens mix patches" if vlm.prompter.rule == "mixed" else "none: encoder closed"
    side = isqrt(int(prompt.token_of_patch[prompt.token_of_patch >= 0].bincount().max()))
    text = "one patch a token" if side == 1 else "m x m patches a token"
    return text + (", newlines apart" if len(prompt.separators) and not vlm.adapter.cross_attention else "")


def videos(vlm: VLM, name: str, frames: int = 6) -> str:
    """Return how a video is read, in a few words: measured where the tiny model takes one, else by the processor of the architecture."""
    if name in VIDEO_FAMILIES:
        prompt = vlm.read(video_sample(name, frames))
        assert prompt.kind == "video" and prompt.token_of_patch is not None
        times = prompt.inputs["video_grid_thw"][0, 0] if "video_grid_thw" in prompt.inputs else frames
        return f"{frames // int(times)} frames a token" if frames > int(times) else "1 frame a token"
    if name in FRAMES_AS_IMAGES:
        return "1 frame a token, as images"
    processor = PROCESSOR_MAPPING_NAMES.get(vlm.model.config.model_type)
    if processor is None or "video_processor" in signature(getattr(transformers, processor).__init__).parameters:
        return "not checked"
    return "frames as pictures"


def v_sinks(prompt: sg.Prompt, observation: sg.sinks.classify.Observation) -> str:
    """Return whether V-sinks can be named, in a few words."""
    if observation.features is None:
        return "no"
    return "yes" if prompt.token_of_patch is not None else "counted in the encoder"


def written(page: str) -> str:
    """The table as it stands on the page."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
