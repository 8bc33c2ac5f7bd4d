"""Training of the large demo model: lower layers of a pretrained language model after the small demo model's vision tower.

``python -m sinkgate.demo.pretrained --out runs/demo --language HuggingFaceTB/SmolLM2-135M-Instruct`` (or a GGUF file).
First projector, vision tower, vocabulary and the last two layers learn to answer, as those of the small model. Then only the last three
layers are trained, with harder questions and the grounding of noun phrases (``sinkgate.demo.grounding``). The lower layers stay
as they were pretrained: they write the massive activation that makes attention sinks, and training removes it. Runs are seeded and
checkpointed; the same command resumes a killed run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sinkgate.demo.batches import TurnMix, pixels, scenes_for
from sinkgate.demo.build import ASSISTANT, END, FEATURE_LAYER, IMAGE, PAD, UNK, USER, build_llava, build_tokenizer
from sinkgate.demo.grounding import GroundedAnswerer
from sinkgate.demo.objectives import Answerer, Tower
from sinkgate.demo.train import WARMUP, MasterAdamW, cosine, pick_device, run_stage, save_model
from sinkgate.errors import UnsupportedModelError
from sinkgate.models.loading import DEMO, fast_dtype, load

LAYERS = 6  # 42 MB in bf16 for SmolLM2-135M, whose sink dimension spikes from layer 2 on
FROZEN = 3  # layers that no stage trains; layer 2 writes the massive activation
ANSWER_FROZEN = 4  # layers that the first stage leaves alone
RATES = {"tower": 1e-4, "projector": 1e-3, "layers": 4e-4, "words": 3e-4}
GROUNDING_RATES = {"layers": 5e-4, "readouts": 1e-3}
HOLD = 0.26  # share of the second stage's steps at the full rate
GROUNDING_MIX = TurnMix(
    questions=16,
    kinds={
        "relation": 6,
        "count_shape": 3.5,
        "count_color": 3,
        "presence": 3,
        "place": 2.5,
        "shapes": 1.2,
        "shape": 1,
        "size": 1,
        "colors": 1,
        "color": 0.8,
        "count": 0.7,
        "majority_color": 0.7,
        "background": 0.4,
    },
    long_turns="seldom",
    long_weight=0.3,
    question_weight=0.0,
    tower_weight=0.0,
)

# Text in the pretrained vocabulary with the meaning of each special token of the demo.
_SPECIAL = {
    PAD: "<|endoftext|>",
    UNK: " thing",
    END: "<|im_end|>",
    IMAGE: " image",
    USER: "<|im_start|>user\n",
    ASSISTANT: "<|im_start|>assistant\n",
}


def load_language_model(source: str | Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a pretrained LLaMA in float32 with its tokenizer; ``source`` is a Hub id, a folder or a GGUF file."""
    path = Path(source)
    files: dict[str, Any] = {}
    if path.suffix == ".gguf":
        source, files = path.parent, {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **files)
    if not isinstance(model, LlamaForCausalLM):
        raise UnsupportedModelError(
            f"{source} is a {type(model).__name__}; expected a LlamaForCausalLM such as HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    return model, AutoTokenizer.from_pretrained(source, **files)


def word_embeddings(tokenizer: PreTrainedTokenizerFast, table: Tensor, pieces: PreTrainedTokenizerBase) -> Tensor:
    """Return one embedding a word of ``tokenizer``: the mean of its pieces' embeddings in a pretrained vocabulary.

    Args:
        tokenizer: the demo's, of N words.
        table: (pieces, hidden size), the pretrained input embeddings.
        pieces: the pretrained tokenizer.

    Returns:
        (N, hidden size), in the order of the demo's token ids.
    """
    rows = []
    for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        ids = pieces(_SPECIAL.get(word, f" {word}"), add_special_tokens=False).input_ids
        rows.append(table[ids].mean(0))
    return torch.stack(rows)


def build_pretrained(
    tokenizer: PreTrainedTokenizerFast, source: str | Path, tower: nn.Module, layers: int = LAYERS, seed: int = 0
) -> LlavaForConditionalGeneration:
    """Build a LLaVA of a trained tower, a projector of random weights and the first layers of a pretrained LLaMA.

    Args:
        tokenizer: the demo's word-level tokenizer; its words replace the pretrained vocabulary.
        source: Hub id, folder or GGUF file of the language model.
        tower: a vision tower of ``build_model``'s architecture; its weights are copied.
        layers: how many of the language model's layers to take, from the first.
        seed: seed of the projector's weights.

    Raises:
        UnsupportedModelError: the language model is no LLaMA or has fewer layers.
    """
    whole, pieces = load_language_model(source)
    if whole.config.num_hidden_layers < layers:
        raise UnsupportedModelError(
            f"{source} has {whole.config.num_hidden_layers} layers; expected at least {layers}; choose a larger model"
        )
    text = LlamaConfig.from_dict(
        whole.config.to_dict()
        | {
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": True,
        }
    )
    model = build_llava(tokenizer, text, seed)
    llava: Any = model.model  # transformers' annotations do not describe its models
    pretrained = whole.model.state_dict()
    table = pretrained["embed_tokens.weight"]
    llava.language_model.load_state_dict(
        {name: pretrained[name] for name in llava.language_model.state_dict()}
        | {"embed_tokens.weight": word_embeddings(tokenizer, table, pieces)}
    )
    llava.vision_tower.load_state_dict(tower.state_dict())
    _start_projector(llava, table.std())
    return model


@torch.no_grad()
def _start_projector(llava: Any, spread: Tensor) -> None:
    """Draw the projector's weights such that visual tokens have the standard deviation of the pretrained vocabulary."""
    projector = llava.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    scenes, _ = scenes_for("projector scale", 32)
    features = llava.vision_tower(pixels(scenes), output_hidden_states=True).hidden_states[FEATURE_LAYER]
    projector.linear_2.weight.mul_(spread / projector(features).std())


def hold_then_decay(steps: int, hold: float = HOLD) -> Callable[[int], float]:
    """Return the rate's factor by step: warm-up, 1 for a share ``hold`` of the steps, then 1 - sqrt to zero."""
    start = hold * steps
    return lambda step: min((step + 1) / WARMUP, 1 - math.sqrt(min(1.0, max(0.0, step - start) / (steps - start))))


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, history and, under model/, the result.")],
    language: Annotated[
        str, typer.Option(help="Hub id, folder or GGUF file of a LLaMA such as SmolLM2-135M-Instruct.")
    ],
    tower: Annotated[Path, typer.Option(help="Folder of the small demo model, whose vision tower is taken.")] = DEMO,
    layers: Annotated[int, typer.Option(help="Layers of the language model to take.")] = LAYERS,
    answer_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = 3000,
    grounding_steps: Annotated[int, typer.Option(help="Steps of the second stage.")] = 2350,
    answer_batch: Annotated[int, typer.Option(help="Scenes a step, first stage.")] = 16,
    grounding_batch: Annotated[int, typer.Option(help="Scenes a step, second stage.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes a GPU when there is one.")] = "auto",
) -> None:
    """Train the demo model; the same command continues a run that was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    where = pick_device(device)
    tokenizer = build_tokenizer()
    small: Any = load(tower, dtype="float32", check=False).model
    model: Any = build_pretrained(tokenizer, language, small.model.vision_tower, layers, seed)
    model.to(where, dtype := fast_dtype(where))
    text, projector = model.model.language_model, model.model.multi_modal_projector
    torch.manual_seed(seed + 1)
    seeing = Tower(model.model.vision_tower).to(where, dtype)
    text.layers[:ANSWER_FROZEN].requires_grad_(False)
    answerer = Answerer(model, seeing, tokenizer, TurnMix())
    trained: dict[str, Any] = {
        "tower": seeing.parameters(),
        "projector": projector.parameters(),
        "layers": [*text.layers[ANSWER_FROZEN:].parameters(), *text.norm.parameters()],
        "words": text.embed_tokens.parameters(),
    }
    optimizer = MasterAdamW([(trained[name], rate) for name, rate in RATES.items()], cosine(answer_steps))
    stage: Any = {"seed": seed, "out": out, "save_every": 100}
    save = partial(save_model, answerer, out / "model")
    run_stage("answers", answerer, optimizer, steps=answer_steps, batch=answer_batch, on_save=save, **stage)

    model.requires_grad_(False)
    upper = [*text.layers[FROZEN:].parameters(), *text.norm.parameters()]
    for parameter in upper:
        parameter.requires_grad_(True)
    torch.manual_seed(seed + 2)
    grounder = GroundedAnswerer(model, seeing, tokenizer, GROUNDING_MIX, FROZEN).to(where, dtype)
    groups = [(upper, GROUNDING_RATES["layers"]), (grounder.readouts.parameters(), GROUNDING_RATES["readouts"])]
    optimizer = MasterAdamW(groups, hold_then_decay(grounding_steps))
    save = partial(save_model, grounder, out / "model")
    run_stage("grounding", grounder, optimizer, steps=grounding_steps, batch=grounding_batch, on_save=save, **stage)


if __name__ == "__main__":
    typer.run(main)
