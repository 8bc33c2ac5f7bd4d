"""Trains the demo model from nothing: ``python -m sinkgate.demo.train --out runs/demo``.

First the vision tower learns what is in a scene and under each patch, then tower, projector and
LLM learn to answer together. Seeded, checkpointed and resumable: kill it and start it again with
the same arguments. The weights are bf16 beside fp32 master copies.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast, SiglipVisionModel

from sinkgate.demo.batches import (
    IGNORED,
    PATCH_CLASSES,
    SCENE_CLASSES,
    Targets,
    draw_questions,
    pack,
    pixels,
    scenes_for,
    tower_targets,
    turns,
)
from sinkgate.demo.build import FEATURE_LAYER, PATCHES, build_model, build_processor, build_tokenizer
from sinkgate.demo.scenes import COLORS, MAX_OBJECTS, SHAPES
from sinkgate.demo.scoring import by_kind, dialogues, held_out, overall, right_answers

DTYPE = torch.bfloat16
FEW = 4  # at most so many patches tell the whole scene where reading is narrowed
NARROWED = 0.8  # share of the turns about the whole scene that see only those
TOWER_WEIGHT = 0.2  # of the tower's own loss while the LLaVA learns
QUESTION_WEIGHT = 0.2  # of the loss on question words: most positions then have something to do besides looking


class Tower(nn.Module):
    """The vision tower with linear read-outs, for training only; both read the features that the LLM will read.

    Each object's patches must tell what lies under them, and where. The facts of the whole scene must be told by the
    patches that receive most attention in the last layer, one to ``FEW`` of them: the room that a token-pruning
    reader such as VisionZip would leave. Background patches carry no loss of their own. Which patches are
    attended, and what they hold, is left to training.
    """

    def __init__(self, vision: SiglipVisionModel) -> None:
        super().__init__()
        self.vision = vision
        self.vision.set_attn_implementation("eager")
        width = vision.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.scene = nn.Linear(width, sum(SCENE_CLASSES))
        self.patch = nn.Linear(width, sum(PATCH_CLASSES))

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels -> features for the LLM (the last layer's input), and the attention that the last layer pays them.

        Shapes: images (B, 3, side, side) -> (B, V, E), (B, V), a mean over heads and queries.
        """
        seen = self.vision(images, output_hidden_states=True, output_attentions=True)
        return seen.hidden_states[FEATURE_LAYER], seen.attentions[-1].float().mean((1, 2))

    def read(self, features: Tensor, attention: Tensor, targets: Targets, few: int) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies of both read-outs; shapes as in ``see``, ``few`` the patches that tell the scene."""
        tokens = self.norm(features)
        share, chosen = attention.topk(few, -1)
        weight = (share / share.sum(-1, keepdim=True)).to(tokens.dtype)
        gist = (tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1])) * weight[..., None]).sum(1)
        count, background, colors, pairs = self.scene(gist).float().split(SCENE_CLASSES, -1)
        colors = colors.unflatten(-1, (len(COLORS), MAX_OBJECTS + 1))
        on_object = targets.patches[..., 0] < len(SHAPES)
        patches = self.patch(tokens[on_object]).float().split(PATCH_CLASSES, -1)
        truth = targets.patches[on_object].unbind(-1)
        loss = (
            F.cross_entropy(count, targets.count)
            + F.cross_entropy(background, targets.background)
            + F.cross_entropy(colors.flatten(0, 1), targets.color_counts.flatten())
            + F.binary_cross_entropy_with_logits(pairs, targets.pairs)
            + sum(F.cross_entropy(p, t) for p, t in zip(patches, truth, strict=True))
        )
        hits = [(p.argmax(-1) == t).float().mean().item() for p, t in zip(patches, truth, strict=True)]
        most = attention.argmax(-1, keepdim=True)
        return loss, {
            "count": (count.argmax(-1) == targets.count).float().mean().item(),
            **dict(zip(("shape", "color", "size", "row", "column"), hits, strict=True)),
            "top_share": attention.amax(-1).mean().item(),
            "top_over_median": (attention.amax(-1) / attention.median(-1).values).mean().item(),
            "top_on_object": on_object.gather(1, most).float().mean().item(),
        }

    def loss(self, stream: str, batch: int) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies on a fresh batch of a stream."""
        device = self.scene.weight.device
        scenes, rng = scenes_for(stream, batch)
        features, attention = self.see(pixels(scenes, rng).to(device, DTYPE))
        return self.read(features, attention, tower_targets(scenes).to(device), rng.randint(1, FEW))


