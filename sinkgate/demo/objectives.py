"""Training objectives of the demo model: the vision tower's, then the LLaVA's.

Shapes: B images, V visual tokens, E the tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast, SiglipVisionModel

from sinkgate.demo.batches import (
    IGNORED,
    PATCH_CLASSES,
    SCENE_CLASSES,
    Packed,
    Targets,
    TurnMix,
    draw_turns,
    pack,
    pixels,
    scenes_for,
    tower_targets,
)
from sinkgate.demo.build import FEATURE_LAYER, PATCHES
from sinkgate.demo.scoring import by_kind, dialogues, held_out, right_answers
from sinkgate.scenes.scene import COLORS, MAX_OBJECTS, SHAPES, Scene

FEW = 4  # most patches that are read for the whole scene in narrowed turns
NARROWED = 0.8  # share of the turns about the whole scene that see only those


class Tower(nn.Module):
    """The vision tower with linear classifiers on the features that the LLM will read; the classifiers are for training only.

    From each patch of an object they predict its shape, color, size, row and column. Facts of the whole scene are predicted from the one to
    ``FEW`` patches that receive most attention in the last layer, as many as a token-pruning method such as VisionZip would leave.
    Background patches have no loss of their own. Training alone decides which patches are attended, and what they hold.
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
        """Return features for the LLM (the last layer's input), and the attention that each receives in the last layer.

        Shapes: images (B, 3, side, side) -> (B, V, E), (B, V), a mean over heads and queries.
        """
        output = self.vision(images, output_hidden_states=True, output_attentions=True)
        return output.hidden_states[FEATURE_LAYER], output.attentions[-1].float().mean((1, 2))

    def read(self, features: Tensor, attention: Tensor, targets: Targets, few: int) -> tuple[Tensor, dict[str, float]]:
        """Return loss and accuracies of both classifiers; shapes as in ``see``, ``few`` patches for facts of the whole scene."""
        tokens = self.norm(features)
        share, positions = attention.topk(few, -1)
        weight = (share / share.sum(-1, keepdim=True)).to(tokens.dtype)
        pooled = (tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1])) * weight[..., None]).sum(1)
        count, background, colors, pairs = self.scene(pooled).float().split(SCENE_CLASSES, -1)
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
        """Return loss and accuracies on a fresh batch of a stream."""
        scenes, rng = scenes_for(stream, batch)
        features, attention = self.see(pixels(scenes, rng).to(self.scene.weight))
        targets = tower_targets(scenes).to(self.scene.weight.device)
        return self.read(features, attention, targets, rng.randint(1, FEW))


@dataclass(frozen=True)
class Run:
    """A batch and the model's activations on it.

    Attributes:
        scenes: B scenes.
        packed: their turns, T tokens an image.
        questions: turns of each image that are questions; long turns follow them.
        features: (B, V, E), the tower's.
        attention: (B, V), see ``Tower.see``.
        few: patches that narrowed turns see.
        states: each layer's input, and last the normed output; (B, T, hidden size) each.
    """

    scenes: list[Scene]
    packed: Packed
    questions: int
    features: Tensor
    attention: Tensor
    few: int
    states: tuple[Tensor, ...]


