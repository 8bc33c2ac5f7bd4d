"""Test-time registers: outliers of the vision encoder moved from patches to an extra token (Jiang et al., NeurIPS 2025).

Shapes: C crops, S rows of the encoder, E encoder width, M width inside an MLP, N patches, B prompts, n beams a prompt, T positions, D LLM width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkgate.attention.partial_forward import replaced
from sinkgate.errors import PromptError, SinkgateError, UnsupportedModelError
from sinkgate.methods.decoder_inputs import Arguments, ChangesInputs, embeddings, refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM, find_v_sinks
from sinkgate.sinks.numbers import index, whole_numbers

Neuron = tuple[int, int]  # encoder layer, unit of its MLP


@dataclass(frozen=True)
class Registers(ChangesInputs):
    """An extra token in the vision encoder takes over the activations of its register neurons.

    In the MLPs of the encoder, the extra token, which starts as zeros, gets the highest activation of each register neuron over all rows of
    a crop; all other rows get 0. The token is removed from every layer's output, so the LLM gets as many visual tokens as before.
    `find_register_neurons` finds the neurons.

    Attributes:
        neurons: (encoder layer, unit of its MLP), both from 0; none gives an extra token alone.
        criterion: see `Method`; without effect.

    Raises:
        SinkgateError: a neuron is not a pair of whole numbers from 0.

    Example:
        >>> method = find_register_neurons(vlm, prompts)
        >>> sg.evaluate(vlm, {"registers": method}, samples)
    """

    neurons: tuple[Neuron, ...] = ()
    criterion: str | None = None
    reads_pixels = True

    def __post_init__(self) -> None:
        for neuron in self.neurons:
            if (
                not isinstance(neuron, Sequence)
                or len(neuron) != 2
                or any(type(number) is not int or number < 0 for number in neuron)
            ):
                raise SinkgateError(
                    f"the neuron {neuron!r} is not a pair (encoder layer, unit of its MLP) of whole numbers from 0"
                )

    def __str__(self) -> str:
        """Return the method as ``--method`` takes it."""
        neurons = "+".join(f"{layer}.{unit}" for layer, unit in self.neurons)
        return f"registers neurons {neurons}" if neurons else "registers"

    def change(self, vlm: VLM, batch: Batch) -> Callable[[Arguments], Arguments]:
        """See `ChangesInputs`.

        Raises:
            UnsupportedModelError: the encoder takes no extra token, or the LLM does not read images as embeddings at its input alone.
            PromptError: a prompt's pixels were dropped.
            SinkgateError: the encoder has no such neuron.
        """
        refuse_cross_attention(vlm, "test-time registers", "rows of the image are not among the inputs of the LLM")
        rows = [self.encoded(vlm, prompt) for prompt in batch.prompts]
        places = [vlm.adapter.rows_in_prompt(prompt.inputs).cpu() for prompt in batch.prompts]

        def with_rows(arguments: Arguments) -> Arguments:
            inputs = embeddings(vlm, arguments).clone()
            for number in range(len(inputs)):
                prompt = number * len(batch.prompts) // len(inputs)  # the beams of a prompt are side by side
                inputs[number, batch.starts[prompt] + places[prompt]] = rows[prompt].to(inputs)
            return {**arguments, "inputs_embeds": inputs}

        return with_rows

    def encoded(self, vlm: VLM, prompt: Prompt) -> Tensor:
        """Return the rows of the image in the prompt, encoded with the extra token, (U, D).

        Raises:
            UnsupportedModelError, PromptError, SinkgateError: see `change`.
        """
        if not prompt.has_pixels:
            raise PromptError(
                "test-time registers encode the image anew, and the prompt's pixels were dropped; make the prompt again with vlm.prompt, "
                "or prepare samples with ExampleCache(vlm, pixels=True)"
            )
        with vlm.lock, torch.no_grad(), self.in_encoder(vlm):
            encoded = vlm.encode(prompt)
        if "deepstack_features" in encoded:
            raise UnsupportedModelError(
                f"test-time registers cannot act on {vlm.name}: its LLM reads rows of the image in several layers"
            )
        return vlm.adapter.projected(encoded)

    @contextmanager
    def in_encoder(self, vlm: VLM) -> Iterator[None]:
        """Run the vision encoder with the extra token within the block.

        Raises:
            UnsupportedModelError, SinkgateError: see `change`.
        """
        layers = vlm.adapter.encoder_layers
        units: dict[int, list[int]] = defaultdict(list)
        for layer, unit in self.neurons:
            width = down_projection(vlm, layer).in_features
            if unit >= width:
                raise SinkgateError(
                    f"encoder layer {layer} of {vlm.name} has no unit {unit}: its MLP has units 0 to {width - 1}"
                )
            units[layer].append(unit)
        token: dict[str, Tensor] = {}  # the extra token between two layers
        with ExitStack() as stack:
            for number, layer in enumerate(layers):
                stack.enter_context(replaced([layer], _with_token(vlm.name, layer.forward, token, first=number == 0)))
            for layer, neurons in units.items():
                hook = down_projection(vlm, layer).register_forward_pre_hook(_moved(neurons))
                stack.callback(hook.remove)
            yield


def find_register_neurons(
    vlm: VLM,
    prompts: Prompt | Iterable[Prompt],
    *,
    count: int = 10,
    layers: Sequence[int] | None = None,
    v_sink: str = "auto",
) -> Registers:
    """Find the neurons of the encoder's MLPs that are most active, on average, in the patches of V-sinks (algorithm 1 of the paper).

    Args:
        vlm: the model.
        prompts: prompts with pictures; the paper takes some hundred.
        count: number of neurons, at least 1; the paper takes about ten for CLIP.
        layers: encoder layers to search, from 0; all up to the layer of the features by default (chosen by us; the paper stops where
            outliers appear).
        v_sink: criterion of V-sinks; the paper takes patches of outlying norm, "norm".

    Raises:
        SinkgateError: no prompt has V-sinks, or a number is out of range.
        UnsupportedModelError: the down-projection of an MLP of the encoder cannot be recognised by its shape.

    Example:
        >>> str(find_register_neurons(vlm, [vlm.prompt("photo.jpg", "What is this?")], count=2))
        'registers neurons 5.120+4.31'
    """
    count = index(count, "the number of neurons")
    if count < 1:
        raise SinkgateError(f"count is {count}; expected at least 1 neuron")
    searched = range(vlm.adapter.feature_layer + 1) if layers is None else layers
    searched = whole_numbers(searched, len(vlm.adapter.encoder_layers), "encoder layer")
    totals: dict[int, Tensor] = {}
    patches = 0
    for prompt in [prompts] if isinstance(prompts, Prompt) else prompts:
        v_sinks = find_v_sinks(vlm, prompt, v_sink).v_sink
        of_patch = prompt.token_of_patch
        if of_patch is None:
            raise UnsupportedModelError(f"{vlm.name}: its visual tokens mix patches, so that V-sinks have no patches")
        outliers = (of_patch >= 0) & v_sinks[of_patch.clamp(min=0)]
        patches += int(outliers.sum())
        if outliers.any():
            for layer, values in mlp_activations(vlm, prompt, searched).items():
                total = values[outliers].float().sum(0)
                totals[layer] = totals.get(layer, torch.zeros_like(total)) + total
    if not patches:
        raise SinkgateError(
            f"no prompt has V-sinks by the criterion {v_sink!r}, so there are no outliers to move; "
            "give other pictures or another criterion"
        )
    scores = [(float(value), layer, unit) for layer, total in totals.items() for unit, value in enumerate(total.abs())]
    scores.sort(key=lambda score: (-score[0], score[1:]))
    return Registers(tuple((layer, unit) for _, layer, unit in scores[:count]))


def mlp_activations(vlm: VLM, prompt: Prompt, layers: Sequence[int]) -> Mapping[int, Tensor]:
    """Return the activations inside the encoder's MLPs, by layer, (N, M) each.

    Raises:
        UnsupportedModelError: see `down_projection`.
    """
    held: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:

            def keep(_module: nn.Module, args: tuple[Any, ...], layer: int = layer) -> None:
                held[layer] = args[0]

            stack.callback(down_projection(vlm, layer).register_forward_pre_hook(keep).remove)
        with vlm.lock, torch.no_grad():
            vlm.encode(prompt)
    return {layer: vlm.adapter.in_patch_order(values, prompt.inputs).cpu() for layer, values in held.items()}


def down_projection(vlm: VLM, layer: int) -> nn.Linear:
    """Return the last linear map of the MLP in an encoder layer: the only one that has more inputs than outputs.

    Raises:
        SinkgateError: the encoder has no such layer.
        UnsupportedModelError: no linear map, or several, have that shape.
    """
    layers = vlm.adapter.encoder_layers
    if not 0 <= layer < len(layers):
        raise SinkgateError(f"{vlm.name} has no encoder layer {layer}; expected 0 to {len(layers) - 1}")
    narrowing = [
        part for part in layers[layer].modules() if isinstance(part, nn.Linear) and part.in_features > part.out_features
    ]
    if len(narrowing) != 1:
        raise UnsupportedModelError(
            f"{vlm.name}: {len(narrowing)} linear maps of encoder layer {layer} have more inputs than outputs; "
            "expected one, the end of its MLP"
        )
    return narrowing[0]


def _with_token(name: str, run: Callable[..., Any], token: dict[str, Tensor], first: bool) -> Callable[..., Any]:
    """Return a layer's forward with the extra token after the rows (C, S, E) of its input, and without it in its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        rest, named = list(args), dict(kwargs)
        hidden: Tensor = rest.pop(0) if rest else named.pop("hidden_states")
        if hidden.dim() != 3 or any(_tensors([rest, named])):
            raise UnsupportedModelError(
                f"test-time registers cannot act on {name}: the layers of its vision encoder take positions, masks or packed rows, "
                "which have no place for an extra token"
            )
        if first:
            token["state"] = hidden.new_zeros(len(hidden), 1, hidden.shape[-1])
        output = run(torch.cat([hidden, token["state"]], 1), *rest, **named)
        states: Tensor = output if isinstance(output, Tensor) else output[0]
        token["state"], states = states[:, -1:], states[:, :-1]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    return forward


def _tensors(value: Any) -> Generator[Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _moved(units: list[int]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Return a hook before the down-projection: activations (C, S + 1, M) of register neurons move to the last row."""

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values: Tensor = args[0].clone()
        highest = values[:, :-1, units].amax(1)
        values[:, :, units] = 0
        values[:, -1, units] = highest
        return (values, *args[1:])

    return before
