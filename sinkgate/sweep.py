"""Many settings of one prompt: the paper's oracle sweep, and which option is chosen under each setting.

The image is encoded once and the prompt run once; settings then run side by side from the layer that each changes
(`sinkgate.session`). Where the options begin with different tokens, one forward decides; else each is spelled out.

Shapes: S settings, O options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from torch import Tensor

from sinkgate.errors import PromptError
from sinkgate.gates import Gates, Group, Model
from sinkgate.session import BATCH, Session

#: (V-sink, rest) along the paper's line: from (0, 1) to (1, 0) in steps of 0.1 (section 3).
LINE = tuple((step / 10, (10 - step) / 10) for step in range(11))
#: The line never meets the unmodified model: (1, 1), and (0.5, 0.5), where a learned gate starts, are its controls.
CONTROLS = ((1.0, 1.0), (0.5, 0.5))


@dataclass(frozen=True)
class Setting:
    """One layer with its two scales; all other layers unmodified. With ``l_sink`` three: ``rest`` is then for ordinary tokens alone."""

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
        """The setting as gates of a model."""
        gates = Gates.ones(model)
        for group, scale in self.scales.items():
            gates = gates.set(group, scale, self.layer)
        return gates


def oracle(
    model: Model, layers: Iterable[int] | None = None, points: Sequence[tuple[float, ...]] = (*LINE, *CONTROLS)
) -> list[Setting]:
    """Every layer alone at every point (paper, section 3): L x 13 settings where nothing else is said.

    A point is (V-sink, rest), or (V-sink, ordinary, L-sink).
    """
    chosen = range(model.num_layers) if layers is None else layers
    return [Setting(layer, *point) for layer in chosen for point in points]


def grid(values: Iterable[float], groups: Literal[2, 3] = 2) -> list[tuple[float, ...]]:
    """Every combination of scales, as points: (V-sink, rest), or (V-sink, ordinary, L-sink) where ``groups`` is 3."""
    return list(product(dict.fromkeys(values), repeat=groups))


def choose(session: Session, tables: Sequence[Gates], options: Sequence[str], batch_size: int = BATCH) -> list[int]:
    """Which option the model says under each setting, when it may say nothing else: S indices into the options.

    Raises:
        PromptError: fewer than two options, or two that are the same in tokens.
        GateError: gates do not fit this model.
    """
    spelled = _spelled(session, options)
    firsts = [ids[0] for ids in spelled]
    if len(set(firsts)) == len(firsts):
        return session.predict_all(tables, batch_size)[:, firsts].argmax(1).tolist()
    return [choose_by_generation(session, table, options) for table in tables]


def choose_by_generation(session: Session, gates: Gates | None, options: Sequence[str]) -> int:
    """The same for one setting, token by token: greedy among what continues some option.

    Raises:
        PromptError: fewer than two options, or two that are the same in tokens.
        GateError: gates do not fit this model.
    """
    spelled = _spelled(session, options)
    end = session.vlm.tokenizer.eos_token_id
    longest = max(len(ids) for ids in spelled)
    trace = session.answer(
        gates,
        max_new_tokens=longest + 1,
        prefix_allowed_tokens_fn=_continues(spelled, session.prompt.length, end),
        eos_token_id=end,
        pad_token_id=end,
    )
    said = trace.ids[: trace.ids.index(end)] if end in trace.ids else trace.ids
    return spelled.index(said)


def _continues(spelled: list[list[int]], start: int, end: int) -> Callable[[int, Tensor], list[int]]:
    """What may follow: the next tokens of the options that begin with what was said, and the end after a whole one."""

    def allowed(_sample: int, ids: Tensor) -> list[int]:
        said = ids[start:].tolist()
        going_on = {option[len(said)] for option in spelled if option[: len(said)] == said and len(option) > len(said)}
        return sorted(going_on | ({end} if said in spelled or not going_on else set()))

    return allowed


def _spelled(session: Session, options: Sequence[str]) -> list[list[int]]:
    tokenizer = session.vlm.tokenizer
    spelled = [tokenizer(option, add_special_tokens=False).input_ids for option in options]
    if len(spelled) < 2 or not all(spelled) or len({tuple(ids) for ids in spelled}) < len(spelled):
        raise PromptError(f"options are at least two texts that differ in tokens, got {list(options)}")
    return spelled
