"""Fixed gates: a table of Key scales, layers by groups of visual tokens.

A scale multiplies the Keys of its group in its layer (paper, section 2). Note what that does: a scale
below 1 lowers a positive logit but raises a negative one, and a scale of 0 sets the logit to 0, which
is not removal. `sinkgate.sinks.fine_gates` has tables limited to query rows and heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sinkgate.errors import GateError, ModelMismatchError
from sinkgate.sinks.classify import SinkMasks
from sinkgate.sinks.gate_files import VERSION, load_text, model_of, read_content, save_text, to_json
from sinkgate.sinks.numbers import (
    MAX_SCALE,
    index,
    is_column,
    number,
    numbers_in_range,
    python_numbers,
    short,
    to_float,
)
from sinkgate.sinks.words import layers as layers_in_words

Group = Literal["v_sink", "l_sink", "ordinary", "rest"]
GROUPS = ("v_sink", "l_sink", "ordinary")

_COLUMNS = {"v_sink": [0], "l_sink": [1], "ordinary": [2], "rest": [1, 2]}

#: Names of ready-made settings: (v_sink, rest) in every layer. The midpoint is where the paper's learned gate starts.
PRESETS: Mapping[str, tuple[float, float]] = {
    "Unchanged": (1.0, 1.0),
    "V-sinks off": (0.0, 1.0),
    "V-sinks up": (2.0, 1.0),
    "Non-sinks down": (1.0, 0.5),
    "Paper's midpoint": (0.5, 0.5),
}


class Model(Protocol):
    """Attributes of a model that gates are checked against."""

    @property
    def num_layers(self) -> int: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Gates:
    """Scales in [0, 4] by layer and group; ``rest`` names the last two groups together.

    Shapes: scales (layers, 3), float32, columns as in ``GROUPS``. ``model`` is the name of the model
    they were made for, or None for any model with as many layers.

    Raises:
        GateError: a scale is not a finite number in [0, 4], or the table has another shape.
    """

    scales: Tensor
    model: str | None = None

    def __post_init__(self) -> None:
        scales = checked_table(self.scales)
        if scales.dim() != 2 or scales.shape[1] != len(GROUPS) or not len(scales):
            raise GateError(f"gates are a table of layers x {len(GROUPS)} scales, got shape {tuple(scales.shape)}")
        wrong = ~((scales >= 0) & (scales <= MAX_SCALE))  # NaN compares false, so it is wrong too
        if wrong.any():
            layer, column = (int(i) for i in wrong.nonzero()[0])
            raise GateError(
                f"the {GROUPS[column]} scale of layer {layer} is {scales[layer, column].item():g}; "
                f"expected a finite number from 0 to {MAX_SCALE:g}"
            )
        object.__setattr__(self, "scales", scales)

    def __repr__(self) -> str:
        scaled = [layer for layer, scales in enumerate(self.scales) if (scales != 1).any()]
        state = f"scaled in {layers_in_words(scaled)}" if scaled else "all 1"
        return f"Gates({len(self.scales)} layers of {self.model or 'any model'}, {state})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gates) and torch.equal(self.scales, other.scales) and self.model == other.model

    @classmethod
    def ones(cls, layers: int | Model) -> Gates:
        """Return the scales of the unmodified model, 1 everywhere.

        Raises:
            GateError: this is neither a model nor a number of layers.
        """
        if hasattr(layers, "num_layers"):
            model: Any = layers
            return cls(torch.ones(model.num_layers, len(GROUPS)), model.name)
        return cls(torch.ones(max(index(layers, "the number of layers"), 0), len(GROUPS)))

    @classmethod
    def preset(cls, name: str, layers: int | Model) -> Gates:
        """Return one of ``PRESETS`` in every layer."""
        if name not in tuple(PRESETS):  # which may not be hashable
            raise GateError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
        v_sink, rest = PRESETS[name]
        return cls.ones(layers).set("v_sink", v_sink).set("rest", rest)

    @classmethod
    def from_lists(
        cls,
        v_sink: Sequence[float] | np.ndarray | Tensor,
        rest: Sequence[float] | np.ndarray | Tensor,
        model: str | None = None,
        *,
        l_sink: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> Gates:
        """Return gates of two groups, as in the paper, or of three.

        Args:
            v_sink: the scale of V-sinks in each layer, 0 to 4; a list, an array or a tensor.
            rest: the scale of all other visual tokens in each layer; of ordinary tokens alone beside ``l_sink``.
            model: the name of the model they are for; None for any with as many layers.
            l_sink: the scale of L-sinks in each layer; None for that of ``rest``.

        Raises:
            GateError: lists of unequal length, or of anything but numbers from 0 to 4.

        Example:
            >>> Gates.from_lists(v_sink=[1, 0.5], rest=[1, 0.5])
        """
        columns = {"v_sink": python_numbers(v_sink), "rest": python_numbers(rest)}
        if l_sink is not None:
            columns = {"v_sink": columns["v_sink"], "l_sink": python_numbers(l_sink), "ordinary": columns["rest"]}
        return cls._of_columns(_columns(columns), None, model)

    @classmethod
    def _of_columns(cls, columns: list[list[float]], layers: int | None, model: Any) -> Gates:
        count = len(columns[0]) if layers is None else layers
        if any(len(column) != count for column in columns):
            lengths = ", ".join(str(len(column)) for column in columns)
            raise GateError(f"each group needs {count} scales, one a layer; got lists of {lengths}")
        table = torch.tensor(columns, dtype=torch.float32).reshape(len(columns), -1).T
        return cls(table, model_of({"model": model}))

    def set(self, group: Group, scale: float, layers: Iterable[int] | int | str | None = None) -> Gates:
        """Return these gates with the scale of one group changed.

        Args:
            group: ``v_sink``, ``l_sink``, ``ordinary``, or ``rest`` for the last two.
            scale: 0 to 4; a number of any kind, a tensor's too.
            layers: one or several, from 0, negative from the end; or as typed at the command line, "3,6,7" or "12-29"; all where None.

        Raises:
            GateError: no such group or layer, or a scale out of range.

        Example:
            >>> Gates.ones(30).set("v_sink", 0.5, layers="12-29")
        """
        if group not in tuple(_COLUMNS):  # which may not be hashable
            raise GateError(f"no group is called {group!r}; there are: {', '.join(_COLUMNS)}")
        numbers, value = numbers_in_range(layers, len(self.scales), "layer"), number(scale)
        scales = self.scales.clone()
        for layer in numbers:
            scales[layer, _COLUMNS[group]] = value
        return Gates(scales, self.model)

    @property
    def is_identity(self) -> bool:
        """True where every scale is 1: the unmodified model."""
        return bool((self.scales == 1).all())

    def for_model(self, vlm: Model, any_model: bool = False) -> Gates:
        """Return these gates if they fit the model; with ``any_model`` the name that they were made for does not count.

        Raises:
            GateError: another number of layers, or made for another model.
        """
        check_model(len(self.scales), None if any_model else self.model, vlm)
        return Gates(self.scales) if any_model else self

    def key_scales(self, sinks: SinkMasks, positions: Tensor, length: int) -> Tensor:
        """Spread the table over the positions of a prompt.

        Shapes: positions (V,) of the visual tokens -> (layers, 1, length), 1 for all text.
        """
        scales = torch.ones(len(self.scales), 1, length)
        v_sink, l_sink, ordinary = self.scales[:, :, None].unbind(1)
        scales[:, 0, positions.cpu()] = torch.where(sinks.v_sink, v_sink, torch.where(sinks.l_sink, l_sink, ordinary))
        return scales

    def to_json(self) -> str:
        """Return the table as JSON, with a format name and version."""
        columns = {group: short(self.scales[:, i]) for i, group in enumerate(GROUPS)}
        return to_json(VERSION, self.model, len(self.scales), {"scales": columns})

    @classmethod
    def from_json(cls, text: str) -> Gates:
        """Read what ``to_json`` wrote; ``scales`` may also hold ``v_sink`` and ``rest`` alone.

        Raises:
            GateError: no JSON, another format or version, missing groups, lists of unequal length, scales out of range.
        """
        content = read_content(text, VERSION)
        return cls._of_columns(_columns(content["scales"]), content.get("layers"), content.get("model"))

    def save(self, path: str | Path) -> None:
        """Write ``to_json`` to a file, whose folder is created if it is missing.

        Raises:
            GateError: the file cannot be written.
        """
        save_text(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path) -> Gates:
        """Read a file that ``save`` wrote.

        Raises:
            GateError: the file cannot be read, or as ``from_json``.
        """
        return cls.from_json(load_text(path))


def checked_table(scales: Any) -> Tensor:
    """Return a table of scales as float32 on the CPU.

    Raises:
        GateError: this is no table of numbers.
    """
    try:
        return torch.as_tensor(scales, dtype=torch.float32).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise GateError(
            f"gates are a table of numbers, a row a layer and a column a group; got {type(scales).__name__}: {error}"
        ) from error


def check_model(layers: int, model: str | None, vlm: Model) -> None:
    """Refuse a model that gates were not made for.

    Args:
        layers: of the gates.
        model: name of the model that they were made for; None for any.
        vlm: the model at hand.

    Raises:
        GateError: another number of layers, or another name.
    """
    if layers != vlm.num_layers:
        raise GateError(f"the gates have {layers} layers, {vlm.name} has {vlm.num_layers}")
    if model not in (None, vlm.name):
        raise ModelMismatchError(
            f"the gates were made for {model}, this is {vlm.name}",
            "say any_model=True (--any-model), or set their `model` to null, to use them all the same",
        )


def _columns(scales: dict[str, Any]) -> list[list[float]]:
    names = ("v_sink", "rest", "rest") if "rest" in scales else GROUPS
    unknown = sorted(set(scales) - set(names))
    missing = sorted(set(names) - set(scales))
    if unknown or missing:
        raise GateError(
            f"scales come as {', '.join(GROUPS)} or as v_sink, rest; "
            + "; ".join(
                f"{what} {', '.join(which)}" for what, which in (("missing", missing), ("unknown", unknown)) if which
            )
        )
    for name in names:
        column = scales[name]
        if not is_column(column):
            raise GateError(f"the scales of {name} must be a list of numbers, one a layer")
    return [[to_float(value) for value in scales[name]] for name in names]
