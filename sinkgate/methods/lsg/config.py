"""Configuration of learned gates, saved beside their weights as ``gate_config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from torch import nn

from sinkgate._version import __version__
from sinkgate.errors import GateError, SinkgateError
from sinkgate.sinks.criteria import by_side, read_criterion

#: Groups of visual tokens that a grouping scales, one an output of the gate: columns of ``Gates`` (V-sink, L-sink, ordinary).
GROUPINGS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "v_sink": ((0,), (1, 2)),  # V-sinks against all others: the paper's
    "l_sink": ((1,), (0, 2)),
    "three": ((0,), (1,), (2,)),
}
SIGNALS = ("last", "mean", "visual")
STARTS = ("paper", "identity")
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}
FORMAT = "sinkgate-lsg"
VERSION = 1


@dataclass(frozen=True)
class LSGConfig:
    """Layers, inputs and outputs of gates (paper, section 4).

    Attributes:
        layers: gated layers, counted from 0. A gate reads the input of its layer and scales that layer's Keys: the paper's hidden
            state l and layer l + 1 (chosen by us; how the paper counts is not known).
        hidden_size: width of the LLM.
        bottleneck: width between the two linear layers; 64 in the paper.
        grouping: a name of ``GROUPINGS``.
        signal: ``last``, the last input token's hidden state (the paper's), ``mean`` of all tokens, or of the ``visual`` ones.
        start: ``paper``, scales sum to 1 and begin equal; ``identity`` (chosen by us, not in the paper), they sum to the number of
            groups and begin at 1, the unmodified model, which scales that sum to 1 cannot reach.
        activation: between the linear layers; not known from the paper; gelu is chosen by us.
        bias: the two linear layers have biases; the paper counts none.
        norm_weights: the LayerNorm has a weight and a bias of its own; the paper counts none.
        criterion: how sinks are found, a name of ``CRITERIA`` or such as "dimensions 650; dimensions 1415,2533 tau 20": of V-sinks and,
            after a semicolon, of L-sinks.
        base_model: the model that the gates were trained on, ``revision`` its commit.
        weights: checksum of that model's weights, see `sinkgate.models.weights.checksum`.

    Raises:
        GateError: a field is out of its range.
    """

    layers: tuple[int, ...]
    hidden_size: int
    bottleneck: int = 64
    grouping: str = "v_sink"
    signal: str = "last"
    start: str = "paper"
    activation: str = "gelu"
    bias: bool = False
    norm_weights: bool = False
    criterion: str = "auto"
    base_model: str | None = None
    revision: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            raise GateError(f"layers are rising numbers from 0, at least one; got {list(self.layers)}")
        for name in ("hidden_size", "bottleneck"):
            if getattr(self, name) < 1:
                raise GateError(f"{name} is {getattr(self, name)}; expected at least 1")
        choices = {"grouping": tuple(GROUPINGS), "signal": SIGNALS, "start": STARTS, "activation": tuple(ACTIVATIONS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise GateError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        try:
            for name in by_side(self.criterion):
                read_criterion(name)
        except SinkgateError as error:
            raise GateError(f"criterion: {error}") from None

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Columns of ``Gates`` that each output of a gate scales."""
        return GROUPINGS[self.grouping]

    @property
    def total(self) -> float:
        """Sum of a gate's scales."""
        return 1.0 if self.start == "paper" else float(len(self.groups))

    def only(self, layers: tuple[int, ...]) -> LSGConfig:
        """Return the same configuration with other layers."""
        return replace(self, layers=layers)

    def to_json(self) -> str:
        """Return the configuration as JSON, with format, version and the version of sinkgate that wrote it."""
        content = {"format": FORMAT, "version": VERSION, "sinkgate": __version__, **asdict(self)}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LSGConfig:
        """Read what ``to_json`` wrote.

        Raises:
            GateError: no JSON, another format or version, a field that is missing, unknown, of another type or out of range.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GateError(f"gate_config.json is no valid JSON: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise GateError(f'gate_config.json says no "format": "{FORMAT}"; is this a folder of learned gates?')
        if (version := content.pop("version", None)) != VERSION:
            raise GateError(
                f"learned gates of version {version!r} need another release of sinkgate; expected {VERSION}"
            )
        content.pop("sinkgate", None)
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(content.keys() - known), sorted({"layers", "hidden_size"} - content.keys())
        if unknown or missing:
            raise GateError(f"gate_config.json: unknown {unknown or 'none'}, missing {missing or 'none'}")
        _check_types(content)
        return cls(**content)


def _check_types(content: dict[str, Any]) -> None:
    hints = get_type_hints(LSGConfig)
    for name, value in content.items():
        values = value if name == "layers" and isinstance(value, list) else [value]
        kinds = get_args(hints[name]) or (hints[name],)  # tuple[int, ...]: of each; str | None: either
        if (name == "layers") != isinstance(value, list) or any(type(each) not in kinds for each in values):
            raise GateError(f"gate_config.json: {name} is {value!r}, which is of another type than it should be")
