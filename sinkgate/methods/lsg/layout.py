"""What an unknown file of gates holds: matrices told by shape and by likeness of names, settings by their words and values.

Shapes: D LLM width, b bottleneck, 2 outputs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise, takewhile
from typing import Any

from torch import Tensor

from sinkgate.methods.lsg.config import ACTIVATIONS

UNKNOWN = "not understood"

_BIASES = {"weight": "bias", "w": "b", "kernel": "bias", "gamma": "beta"}
_ELSEWHERE = {"num", "n", "total", "count", "vit", "vision", "mm", "tower", "encoder", "hidden"}  # no settings of gates
_SIZES = {"dim", "hidden", "size", "bottleneck", "width", "groups", "outputs"}
_CHANGES_SCALES = {"prior", "temperature", "temp", "scale", "softmax"}


@cache
def words(name: str) -> tuple[str, ...]:
    """Words and numbers of a name, such as (gates, 10, fc, 1, weight)."""
    return tuple(re.findall(r"[0-9]+|[a-z]+", name.lower()))


class GateNames:
    """The tensors of one gate, by name. ``number`` is what they say of its layer, None where that is nothing or several things."""

    def __init__(self, up: str, down: str, tensors: Mapping[str, Tensor]) -> None:
        self.up, self.down = up, down
        self.transposed = tensors[up].shape[0] != 2  # as for signal @ matrix
        self.bottleneck, self.width = sorted(tensors[down].shape)
        shared = [at for at, (a, b) in enumerate(zip(words(up), words(down), strict=False)) if a == b and a.isdigit()]
        places = [at for at in shared if at and words(up)[at - 1] in ("layer", "layers", "l")] or shared
        self.place = places[0] if len(places) == 1 else None
        self.number = None if self.place is None else int(words(up)[self.place])
        vectors = {
            "down.bias": _bias(down, self.bottleneck, tensors),
            "up.bias": _bias(up, 2, tensors),
        }
        norms = [
            (name, bias)
            for name, tensor in tensors.items()
            if tensor.shape == (self.width,) and self.owns(name) and (bias := _bias(name, self.width, tensors))
        ]
        if len(norms) == 1:  # a weight alone may be an RMSNorm's, which is another function: left over
            vectors |= dict(zip(("norm.weight", "norm.bias"), norms[0], strict=True))
        #: Names in the file by names within a `SinkGate`.
        self.parts = {"down.weight": down, "up.weight": up, **{part: name for part, name in vectors.items() if name}}

    @property
    def meanings(self) -> dict[str, str]:
        """What each tensor is, by its name."""
        turned = ", transposed" if self.transposed else ""
        said = {
            "down.weight": f"first matrix, {self.width} -> {self.bottleneck}{turned}",
            "up.weight": f"second matrix, {self.bottleneck} -> 2{turned}",
            "down.bias": "bias of the first matrix",
            "up.bias": "bias of the second matrix",
            "norm.weight": "weight of the LayerNorm",
            "norm.bias": "bias of the LayerNorm",
        }
        return {name: said[part] for part, name in self.parts.items()}

    def owns(self, name: str) -> bool:
        """Whether a tensor lies in the gate's module, or beside it under the same number."""
        if name.split(".")[: len(self.module)] != self.module:
            return False
        return self.place is None or words(name)[self.place : self.place + 1] == (str(self.number),)

    @property
    def module(self) -> list[str]:
        """The outermost path shared by both matrices that holds the number, if names have one, and a word for gates, if they have one."""
        both = takewhile(lambda pair: pair[0] == pair[1], zip(self.up.split("."), self.down.split("."), strict=False))
        shared = [part for part, _ in both]
        paths = [shared[:end] for end in range(len(shared) + 1)]
        numbered = [path for path in paths if self.place is None or len(words(".".join(path))) > self.place]
        return next(iter([path for path in numbered if _sounds_like_a_gate(".".join(path))] or numbered), shared)


