"""The anatomy of sinks: norms, spikes, attention, Values and outputs by layer and group; what the projector does (paper, sections 1 and 3.1).

Four measurements are kept apart because they come apart. A sink that *broadcasts* gives all queries its content: its Value is as
long as others (``value_ratio`` near 1), and the outputs of a head that looks at it are alike (``stable_rank`` near 1). A sink that is a
*no-op* parks attention that is not needed: its Value is short (``value_ratio`` near 0), and the little that its head still gives need not
be alike. Both take a large ``share``. Values that have much in common lower the stable rank without any sink, so a head is compared with
others, not with 1.

What cannot be measured gives no rows: a closed encoder has no V-sinks, no projector and no agreement; where tokens mix patches no token
is a V-sink and none can be followed through the projector, though patches are judged and counted; where the image is read by
cross-attention the Keys are visual tokens and separators only, and their hidden states are the same in every layer.

Shapes: L LLM layers, H heads, G groups, K Keys, V visual tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from sinkgate.data import Sample
from sinkgate.errors import SinkgateError
from sinkgate.models.dimensions import held_discovery, sink_criteria
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM
from sinkgate.sinks.classify import HeadObservation, Merged, SinkMap, classify, criterion
from sinkgate.sinks.criteria import (
    CRITERIA,
    Choice,
    Criterion,
    SinkCriteria,
    SinkDimensions,
    over_median,
    reduction_of,
    tau_for,
)
from sinkgate.sinks.known_dimensions import SIDES, Side
from sinkgate.sinks.states import Reduction, peaks
from sinkgate.studies.provenance import facts_of, facts_of_samples
from sinkgate.studies.runner import Tables, chunks

Dims = Mapping[Side, Sequence[int]]

#: What Keys there are. ``separator``: newline and tile tokens of the image. ``first``: position 0 where it is text, the text's own sink.
GROUPS = ("v_sink", "l_sink", "ordinary", "separator", "text", "first")
NAMED = tuple(name for name in CRITERIA if name != "auto")  # the criteria that are compared

_INT, _FLOAT, _STR = "int32", "float32", "str"
#: Tables and their columns. Samples, layers (those that attend to visual tokens) and heads count from 0.
TABLES: dict[str, dict[str, str]] = {
    # A group in a layer. norm: mean L2 norm at the layer's input. spike: mean of max |h[d]| over the LLM's sink dimensions, NaN where it
    # has none. peak: mean of max |h| over median |h| of the same token. share: of the attention of the text after the image, mean over
    # heads and queries; those of all groups sum to 1. per_token: share / tokens. value_ratio: mean length of a Value over that of all.
    "tokens": {"sample": _INT, "layer": _INT, "group": _STR, "tokens": _INT}
    | dict.fromkeys(("norm", "spike", "peak", "share", "per_token", "value_ratio"), _FLOAT),
    # A head: the share of each group. top: the largest of a single Key; for a Key before that text the alpha_k of Gu et al., who ask
    # 0.3 of a sink. stable_rank: of its output over all queries of the prompt, NaN where that is zero.
    "heads": {"sample": _INT, "layer": _INT, "head": _INT} | dict.fromkeys((*GROUPS, "top", "stable_rank"), _FLOAT),
    # V-sinks and all other visual tokens on both sides of the projector. norm: mean L2 norm over the median one's. peak as above. A token
    # of several patches is the loudest of them before.
    "projector": {"sample": _INT, "group": _STR, "tokens": _INT}
    | dict.fromkeys(("norm_before", "norm_after", "peak_before", "peak_after"), _FLOAT),
    # What a criterion finds among how many visual tokens. V-sinks: patches, and tokens, NaN where that cannot be said. L-sinks that are no
    # V-sinks: tokens that are one in any layer, and in the layer that has most.
    "images": {"sample": _INT, "criterion": _STR, "tokens": _INT}
    | dict.fromkeys(("v_patches", "v_sinks", "l_sinks", "l_sinks_most"), _FLOAT),
    # What both and either of two criteria call a sink: patches, or tokens of all LLM layers together, V-sinks counted too.
    "agreement": {"sample": _INT, "place": _STR, "first": _STR, "second": _STR, "both": _INT, "either": _INT},
}


@dataclass(frozen=True)
class Anatomy:
    """The study: `TABLES` of every sample by itself, so that no number depends on ``chunk``, how many are a part of the results.

    ``dims``: the sink dimensions on both sides, for ``spike`` and the criterion "dimensions"; where None those of the criteria that are
    held for the model, else those that `sinkgate.discover` finds. ``layers``: those that ``tokens`` and ``heads`` keep, all where None. ``v_sink``, ``l_sink`` and ``merged`` sort tokens into groups as in `sinkgate.find_sinks`.
    ``about``: what else is to be told of a run.
    """

    kind: ClassVar[str] = "anatomy"
    vlm: VLM
    samples: Sequence[Sample]
    dims: Dims | None = None
    v_sink: str | Criterion | Choice = "auto"
    l_sink: str | Criterion | Choice = "auto"
    merged: Merged = "any"
    layers: Sequence[int] | None = None
    chunk: int = 8
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def criteria(self) -> SinkCriteria:
        """The criteria of sinks, the same for every sample."""
        v_sink, l_sink = self._on_dims(self.v_sink, "vision"), self._on_dims(self.l_sink, "llm")
        return sink_criteria(self.vlm, v_sink=v_sink, l_sink=l_sink)

    def _on_dims(self, criterion: str | Criterion | Choice, side: Side) -> str | Criterion | Choice:
        if self.dims is None or criterion != "dimensions":
            return criterion
        return " ".join(["dimensions", *map(str, dims)]) if (dims := self.dims.get(side)) else SinkDimensions(())

    @cached_property
    def dimensions(self) -> Dims:
        """The sink dimensions that are measured: ``dims``, else those of the criteria, else those of the model."""
        if self.dims is not None:
            return self.dims
        by_criteria: Dims = {"vision": self.criteria.v_sink.dims, "llm": self.criteria.l_sink.dims}
        return {side: by_criteria[side] or held_discovery(self.vlm).dimensions(side) for side in SIDES}

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return {
            **self.criteria.settings,
            "merged": self.merged,
            "layers": "all" if self.layers is None else list(self.layers),
            "dimensions": {side: list(dims) for side, dims in self.dimensions.items()},
            "chunk": self.chunk,
        }

    @property
    def model(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return facts_of(self.vlm)

    @property
    def data(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return facts_of_samples(self.samples)

    @property
    def units(self) -> int:
        """See `sinkgate.studies.runner.Study`."""
        return chunks(len(self.samples), self.chunk)

    def work(self, unit: int) -> Tables:
        """`TABLES` of one chunk; raises as ``vlm.prompt`` where a sample cannot be asked."""
        start = unit * self.chunk
        each = []
        for number, sample in enumerate(self.samples[start : start + self.chunk], start):
            prompt = self.vlm.prompt(sample.images, sample.parts)
            held = {"v_sink": self.criteria.v_sink, "l_sink": self.criteria.l_sink}
            each.append(dissect(self.vlm, prompt, self.dimensions, **held, merged=self.merged, sample=number))
        return {name: self._kept(pd.concat([tables[name] for tables in each], ignore_index=True)) for name in TABLES}

    def _kept(self, table: pd.DataFrame) -> pd.DataFrame:
        if self.layers is None or "layer" not in table:
            return table
        return table[table["layer"].isin(self.layers)].reset_index(drop=True)


def dissect(
    vlm: VLM,
    prompt: Prompt,
    dims: Dims,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
    merged: Merged = "any",
    sample: int = 0,
) -> dict[str, pd.DataFrame]:
    """`TABLES` of one prompt; the unmodified model runs once.

    Args:
        vlm: the model.
        prompt: image and question.
        dims: sink dimensions of the "vision" encoder and of the "llm"; a side that is missing has none.
        v_sink: criterion of the V-sinks, a name of ``CRITERIA`` or an object.
        l_sink: criterion of the L-sinks.
        merged: a token of several patches is a V-sink when any, most or all of them are.
        sample: its number.

    Raises:
        SinkgateError: no criterion has that name, a dimension is outside of the hidden states, or those are not finite.
    """
    vision, llm = dims.get("vision", ()), dims.get("llm", ())
    choices = {name: (name, name) for name in NAMED} | {"chosen": (v_sink, l_sink)}
    reduction = reduction_of(criterion(l_sink) for _, l_sink in choices.values())
    seen = vlm.observe_heads(prompt, reduction.joined(Reduction(tuple(llm), peaks=True)))
    if not seen.states.finite:
        raise SinkgateError(
            f"{vlm.name}: hidden states are not finite in {vlm.model.dtype}; load it in float32 or bfloat16"
        )
    found = {
        name: classify(
            seen,
            prompt.sheets,
            v_sink=_with(vision, one, None if seen.features is None else seen.features.shape[-1]),
            l_sink=_with(llm, other, seen.states.width),
            merged=merged,
        )
        for name, (one, other) in choices.items()
    }
    sinks = found.pop("chosen")
    members = _members(prompt, sinks, seen.head_attention.shape[-1])
    content: dict[str, Any] = {
        "tokens": _tokens(seen, members, llm),
        "heads": _heads(seen, members),
        "projector": _projector(vlm, prompt, seen, sinks),
        "images": _images(found),
        "agreement": _agreement(found),
    }
    return {
        name: pd.DataFrame(content[name], columns=list(types)).assign(sample=sample).astype(types)
        for name, types in TABLES.items()
    }


# --- what is measured


def _with(dims: Sequence[int], choice: str | Criterion | Choice, width: int | None) -> str | Criterion | Choice:
    """Return the criterion, on these dimensions and with the tau of states of a width where it is called "dimensions"."""
    if choice != "dimensions":
        return choice
    return SinkDimensions(tuple(dims)) if width is None else SinkDimensions(tuple(dims), tau_for(width))


def _members(prompt: Prompt, sinks: SinkMap, keys: int) -> Tensor:
    """Which Keys make up each of `GROUPS` in each layer, (L, G, K) boolean; every Key is in one group."""
    masks = {name: torch.zeros(len(sinks.l_sink), keys, dtype=torch.bool) for name in GROUPS}
    for name in ("v_sink", "l_sink", "ordinary"):
        masks[name][:, prompt.visual.cpu()] = getattr(sinks, name)
    masks["separator"][:, prompt.separators.cpu()] = True
    rest = ~torch.stack(list(masks.values())).any(0)
    masks["first"][:, :1], masks["text"][:, 1:] = rest[:, :1], rest[:, 1:]
    return torch.stack(list(masks.values()), 1)


def _tokens(seen: HeadObservation, members: Tensor, dims: Sequence[int]) -> dict[str, Any]:
    counts = members.sum(-1)
    layer, group = counts.nonzero().T

    def total(values: Tensor) -> Tensor:
        """The sum over each row's Keys of (L, K) values."""
        return (members * values[:, None]).sum(-1)[layer, group]

    tokens, share = counts[layer, group], total(seen.head_attention.mean(1))
    states = seen.states
    spike = states.values(dims).abs().amax(-1) if dims else torch.full_like(states.norms, torch.nan)
    return _numpy(
        layer=layer,
        group=[GROUPS[index] for index in group],
        tokens=tokens,
        norm=total(states.norms) / tokens,
        spike=total(spike) / tokens,
        peak=total(states.peaks) / tokens,
        share=share,
        per_token=share / tokens,
        value_ratio=total(seen.value_norms) / tokens / seen.value_norms.mean(1)[layer],
    )


