"""Training of the small demo model from nothing: ``python -m sinkgate.demo.train --out runs/demo-small``.

First the vision tower learns what is in a scene and under each patch, then tower, projector and LLM learn to answer together. Runs are
seeded and checkpointed; the same command resumes a killed run. The weights are bf16 with fp32 master copies.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from torch import Tensor, nn

from sinkgate.demo.batches import TurnMix
from sinkgate.demo.build import build_model, build_processor, build_tokenizer
from sinkgate.demo.objectives import Answerer, Tower
from sinkgate.models.loading import best_device, fast_dtype
from sinkgate.output import track

WARMUP = 100  # steps


def cosine(steps: int) -> Callable[[int], float]:
    """Return the rate's factor by step: warm-up, then a cosine to zero at ``steps``."""
    return lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))


class MasterAdamW:
    """AdamW on float32 master copies of weights of any dtype, without decay, gradients clipped to norm 1.

    Args:
        groups: parameters, each list with its rate.
        factor: the factor on all rates by step.
    """

    def __init__(self, groups: Iterable[tuple[Iterable[nn.Parameter], float]], factor: Callable[[int], float]) -> None:
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
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

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
        """Return everything that the next step depends on."""
        return {
            "masters": self.masters,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        with torch.no_grad():
            torch._foreach_copy_(self.masters, state["masters"])
            torch._foreach_copy_(self.weights, self.masters)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class Stage(Protocol):
    """A module with an objective on batches that it draws itself."""

    def train(self) -> nn.Module:
        """Switch to training mode."""
        ...

    def loss(self, stream: str, batch: int) -> tuple[Tensor, dict[str, float]]:
        """Return loss and measurements on a fresh batch of a stream."""
        ...


def run_stage(
    name: str,
    module: Stage,
    optimizer: MasterAdamW,
    *,
    steps: int,
    batch: int,
    seed: int,
    out: Path,
    save_every: int = 50,
    on_save: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Train one stage to its last step, from its checkpoint if there is one."""
    checkpoint, history = out / f"{name}.pt", out / "history.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    module.train()
    began = time.monotonic() - _seconds_so_far(history, name, start)
    measured: dict[str, float] = {}

    def note() -> str:
        return ", ".join(f"{key} {value:.3g}" for key, value in measured.items())

    for step in track(range(start, steps), name, done=start, unit="steps", note=note):
        loss, accuracies = module.loss(f"{seed}/{name}/{step}", batch)
        loss.backward()
        optimizer.step()
        measured = {"loss": loss.item(), **accuracies}
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(checkpoint, {"step": step + 1, "optimizer": optimizer.state_dict()})
            record = {
                "stage": name,
                "step": step + 1,
                "seconds": time.monotonic() - began,
                **measured,
                **on_save(),
            }
            with history.open("a") as lines:
                lines.write(json.dumps(record) + "\n")


def _seconds_so_far(history: Path, stage: str, step: int) -> float:
    """Return the training time up to a step, over all resumed runs."""
    if not history.exists():
        return 0.0
    records = [json.loads(line) for line in history.read_text().splitlines()]
    return max((r["seconds"] for r in records if r["stage"] == stage and r["step"] <= step), default=0.0)


def save_model(answerer: Answerer, folder: Path) -> dict[str, Any]:
    """Save model, in bfloat16, and processor as transformers loads them; return ``Answerer.examine``'s measurements."""
    deepcopy(answerer.model).bfloat16().save_pretrained(folder)
    build_processor(answerer.tokenizer).save_pretrained(folder)
    return answerer.examine()


def pick_device(name: str) -> torch.device:
    """Return the device of that name; for "auto" the accelerator where there is one, else the CPU."""
    return best_device() if name == "auto" else torch.device(name)


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # a killed run leaves the old checkpoint or the new one, never a part


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, history and, under model/, the result.")],
    tower_steps: Annotated[int, typer.Option(help="Steps of the vision tower's own training.")] = 1100,
    answer_steps: Annotated[int, typer.Option(help="Steps of the LLaVA's training.")] = 2600,
    tower_batch: Annotated[int, typer.Option(help="Scenes a step, vision tower.")] = 256,
    answer_batch: Annotated[int, typer.Option(help="Scenes a step, LLaVA.")] = 64,
    questions: Annotated[int, typer.Option(help="Questions packed behind each image.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes a GPU when there is one.")] = "auto",
) -> None:
    """Train the demo model; the same command continues a run that was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    where = pick_device(device)
    tokenizer = build_tokenizer()
    model: Any = build_model(tokenizer, seed)  # transformers' annotations do not describe its models
    model.to(where, dtype := fast_dtype(where))
    torch.manual_seed(seed + 1)
    tower = Tower(model.model.vision_tower).to(where, dtype)
    optimizer = MasterAdamW([(tower.parameters(), 1.5e-3)], cosine(tower_steps))
    run_stage("tower", tower, optimizer, steps=tower_steps, batch=tower_batch, seed=seed, out=out)
    seeing = {id(p) for p in tower.parameters()}
    rest = [p for p in model.parameters() if id(p) not in seeing]
    answerer = Answerer(model, tower, tokenizer, TurnMix(questions))
    optimizer = MasterAdamW([(tower.parameters(), 4e-4), (rest, 1e-3)], cosine(answer_steps))
    save = partial(save_model, answerer, out / "model")
    run_stage("answers", answerer, optimizer, steps=answer_steps, batch=answer_batch, seed=seed, out=out, on_save=save)


if __name__ == "__main__":
    typer.run(main)
