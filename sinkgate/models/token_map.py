"""Map from patches to visual tokens, measured by back-propagation; it verifies the closed-form maps.

Shapes: N patches, U rows that the image puts into the prompt.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinkgate.errors import UnsupportedModelError
from sinkgate.models.adapters.base import Adapter, Inputs


def measure_tokens(adapter: Adapter, inputs: Inputs) -> Tensor:
    """Measure the image's row that each patch feeds, between encoder and projector.

    The gradient of sum_k r.row_k, with random r, is spread over the patches that feed any row; the same sum over
    only those k whose binary digit i is 1 gives either that gradient again or zero: digit i of the patch's row.
    Zeros and ones survive any dtype, a ratio of gradients does not.

    Shapes: -> (N,) int64; -1: the patch feeds no row; -2: it feeds several.

    Raises:
        UnsupportedModelError: the prompt has not as many places as the encoder makes rows.
    """
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Tensor | tuple[Any, ...]) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        leaves.append(hidden.detach().requires_grad_())
        return (leaves[-1], *output[1:]) if isinstance(output, tuple) else leaves[-1]

    with _frozen(adapter.model), torch.enable_grad():
        # before the hooks by which transformers captures hidden states, so that those see the leaf
        hook = adapter.encoder_layers[adapter.feature_layer].register_forward_hook(cut, prepend=True)
        try:
            rows = adapter.projected(adapter.encode(inputs)).cpu().double()  # not every device has float64
        finally:
            hook.remove()
        expected = len(adapter.rows_in_prompt(inputs))
        if len(rows) != expected:
            raise UnsupportedModelError(
                f"{adapter.name}: the prompt holds {expected} image tokens, the encoder makes {len(rows)}; is the processor "
                "this model's own (patch size, feature selection strategy)?"
            )
        weights = torch.randn(rows.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.double)
        each = rows @ weights
        number = torch.arange(len(each))

        def gradient(value: Tensor) -> Tensor:
            (patches,) = torch.autograd.grad(value, leaves[0], retain_graph=True)
            return adapter.in_patch_order(patches, inputs).cpu().double()

        plain = gradient(each.sum())
        size = plain.abs().amax(-1)
        single = torch.ones(len(plain), dtype=torch.bool)
        token = torch.zeros(len(plain), dtype=torch.long)
        for digit in range(max(1, (len(each) - 1).bit_length())):
            part = gradient(((number >> digit & 1).double() * each).sum())
            one = (part * plain).sum(-1) > 0.5 * plain.square().sum(-1)
            single &= (part - one[:, None] * plain).abs().amax(-1) <= 1e-2 * size
            token += one.long() << digit
    token = torch.where(single, token, -2)
    return torch.where(size > 1e-9 * size.max(), token, -1)


@contextmanager
def _frozen(model: nn.Module) -> Generator[None]:
    """Compute no gradients of parameters within the block, so that only the graph behind the leaf is stored."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
