"""The gates that the paper's authors released, read although it is not known how they name things.

On the Hub (``JH-C-k/lsg_public``) a set of gates is a folder of ``non_lora_trainables.bin`` and ``sink_cfg.json``. The names of the
tensors and of the settings were not at hand when this was written. So a report says of each what it was taken for, and what is
in doubt is refused. No released file has been read by us yet.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinkgate.errors import GateError
from sinkgate.methods.lsg.config import LSGConfig
from sinkgate.methods.lsg.layout import UNKNOWN, GateNames, Settings, find_gates, suspicious
from sinkgate.methods.lsg.model import LSG
from sinkgate.models.load_errors import first_sentence

WEIGHTS, SETTINGS = "non_lora_trainables.bin", "sink_cfg.json"


@dataclass(frozen=True, eq=False)
class Understood:
    """What a folder of released gates was taken for; as text, a report.

    Attributes:
        tensors: what each entry of the weights file was taken for.
        settings: what each setting was taken for.
        notes: what no file tells, and what was assumed instead.
        doubts: why these gates are refused; empty where nothing speaks against them.
        leftovers: what seems to change what the gates compute and was not understood.
        gates: None where there are doubts.
    """

    tensors: Mapping[str, str]
    settings: Mapping[str, str]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    leftovers: tuple[str, ...]
    gates: LSG | None

    def to_lsg(self, force: bool = False) -> LSG:
        """The gates; ``force`` leaves leftovers out.

        Raises:
            GateError: there are doubts, or leftovers without ``force``.
        """
        if self.gates is None:
            raise GateError(f"these gates are refused: {'; '.join(self.doubts)}")
        if self.leftovers and not force:
            raise GateError(f"these gates are refused: {'; '.join(self.leftovers)}: {UNKNOWN}; force leaves that out")
        return self.gates

    def __str__(self) -> str:
        parts = {
            WEIGHTS: [f"{name}: {meaning}" for name, meaning in self.tensors.items()],
            SETTINGS: [f"{key}: {meaning}" for key, meaning in self.settings.items()],
            "Not told by the files": self.notes,
            "Left over": self.leftovers,
            "Doubts": self.doubts,
        }
        return "\n".join(
            line for title, lines in parts.items() if lines for line in (title, *(f"  {line}" for line in lines))
        )


def read_official(
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    offset: int = 0,
    swapped: bool = False,
    activation: str | None = None,
    criterion: str = "dimensions",
    base_model: str | None = None,
) -> Understood:
    """Read a folder of released gates. Nothing in it is run.

    Args:
        folder: as ``hf download`` leaves it, with the two files.
        layers: layers of the gates in the order of their names, where the files leave them open.
        offset: added to layers that the files tell. A gate of layer l here reads the input of layer l, counted from 0, and scales
            that layer's Keys. The paper's reads the hidden state of layer l and scales layer l + 1: where those states are
            counted from the embeddings on, 0 is right; where they are outputs of layers counted from 0, 1 is.
        swapped: the outputs are (rest, V-sinks). Shapes cannot tell; the paper writes (V-sinks, rest).
        activation: between the two linear layers; what the settings say where None, gelu (ours) where they say nothing.
        criterion: how sinks are to be found; the paper's by default, of which tau is not known.
        base_model: the model that the gates are for, as ``sinkgate.load`` names it; what the settings say where None. The
            released gates are for checkpoints in LLaVA's own format, which have other names in transformers' format.

    Raises:
        GateError: a file is missing, broken, or holds other objects than tensors; an argument is out of its range.
    """
    folder = Path(folder).expanduser()
    entries, settings = _entries(folder / WEIGHTS), Settings(_settings(folder / SETTINGS))
    tensors = {name: entry.detach().float() for name, entry in entries.items() if _is_plain(entry)}
    doubts: list[str] = []
    gates = find_gates(tensors, doubts)
    if layers is not None and len(layers) != len(gates):
        raise GateError(f"layers are {list(layers)}, and {len(gates)} gates are in {folder}; give a layer for each")
    numbers = list(layers) if layers is not None else settings.layers(gates, doubts) if gates else None
    if numbers and layers is None:
        numbers = [number + offset for number in numbers]
    doubts += [f"there are {many} candidates for layer {at}" for at, many in Counter(numbers).items() if many > 1]
    taken = {
        name: f"{where}, {meaning}"
        for gate, where in zip(gates, [f"layer {at}" for at in numbers or []] or [g.up for g in gates], strict=True)
        for name, meaning in gate.meanings.items()
    }
    doubts += [f"{name} holds NaN or infinity" for name in taken if not torch.isfinite(tensors[name]).all()]
    activation, who = settings.activation(activation, doubts)
    base_model = base_model or settings.base_model()
    rest = [name for name in entries if name not in taken]
    odd = [name for name in rest if name not in tensors or suspicious(name, tensors, gates)]
    leftovers = [f"{name}, {_kind(entries[name])}" for name in odd]
    leftovers += settings.leftovers(gates[0]) if gates else []
    built = None
    if numbers and not doubts:
        parts = {part for gate in gates for part in gate.parts}
        config = LSGConfig(
            tuple(sorted(numbers)),
            gates[0].width,
            gates[0].bottleneck,
            activation=activation,
            criterion=criterion,
            base_model=base_model,
            bias=bool(parts & {"down.bias", "up.bias"}),
            norm_weights="norm.weight" in parts,
        )
        built = _build(config, dict(zip(numbers, gates, strict=True)), tensors, swapped)
    return Understood(
        tensors={name: taken.get(name, f"{UNKNOWN}, {_kind(entry)}") for name, entry in entries.items()},
        settings={key: f"{json.dumps(settings.values[key])}, {said}" for key, said in settings.meanings.items()},
        notes=(
            "which output is for V-sinks: the " + ("second" if swapped else "first, as the paper writes the pair"),
            f"how layers are counted: a gate reads the input of its layer, counted from 0 ({offset} added), and scales its Keys",
            f"the activation: {activation}, {who}",
            f"how the authors find sinks: '{criterion}' is used",
            f"the model in transformers' format: {base_model or 'none is named'}",
            f"whether other weights were trained with the gates: {len(rest) - len(odd)} are in the file and left out",
        ),
        doubts=tuple(doubts),
        leftovers=tuple(leftovers),
        gates=built,
    )


def _build(config: LSGConfig, gates: Mapping[int, GateNames], tensors: Mapping[str, Tensor], swapped: bool) -> LSG:
    """The gates by layer; a bias or a norm's weight that only others have is put in without effect, as 0 or 1."""
    lsg = LSG(config)
    for layer, gate in gates.items():
        for part, value in lsg.gates[str(layer)].state_dict().items():
            tensor = tensors[gate.parts[part]] if part in gate.parts else torch.full_like(value, part == "norm.weight")
            tensor = tensor.T if gate.transposed and tensor.dim() == 2 else tensor
            value.copy_(tensor.flip(0) if swapped and part.startswith("up.") else tensor)
    return lsg


