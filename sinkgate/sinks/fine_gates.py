"""Fixed gates limited to query rows and heads: a table of scales, layers by heads by groups of tokens.

`Gates` scale the Keys of visual tokens for all queries and heads. Fine gates scale attention logits, of text tokens too, in some rows
or heads only, by the paper's rule or by a monotone one, under which a scale below 1 lowers negative logits as well.

Shapes: L layers, H heads (1: all alike), V visual tokens, P prompt positions, K Keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from sinkgate.attention.scales import LogitScales
from sinkgate.errors import GateError
from sinkgate.sinks.gate_files import FINE_VERSION, load_text, model_of, read_content, save_text, to_json, version_of
from sinkgate.sinks.gates import Gates, Model, check_model, checked_table
from sinkgate.sinks.numbers import MAX_SCALE, index, is_column, number, numbers_in_range, short, to_float
from sinkgate.sinks.sink_map import SinkMasks

GROUPS = ("v_sink", "l_sink", "ordinary", "before", "after")
Group = Literal["v_sink", "l_sink", "ordinary", "rest", "visual", "before", "after", "text"]
Rule = Literal["scale", "monotone"]
ROWS = ("before", "visual", "after", "last", "generated")

_JOINED = {"rest": [1, 2], "visual": [0, 1, 2], "text": [3, 4]}
_COLUMNS = {name: [index] for index, name in enumerate(GROUPS)} | _JOINED
_EVERY_ROW = ("before", "visual", "after", "generated")
_SEVERAL_ROWS = {"all": _EVERY_ROW, "text": ("before", "after")}


class ModelWithHeads(Model, Protocol):
    """Attributes of a model that fine gates are checked against."""

    @property
    def num_heads(self) -> int: ...


@dataclass(frozen=True, eq=False)
class FineGates:
    """Scales in [0, 4] by layer, head and group, for attention logits of the given query rows.

    Groups are those of `Gates` and the text of the prompt ``before`` the first image and ``after`` it; ``rest``, ``visual`` and ``text``
    name several. Generated tokens are scaled in no row.

    Attributes:
        scales: (L, H, 5), float32, columns as in ``GROUPS``; H is 1 if all heads are scaled alike.
        rows: queries whose logits are scaled, of ``ROWS``: the text ``before`` the first image, ``visual`` tokens, the text ``after``,
            the ``last`` position of the prompt, ``generated`` tokens; "text" and "all" name several. Names or one string with commas.
        rule: "scale" is the paper's s z; "monotone" is z + (s - 1) |z|, which for s < 1 never raises a logit and for s > 1 never lowers one.
        model: the name of the model they were made for, or None for any with as many layers and heads.

    Raises:
        GateError: a scale is not a finite number in [0, 4], or the table, the rows or the rule are others than these.

    Example:
        >>> gates = FineGates.ones(vlm, rows="last").set("v_sink", 0.5, layers="12-29", heads=[3, 7])
    """

    scales: Tensor
    rows: tuple[str, ...] = _EVERY_ROW
    rule: Rule = "scale"
    model: str | None = None

    def __post_init__(self) -> None:
        scales = checked_table(self.scales)
        if scales.dim() != 3 or scales.shape[2] != len(GROUPS) or 0 in scales.shape:
            raise GateError(
                f"fine gates are a table of layers x heads x {len(GROUPS)} scales, got shape {tuple(scales.shape)}"
            )
        wrong = ~((scales >= 0) & (scales <= MAX_SCALE))
        if wrong.any():
            layer, head, column = (int(i) for i in wrong.nonzero()[0])
            raise GateError(
                f"the {GROUPS[column]} scale of layer {layer}, head {head} is {scales[layer, head, column].item():g}; "
                f"expected a finite number from 0 to {MAX_SCALE:g}"
            )
        if self.rule not in get_args(Rule):
            raise GateError(f"no rule is called {self.rule!r}; there are: {', '.join(get_args(Rule))}")
        object.__setattr__(self, "scales", scales)
        object.__setattr__(self, "rows", read_rows(self.rows))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FineGates)
            and torch.equal(self.scales, other.scales)
            and (self.rows, self.rule, self.model) == (other.rows, other.rule, other.model)
        )

    @classmethod
    def ones(
        cls,
        layers: int | ModelWithHeads,
        heads: int | None = None,
        *,
        rows: str | Sequence[str] = "all",
        rule: Rule = "scale",
    ) -> FineGates:
        """Return scale 1 everywhere.

        Args:
            layers: a model, or a number of layers.
            heads: heads of a layer; None for the model's, and for one table for all heads without a model.
            rows: see `FineGates`.
            rule: see `FineGates`.

        Raises:
            GateError: this is neither a model nor a number of layers, or no such row or rule.

        Example:
            >>> FineGates.ones(32, rows="last", rule="monotone").set("visual", 1.2, layers="2-31")
        """
        name = None
        heads = None if heads is None else index(heads, "the number of heads")
        if heads is not None and heads < 1:
            raise GateError(f"the number of heads is {heads}; expected 1 or more")
        if hasattr(layers, "num_layers"):
            model: Any = layers
            layers, name = model.num_layers, model.name
            heads = model.num_heads if heads is None else heads
        shape = (index(layers, "the number of layers"), heads or 1)
        return cls(torch.ones(*shape, len(GROUPS)), read_rows(rows), rule, name)

    @classmethod
    def of(cls, gates: Gates, *, rows: str | Sequence[str] = "all", rule: Rule = "scale") -> FineGates:
        """Return fixed gates limited to these rows, or under another rule; all heads alike.

        Raises:
            GateError: these are no `Gates`, or no such row or rule.
        """
        if not isinstance(gates, Gates):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise GateError(f"got {type(gates).__name__}, expected Gates")
        scales = torch.ones(len(gates.scales), 1, len(GROUPS))
        scales[:, 0, :3] = gates.scales
        return cls(scales, read_rows(rows), rule, gates.model)

    def set(
        self,
        group: Group,
        scale: float,
        layers: Iterable[int] | int | str | None = None,
        heads: Iterable[int] | int | str | None = None,
    ) -> FineGates:
        """Return these gates with the scale of one group changed.

        Args:
            group: one of ``GROUPS``, or ``rest`` (L-sinks and ordinary tokens), ``visual``, ``text``.
            scale: 0 to 4.
            layers: one or several, from 0, negative from the end; or as typed at the command line, "3,6,7" or "12-29"; all where None.
            heads: likewise.

        Raises:
            GateError: no such group, layer or head, or a scale out of range.

        Example:
            >>> FineGates.ones(30, heads=9).set("v_sink", 0.5, layers="12-29", heads=[0, 4])
        """
        if not isinstance(group, str) or group not in _COLUMNS:  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise GateError(f"no group is called {group!r}; there are: {', '.join(_COLUMNS)}")
        value = number(scale)
        scales = self.scales.clone()
        rows, columns = (
            numbers_in_range(each, count, kind)
            for each, count, kind in ((layers, len(scales), "layer"), (heads, scales.shape[1], "head"))
        )
        for layer in rows:
            for head in columns:
                scales[layer, head, _COLUMNS[group]] = value
        return replace(self, scales=scales)

    @property
    def is_identity(self) -> bool:
        """True where every scale is 1: the unmodified model."""
        return bool((self.scales == 1).all())

    def for_model(self, vlm: ModelWithHeads, any_model: bool = False) -> FineGates:
        """Return these gates if they fit the model; with ``any_model`` the name that they were made for does not count.

        Raises:
            GateError: another number of layers or heads, or made for another model.
        """
        check_model(len(self.scales), None if any_model else self.model, vlm)
        heads = self.scales.shape[1]
        if heads not in (1, vlm.num_heads):
            raise GateError(f"the gates have {heads} heads a layer, {vlm.name} has {vlm.num_heads}; expected that or 1")
        return replace(self, model=None) if any_model else self

    def logit_scales(
        self, sinks: SinkMasks, positions: Tensor, image: Tensor, keys: int, *, apart: bool = False
    ) -> LogitScales:
        """Spread the table over the Keys and the rows over the positions of a prompt.

        Args:
            sinks: groups of the visual tokens.
            positions: (V,), the Keys of the visual tokens.
            image: (P,) boolean, the positions that images take in the prompt, separators included.
            keys: number of Keys, K.
            apart: the Keys are of images alone, read by cross-attention.

        Raises:
            GateError: text is scaled where Keys are of images alone.
        """
        by_group = torch.stack([sinks.v_sink.expand_as(sinks.l_sink), sinks.l_sink, sinks.ordinary], -1)
        table = self.scales if (self.scales != self.scales[:, :1]).any() else self.scales[:, :1]
        scales = torch.ones(len(table), 1, table.shape[1], keys)
        scales[:, 0, :, positions.cpu()] = torch.einsum("lvg,lhg->lhv", by_group.to(table.dtype), table[..., :3])
        first = int(image.nonzero()[0]) if image.any() else 0 if apart else len(image)
        position = torch.arange(len(image))
        text = {"before": ~image & (position < first), "after": ~image & (position >= first)}
        if apart and (table[..., 3:] != 1).any():
            raise GateError("text tokens are no Keys of cross-attention; leave the scales of text at 1 for this model")
        if not apart:
            for name, members in text.items():
                scales[:, 0, :, members.nonzero()[:, 0]] = table[..., _COLUMNS[name]]
        members = {**text, "visual": image, "last": position == len(image) - 1}
        rows = torch.zeros(1, len(image), dtype=torch.bool)
        for name in self.rows:
            rows |= members.get(name, rows)
        later, monotone = (torch.tensor([each]) for each in ("generated" in self.rows, self.rule == "monotone"))
        return LogitScales(scales, rows, later, monotone)

    def to_json(self) -> str:
        """Return the table as JSON, with a format name and version that readers of `Gates` alone refuse."""
        columns = {group: [short(heads) for heads in self.scales[:, :, column]] for column, group in enumerate(GROUPS)}
        content = {"rows": list(self.rows), "rule": self.rule, "heads": self.scales.shape[1], "scales": columns}
        return to_json(FINE_VERSION, self.model, len(self.scales), content)

    @classmethod
    def from_json(cls, text: str) -> FineGates:
        """Read what ``to_json`` wrote.

        Raises:
            GateError: no JSON, another format or version, missing groups, lists of unequal length, scales out of range.
        """
        content = read_content(text, FINE_VERSION)
        columns = cast(dict[str, Any], content["scales"])
        shape = content.get("layers"), content.get("heads")
        if set(columns) != set(GROUPS):
            raise GateError(f"scales of fine gates come as {', '.join(GROUPS)}; got {', '.join(map(str, columns))}")
        for name in GROUPS:
            lists = columns[name]
            if not isinstance(lists, list) or not all(map(is_column, cast(list[Any], lists))):
                raise GateError(f"the scales of {name} must be a list of lists of numbers, one number a head and layer")
            table = cast(list[list[float]], lists)
            if len(table) != shape[0] or any(len(heads) != shape[1] for heads in table):
                raise GateError(f"the scales of {name} are no table of {shape[0]} layers x {shape[1]} heads")
        rows: Any = content.get("rows", "all")
        if not isinstance(rows, str | list) or not all(isinstance(row, str) for row in cast(Iterable[Any], rows)):
            raise GateError(f'"rows" is a list of names, got {rows!r}')
        scales = torch.tensor(
            [[[to_float(s) for s in heads] for heads in columns[name]] for name in GROUPS], dtype=torch.float32
        )
        return cls(scales.permute(1, 2, 0), read_rows(cast(Any, rows)), content.get("rule", "scale"), model_of(content))

    def save(self, path: str | Path) -> None:
        """Write ``to_json`` to a file, whose folder is created if it is missing.

        Raises:
            GateError: the file cannot be written.
        """
        save_text(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path) -> FineGates:
        """Read a file that ``save`` wrote.

        Raises:
            GateError: the file cannot be read, or as ``from_json``.
        """
        return cls.from_json(load_text(path))


AnyGates = Gates | FineGates


def load_gates(path: str | Path) -> AnyGates:
    """Read a file of `Gates` or of `FineGates`.

    Raises:
        GateError: the file cannot be read, or holds neither.
    """
    text = load_text(path)
    return FineGates.from_json(text) if version_of(text) == FINE_VERSION else Gates.from_json(text)


def read_rows(rows: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of query rows in the order of ``ROWS``; "last,generated", "text" and "all" name several.

    Raises:
        GateError: no row of that name, or none at all.
    """
    names = [name.strip() for name in rows.split(",")] if isinstance(rows, str) else rows
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise GateError(f"rows are {rows!r}; expected names, some of {', '.join([*ROWS, *_SEVERAL_ROWS])}")
    named = {row for name in names for row in _SEVERAL_ROWS.get(name, (name,))}
    if not named or not named <= set(ROWS):
        odd = ", ".join(sorted(map(repr, named - set(ROWS)))) or "none"
        raise GateError(f"rows are {odd}; expected some of {', '.join([*ROWS, *_SEVERAL_ROWS])}")
    return tuple(row for row in ROWS if row in named)