class Answerer(nn.Module):
    """The LLaVA on packed questions: the loss on answers, a smaller one on questions, and the tower's.

    In most turns about the whole scene, the text attends only to the few patches that the encoder attended to most.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tower: Tower,
        tokenizer: PreTrainedTokenizerFast,
        mix: TurnMix,
    ) -> None:
        super().__init__()
        self.model, self.tower, self.tokenizer, self.mix = model, tower, tokenizer, mix
        self.model.set_attn_implementation("eager")

    def loss(self, stream: str, batch: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, the tower's accuracies and the share of right answer tokens on a fresh batch of a stream."""
        return self.objective(self.run(stream, batch))

    def run(self, stream: str, batch: int) -> Run:
        """Draw a batch of a stream and run the model over it."""
        device, llava = self.model.device, self.model.model
        scenes, rng = scenes_for(stream, batch)
        questions, dialogues_ = draw_turns(scenes, rng, self.mix)
        packed = pack(dialogues_, self.tokenizer, self.model.dtype)
        features, attention = self.tower.see(pixels(scenes, rng).to(device, self.model.dtype))
        few = rng.randint(1, FEW)
        narrow = [[q.scope == "global" and rng.random() < NARROWED for q in row] for row in questions]
        visible = torch.zeros_like(attention, dtype=torch.bool).scatter(1, attention.topk(few, -1).indices, True)
        words = llava.get_input_embeddings()(packed.input_ids[:, PATCHES:].to(device))
        states = llava.language_model(
            inputs_embeds=torch.cat([llava.multi_modal_projector(features), words], 1),
            attention_mask=packed.narrowed(narrow, visible.cpu()).to(device),
            position_ids=packed.position_ids.to(device),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
        return Run(scenes, packed, len(questions[0]), features, attention, few, states)

    def objective(self, run: Run) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a run, and its accuracies."""
        hidden = run.states[-1][:, :-1]
        device, mix = hidden.device, self.mix
        answers, segments = run.packed.labels[:, 1:].to(device), run.packed.segments[:, 1:].to(device)
        weights = torch.where(segments > run.questions, mix.long_weight, 1.0)
        loss, token = self._next_token(hidden, answers, weights)
        accuracies = {"token": token}
        if mix.question_weight:
            question_loss, _ = self._next_token(hidden, run.packed.question_labels[:, 1:].to(device))
            loss = loss + mix.question_weight * question_loss
        if mix.tower_weight:
            targets = tower_targets(run.scenes).to(device)
            tower_loss, read = self.tower.read(run.features, run.attention, targets, run.few)
            loss, accuracies = loss + mix.tower_weight * tower_loss, accuracies | read
        return loss, accuracies

    def _next_token(self, hidden: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the weighted mean cross entropy and the accuracy where there are labels; shapes (B, T, width), (B, T), (B, T)."""
        labelled = labels != IGNORED
        logits = self.model.lm_head(hidden[labelled]).float()
        accuracy = (logits.argmax(-1) == labels[labelled]).float().mean().item()
        if weights is None:
            return F.cross_entropy(logits, labels[labelled]), accuracy
        weight = weights[labelled]
        return (F.cross_entropy(logits, labels[labelled], reduction="none") * weight).sum() / weight.sum(), accuracy

    @torch.no_grad()
    def examine(self, count: int = 48) -> dict[str, Any]:
        """Return accuracy by kind on held-out scenes, and the attention in the LLM on the encoder's most attended patch.

        ``llm_top_over_median``: attention from text on that patch over the median patch's, at the layer where it
        is highest, a mean over images.
        """
        data = held_out("progress", count)
        packed = pack(dialogues(data), self.tokenizer, self.model.dtype)
        images = pixels([scene for scene, _ in data]).to(self.model.device, self.model.dtype)
        output = self.model(
            input_ids=packed.input_ids.to(self.model.device),
            pixel_values=images,
            attention_mask=packed.attention_mask.to(self.model.device),
            position_ids=packed.position_ids.to(self.model.device),
            use_cache=False,
            output_attentions=True,
        )
        right = right_answers(output.logits, packed)
        most = self.tower.see(images)[1].argmax(-1).cpu()
        text = (packed.segments > 0).float()
        to_patches = [layer[..., :PATCHES].float().mean(1).cpu() for layer in output.attentions]
        received = torch.einsum("bt,lbtv->lbv", text, torch.stack(to_patches))
        ratio = received / received.median(-1, keepdim=True).values
        top = ratio.gather(-1, most.expand(len(ratio), -1)[..., None])[..., 0]
        return {
            "llm_top_over_median": top.mean(-1).max().item(),
            "overall": fmean(chain.from_iterable(right)),
            "kinds": by_kind(data, right),
        }