def _heads(seen: HeadObservation, members: Tensor) -> dict[str, Any]:
    layer, head = torch.cartesian_prod(*map(torch.arange, seen.stable_rank.shape)).T
    shares = torch.einsum("lhk,lgk->glh", seen.head_attention, members.float()).flatten(1)
    top, rank = seen.head_attention.amax(-1).flatten(), seen.stable_rank.flatten()
    return _numpy(layer=layer, head=head, top=top, stable_rank=rank, **dict(zip(GROUPS, shares, strict=True)))


def _projector(vlm: VLM, prompt: Prompt, seen: HeadObservation, sinks: SinkMap) -> list[dict[str, Any]]:
    if seen.features is None or seen.token_of_patch is None or sinks.loudest is None:
        return []
    rows = vlm.adapter.rows_in_prompt(prompt.inputs).cpu()  # separators among them
    before = seen.features[seen.token_of_patch >= 0][sinks.loudest]
    with torch.no_grad():  # some families project here
        after = vlm.adapter.projected(prompt.encoded).float().cpu()[torch.searchsorted(rows, seen.visual)]
    values = {
        "norm_before": sinks.norm_ratio,
        "norm_after": over_median(torch.linalg.vector_norm(after, dim=-1)),
        "peak_before": peaks(before),
        "peak_after": peaks(after),
    }
    return [
        {"group": name, "tokens": int(mask.sum())} | {key: float(each[mask].mean()) for key, each in values.items()}
        for name, mask in (("v_sink", sinks.v_sink), ("ordinary", ~sinks.v_sink))
        if mask.any()
    ]


