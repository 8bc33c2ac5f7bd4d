"""Many settings of one prompt: the paper's oracle sweep, and the chosen option under each setting.

The image is encoded once and the prompt run once; settings then run side by side from the layer that each changes
(`sinkgate.models.session`). Options are encoded as the model would write them (`VLM.encode_options`): if they begin with
different tokens, one forward pass decides; otherwise the answer is generated.

Shapes: S settings, O options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from torch import Tensor

from sinkgate.models.session import BATCH, Session
from sinkgate.sinks.gates import Gates, Group, Model
from sinkgate.sinks.numbers import numbers_in_range

#: (V-sink, rest) along the paper's line: from (0, 1) to (1, 0) in steps of 0.1 (section 3).
LINE = tuple((step / 10, (10 - step) / 10) for step in range(11))
#: The line does not contain the unmodified model. Controls: (1, 1), and (0.5, 0.5), the start of a learned gate.
CONTROLS = ((1.0, 1.0), (0.5, 0.5))


@dataclass(frozen=True)
class Setting:
    """Scales of one layer; all other layers stay unmodified. With ``l_sink`` there are three groups, and ``rest`` is for ordinary tokens."""

    layer: int
    v_sink: float
    rest: float
    l_sink: float | None = None

    @property
    def scales(self) -> dict[Group, float]:
        """The scale of each of the three groups."""
        return {
            "v_sink": self.v_sink,
            "l_sink": self.rest if self.l_sink is None else self.l_sink,
            "ordinary": self.rest,
        }

    def gates(self, model: Model) -> Gates:
        """Return the setting as gates of a model."""
        gates = Gates.ones(model)
        for group, scale in self.scales.items():
            gates = gates.set(group, scale, self.layer)
        return gates


def oracle(
    model: Model,
    layers: Iterable[int] | int | str | None = None,
    points: Sequence[tuple[float, ...]] = (*LINE, *CONTROLS),
) -> list[Setting]:
    """Return every layer alone at every point (paper, section 3): L x 13 settings by default.

    Args:
        model: the model, or anything with ``num_layers``.
        layers: one or several to gate, from 0, negative from the end; or as typed, "3,6,7" or "12-29"; all if None.
        points: scales as (V-sink, rest), or (V-sink, ordinary, L-sink).

    Raises:
        GateError: the model has no such layer.

    Example:
        >>> len(sg.oracle(vlm, layers=[2]))
        13
    """
    numbers = [layer % model.num_layers for layer in numbers_in_range(layers, model.num_layers, "layer")]
    return [Setting(layer, *point) for layer in numbers for point in points]


def grid(values: Iterable[float], groups: Literal[2, 3] = 2) -> list[tuple[float, ...]]:
    """Return every combination of scales, as points: (V-sink, rest), or (V-sink, ordinary, L-sink) if ``groups`` is 3."""
    return list(product(dict.fromkeys(values), repeat=groups))


def choose(session: Session, tables: Sequence[Gates], options: Sequence[str], batch_size: int = BATCH) -> list[int]:
    """Return the option that the model chooses under each setting, as S indices into the options.

    Args:
        session: the prompt.
        tables: gates of the settings.
        options: permitted answers, two or more.
        batch_size: settings side by side.

    Raises:
        PromptError: fewer than two options, or two that are the same in tokens.
        GateError: gates do not fit this model.
    """
    encoded = session.vlm.encode_options(session.prompt, options)
    if encoded.decided_at_once and encoded.shared == 0:
        return session.predict_all(tables, batch_size)[:, encoded.deciding].argmax(1).tolist()
    return [choose_by_generation(session, table, options) for table in tables]


def choose_by_generation(session: Session, gates: Gates | None, options: Sequence[str]) -> int:
    """Return the same for one setting, by greedy decoding among the tokens that continue some option.

    Args:
        session: the prompt.
        gates: the setting; None is the unmodified model.
        options: permitted answers, two or more.

    Raises:
        PromptError: fewer than two options, or two that are the same in tokens.
        GateError: gates do not fit this model.
    """
    encoded = list(session.vlm.encode_options(session.prompt, options).ids.values())
    ends = sorted({ids[-1] for ids in encoded})
    trace = session.answer(
        gates,
        max_new_tokens=max(map(len, encoded)),
        prefix_allowed_tokens_fn=_continues(encoded, session.prompt.length),
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    return encoded.index(trace.ids)


def _continues(encoded: list[list[int]], start: int) -> Callable[[int, Tensor], list[int]]:
    """Return the function that permits the tokens with which some option continues the generated ones."""

    def allowed(_sample: int, ids: Tensor) -> list[int]:
        written = ids[start:].tolist()
        return sorted({option[len(written)] for option in encoded if option[: len(written)] == written})

    return allowed