class Answerer(nn.Module):
    """The LLaVA on packed questions: the loss on answers, beside a lesser one on questions and the tower's own.

    In most turns about the whole scene, the text sees only the few patches that the encoder attended to most.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tower: Tower,
        tokenizer: PreTrainedTokenizerFast,
        questions: int,
    ) -> None:
        super().__init__()
        self.model, self.tower, self.tokenizer, self.questions = model, tower, tokenizer, questions
        self.model.set_attn_implementation("eager")

    def loss(self, stream: str, batch: int) -> tuple[Tensor, dict[str, float]]:
        """Loss, the tower's accuracies and the share of right answer tokens on a fresh batch of a stream."""
        device, llava = self.model.device, self.model.model
        scenes, rng = scenes_for(stream, batch)
        asked = [draw_questions(scene, rng, self.questions) for scene in scenes]
        said = [turns(scene, questions, rng) for scene, questions in zip(scenes, asked, strict=True)]
        packed = pack(said, self.tokenizer, DTYPE)
        features, attention = self.tower.see(pixels(scenes, rng).to(device, DTYPE))
        few = rng.randint(1, FEW)
        narrow = [[q.scope == "global" and rng.random() < NARROWED for q in questions] for questions in asked]
        kept = torch.zeros_like(attention, dtype=torch.bool).scatter(1, attention.topk(few, -1).indices, True)
        words = llava.get_input_embeddings()(packed.input_ids[:, PATCHES:].to(device))
        hidden = llava.language_model(
            inputs_embeds=torch.cat([llava.multi_modal_projector(features), words], 1),
            attention_mask=packed.narrowed(narrow, kept.cpu()).to(device),
            position_ids=packed.position_ids.to(device),
            use_cache=False,
        ).last_hidden_state[:, :-1]
        answers, questions = packed.labels[:, 1:].to(device), packed.question_labels[:, 1:].to(device)
        answer_loss, token = self._next_token(hidden, answers)
        question_loss, _ = self._next_token(hidden, questions)
        tower_loss, accuracies = self.tower.read(features, attention, tower_targets(scenes).to(device), few)
        loss = answer_loss + QUESTION_WEIGHT * question_loss + TOWER_WEIGHT * tower_loss
        return loss, {"token": token} | accuracies

    def _next_token(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Cross entropy and accuracy where there are labels."""
        chosen = labels != IGNORED
        logits = self.model.lm_head(hidden[chosen]).float()
        return F.cross_entropy(logits, labels[chosen]), (logits.argmax(-1) == labels[chosen]).float().mean().item()

    @torch.no_grad()
    def examine(self, count: int = 48) -> dict[str, Any]:
        """Accuracy by kind on held-out scenes, and what the most attended patch of the encoder draws in the LLM.

        ``llm_top_over_median``: attention from text on that patch over the median patch's, at the layer where it
        is highest, a mean over images.
        """
        data = held_out("progress", count)
        packed = pack(dialogues(data), self.tokenizer, DTYPE)
        seen = pixels([scene for scene, _ in data]).to(self.model.device, DTYPE)
        output = self.model(
            input_ids=packed.input_ids.to(self.model.device),
            pixel_values=seen,
            attention_mask=packed.attention_mask.to(self.model.device),
            position_ids=packed.position_ids.to(self.model.device),
            use_cache=False,
            output_attentions=True,
        )
        scores = by_kind(data, right_answers(output.logits, packed))
        most = self.tower.see(seen)[1].argmax(-1).cpu()
        text = (packed.segments > 0).float()
        received = torch.stack(
            [
                torch.einsum("bt,btv->bv", text, layer[..., :PATCHES].float().mean(1).cpu())
                for layer in output.attentions
            ]
        )
        ratio = received / received.median(-1, keepdim=True).values
        top = ratio.gather(-1, most.expand(len(ratio), -1)[..., None])[..., 0]
        return {
            "llm_top_over_median": top.mean(-1).max().item(),
            "overall": overall(scores),
            "kinds": {kind: score.accuracy for kind, score in scores.items()},
        }


class MasterAdamW:
    """AdamW on fp32 master copies of bf16 weights, warm-up then cosine to zero, gradients clipped to norm 1."""

    def __init__(self, groups: Iterable[tuple[Iterable[nn.Parameter], float]], steps: int, warmup: int = 100) -> None:
        listed = [(list(parameters), rate) for parameters, rate in groups]
        self.weights: list[Tensor] = [p for parameters, _ in listed for p in parameters]
        self.masters = [p.detach().float().clone() for p in self.weights]
        masters = iter(self.masters)
        self.optimizer = torch.optim.AdamW(
            [{"params": [next(masters) for _ in parameters], "lr": rate} for parameters, rate in listed],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            foreach=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
        )

    def step(self) -> None:
        """Update the masters from the weights' gradients, then round the masters into the weights."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "masters": self.masters,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        with torch.no_grad():
            torch._foreach_copy_(self.masters, state["masters"])
            torch._foreach_copy_(self.weights, self.masters)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def run_stage(
    name: str,
    module: Tower | Answerer,
    optimizer: MasterAdamW,
    *,
    steps: int,
    batch: int,
    seed: int,
    out: Path,
    save_every: int = 50,
    on_save: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Train one stage to its last step, from its checkpoint when there is one."""
    checkpoint, history = out / f"{name}.pt", out / "history.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    module.train()
    began = time.monotonic() - _seconds_so_far(history, name, start)
    for step in (bar := tqdm(range(start, steps), desc=name, initial=start, total=steps)):
        loss, accuracies = module.loss(f"{seed}/{name}/{step}", batch)
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix({"loss": f"{loss.item():.3f}"} | {k: f"{v:.2f}" for k, v in accuracies.items()})
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(checkpoint, {"step": step + 1, "optimizer": optimizer.state_dict()})
            record = {
                "stage": name,
                "step": step + 1,
                "seconds": time.monotonic() - began,
                "loss": loss.item(),
                **accuracies,
                **on_save(),
            }
            with history.open("a") as lines:
                lines.write(json.dumps(record) + "\n")


def _seconds_so_far(history: Path, stage: str, step: int) -> float:
    """Training time up to a step, of all runs that led there."""
    if not history.exists():
        return 0.0
    records = [json.loads(line) for line in history.read_text().splitlines()]
    return max((r["seconds"] for r in records if r["stage"] == stage and r["step"] <= step), default=0.0)


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # a kill leaves the old checkpoint or the new one, never half of one


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, history and, under model/, the result.")],
    tower_steps: Annotated[int, typer.Option(help="Steps of the vision tower's own training.")] = 1400,
    answer_steps: Annotated[int, typer.Option(help="Steps of the LLaVA's training.")] = 2000,
    tower_batch: Annotated[int, typer.Option(help="Scenes a step, vision tower.")] = 256,
    answer_batch: Annotated[int, typer.Option(help="Scenes a step, LLaVA.")] = 64,
    questions: Annotated[int, typer.Option(help="Questions packed behind each image.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes a GPU when there is one.")] = "auto",
) -> None:
    """Train the demo model; the same command continues a run that was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    where = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer()
    model: Any = build_model(tokenizer, seed)  # transformers' annotations do not describe its models
    model.to(where, DTYPE)
    torch.manual_seed(seed + 1)
    tower = Tower(model.model.vision_tower).to(where, DTYPE)
    run_stage(
        "tower",
        tower,
        MasterAdamW([(tower.parameters(), 1.5e-3)], tower_steps),
        steps=tower_steps,
        batch=tower_batch,
        seed=seed,
        out=out,
    )
    seeing = {id(p) for p in tower.parameters()}
    rest = [p for p in model.parameters() if id(p) not in seeing]
    answerer = Answerer(model, tower, tokenizer, questions)

    def save_model() -> dict[str, Any]:
        model.save_pretrained(out / "model")
        build_processor(tokenizer).save_pretrained(out / "model")
        return answerer.examine()

    run_stage(
        "answers",
        answerer,
        MasterAdamW([(tower.parameters(), 4e-4), (rest, 1e-3)], answer_steps),
        steps=answer_steps,
        batch=answer_batch,
        seed=seed,
        out=out,
        on_save=save_model,
    )


if __name__ == "__main__":
    typer.run(main)