def _images(found: Mapping[str, SinkMap]) -> list[dict[str, Any]]:
    return [
        {
            "criterion": name,
            "tokens": len(sinks.v_sink),
            "v_patches": float(sinks.v_verdict.mask.sum()) if sinks.v_verdict else None,
            "v_sinks": float(sinks.v_sink.sum()) if sinks.loudest is not None else None,
            "l_sinks": float(sinks.l_sink.any(0).sum()),
            "l_sinks_most": float(sinks.l_sink.sum(1).max()),
        }
        for name, sinks in found.items()
    ]


def _agreement(found: Mapping[str, SinkMap]) -> list[dict[str, Any]]:
    places = {
        "encoder": {name: sinks.v_verdict.mask for name, sinks in found.items() if sinks.v_verdict},
        "llm": {name: sinks.l_verdict.mask for name, sinks in found.items()},
    }
    return [
        {
            "place": place,
            "first": first,
            "second": second,
            "both": int((masks[first] & masks[second]).sum()),
            "either": int((masks[first] | masks[second]).sum()),
        }
        for place, masks in places.items()
        for first, second in combinations(masks, 2)
    ]


def _numpy(**columns: Any) -> dict[str, Any]:
    return {name: each.numpy() if isinstance(each, Tensor) else each for name, each in columns.items()}


