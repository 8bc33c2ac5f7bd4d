"""Fixed gates: a table of Key scales, layers by groups of visual tokens.

A scale multiplies the Keys of its group in its layer (paper, section 2). Note what that does: a scale
below 1 lowers a positive logit but raises a negative one, and a scale of 0 sets the logit to 0, which
is not removal. `sinkgate.sinks.fine_gates` has tables limited to query rows and heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from sinkgate.errors import GateError, ModelMismatchError
from sinkgate.sinks.classify import SinkMasks
from sinkgate.sinks.words import layers as layers_in_words

Group = Literal["v_sink", "l_sink", "ordinary", "rest"]
GROUPS = ("v_sink", "l_sink", "ordinary")
MAX_SCALE = 4.0
FORMAT = "sinkgate-gates"
VERSION, FINE_VERSION = 1, 2  # of the JSON format: fixed gates, and those limited to rows or heads

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
        what = f"scaled in {layers_in_words(scaled)}" if scaled else "all 1"
        return f"Gates({len(self.scales)} layers of {self.model or 'any model'}, {what})"

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
        columns = {"v_sink": _plain(v_sink), "rest": _plain(rest)}
        if l_sink is not None:
            columns = {"v_sink": columns["v_sink"], "l_sink": _plain(l_sink), "ordinary": columns["rest"]}
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
        chosen, value = numbers_in_range(layers, len(self.scales), "layer"), number(scale)
        scales = self.scales.clone()
        for layer in chosen:
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
        by_group = torch.stack([sinks.v_sink.expand_as(sinks.l_sink), sinks.l_sink, sinks.ordinary], -1)
        scales = torch.ones(len(self.scales), 1, length)
        scales[:, 0, positions.cpu()] = (by_group * self.scales[:, None, :]).sum(-1)
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


# --- tables and files, shared with fine gates


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


def to_json(version: int, model: str | None, layers: int, content: Mapping[str, Any]) -> str:
    """Return gates as JSON text."""
    return json.dumps({"format": FORMAT, "version": version, "model": model, "layers": layers, **content}, indent=1)


def read_content(text: str, version: int) -> dict[str, Any]:
    """Return the JSON object of gates of this version.

    Raises:
        GateError: no JSON, or another format or version.
    """
    content = _json_object(text)
    if not isinstance(content.get("scales"), dict):
        raise GateError('gates are a JSON object with "scales" by group; write one with Gates.to_json()')
    if content.get("format", FORMAT) != FORMAT:
        raise GateError(f"the file's format is {content['format']!r}, expected {FORMAT!r}")
    got = content.get("version", VERSION)
    if got == version:
        return content
    readers = {
        VERSION: "fixed gates: read them with Gates",
        FINE_VERSION: "limited to rows or heads: read them with FineGates",
    }
    known = isinstance(got, int) and got in readers
    why = (
        f"are {readers[got]}"
        if known
        else f"need another release of sinkgate; this one reads versions {VERSION} and {FINE_VERSION}"
    )
    raise GateError(f"gates of version {got!r} {why}")


def version_of(text: str) -> Any:
    """Return the version that JSON text names; None if it names none or is no JSON object."""
    return _json_object(text).get("version")


def model_of(content: Mapping[str, Any]) -> str | None:
    """Return the name of the model that gates were made for.

    Raises:
        GateError: it is no name.
    """
    model = content.get("model")
    if model is not None and not isinstance(model, str):
        raise GateError(f'"model" is a name or null, got {model!r}')
    return model


def save_text(text: str, path: str | Path) -> None:
    """Write gates to a file, whose folder is created if it is missing.

    Raises:
        GateError: the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n", encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise GateError(
            f"the gates cannot be written to {path}: {getattr(error, 'strerror', None) or error}"
        ) from error


def load_text(path: str | Path) -> str:
    """Read a file of gates.

    Raises:
        GateError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise GateError(f"the gates file cannot be read: {error}") from error


def _json_object(text: str) -> dict[str, Any]:
    """Return a JSON object; an empty one for JSON of another kind."""
    try:
        content = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise GateError(f"the gates are no valid JSON: {error}") from error
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def typed_numbers(text: str) -> list[int]:
    """Return rising whole numbers as they are typed: "3,6,7", "4-10".

    Raises:
        ValueError: anything else, a range that falls among them.
    """
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if any(len(pair) > 2 or pair[0] > pair[-1] for pair in ends):
        raise ValueError(text)
    return sorted({number for pair in ends for number in range(pair[0], pair[-1] + 1)})


def read_layers(text: str, count: int, kind: str = "layer") -> list[int]:
    """Return layers or heads as they are typed: "all", "3,6,7", "4-10".

    Args:
        text: as typed.
        count: how many there are.
        kind: "layer" or "head".

    Raises:
        GateError: anything else, or one that the model does not have.
    """
    if text == "all":
        return list(range(count))
    try:
        chosen = typed_numbers(text)
    except ValueError:
        raise GateError(f'{kind}s are "all" or numbers such as 3,6,7 or 4-10; got {text!r}') from None
    if not chosen or chosen[-1] >= count:
        raise GateError(f"{kind}s are {text!r}; the model has {kind}s 0 to {count - 1}")
    return chosen


def numbers_in_range(numbers: Any, count: int, kind: str) -> list[int]:
    """Return layers or heads as a list of indices.

    Args:
        numbers: one or several, negative from the end; as typed ("3,6,7" or "12-29"); None for all.
        count: how many there are.
        kind: "layer" or "head".

    Raises:
        GateError: something else, or one that does not exist.
    """
    if numbers is None:
        return list(range(count))
    if isinstance(numbers, str):
        return read_layers(numbers, count, kind)
    try:
        several = list(numbers)
    except TypeError:  # a single one, maybe numpy's or torch's
        several = [numbers]
    chosen = [index(each, f"a {kind}") for each in several]
    outside = [each for each in chosen if not -count <= each < count]
    if outside:
        raise GateError(f"there is no {kind} {outside[0]}; the table has {kind}s 0 to {count - 1}")
    return chosen


def number(scale: Any) -> float:
    """Return a scale of any kind as Python's own.

    Raises:
        GateError: it is no number.
    """
    try:
        return float(scale)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GateError(f"a scale is a number from 0 to {MAX_SCALE:g}; got {scale!r}") from error


def index(number: Any, kind: str) -> int:
    """Return a whole number of any kind as Python's own.

    Raises:
        GateError: it is none.
    """
    plain = _plain(number)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise GateError(f"{kind} is a whole number; got {number!r}")
    return plain


def position(number: Any, count: int, kind: str) -> int:
    """Return the position of one among ``count``, negative numbers from the end.

    Raises:
        GateError: it is no whole number, or there is none.
    """
    plain = index(number, kind)
    if not -count <= plain < count:
        raise GateError(f"{kind} is a number from 0 to {count - 1}; got {plain}")
    return plain % count


def _plain(value: Any) -> Any:
    """Return numbers of NumPy and torch, alone or in a list, as Python's own; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return cast(Any, value).tolist()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [_plain(element) for element in cast(Iterable[Any], value)]


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


def is_column(values: object) -> bool:
    """Return whether this is a list of numbers, one at least."""
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in cast(list[Any], values))


def to_float(value: float) -> float:
    """Return a number of a JSON file; infinity for integers that no float holds."""
    try:
        return float(value)
    except OverflowError:  # JSON allows integers that no float holds
        return math.inf


def short(column: Tensor) -> list[float]:
    """Return float32 numbers with the fewest digits that read back, as NumPy prints them: 0.2 stays 0.2."""
    return [float(str(value)) for value in column.numpy()]
