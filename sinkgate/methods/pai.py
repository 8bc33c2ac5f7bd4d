"""Pay Attention to Image (PAI): logits on the image raised, and answers guided away from the prompt without it (Liu et al., ECCV 2024).

Shapes: B prompts, T positions so far, G guided positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from sinkgate.attention.patch import Attached
from sinkgate.attention.recorder import Recorder
from sinkgate.errors import UnsupportedModelError
from sinkgate.methods.base import Fixed, check_numbers, checked_layers, layers_by_depth, spread
from sinkgate.methods.decoder_inputs import refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import FineGates


@dataclass(frozen=True)
class PAI:
    """Rows that produce a token read more of the image: z + boost |z|. The next token's log-probabilities are guided.

    Raised are the prompt's last row and those of generated tokens. Guidance is classifier-free, as in transformers: u + guidance (c - u) of
    the log-probabilities c with the image and u without it, on the unmodified model, which runs over the whole text again for each token.

    Attributes:
        boost: the paper's alpha, in [0, 3]; 0.2 for POPE and CHAIR.
        guidance: its gamma, at least 1; 1 is none, and costs nothing.
        plausibility: tokens less probable than this share of the most probable are excluded; 0.1 in the released code, 0 excludes none.
        layers: counted as `Gates` counts them; None for the paper's 2 to the last of 32, at the same depth in other models.
        criterion: see `Method`; without effect, all visual tokens are treated alike.

    Raises:
        GateError: a number is out of range.
    """

    boost: float = 0.2
    guidance: float = 1.1
    plausibility: float = 0.0
    layers: tuple[int, ...] | None = None
    criterion: str | None = None
    uses_l_sinks = False

    def __post_init__(self) -> None:
        check_numbers(self, 0, 3, "boost")
        check_numbers(self, 1, inf, "guidance")
        check_numbers(self, 0, 1, "plausibility")

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`; guidance needs all layers."""
        return 0 if self.guidance > 1 else Fixed(self.gates(vlm)).first_layer(vlm)

    def gates(self, vlm: VLM) -> FineGates:
        """Return the change of attention as fixed gates."""
        layers = layers_by_depth(vlm, 2, 31) if self.layers is None else checked_layers(vlm, self.layers)
        gates = FineGates.ones(vlm.num_layers, rows="last, generated", rule="monotone")
        return gates.set("visual", 1 + self.boost, layers)

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`.

        Raises:
            GateError: there is no such layer.
            UnsupportedModelError: with guidance, images are read by cross-attention; while running: the model needs an image, or beams are used.
        """
        if self.guidance > 1:
            refuse_cross_attention(vlm, "PAI's guidance", "its prompt without the image is another computation")
        scales = spread(vlm, batch, [self.gates(vlm)] * len(batch.prompts)) if self.boost else None
        with vlm.attached(scales, recorder, live=range(vlm.num_layers)) as block, ExitStack() as hooks:
            if self.guidance > 1:
                guide = _Guide(self, vlm, batch, block)
                hooks.callback(vlm.model.register_forward_hook(guide, with_kwargs=True).remove)
            yield

    def guided(self, logits: Tensor, without_image: Tensor) -> Tensor:
        """Return guided log-probabilities of logits with and without the image, (..., vocabulary) each."""
        conditional, unconditional = (each.float().log_softmax(-1) for each in (logits, without_image))
        mixed = unconditional + self.guidance * (conditional - unconditional)
        if not self.plausibility:
            return mixed
        floor = conditional.amax(-1, keepdim=True) + torch.tensor(self.plausibility).log()
        return mixed.masked_fill(conditional < floor, -torch.inf)


class _Guide:
    """Forward hook that guides the logits from the prompt's last position on."""

    def __init__(self, method: PAI, vlm: VLM, batch: Batch, block: Attached) -> None:
        self.method, self.vlm, self.batch, self.block = method, vlm, batch, block
        self.running = False
        self.ids: Tensor | None = None  # (B, T)
        # Qwen-VL keeps what it computes of a prompt's positions, and the text alone has others
        self.positions = [part for part in vlm.model.modules() if hasattr(part, "rope_deltas")]

    def __call__(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.running:
            return output
        tokens: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if len(tokens) != len(self.batch.prompts):
            raise UnsupportedModelError(
                f"PAI's guidance follows one answer a prompt; got {len(tokens)} for {len(self.batch.prompts)}: leave beams out"
            )
        fresh = self.ids is None or self.block.begins
        self.ids = ids = tokens if fresh else torch.cat([self.ids, tokens], 1)  # pyright: ignore[reportArgumentType]
        logits: Tensor = output.logits
        count = min(logits.shape[1], ids.shape[1] - self.batch.length + 1)
        if count > 0:
            guided = self.method.guided(logits[:, -count:], self._without_image(ids, count)).to(logits.dtype)
            output.logits = torch.cat([logits[:, :-count], guided], 1)
        return output

    def _without_image(self, ids: Tensor, count: int) -> Tensor:
        """Return the unmodified model's logits of the last positions of the text alone, (B, count, vocabulary)."""
        inputs = self._text(ids)
        before = [part.rope_deltas for part in self.positions]
        self.running = True
        try:
            with self.block.suspended(), torch.no_grad():
                return self.vlm.model(**inputs, use_cache=False, logits_to_keep=count).logits
        except (ValueError, TypeError, AttributeError) as error:
            raise UnsupportedModelError(
                f"{self.vlm.name} cannot read a prompt without an image ({error}), which PAI's guidance compares with; set guidance to 1"
            ) from error
        finally:
            self.running = False
            for part, value in zip(self.positions, before, strict=True):
                part.rope_deltas = value

    def _text(self, ids: Tensor) -> dict[str, Tensor]:
        """Return the inputs without the positions of images, padded on the left."""
        known = self.batch.inputs
        columns = {"input_ids": ids, "attention_mask": known.get("attention_mask", torch.ones_like(known["input_ids"]))}
        columns |= {name: known[name] for name in ("token_type_ids", "mm_token_type_ids") if name in known}
        fills = {"attention_mask": 1, "mm_token_type_ids": 0}
        missing = ids.shape[1] - known["input_ids"].shape[1]
        for name, values in columns.items():
            if missing > 0 and name != "input_ids":
                new = values[:, -1:] * 0 + fills[name] if name in fills else self.vlm.adapter.type_of_answers(values)
                columns[name] = torch.cat([values, new.expand(-1, missing)], 1)
        rows: list[dict[str, Tensor]] = []
        for index, (prompt, start) in enumerate(zip(self.batch.prompts, self.batch.starts, strict=True)):
            text = torch.ones(ids.shape[1], dtype=torch.bool)
            text[:start] = False
            text[start + torch.cat([prompt.visual, prompt.separators]).cpu()] = False
            rows.append({name: values[index, text.to(values.device)] for name, values in columns.items()})
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.vlm.pad_token}
        return {
            name: torch.stack(
                [nn.functional.pad(row[name], (longest - len(row[name]), 0), value=fill.get(name, 0)) for row in rows]
            )
            for name in columns
        }