# --- reading the tables


def by_layer(tokens: pd.DataFrame) -> pd.DataFrame:
    """Each measure by layer and group, over the samples that have the group: layer, group, measure, mean, std, samples."""
    return _over_samples(tokens, ["layer", "group"]).sort_values("layer", kind="stable", ignore_index=True)


def means_by_layer(tokens: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `by_layer` side by side: a row a layer and group, a column a measure that was taken, and ``samples``."""
    statistics = by_layer(tokens)
    rows = statistics.groupby(["layer", "group"], sort=False)
    wide = statistics.pivot(index=["layer", "group"], columns="measure", values="mean")
    wide = wide[statistics["measure"].unique()].assign(samples=rows["samples"].max())
    order = wide.index.get_level_values("group").map(GROUPS.index)
    wide = wide.assign(order=order).sort_values(["layer", "order"], kind="stable").drop(columns="order")
    return wide.rename_axis(columns=None).reset_index()


def flattening(projector: pd.DataFrame) -> pd.DataFrame:
    """What the projector does to each group, over the samples that have it: group, measure, mean, std, samples.

    The measure ``flattening`` is peak_before / peak_after: above 1 the spike was spread over the dimensions.
    """
    ratio = projector["peak_before"] / projector["peak_after"]
    return _over_samples(projector.assign(flattening=ratio), ["group"])


def sinks_per_image(images: pd.DataFrame) -> pd.DataFrame:
    """How many sinks each criterion finds: criterion, measure, mean, std, samples, and ``some``, the share of samples with any."""
    return _over_samples(images, ["criterion"], some=("some", "mean"))


def jaccard(agreement: pd.DataFrame) -> pd.DataFrame:
    """Agreement of each pair of criteria: place, first, second, ``jaccard``, the mean over ``samples`` of both / either.

    Samples where neither finds any are no agreement on a sink: ``both_none`` counts them, and the mean leaves them out.
    """
    none = agreement["either"] == 0
    index = (agreement["both"] / agreement["either"]).where(~none)
    pairs = agreement.assign(index=index, none=none).groupby(["place", "first", "second"], sort=False)
    return pairs.agg(jaccard=("index", "mean"), samples=("index", "count"), both_none=("none", "sum")).reset_index()


def strongest_heads(heads: pd.DataFrame, group: str = "v_sink") -> pd.DataFrame:
    """Heads by the share that they give a group, the largest first: columns as in the table, means over ``samples``."""
    means = {name: (name, "mean") for name in (*GROUPS, "top", "stable_rank")}
    each = heads.groupby(["layer", "head"]).agg(**means, samples=("sample", "count")).reset_index()
    return each.sort_values(group, ascending=False, ignore_index=True)


def _over_samples(table: pd.DataFrame, by: list[str], **more: tuple[str, str]) -> pd.DataFrame:
    """Statistics of each measure over the samples where it could be taken."""
    long = table.melt(["sample", *by], var_name="measure").dropna(subset="value")
    measures = long.assign(some=long["value"] > 0).groupby([*by, "measure"], sort=False)
    columns = {"mean": ("value", "mean"), "std": ("value", "std"), "samples": ("value", "count"), **more}
    return measures.agg(**columns).reset_index()