def find_gates(tensors: Mapping[str, Tensor], doubts: list[str]) -> list[GateNames]:
    """Each matrix with two outputs, and of the matrices that fit before it the one whose name is most like its own; by name.

    Shapes: (2, b) and (b, D) as `torch.nn.Linear` keeps them, or (b, 2) and (D, b); 2 < b < D.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.dim() == 2}
    gates = []
    for up in sorted(shapes, key=_natural):
        bottleneck, transposed = max(shapes[up]), shapes[up][0] != 2
        if min(shapes[up]) != 2 or bottleneck == 2:
            continue
        likeness = {
            name: sum(a == b for a, b in zip(words(up), words(name), strict=False))
            for name, shape in shapes.items()
            if shape[transposed] == bottleneck and shape[not transposed] > bottleneck
        }
        nearest = [name for name, much in likeness.items() if much == max(likeness.values())]
        if len(nearest) > 1:
            doubts.append(f"{up} may follow {nearest[0]} or {nearest[1]}")
        elif nearest:
            gates.append(GateNames(up, nearest[0], tensors))
    doubts += [
        f"{many} matrices with two outputs may follow {down}"
        for down, many in Counter(gate.down for gate in gates).items()
        if many > 1
    ]
    if not gates and not doubts:
        doubts.append("there are no two matrices (b, D) and (2, b) with 2 < b < D")
    sizes = sorted({(gate.width, gate.bottleneck) for gate in gates})
    if len(sizes) > 1:
        doubts.append(f"gates of one set have one width and one bottleneck, these have {sizes}")
    return gates


def suspicious(name: str, tensors: Mapping[str, Tensor], gates: Sequence[GateNames]) -> bool:
    """Whether a tensor without a role looks as if it belonged to a gate."""
    return (
        _sounds_like_a_gate(name)
        or any(gate.owns(name) for gate in gates)
        or any(tensors[name].shape in (tensors[gate.up].shape, tensors[gate.down].shape) for gate in gates)
    )


def _sounds_like_a_gate(name: str) -> bool:
    return any(
        "sink" in word
        or word in ("lsg", "rho", "gates")
        or (word == "gate" and after != "proj")  # LLaMA has a gate_proj
        for word, after in pairwise((*words(name), ""))
    )


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words(name)]


def _bias(weight: str, size: int, tensors: Mapping[str, Tensor]) -> str | None:
    """The vector of that size that is named as the bias beside a weight."""
    named = words(weight)
    names = {(*named[:at], _BIASES[word], *named[at + 1 :]) for at, word in enumerate(named) if word in _BIASES}
    names |= {(*named, "bias"), (*named, "b")}
    found = [name for name, tensor in tensors.items() if tensor.shape == (size,) and words(name) in names]
    return found[0] if len(found) == 1 else None


class Settings:
    """Settings by name, and what each was taken for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.meanings = dict.fromkeys(values, UNKNOWN)

    def layers(self, gates: Sequence[GateNames], doubts: list[str]) -> list[int] | None:
        """The layer of each gate: what names and settings agree on."""
        said = {key: layers for key, value in self.values.items() if (layers := _layers(key, value))}
        numbers = [gate.number for gate in gates if gate.number is not None]
        remedy = "say it with layers"
        if len(numbers) < len(gates):
            if len(gates) == 1 and len(set(said.values())) == 1 and len(next(iter(said.values()))) == 1:
                self.meanings |= dict.fromkeys(said, "the layer of the gate")
                return list(next(iter(said.values())))
            doubts.append(f"names and settings do not tell which layer {gates[0].up} is for; {remedy}")
            return None
        if agreeing := [key for key, layers in said.items() if sorted(layers) == sorted(numbers)]:
            self.meanings |= dict.fromkeys(agreeing, "the layers of the gates, as in their names")
            return numbers
        if sorted(numbers) == list(range(len(gates))):  # more likely places in a list than layers
            orders = {layers for layers in said.values() if len(layers) == len(gates)}
            order = next(iter(orders), ())
            if len(orders) == 1 and set(said.values()) == orders and sorted(set(order)) == list(order):
                self.meanings |= dict.fromkeys(said, "the layers of the gates, which their names count from 0")
                return [order[number] for number in numbers]
            doubts.append(f"the names count the gates from 0, and the settings do not tell their layers; {remedy}")
            return None
        if said:
            doubts.append(f"the names say layers {numbers}, the settings {said}; {remedy}")
            return None
        return numbers

    def activation(self, given: str | None, doubts: list[str]) -> tuple[str, str]:
        """The activation, and who says so."""
        told = {
            key: {"swish": "silu"}.get(str(value).lower(), str(value).lower())
            for key, value in self.values.items()
            if value is not None and set(words(key)) & {"activation", "act"} and not set(words(key)) & _ELSEWHERE
        }
        self.meanings |= {
            key: "the activation" + (", overruled" if given not in (None, name) else "") for key, name in told.items()
        }
        if given:
            return given, "as asked for"
        if not told:
            return "gelu", "ours, the settings name none"
        if len(set(told.values())) > 1 or not set(told.values()) <= set(ACTIVATIONS):
            doubts.append(f"the activation is {told}, expected one of {', '.join(ACTIVATIONS)}; say it with activation")
        return next(iter(told.values())), "by the settings"

    def base_model(self) -> str | None:
        """The model that the settings name."""
        for key, value in self.values.items():
            if isinstance(value, str) and "model" in words(key) and {"base", "path"} & set(words(key)):
                self.meanings[key] = "the base model"
                return value
        return None

    def leftovers(self, gate: GateNames) -> list[str]:
        """Take what repeats the sizes of a gate; of the rest, what may change what the gates compute."""
        sizes = {gate.bottleneck: "the bottleneck", gate.width: "the width of the LLM", 2: "the number of outputs"}
        left = []
        for key, value in self.values.items():
            if self.meanings[key] != UNKNOWN:
                continue
            if type(value) is int and value in sizes and _SIZES & set(words(key)):
                self.meanings[key] = sizes[value]
            elif type(value) in (int, float) and value != 1 and _CHANGES_SCALES & set(words(key)):
                left.append(f"{key} = {value:g}")
        return left


def _layers(key: str, value: Any) -> tuple[int, ...]:
    """The layers that a setting lists; () where it is about something else."""
    if not {"layer", "layers"} & set(words(key)) or _ELSEWHERE & set(words(key)):
        return ()
    if isinstance(value, str) and re.fullmatch(r"L?\d+([,_ ]+L?\d+)*", value):
        return tuple(int(number) for number in re.findall(r"\d+", value))
    listed: list[Any] = value if isinstance(value, list) else [value]
    return tuple(listed) if all(type(layer) is int and layer >= 0 for layer in listed) else ()
