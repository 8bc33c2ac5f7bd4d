"""The groups of a prompt's visual tokens, with the evidence for each, in tensors, in a table and in words.

Shapes: L LLM layers, V visual tokens, T text tokens, N patches.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.images.layout import Sheet, by_time
from sinkgate.sinks.criteria import AttentionShare, SinkCriteria, Verdict
from sinkgate.sinks.words import count, layers, number, numbered, span

if TYPE_CHECKING:
    import pandas as pd

_CONTENT = " Attention alone says so: the token may be attended to for its content."
_NAMED = 4  # positions that a sentence lists


@dataclass(frozen=True)
class SinkMasks:
    """The three groups of visual tokens: v_sink (V,) boolean; l_sink and ordinary (L, V) boolean, disjoint, all tokens together."""

    v_sink: Tensor
    l_sink: Tensor

    @property
    def ordinary(self) -> Tensor:
        """Neither V-sink nor L-sink, (L, V)."""
        return ~(self.v_sink | self.l_sink)

    def group(self, name: str, layer: int) -> Tensor:
        """Return the tokens of ``v_sink``, ``l_sink``, ``ordinary`` or ``rest`` at a layer, (V,) boolean."""
        if name == "rest":
            return ~self.v_sink
        return self.v_sink if name == "v_sink" else getattr(self, name)[layer]

    def names(self, layer: int) -> list[str]:
        """Return the group of each visual token at a layer: ``v_sink``, ``l_sink`` or ``ordinary``."""
        pairs = zip(as_list(self.v_sink), as_list(self.l_sink[layer]), strict=True)
        return ["v_sink" if v_sink else "l_sink" if l_sink else "ordinary" for v_sink, l_sink in pairs]


@dataclass(frozen=True)
class TextTokens:
    """The text tokens among a prompt's Keys: the text sink is one of them.

    Shapes: positions (T,); attention (L, T), the mean over heads and the text queries after the image; verdict on them by the criterion of the L-sinks, None where that compares visual tokens with each other; spike (L, T), the magnitude in the loudest sink
    dimension over the layer's median, None without sink dimensions.
    """

    positions: Tensor
    attention: Tensor
    verdict: Verdict | None = None
    spike: Tensor | None = None


@dataclass(frozen=True, repr=False)
class SinkMap(SinkMasks):
    """The three groups of visual tokens with the evidence for each.

    Four measurements are kept apart, since they do not always agree: spike or norm (the verdicts' scores),
    attention, value-norm ratio, and the norm of the token.

    Shapes: as `SinkMasks`; v_verdict over the patches that feed tokens, None where the encoder cannot be looked into, loudest (V,) the index there of each
    token's loudest patch, None where tokens mix patches; encoder_share (V,) and llm_share (L, V): attention over the
    median; norm_ratio (V,): encoder norm over the median's; value_ratio (L, V): length of the Value over the mean
    length of all Values in the layer. ``sheets``: positions of tokens in the picture. ``criteria``: by which the groups were
    decided, and why by these. positions (V,) of the visual tokens among the Keys. spike (L, V): the magnitude in the loudest sink
    dimension over the layer's median, None where the criterion has no sink dimensions. ``text``: the tokens beside the visual ones.
    """

    v_verdict: Verdict | None
    l_verdict: Verdict
    sheets: tuple[Sheet, ...]
    loudest: Tensor | None
    encoder_share: Tensor
    llm_share: Tensor
    norm_ratio: Tensor
    value_ratio: Tensor
    criteria: SinkCriteria
    positions: Tensor
    text: TextTokens
    spike: Tensor | None = None

    def __repr__(self) -> str:
        tokens, depth = count(len(self.v_sink), "visual token"), count(len(self.l_sink), "layer")
        return f"SinkMap({tokens}, {depth}: {count(int(self.v_sink.sum()), 'V-sink')}; {self._l_counts()})"

    def _repr_html_(self) -> str:
        sentences = "".join(f"<li>{escape(each)}</li>" for each in self.sentences())
        return f"<ul>{sentences}</ul>"

    def summary(self) -> str:
        """Return a few plain sentences: how many of each kind, where, by which criterion; the text sink."""
        return " ".join(self.sentences())

    def criterion(self, group: str) -> str:
        """Return the criterion that decided ``v_sink`` or ``l_sink``, in words; "" for V-sinks of an encoder that cannot be looked into."""
        verdict = getattr(self, f"{group[0]}_verdict")
        return "" if verdict is None else getattr(self.criteria, group).in_words(verdict.dimensions)

    def sentences(self) -> list[str]:
        """Return the sentences of ``summary``: V-sinks, L-sinks, their frames, criteria that find none, the text sink, attention on V-sinks."""
        sentences = [self._v_sentence(), self._l_sentence(), *self._frame_sentences(), *self.criteria.sentences()]
        if text := self._text_sentence():
            sentences.append(text)
        if self.v_sink.any():
            sentences.append(
                f"The V-sinks receive {number(float(self.encoder_share[self.v_sink].mean()))} times the median attention in the encoder"
                f" and, at their strongest LLM layer, {number(float(self.llm_share[:, self.v_sink].mean(1).max()))} times."
            )
        return sentences

    def _v_sentence(self) -> str:
        if self.v_verdict is None:
            return "V-sinks cannot be named: this encoder cannot be looked into."
        by = f"({self.criterion('v_sink')})"
        if self.loudest is None:
            sinks = int(self.v_verdict.mask.sum())
            return f"{count(sinks, 'patch')} {'is a sink' if sinks == 1 else 'are sinks'} in the encoder {by}, but tokens mix patches: no token is a V-sink of its own."
        sinks = int(self.v_sink.sum())
        if not sinks:
            return f"No V-sinks {by}."
        return f"{sinks} of {count(len(self.v_sink), 'visual token')} {'is a V-sink' if sinks == 1 else 'are V-sinks'} {by}."

    def _l_sentence(self) -> str:
        by = f"({self.criterion('l_sink')})"
        if self.l_sink.any():
            return f"{self._l_counts()} {by}."
        return f"No L-sinks{' beside the V-sinks' if self.l_verdict.has_sinks else ''} {by}."

    def _l_counts(self) -> str:
        depths = indices(self.l_sink.any(1))
        return (
            f"L-sinks in {layers(depths)}, at most {int(self.l_sink.sum(1).max())} in one" if depths else "no L-sinks"
        )

    def _frame_sentences(self) -> list[str]:
        """Return a sentence on the frames of a video in which each kind of sink lies; none for pictures and without sinks."""
        sentences: list[str] = []
        for noun, mask in (("V-sink", self.v_sink), ("L-sink", self.l_sink.any(0))):
            numbers = {
                span if span[0] != span[1] else span[:1]: int(mask[tokens].sum())
                for span, tokens in by_time(self.sheets).items()
            }
            held = [f"{number} in {'-'.join(map(str, span))}" for span, number in numbers.items() if number]
            if held:
                sentences.append(f"{noun}s by frame: {', '.join(held)}.")
        return sentences

    def _text_sentence(self) -> str:
        """Return a sentence on the text sink and the first position; "" where no text is among the Keys."""
        text = self.text
        if not len(text.positions):
            return ""
        image_first = not int(self.positions.min())
        opening = "The image comes first: visual token 0 stands at the first position, where a text sink would be."
        opening *= image_first
        if text.verdict is None:
            if image_first:
                return opening
            share = text.attention[:, 0]
            return f"The first text token receives {float(share.max()):.0%} of the attention of the text in layer {int(share.argmax())}, its highest share."
        mask = text.verdict.mask
        if not mask.any():
            return opening or "No text token is a sink."
        where = indices(mask.any(0))
        named = numbered("position", as_list(text.positions[where[:_NAMED]]))
        more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
        noun = "Text sink" if len(where) == 1 else "Text sinks"
        sentence = (
            f"{noun}: {named}{more}, in {layers(indices(mask.any(1)))}{self._spikes(text.verdict, text.spike, mask)}."
        )
        return f"{opening} {sentence}".strip()

    def _spikes_of(self, token: int, depths: list[int]) -> str:
        mask = torch.zeros_like(self.l_sink)
        mask[depths, token] = True
        return self._spikes(self.l_verdict, self.spike, mask)

    @staticmethod
    def _spikes(verdict: Verdict, spike: Tensor | None, mask: Tensor) -> str:
        if spike is None or verdict.dimension is None:
            return ""
        dims = sorted(set(as_list(verdict.dimension[mask])))
        return f", {numbered('dimension', dims)}, up to {number(float(spike[mask].max()))} x the layer's median"

    def where(self, token: int) -> str:
        """Return the place of a visual token in the picture, in words.

        Raises:
            SinkgateError: there is no such token.
        """
        token = _index(token, len(self.v_sink), "visual token")
        for index, sheet in enumerate(self.sheets):
            cell = sheet.find(token)
            if cell and sheet.box is None:
                return f"visual token {token}"
            if cell:
                on = f"{sheet.time or f'sheet {index}'}, " if len(self.sheets) > 1 else ""
                return f"{on}patch row {cell[0]}, column {cell[1]}"
        return f"visual token {token}, outside of the picture"

    def explain(self, token: int, layer: int | None = None) -> str:
        """Explain in one sentence the group of a visual token.

        Args:
            token: index of a visual token, from 0.
            layer: an LLM layer, from 0; None looks at all of them and names those in which the token is an L-sink.

        Raises:
            SinkgateError: there is no such token or layer.
        """
        token = _index(token, len(self.v_sink), "visual token")
        layer = None if layer is None else _index(layer, len(self.l_sink), "layer")
        first = int(self.positions[token]) == 0 and len(self.text.positions) > 0
        where = f"{self.where(token)}{', at the first position of the sequence' * first}"
        facts = self._facts(token, layer)
        depths = indices(self.l_sink[:, token])
        if self.v_sink[token]:
            assert self.v_verdict is not None and self.loudest is not None
            both = indices(self.l_verdict.mask[:, token])
            also = f"; an L-sink too in {layers(both)}{self._spikes_of(token, both)}" if both and layer is None else ""
            return f"V-sink ({where}): {_reason(self.v_verdict, 0, int(self.loudest[token]))}; {facts}{also}."
        doubt = _CONTENT if self.l_verdict.criterion == AttentionShare.name else ""
        if layer is not None and layer in depths:
            return f"L-sink ({where}): {_reason(self.l_verdict, layer, token)}; {facts}.{doubt}"
        if layer is not None:
            elsewhere = f", L-sink in {layers(depths)}" if depths else ""
            return f"ordinary ({where}{elsewhere}): {facts}."
        if depths:
            spikes = self._spikes_of(token, depths).removeprefix(", ")
            best = max(depths, key=lambda each: float(self.l_verdict.score[each, token]))
            why = [spikes] * bool(spikes) + [_reason(self.l_verdict, best, token, named=not spikes)]
            at = f" (layer {best})" if len(depths) > 1 else ""
            return f"L-sink in {layers(depths)} ({where}): {'; '.join(why)}{at}; {facts}.{doubt}"
        return f"ordinary ({where}): {facts}."

    def _facts(self, token: int, layer: int | None) -> str:
        facts: list[str] = []
        if self.loudest is not None:
            norm, share = number(float(self.norm_ratio[token])), number(float(self.encoder_share[token]))
            facts.append(f"encoder norm {norm} x and attention {share} x the median")
        share, value = self.llm_share[:, token], self.value_ratio[:, token]
        if layer is not None:
            facts.append(
                f"layer {layer}: attention {number(float(share[layer]))} x the median, Value {number(float(value[layer]))} x the mean"
            )
        elif (is_l_sink := self.l_sink[:, token]).any():
            facts.append(
                f"there attention {'up to ' * (int(is_l_sink.sum()) > 1)}{number(float(share[is_l_sink].max()))} x the median,"
                f" Value {span(float(value[is_l_sink].min()), float(value[is_l_sink].max()))} x the mean"
            )
        return "; ".join(facts) or "nothing was measured in the encoder"

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a row for each layer and visual token. Needs pandas.

        Columns: layer; token; position among the Keys; sheet, row and column in the picture (missing where a token has no place); for a video, frame and
        last_frame (those that the token covers); group (v_sink, l_sink or
        ordinary); score, threshold and dimension of the L-sink verdict; spike; attention and encoder_attention over the median; value over the mean; encoder_norm over the median.
        """
        import pandas as pd

        depth, tokens = self.l_sink.shape
        cells: dict[int, tuple[int, int, int]] = {}
        for index, sheet in enumerate(self.sheets):
            for row, column in as_list((sheet.tokens >= 0).nonzero()):
                cells.setdefault(int(sheet.tokens[row, column]), (index, row, column))
        group = [name for layer in range(depth) for name in self.names(layer)]

        def each_layer(values: Any) -> list[Any]:
            return list(values) * depth

        def flat(values: Tensor | None) -> Any:
            return None if values is None else as_list(values.expand(depth, tokens).flatten())

        columns: dict[str, Any] = {
            "layer": [layer for layer in range(depth) for _ in range(tokens)],
            "token": each_layer(range(tokens)),
            "position": flat(self.positions),
        }
        for axis, name in enumerate(("sheet", "row", "column")):
            values = [cells[t][axis] if t in cells else None for t in range(tokens)]
            columns[name] = pd.array(each_layer(values), dtype="Int64")
        if any(sheet.frames for sheet in self.sheets):
            spans = [self.sheets[cells[t][0]].frames if t in cells else None for t in range(tokens)]
            for end, name in enumerate(("frame", "last_frame")):
                columns[name] = pd.array(each_layer([span and span[end] for span in spans]), dtype="Int64")
        verdict = self.l_verdict
        columns |= {
            "group": group,
            "score": flat(verdict.score),
            "threshold": flat(verdict.threshold),
            "dimension": flat(verdict.dimension),
            "spike": flat(self.spike),
            "attention": flat(self.llm_share),
            "value": flat(self.value_ratio),
            "encoder_attention": flat(self.encoder_share),
            "encoder_norm": flat(self.norm_ratio),
        }
        return pd.DataFrame(columns)


def as_list(values: Tensor) -> list[Any]:
    """Return a tensor as nested lists of Python's numbers."""
    numbers: Any = values  # torch leaves the type of tolist open
    return numbers.tolist()


def indices(mask: Tensor) -> list[int]:
    """Return the indices at which a vector is true, rising."""
    return as_list(mask.nonzero()[:, 0])


def _index(value: Any, length: int, noun: str) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        index = -1
    if not 0 <= index < length:
        raise SinkgateError(f"there is no {noun} {value!r}; expected a whole number from 0 to {length - 1}")
    return index


def _reason(verdict: Verdict, layer: int, token: int, named: bool = True) -> str:
    at = f" in dimension {int(verdict.dimension[layer, token])}" if named and verdict.dimension is not None else ""
    score, threshold = float(verdict.score[layer, token]), float(verdict.threshold[layer, 0])
    return f"{verdict.unit} is {number(score)}{at}, at least {number(threshold)} is a sink"