def _entries(path: Path) -> dict[str, Any]:
    """Entries of a torch file by name, dictionaries within it flattened; no code of it is run."""
    try:
        entries = list(_flat(torch.load(path, map_location="cpu", weights_only=True)))
    except OSError as error:
        raise _unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise GateError(
            f"{path} holds other objects than tensors, or is no torch file; nothing of it was run"
        ) from error
    except Exception as error:  # a broken file makes torch raise many things
        raise GateError(f"{path} cannot be read as a torch file: {first_sentence(error)}") from error
    if len(entries) != len(dict(entries)):
        raise GateError(f"{path} holds two entries of one name")
    return dict(entries)


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise GateError(f"{path} is no valid JSON: {first_sentence(error)}") from error
    if not isinstance(content, dict):
        raise GateError(f"{path} holds no JSON object")
    return dict(_flat(content))


def _unreadable(path: Path, error: OSError) -> GateError:
    return GateError(f"{path} cannot be read: {error.strerror}; give a folder with {WEIGHTS} and {SETTINGS}")


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


def _is_plain(entry: Any) -> bool:
    return (
        isinstance(entry, Tensor)
        and entry.is_floating_point()
        and entry.layout is torch.strided
        and entry.device.type == "cpu"
    )


def _kind(entry: Any) -> str:
    if isinstance(entry, Tensor):
        return f"shape {tuple(entry.shape)}, {str(entry.dtype).removeprefix('torch.')}"
    return f"no tensor but {type(entry).__name__}"
