"""The module that `Trainer` trains: methods that learn side by side on one frozen model.

Shapes: B samples, M methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from sinkgate.methods.base import UNMODIFIED, Method
from sinkgate.models.vlm import VLM
from sinkgate.training.dataset import Prefix, PreparedExample, batches


@contextmanager
def frozen(vlm: VLM) -> Iterator[None]:
    """Freeze the backbone's parameters within the block."""
    trainable = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class MethodEnsemble(nn.Module):
    """Methods that learn on one frozen model, each as if alone; the module that `Trainer` trains and saves."""

    def __init__(self, vlm: VLM, methods: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.vlm, self.checkpoint = vlm, False
        self.methods = nn.ModuleDict(methods)

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Enable checkpoints of activations; `Trainer` calls it for the option ``activation_checkpointing``."""
        self.checkpoint = True

    def forward(self, examples: Sequence[PreparedExample | None], labels: Tensor) -> dict[str, Tensor]:
        """Return losses (B, M) in nats, summed over an answer's tokens, and whether each answer is right (B, M); zero if there is no example.

        Without gradients, a last column holds those of the unmodified model. Gradients are computed while a method is attached, and passed
        to ``backward`` later, so that only one method's activations are in memory.
        """
        present = [index for index, example in enumerate(examples) if example is not None]
        columns = len(self.methods) + (not torch.is_grad_enabled())  # the unmodified model costs no forward of its own
        losses = torch.zeros(len(examples), columns, device=labels.device)
        right = torch.zeros(len(examples), columns, dtype=torch.bool, device=labels.device)
        gradients: dict[nn.Parameter, Tensor] = {}
        for part, batch in batches(self.vlm, [example for example in examples if example is not None]):
            prefix, rows = Prefix(self.vlm, batch, self.checkpoint), present[part]
            for column, module in enumerate(self.methods.values()):
                method = cast(Method, module)
                with method.applied(self.vlm, batch):
                    logits = prefix.within(method)
                    each = prefix.batch.losses(logits)
                    if torch.is_grad_enabled():
                        for parameter, gradient in _gradients(each.sum(), list(module.parameters())):
                            gradients[parameter] = gradients.get(parameter, 0) + gradient
                losses[rows, column] = each.detach().to(losses.device)
                right[rows, column] = prefix.right(logits.detach()).to(right.device)
            if columns > len(self.methods):
                losses[rows, -1] = prefix.batch.losses(prefix.plain).to(losses.device)
                right[rows, -1] = prefix.right(prefix.plain).to(right.device)
        total = losses[:, : len(self.methods)].sum()
        if torch.is_grad_enabled():
            trained = [parameter for parameter in self.methods.parameters() if parameter.requires_grad]
            known = [gradients.get(parameter, torch.zeros_like(parameter)) for parameter in trained]
            total = cast(Tensor, _KnownGradients.apply(total, known, *trained))
        return {"loss": total, "losses": losses, "right": right}

    def metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        """Return loss in nats a token and accuracy of each method, and of the unmodified model, over the validation samples."""
        (losses, right), tokens = cast(Any, evaluated.predictions), cast(Any, evaluated.label_ids)
        used = tokens > 0
        values = {}
        for column, name in enumerate([*self.methods, UNMODIFIED]):
            values[f"loss/{name}"] = float(losses[:, column].sum() / max(tokens.sum(), 1))
            values[f"accuracy/{name}"] = float(right[used, column].mean()) if used.any() else 0.0
        mean = sum(values[f"loss/{name}"] for name in self.methods) / len(self.methods)
        return {"loss": mean, **values}


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients were computed before."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:  # noqa: ARG004
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grads[0].to(gradient) * gradient for gradient in ctx.gradients)


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else [None] * len(trained)
    return (
        (parameter, gradient) for parameter, gradient in zip(trained, gradients, strict=True) if gradient is not None
    )
