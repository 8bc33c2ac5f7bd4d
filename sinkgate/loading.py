"""Loading a model, and proving on a small prompt that it is read rightly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sinkgate.errors import UnsupportedModelError
from sinkgate.gates import Gates
from sinkgate.sinks import classify
from sinkgate.vlm import VLM

DEMO = Path(__file__).parent / "demo" / "weights"


def load(
    source: str | Path | tuple[Any, Any] = "demo",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    check: bool = True,
) -> VLM:
    """TODO."""
    if isinstance(source, tuple):
        model, processor = source
        name = model.config._name_or_path or type(model).__name__
        vlm = VLM(model, processor, Path(name).name if Path(name).exists() else name)
    else:
        place = DEMO if source == "demo" else source
        name = "demo" if source == "demo" else Path(source).name if Path(source).exists() else str(source)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        dtype = dtype or (torch.float32 if source == "demo" else "auto")
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                place, dtype=dtype, attn_implementation=attn_implementation, **options
            )
            processor = AutoProcessor.from_pretrained(place, **options)
        except UnsupportedModelError:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            raise UnsupportedModelError(f"{source} cannot be loaded: {_first_sentence(error)}") from error
        vlm = VLM(_placed(model, device), processor, name)
    if check:
        check_model(vlm)
    return vlm


def check_model(vlm: VLM) -> None:
    """Prove on a small prompt that this model is read rightly.

    Raises:
        UnsupportedModelError: a layer's attention is not seen, its rows
            do not sum to one, or gating every visual Key does not move the logits.
    """
    prompt = vlm.prompt(_test_picture(), "What is this?")
    plain = vlm.predict(prompt)
    if len(plain.attention) != vlm.num_layers:
        raise UnsupportedModelError(f"{vlm.name}: attention seen in {len(plain.attention)} of {vlm.num_layers} layers")
    if not torch.allclose(plain.attention.sum(-1).float(), torch.ones(()), atol=1e-3):
        raise UnsupportedModelError(f"{vlm.name}: attention rows do not sum to one")
    everything = classify(vlm.observe(prompt), prompt.sheets, v_sink="norm", l_sink="norm")
    halved = Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5)
    if torch.equal(vlm.predict(prompt, halved, everything).probabilities, plain.probabilities):
        raise UnsupportedModelError(f"{vlm.name}: halving every visual Key does not move the logits")


def _placed(model: Any, device: str | torch.device | None) -> Any:
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch was built without it, or no such device is there
        raise UnsupportedModelError(f"the model cannot be put on {device}: {_first_sentence(error)}") from error


def _test_picture() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (64, 96, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
