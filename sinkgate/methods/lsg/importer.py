"""Importer of gates in LLaVA's files, ``non_lora_trainables.bin`` and ``sink_cfg.json``, by the shapes of tensors.

Names inside the authors' released files (JH-C-k/lsg_public on the Hub) are not known here: a report states what everything was
taken for, and what is in doubt is refused. A gate is (b, D) and (2, b), 2 < b < D = LLM width; vectors of 2, b and D belong to them.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinkgate.errors import GateError, with_remedy
from sinkgate.methods.lsg.config import ACTIVATIONS, LSGConfig
from sinkgate.methods.lsg.model import LSG
from sinkgate.models.load_errors import first_sentence
from sinkgate.models.loading import KNOWN_MODELS

WEIGHTS, SETTINGS, UNKNOWN = "non_lora_trainables.bin", "sink_cfg.json", "not understood"
_GATE = re.compile(r"sink|lsg|(?:^|[._])(?:rho|gates?)(?![a-z]|_proj)")  # LLaMA has a gate_proj
_LAYER = re.compile(r"(?:layers?[._]?|gates[._]l?|gate_|(?:^|[._])l)(\d+)(?=[._])")
_WEIGHT, _BIAS = re.compile(r"(?:weight|gamma|[._]w\d*)$"), re.compile(r"(?:bias|beta|[._]b\d*)$")
_ELSEWHERE = re.compile(r"num|total|count|vi[ts]|mm_|tower|encoder|hidden")  # settings of other parts
_SCALES = re.compile(r"prior|temp|scale|softmax")  # settings that may change what gates compute

Gate = dict[str, str]  # names in the file by names within a `SinkGate`


@dataclass(frozen=True, eq=False)
class ImportReport:
    """Meaning of every tensor and setting, ``notes`` on what the files leave open, ``doubts`` for which the gates are refused,
    ``leftovers`` that may change what they compute, and the gates, None where there are doubts."""

    tensors: Mapping[str, str]
    settings: Mapping[str, str]
    notes: Sequence[str]
    doubts: Sequence[str]
    leftovers: Sequence[str]
    gates: LSG | None

    def to_lsg(self, force: bool = False) -> LSG:
        """Return the gates; ``force`` ignores leftovers. Raises GateError where there are doubts, or leftovers without it."""
        against = [*self.doubts, *(f"{each}, {UNKNOWN}; force ignores it" for each in self.leftovers if not force)]
        if against or self.gates is None:
            raise GateError(f"these gates are refused: {'; '.join(against)}")
        return self.gates

    def __str__(self) -> str:
        parts = {
            WEIGHTS: [f"{name}: {meaning}" for name, meaning in self.tensors.items()],
            SETTINGS: [f"{key}: {meaning}" for key, meaning in self.settings.items()],
            "Not in the files": self.notes,
            "Left over": self.leftovers,
            "Doubts": self.doubts,
        }
        return "\n".join("\n  ".join([title, *lines]) for title, lines in parts.items() if lines)


def import_gates(
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    offset: int = 0,
    swapped: bool = False,
    activation: str | None = None,
    criterion: str = "dimensions",
    base_model: str | None = None,
) -> ImportReport:
    """Read a folder of gates, in any floating-point type. No code in the files is run.

    Args:
        folder: with the two files.
        layers: layers of the gates in the order of their numbers, where the files leave them open.
        offset: added to the layers in the files. A gate here reads the input of its layer, counted from 0, and scales that layer's
            Keys; the paper's reads hidden state l and scales layer l + 1: 1 is right where its states are outputs of layers.
        swapped: the outputs are (rest, V-sinks); the paper writes (V-sinks, rest).
        activation: between the matrices; by the settings where None, gelu (default chosen by us) where they name none.
        criterion: how sinks are found; the paper's by default, whose tau is not known.
        base_model: the model that the gates are for, as `sinkgate.load` takes it; by the settings where None.

    Raises:
        GateError: a file is missing, broken or holds other objects than tensors, or an argument is out of its range.

    Example:
        ``import_gates("llava15_L10_PEFT", base_model="llava-1.5-7b").to_lsg().save_pretrained("lsg-l10")``
    """
    folder, doubts = Path(folder).expanduser(), list[str]()
    entries, settings = _read(folder / WEIGHTS), _read(folder / SETTINGS)
    tensors = {name: value.detach().float() for name, value in entries.items() if _is_plain(value)}
    named = {name: value for name, value in tensors.items() if _GATE.search(name.lower())} or tensors
    by_number: dict[int | None, dict[str, Tensor]] = {}
    for name, value in named.items():
        number = _LAYER.search(name.lower())
        by_number.setdefault(int(number[1]) if number else None, {})[name] = value
    order = sorted(by_number, key=lambda number: -1 if number is None else number)
    complete = {number: gate for number in order if (gate := _gate(by_number[number], doubts))}
    if not complete and not doubts:
        doubts.append("there are no two matrices (b, D) and (2, b) with 2 < b < D")
    if layers is not None and len(layers) != len(complete):
        raise GateError(f"layers are {list(layers)}, and {len(complete)} gates are in {folder}; give a layer for each")
    meanings = dict.fromkeys(settings, UNKNOWN)
    numbers = list(layers or _numbers([*complete], settings, meanings, offset, doubts))
    gates = dict(zip(numbers, complete.values(), strict=False))
    names = {name: f"layer {number}, {part}" for number, gate in gates.items() for part, name in gate.items()}
    doubts += [f"two gates are for one layer of {numbers}"] * (len(gates) < len(numbers))
    doubts += [f"{name} holds NaN or infinity" for name in names if not tensors[name].isfinite().all()]
    shapes = {tensors[gate[part]].shape for gate in gates.values() for part in ("down.weight", "up.weight")}
    doubts += [f"gates of one set have one D and one b, these have shapes {sorted(shapes)}"] * (len(shapes) > 2)
    activations = set[str]()
    for key, value in settings.items():
        if re.search(r"activation|act$", key.lower()) and value and not _ELSEWHERE.search(key.lower()):
            activations.add(str(value).lower().replace("swish", "silu"))
            meanings[key] = "the activation" + (f", overruled by {activation}" if activation else "")
        elif isinstance(value, str) and re.search(r"base.*model|model.*path", key.lower()):
            base_model, meanings[key] = base_model or value, "the base model"
    base_model = KNOWN_MODELS.get(str(base_model).lower(), {}).get("id", base_model)
    if not activation and (len(activations) > 1 or not activations <= {*ACTIVATIONS}):
        expected = ", ".join(ACTIVATIONS)
        doubts.append(f"the activation is {sorted(activations)}, expected one of {expected}; give it as activation")
    origin = "given" if activation else "by the settings" if activations else "default chosen by us"
    activation = activation or next(iter(activations), LSGConfig.activation)
    options = {"activation": activation, "criterion": criterion, "base_model": base_model}
    rest = {name: value for name, value in entries.items() if name not in names}
    leftovers = [n for n, v in rest.items() if n not in tensors or n in named or v.shape in shapes]
    changing = [
        f"{key} = {value:g}"
        for key, value in settings.items()
        if type(value) in (int, float) and value != 1 and _SCALES.search(key.lower())
    ]
    return ImportReport(
        {name: names.get(name, f"{UNKNOWN}, {_kind(value)}") for name, value in entries.items()},
        {key: f"{json.dumps(settings[key])}, {meaning}" for key, meaning in meanings.items()},
        (
            f"the output for V-sinks: the {'second' if swapped else 'first, as the paper writes the pair'}",
            f"the count of layers: from 0, {offset} added; a gate reads the input of its layer and scales that layer's Keys",
            f"the activation: {activation}, {origin}",
            f"the authors' sinks: '{criterion}' is used",
            f"the model in transformers' format: {base_model or 'none is named'}",
            f"other weights trained with the gates: {len(rest) - len(leftovers)} are in the file and left out",
        ),
        doubts,
        [*(f"{name}, {_kind(rest[name])}" for name in leftovers), *changing],
        None if doubts else _build(gates, tensors, swapped, options),
    )


def _gate(tensors: Mapping[str, Tensor], doubts: list[str]) -> Gate | None:
    """Return the tensors of one gate, by shape and by the ends of their names."""
    ups = [name for name, value in tensors.items() if value.dim() == 2 and len(value) == 2 < value.shape[1]]
    width = {tensors[name].shape[1] for name in ups}
    downs = [n for n, v in tensors.items() if v.dim() == 2 and v.shape[0] in width and v.shape[1] > v.shape[0]]
    if not ups or not downs:
        return None
    if len(ups) > 1 or len(downs) > 1:
        doubts.append(f"{' or '.join(downs)} may go with {' or '.join(ups)}")
        return None
    gate, (b, d) = {"down.weight": downs[0], "up.weight": ups[0]}, tensors[downs[0]].shape
    for name, value in tensors.items():
        layer = {2: "up", b: "down", d: "norm"}.get(len(value)) if value.dim() == 1 else None
        if layer and _BIAS.search(name.lower()):
            gate.setdefault(f"{layer}.bias", name)
        elif layer == "norm" and _WEIGHT.search(name.lower()):
            gate.setdefault("norm.weight", name)
    if "norm.weight" in gate and "norm.bias" in gate:
        return gate
    # a norm's weight alone may be an RMSNorm's, which is another function
    return {part: name for part, name in gate.items() if not part.startswith("norm")}


def _numbers(
    names: Sequence[int | None], settings: Mapping[str, Any], meanings: dict[str, str], offset: int, doubts: list[str]
) -> list[int]:
    """Return the layer of each gate, on which the numbers in names and the settings agree."""
    listed = {key: layers for key, value in settings.items() if (layers := _layers(key.lower(), value))}
    counted = list(names) in ([None], list(range(len(names))))  # more likely places in a list than layers
    agreeing = [key for key, layers in listed.items() if layers == list(names)]
    orders = [layers for layers in listed.values() if len(layers) == len(names) and layers == sorted(set(layers))]
    if counted and not agreeing and orders and all(layers == orders[0] for layers in listed.values()):
        names, agreeing = orders[0], [*listed]
    elif names and not agreeing and (counted or listed):
        doubts.append(f"names say layers {list(names)}, settings say {listed or 'none'}; give them as layers")
    meanings |= dict.fromkeys(agreeing, "the layers of the gates")
    return [(number or 0) + offset for number in names]


def _layers(key: str, value: Any) -> list[int]:
    """Return the layers that a setting lists, as 10, "L10", [3, 6] or "3_6"; [] where it is about something else."""
    if "layer" not in key or _ELSEWHERE.search(key) or not isinstance(value, int | str | list):
        return []
    numbers = [int(number) for number in re.findall(r"-?\d+", str(value))]
    return numbers if min(numbers, default=-1) >= 0 else []


def _build(gates: Mapping[int, Gate], tensors: Mapping[str, Tensor], swapped: bool, options: Mapping[str, Any]) -> LSG:
    """Return the gates; a bias or a norm's weight that only others have is put in without effect, as 0 or 1."""
    parts = {part: tensors[name].shape for gate in gates.values() for part, name in gate.items()}
    bottleneck, width = parts["down.weight"]
    bias, norm = bool(parts.keys() & {"down.bias", "up.bias"}), "norm.weight" in parts
    lsg = LSG(LSGConfig(tuple(sorted(gates)), width, bottleneck, bias=bias, norm_weights=norm, **options))
    for layer, gate in gates.items():
        for part, value in lsg.gates[str(layer)].state_dict().items():
            tensor = tensors[gate[part]] if part in gate else torch.full_like(value, part == "norm.weight")
            value.copy_(tensor.flip(0) if swapped and part.startswith("up.") else tensor)
    return lsg


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a torch or JSON file by name."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        remedy = f"give a folder with {WEIGHTS} and {SETTINGS}"
        raise GateError(f"{path} cannot be read: {with_remedy(error, remedy)}") from error
    except pickle.UnpicklingError as error:
        text = f"{path} holds other objects than tensors, or is no torch file; nothing of it was run"
        raise GateError(text) from error
    except Exception as error:  # a broken file makes torch raise many things
        raise GateError(f"{path} cannot be read: {first_sentence(error)}") from error
    if not isinstance(content, dict):
        raise GateError(f"{path} holds a {type(content).__name__}, expected a table of names")
    return {str(name): value for name, value in content.items()}


def _is_plain(entry: Any) -> bool:
    return (
        isinstance(entry, Tensor) and entry.is_floating_point() and entry.layout is torch.strided and not entry.is_meta
    )


def _kind(entry: Any) -> str:
    if isinstance(entry, Tensor):
        return f"shape {tuple(entry.shape)}, {str(entry.dtype).removeprefix('torch.')}"
    return f"no tensor but {type(entry).__name__}"
