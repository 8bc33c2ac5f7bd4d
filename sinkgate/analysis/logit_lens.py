"""The logit lens on visual tokens: words that their hidden states decode to, layer by layer.

A state goes through the model's own final norm and vocabulary as if it left the last layer (nostalgebraist 2020, "interpreting GPT: the
logit lens"; on visual tokens: Neo et al. 2024, arXiv 2410.07149). Deep layers write the next token into a state, so a word there is no
proof of what a token holds.

Shapes: L LLM layers, P prompt positions, V visual tokens, T words of a token, D LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinkgate.attention.partial_forward import each_input, kept_output, replaced
from sinkgate.errors import SinkgateError, UnsupportedModelError
from sinkgate.models.prompts import Prompt, refuse_several
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.sinks.gates import Gates
from sinkgate.sinks.numbers import index, whole_numbers
from sinkgate.sinks.sink_map import SinkMap, SinkMasks

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 256  # visual tokens decoded at a time, whose logits over the whole vocabulary are in memory


@dataclass(frozen=True)
class LogitLens:
    """Most probable words of visual tokens. Row l of the tensors is the input of layer ``layers[l]``, which is the state that the
    criteria of L-sinks measure; the number of LLM layers stands for the output of the last one.

    Shapes: ids and probabilities (rows, V, T), in falling order; probabilities in [0, 1], over the whole vocabulary; norms (rows, V),
    the L2 norms of the states. ``tokens`` are the visual tokens that were decoded, in the order of V; all where None.
    """

    layers: tuple[int, ...]
    ids: Tensor
    probabilities: Tensor
    norms: Tensor
    words_by_id: dict[int, str] = field(repr=False)
    tokens: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        layers, tokens, words = self.ids.shape
        return f"LogitLens({tokens} visual tokens, {layers} layers, {words} words each)"

    def words(self, token: int, layer: int) -> list[tuple[str, float]]:
        """Return the words of one visual token at the input of a layer, with their probabilities.

        Raises:
            SinkgateError: that layer was not decoded, or there is no such token.
        """
        count = self.ids.shape[1]
        token, layer = index(token, "a token"), index(layer, "a layer")
        if layer not in self.layers or (
            not -count <= token < count if self.tokens is None else token not in self.tokens
        ):
            expected = f"tokens 0 to {count - 1}" if self.tokens is None else f"one of the tokens {list(self.tokens)}"
            raise SinkgateError(
                f"token {token} at layer {layer} was not decoded; expected {expected} and one of the layers "
                f"{', '.join(map(str, self.layers))}"
            )
        row, column = self.layers.index(layer), token if self.tokens is None else self.tokens.index(token)
        ids, probabilities = self.ids[row, column].tolist(), self.probabilities[row, column].tolist()
        return [(self.words_by_id[each], share) for each, share in zip(ids, probabilities, strict=True)]

    def to_frame(self, sinks: SinkMasks | None = None) -> pd.DataFrame:
        """Return one line for each layer, token and word: ``layer``, ``token``, ``rank`` from 0, ``word``, ``probability``, and with
        ``sinks`` the ``group`` of the token in that layer (behind the last layer: as in it). Needs pandas.
        """
        import pandas as pd

        _, tokens, ranks = self.ids.shape
        numbers = range(tokens) if self.tokens is None else self.tokens
        index = pd.MultiIndex.from_product([self.layers, numbers, range(ranks)], names=["layer", "token", "rank"])
        table = index.to_frame(index=False)
        table["word"] = [self.words_by_id[each] for each in self.ids.flatten().tolist()]
        table["probability"] = self.probabilities.flatten().tolist()
        if sinks is not None:
            names = [sinks.names(min(layer, len(sinks.l_sink) - 1)) for layer in self.layers]
            groups = [each[token] for each in names for token in numbers]
            table["group"] = pd.Series(groups).repeat(ranks).to_numpy()
        return table

    def by_group(self, sinks: SinkMasks, most: int = 3) -> pd.DataFrame:
        """Return the first words of each group of tokens, layer by layer: ``layer``, ``group``, ``tokens`` in it, ``words`` (the ``most``
        common first words of its tokens) and ``share`` of its tokens that have one of these words first. Needs pandas.
        """
        import pandas as pd

        table = self.to_frame(sinks)
        lines = []
        for (layer, group), part in table[table["rank"] == 0].groupby(["layer", "group"]):
            common = part["word"].value_counts().head(most)
            lines.append(
                {"layer": layer, "group": group, "tokens": len(part), "words": ", ".join(common.index)}
                | {"share": common.sum() / len(part)}
            )
        return pd.DataFrame(lines)


def logit_lens(
    vlm: VLM,
    prompt: Prompt,
    *,
    layers: Sequence[int] | None = None,
    top: int = 5,
    gates: Gates | None = None,
    sinks: SinkMap | None = None,
) -> LogitLens:
    """Decode the hidden states of a prompt's visual tokens to words; the model runs once.

    Args:
        vlm: the model.
        prompt: image and question. Visual tokens in front of the question cannot depend on it.
        layers: numbers of LLM layers, whose inputs are decoded; ``vlm.num_layers`` stands for the output of the last one. All where None.
        top: words of a token, at least 1.
        gates: scales of the Keys under which the model runs; None leaves it as it is.
        sinks: the groups of visual tokens for the gates; found by the default criteria where None.

    Raises:
        SinkgateError: a layer is not there, or ``top`` is below 1.
        GateError: the gates do not fit this model.
        UnsupportedModelError: visual tokens have no hidden states in the LLM, since it reads them by cross-attention.

    Example:
        >>> lens = sg.logit_lens(vlm, vlm.prompt("cat.png", "What is this?"), layers=[4, 8])
        >>> lens.words(token=17, layer=8)
        [('cat', 0.31), ('fur', 0.08), ...]
    """
    refuse_several(prompt, "the logit lens")
    depth = vlm.num_layers
    if vlm.adapter.cross_attention:
        raise UnsupportedModelError(
            f"{vlm.name} reads images by cross-attention: visual tokens have no hidden states in its LLM to decode"
        )
    numbers: tuple[int, ...] = ()
    try:
        numbers = tuple(
            dict.fromkeys(whole_numbers(range(depth + 1) if layers is None else layers, depth + 1, "layer"))
        )
        count = index(top, "the number of words")
    except SinkgateError:
        count = 0
    if count < 1:
        raise SinkgateError(
            f"layers is {layers} and top is {top}; expected layers from 0 to {depth}, at least one, and at least 1 word"
        )
    states = _states(vlm, prompt, set(numbers), gates, sinks)
    return decode(vlm, prompt, {layer: states[layer] for layer in numbers}, top=count)


def decode(
    vlm: VLM, prompt: Prompt, states: Mapping[int, Tensor], tokens: Sequence[int] | None = None, top: int = 5
) -> LogitLens:
    """Decode states that are there already, such as those of `sinkgate.Session.states`, to words; no layer runs.

    Args:
        vlm: the model.
        prompt: image and question.
        states: by layer, (1, P, D) each.
        tokens: visual tokens to decode, from 0; all where None.
        top: words of a token, at least 1.

    Raises:
        SinkgateError: there are no states, no such token, or ``top`` is below 1.

    Example:
        >>> states = session.states()
        >>> decode(vlm, prompt, {4: states[4], 8: states[8]}, tokens=[17]).words(17, 8)
    """
    if not states or index(top, "the number of words") < 1:
        raise SinkgateError(
            f"states are of {len(states)} layers and top is {top}; expected at least one layer and 1 word"
        )
    tokens = None if tokens is None else whole_numbers(tokens, len(prompt.visual), "token")
    positions = prompt.visual if tokens is None else prompt.visual[tokens]
    top = min(top, vlm.model.get_output_embeddings().weight.shape[0])
    decoded = [_decode(vlm, prompt, state, positions, top) for state in states.values()]
    ids, probabilities = (torch.stack(parts) for parts in zip(*decoded, strict=True))
    names = {index: vlm.token_name(index) for index in ids.unique().tolist()}
    norms = torch.stack([state[0, positions].float().norm(dim=-1).cpu() for state in states.values()])
    return LogitLens(tuple(states), ids, probabilities, norms, names, None if tokens is None else tuple(tokens))


def _states(
    vlm: VLM, prompt: Prompt, wanted: set[int], gates: Gates | None, sinks: SinkMap | None
) -> dict[int, Tensor]:
    """Return the inputs of the wanted layers, (1, P, D) each, by number; the output of the last one by the number of layers."""
    adapter, depth = vlm.adapter, vlm.num_layers
    order = sorted(wanted)
    states: list[Tensor] = []
    gated = vlm.gated(prompt, sinks or find_sinks(vlm, prompt), gates) if gates else nullcontext()
    with (
        vlm.lock,
        torch.no_grad(),
        gated,
        each_input([adapter.layers[layer] for layer in order if layer < depth], states.append),
        kept_output(adapter.all_layers[-1], states) if depth in wanted else nullcontext(),
    ):
        adapter.run(**vlm.warm_inputs(prompt))
    return dict(zip(order, states, strict=True))


def _decode(vlm: VLM, prompt: Prompt, state: Tensor, places: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the first words of these positions by the model's own forward behind its last layer: ids and probabilities, (V, T)."""
    inputs: dict[str, Any] = vlm.warm_inputs(prompt)
    ids, probabilities = [], []
    with vlm.lock, torch.no_grad(), replaced(vlm.adapter.all_layers, lambda *_, **__: state):
        for positions in places.to(vlm.device).split(CHUNK):
            logits = vlm.model(**inputs, use_cache=False, logits_to_keep=positions).logits[0]
            best = logits.float().softmax(-1).topk(top)
            ids.append(best.indices.cpu())
            probabilities.append(best.values.cpu())
    return torch.cat(ids), torch.cat(probabilities)
