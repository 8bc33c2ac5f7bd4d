"""The demo model: lower layers of a pretrained language model behind the small demo model's vision tower.

``python -m sinkgate.demo.pretrained --out runs/demo --language HuggingFaceTB/SmolLM2-135M-Instruct`` (or a GGUF file).
The projector first learns to write, for each object's patches, the embeddings of the words that describe them; then
projector, vision tower, vocabulary and the upper layers learn to answer together. The lower layers stay as they were
pretrained: they write the massive activation that makes attention sinks, and training them takes it away. Seeded,
checkpointed and resumable: kill it and start it again with the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

from sinkgate.demo.batches import GRID, TurnMix, pixels, scenes_for, tower_targets
from sinkgate.demo.build import ASSISTANT, END, FEATURE_LAYER, IMAGE, PAD, UNK, USER, build_llava, build_tokenizer
from sinkgate.demo.objectives import DTYPE, Answerer, Tower
from sinkgate.demo.train import WARMUP, MasterAdamW, pick_device, run_stage, save_model
from sinkgate.errors import UnsupportedModelError
from sinkgate.models.loading import DEMO, load
from sinkgate.scenes.scene import COLORS, SHAPES, SIZES

LAYERS = 6  # 42 MB in bf16 for SmolLM2-135M, whose sink dimension spikes from layer 2 on

FROZEN = 3  # layer 2 writes the spike
RATES = {"tower": 1e-4, "readouts": 1e-3, "projector": 6e-4, "layers": 6e-4, "words": 4e-4}
HOLD = 0.65  # share of the steps at the full rate
MIX = TurnMix(
    questions=12,
    kinds={
        "relation": 5,
        "count_shape": 3,
        "presence": 3,
        "count_color": 2.5,
        "place": 2.5,
        "shapes": 1.2,
        "color": 1,
        "colors": 0.8,
        "count": 0.7,
        "majority_color": 0.7,
        "background": 0.4,
    },
    long_turns="alternate",
    long_weight=0.3,
    question_weight=0.0,
    tower_weight=0.1,
)

# Text of the pretrained vocabulary that means what each special token of the demo means.
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


class WordProjector(nn.Module):
    """The projector's first objective: an object's patches as the sum of the embeddings of the words for them.

    Shape, color and size, and the half of the picture along both axes. Background patches carry no loss.
    """

    def __init__(self, model: LlavaForConditionalGeneration, tower: Tower, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        llava: Any = model.model
        self.projector, self.tower = llava.multi_modal_projector, tower
        table = llava.get_input_embeddings().weight.detach().float()
        vocabulary = tokenizer.get_vocab()
        half = GRID // 2
        names = [SHAPES, COLORS, SIZES, ["top"] * half + ["bottom"] * half, ["left"] * half + ["right"] * half]
        self.center = table.mean(0)
        self.words = [
            weight * (table[[vocabulary[name] for name in few]] - self.center)
            for few, weight in zip(names, (1, 1, 1, 0.6, 0.6), strict=True)
        ]

    def loss(self, stream: str, batch: int) -> tuple[Tensor, dict[str, float]]:
        """Return the squared error over the targets' variance on a fresh batch of a stream."""
        scenes, rng = scenes_for(stream, batch)
        device = self.center.device
        with torch.no_grad():
            features, _ = self.tower.see(pixels(scenes, rng).to(device, DTYPE))
        patches = tower_targets(scenes).to(device).patches
        on_object = patches[..., 0] < len(SHAPES)
        truth = patches[on_object].unbind(-1)
        target = sum(words[classes] for words, classes in zip(self.words, truth, strict=True))
        error = self.projector(features[on_object]).float() - self.center - target
        return error.square().mean() / torch.as_tensor(target).square().mean(), {}


def hold_then_decay(steps: int, hold: float = HOLD) -> Callable[[int], float]:
    """Return the rate's factor by step: warm-up, 1 for a share ``hold`` of the steps, then 1 - sqrt to zero."""
    start = hold * steps
    return lambda step: min((step + 1) / WARMUP, 1 - math.sqrt(min(1.0, max(0.0, step - start) / (steps - start))))


def trained_parts(model: LlavaForConditionalGeneration, tower: Tower) -> list[tuple[list[nn.Parameter], float]]:
    """Freeze the lower layers and return the other parameters with their rates."""
    llava: Any = model.model
    language = llava.language_model
    language.layers[:FROZEN].requires_grad_(False)
    vision = list(tower.vision.parameters())
    return [
        (vision, RATES["tower"]),
        ([p for p in tower.parameters() if all(p is not q for q in vision)], RATES["readouts"]),
        (list(llava.multi_modal_projector.parameters()), RATES["projector"]),
        ([*language.layers[FROZEN:].parameters(), *language.norm.parameters()], RATES["layers"]),
        (list(language.embed_tokens.parameters()), RATES["words"]),
    ]


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, history and, under model/, the result.")],
    language: Annotated[
        str, typer.Option(help="Hub id, folder or GGUF file of a LLaMA such as SmolLM2-135M-Instruct.")
    ],
    tower: Annotated[Path, typer.Option(help="Folder of the small demo model, whose vision tower is taken.")] = DEMO,
    layers: Annotated[int, typer.Option(help="Layers of the language model to take.")] = LAYERS,
    projector_steps: Annotated[int, typer.Option(help="Steps of the projector's own training, 48 scenes each.")] = 250,
    answer_steps: Annotated[int, typer.Option(help="Steps of the LLaVA's training.")] = 3000,
    answer_batch: Annotated[int, typer.Option(help="Scenes a step, LLaVA.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes a GPU when there is one.")] = "auto",
) -> None:
    """Train the demo model; the same command continues a run that was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    where = pick_device(device)
    tokenizer = build_tokenizer()
    small: Any = load(tower, check=False).model
    model: Any = build_pretrained(tokenizer, language, small.model.vision_tower, layers, seed)
    model.to(where, DTYPE)
    torch.manual_seed(seed + 1)
    eye = Tower(model.model.vision_tower).to(where, DTYPE)
    run_stage(
        "projector",
        WordProjector(model, eye, tokenizer),
        MasterAdamW([(model.model.multi_modal_projector.parameters(), 2e-3)], hold_then_decay(projector_steps, 0.0)),
        steps=projector_steps,
        batch=48,
        seed=seed,
        out=out,
    )
    answerer = Answerer(model, eye, tokenizer, MIX)
    run_stage(
        "answers",
        answerer,
        MasterAdamW(trained_parts(model, eye), hold_then_decay(answer_steps)),
        steps=answer_steps,
        batch=answer_batch,
        seed=seed,
        out=out,
        save_every=100,
        on_save=lambda: save_model(answerer, out / "model"),
    )


if __name__ == "__main__":
    typer.run(main)
