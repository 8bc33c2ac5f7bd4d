"""Anatomy of sinks: norms, spikes, attention, Values and outputs by layer and group, and the projector (paper, sections 1 and 3.1).

The four measurements are separate because they differ between kinds of sinks. A *broadcast* sink gives all queries its content: its Value
is as long as others (``value_ratio`` near 1), and the outputs of a head that attends to it are alike (``stable_rank`` near 1). A *no-op*
sink takes attention and returns almost nothing: its Value is short (``value_ratio`` near 0), and the small output of its head need not be
alike for all queries. Both take a large ``share``. Values with much in common lower the stable rank without any sink, so compare a head
with other heads, not with 1.

Measurements that are not possible give no rows. If the encoder's states are not available, there are no V-sinks, no projector and no
agreement. If tokens mix patches, no token is a V-sink and none can be followed through the projector, but patches are classified and
counted. If the LLM reads the image by cross-attention, the Keys are visual tokens and separators only, and their hidden states are the
same in every layer.

Shapes: L LLM layers, H heads, G groups, K Keys, V visual tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar, cast

import pandas as pd
import torch
from pandas.api.types import is_string_dtype
from torch import Tensor

from sinkgate.data import Sample
from sinkgate.data.identity import picture_of
from sinkgate.errors import SinkgateError
from sinkgate.models.dimensions import held_discovery, sink_criteria
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM
from sinkgate.output import steps
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
from sinkgate.studies.base import OfSamples
from sinkgate.studies.runner import Tables
from sinkgate.training.dataset import ImageSinks

Dims = Mapping[Side, Sequence[int]]

#: The groups of Keys. ``separator``: newline and tile tokens of the image. ``first``: position 0 where it is text, the text's own sink.
GROUPS = ("v_sink", "l_sink", "ordinary", "separator", "text", "first")
NAMED = tuple(name for name in CRITERIA if name != "auto")  # criteria to compare

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
    # V-sinks and all other visual tokens on both sides of the projector. norm: mean L2 norm over the median one's. peak as above. Before
    # the projector, a token of several patches is represented by the one with the largest norm.
    "projector": {"sample": _INT, "group": _STR, "tokens": _INT}
    | dict.fromkeys(("norm_before", "norm_after", "peak_before", "peak_after"), _FLOAT),
    # Sinks by criterion, and the number of visual tokens. V-sinks: patches, and tokens, NaN if that is unknown. L-sinks that are no
    # V-sinks: tokens that are one in any layer, and those of the layer that has most. picture: equal for questions about the same images.
    "images": {"sample": _INT, "criterion": _STR, "tokens": _INT}
    | dict.fromkeys(("v_patches", "v_sinks", "l_sinks", "l_sinks_most"), _FLOAT)
    | {"picture": _STR},
    # Sinks by both and by either of two criteria: patches, or tokens of all LLM layers together, V-sinks counted too.
    "agreement": {"sample": _INT, "place": _STR, "first": _STR, "second": _STR, "both": _INT, "either": _INT},
}


@dataclass(frozen=True)
class Anatomy(OfSamples):
    """Anatomy of every sample: `TABLES`.

    Each sample is measured by itself, so no number depends on ``chunk``.

    Args:
        vlm: the model.
        samples: images and questions.
        dims: sink dimensions of the "vision" encoder and of the "llm", for ``spike`` and the criterion "dimensions". If None, those of
            the model's criteria, else those that `sinkgate.discover` finds.
        v_sink: criterion of V-sinks, as in `sinkgate.find_sinks`.
        l_sink: criterion of L-sinks, likewise.
        merged: when a token of several patches is a V-sink, likewise.
        layers: layers in the tables ``tokens`` and ``heads``; all if None.
        chunk: samples in a part of the results.
        about: further facts for the record, such as paths.

    Example:
        >>> results = run(Anatomy(vlm, samples), "runs/anatomy")
        >>> results.table("tokens")
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
        """The sink dimensions to measure: ``dims``, else those of the criteria, else those of the model."""
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

    def work(self, unit: int) -> Tables:
        """Return `TABLES` of one chunk; raises as ``vlm.prompt`` if a sample cannot be used."""
        criteria: Any = {"v_sink": self.criteria.v_sink, "l_sink": self.criteria.l_sink, "merged": self.merged}
        dissected = []
        for number, sample in steps(self.numbered(unit, self.samples), "samples"):
            prompt = self.vlm.prompt(sample.images, sample.parts, earlier=sample.turns)
            row: Any = {"sample": number, "picture": picture_of(sample)}
            dissected.append(dissect(self.vlm, prompt, self.dimensions, **criteria, **row))
        joined = {name: pd.concat([tables[name] for tables in dissected], ignore_index=True) for name in TABLES}
        if self.layers is None:
            return joined
        return {
            name: table[table["layer"].isin(self.layers)].reset_index(drop=True) if "layer" in table else table
            for name, table in joined.items()
        }

    def sinks(self, tables: Tables) -> list[ImageSinks]:
        """See `sinkgate.studies.runner.Study`."""
        groups: Any = cast(pd.DataFrame, tables["tokens"]).groupby("sample")["group"].agg(set)
        return [
            ImageSinks(int("v_sink" in present), int("l_sink" in present), picture=picture_of(self.samples[sample]))
            for sample, present in groups.items()
        ]


def dissect(
    vlm: VLM,
    prompt: Prompt,
    dims: Dims,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
    merged: Merged = "any",
    sample: int = 0,
    picture: str = "",
) -> dict[str, pd.DataFrame]:
    """Return `TABLES` of one prompt, measured in one forward pass of the unmodified model.

    Args:
        vlm: the model.
        prompt: image and question.
        dims: sink dimensions of the "vision" encoder and of the "llm"; a missing side has none.
        v_sink: criterion of V-sinks, a name of ``CRITERIA`` or an object.
        l_sink: criterion of L-sinks.
        merged: a token of several patches is a V-sink if "any", "most" or "all" of them are.
        sample: number of the sample, for the column ``sample``.
        picture: identity of its images, for the column ``picture``.

    Raises:
        SinkgateError: no criterion has that name, a dimension is outside of the hidden states, or those are not finite.

    Example:
        >>> tables = dissect(vlm, vlm.prompt("cat.png", "What is this?"), {"llm": [7]})
        >>> tables["tokens"]
    """
    vision, llm = dims.get("vision", ()), dims.get("llm", ())
    choices = {name: (name, name) for name in NAMED} | {"chosen": (v_sink, l_sink)}
    reduction = reduction_of(criterion(l_sink) for _, l_sink in choices.values())
    observation = vlm.observe_heads(prompt, reduction.joined(Reduction(tuple(llm), peaks=True)))
    if not observation.states.finite:
        raise SinkgateError(
            f"{vlm.name}: hidden states are not finite in {vlm.model.dtype}; load it in float32 or bfloat16"
        )
    by_criterion = {
        name: classify(
            observation,
            prompt.sheets,
            v_sink=_with(vision, one, None if observation.features is None else observation.features.shape[-1]),
            l_sink=_with(llm, other, observation.states.width),
            merged=merged,
        )
        for name, (one, other) in choices.items()
    }
    sinks = by_criterion.pop("chosen")
    members = _members(prompt, sinks, observation.head_attention.shape[-1])
    content: dict[str, Any] = {
        "tokens": _tokens(observation, members, llm),
        "heads": _heads(observation, members),
        "projector": _projector(vlm, prompt, observation, sinks),
        "images": [{**row, "picture": picture} for row in _images(by_criterion)],
        "agreement": _agreement(by_criterion),
    }
    return {
        name: pd.DataFrame(content[name], columns=list(types)).assign(sample=sample).astype(types)
        for name, types in TABLES.items()
    }


# --- measurements


def _with(dims: Sequence[int], choice: str | Criterion | Choice, width: int | None) -> str | Criterion | Choice:
    """Return the criterion; if it is "dimensions", with these dimensions and the tau for states of a width."""
    if choice != "dimensions":
        return choice
    return SinkDimensions(tuple(dims)) if width is None else SinkDimensions(tuple(dims), tau_for(width))


def _members(prompt: Prompt, sinks: SinkMap, keys: int) -> Tensor:
    """Return the Keys of each of `GROUPS` in each layer, (L, G, K) boolean; every Key is in one group."""
    masks = {name: torch.zeros(len(sinks.l_sink), keys, dtype=torch.bool) for name in GROUPS}
    for name in ("v_sink", "l_sink", "ordinary"):
        masks[name][:, prompt.visual.cpu()] = getattr(sinks, name)
    masks["separator"][:, prompt.separators.cpu()] = True
    rest = ~torch.stack(list(masks.values())).any(0)
    masks["first"][:, :1], masks["text"][:, 1:] = rest[:, :1], rest[:, 1:]
    return torch.stack(list(masks.values()), 1)


def _tokens(observation: HeadObservation, members: Tensor, dims: Sequence[int]) -> dict[str, Any]:
    counts = members.sum(-1)
    layer, group = counts.nonzero().T

    def total(values: Tensor) -> Tensor:
        """Return the sum of (L, K) values over the Keys of each row."""
        return (members * values[:, None]).sum(-1)[layer, group]

    tokens, share = counts[layer, group], total(observation.head_attention.mean(1))
    states = observation.states
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
        value_ratio=total(observation.value_norms) / tokens / observation.value_norms.mean(1)[layer],
    )


def _heads(observation: HeadObservation, members: Tensor) -> dict[str, Any]:
    layer, head = torch.cartesian_prod(*map(torch.arange, observation.stable_rank.shape)).T
    shares = torch.einsum("lhk,lgk->glh", observation.head_attention, members.float()).flatten(1)
    top, rank = observation.head_attention.amax(-1).flatten(), observation.stable_rank.flatten()
    return _numpy(layer=layer, head=head, top=top, stable_rank=rank, **dict(zip(GROUPS, shares, strict=True)))


def _projector(vlm: VLM, prompt: Prompt, observation: HeadObservation, sinks: SinkMap) -> list[dict[str, Any]]:
    if observation.features is None or observation.token_of_patch is None or sinks.loudest is None:
        return []
    rows = vlm.adapter.rows_in_prompt(prompt.inputs).cpu()  # separators among them
    before = observation.features[observation.token_of_patch >= 0][sinks.loudest]
    with torch.no_grad():  # some families project here
        after = vlm.adapter.projected(prompt.encoded).float().cpu()[torch.searchsorted(rows, observation.visual)]
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


def _images(by_criterion: Mapping[str, SinkMap]) -> list[dict[str, Any]]:
    return [
        {
            "criterion": name,
            "tokens": len(sinks.v_sink),
            "v_patches": float(sinks.v_verdict.mask.sum()) if sinks.v_verdict else None,
            "v_sinks": float(sinks.v_sink.sum()) if sinks.loudest is not None else None,
            "l_sinks": float(sinks.l_sink.any(0).sum()),
            "l_sinks_most": float(sinks.l_sink.sum(1).max()),
        }
        for name, sinks in by_criterion.items()
    ]


def _agreement(by_criterion: Mapping[str, SinkMap]) -> list[dict[str, Any]]:
    places = {
        "encoder": {name: sinks.v_verdict.mask for name, sinks in by_criterion.items() if sinks.v_verdict},
        "llm": {name: sinks.l_verdict.mask for name, sinks in by_criterion.items()},
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


def over_pictures(table: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Return one of `TABLES` with one sample for each picture: the means over the questions about it.

    Args:
        table: of an anatomy.
        images: its table ``images``; of an older release it has no pictures, and each sample counts as one.
    """
    numbers = images.drop_duplicates("sample").set_index("sample").get("picture")
    table = table.drop(columns="picture", errors="ignore")
    if numbers is None or numbers.is_unique:
        return table
    first = numbers.index.to_series().groupby(numbers).transform("min")
    keys = [name for name in table if name in ("sample", "layer", "head") or is_string_dtype(table[name])]
    return table.assign(sample=table["sample"].map(first)).groupby(keys, sort=False).mean().reset_index()


def by_layer(tokens: pd.DataFrame) -> pd.DataFrame:
    """Return each measure by layer and group, over the samples that have the group: layer, group, measure, mean, std, samples."""
    return _over_samples(tokens, ["layer", "group"]).sort_values("layer", kind="stable", ignore_index=True)


def means_by_layer(tokens: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `by_layer` side by side: a row for each layer and group, a column for each measure, and ``samples``."""
    statistics = by_layer(tokens)
    rows = statistics.groupby(["layer", "group"], sort=False)
    wide = statistics.pivot(index=["layer", "group"], columns="measure", values="mean")
    wide = wide[statistics["measure"].unique()].assign(samples=rows["samples"].max())
    order = wide.index.get_level_values("group").map(GROUPS.index)
    wide = wide.assign(order=order).sort_values(["layer", "order"], kind="stable").drop(columns="order")
    return wide.rename_axis(columns=None).reset_index()


def flattening(projector: pd.DataFrame) -> pd.DataFrame:
    """Return the effect of the projector on each group, over the samples that have it: group, measure, mean, std, samples.

    The measure ``flattening`` is peak_before / peak_after: above 1 if the projector spread the spike over the dimensions.
    """
    ratio = projector["peak_before"] / projector["peak_after"]
    return _over_samples(projector.assign(flattening=ratio), ["group"])


def sinks_per_image(images: pd.DataFrame) -> pd.DataFrame:
    """Return the number of sinks by criterion: criterion, measure, mean, std, samples, and ``some``, the share of samples with any.

    The samples are pictures, whatever the number of questions about one.
    """
    return _over_samples(over_pictures(images, images), ["criterion"], some=("some", "mean"))


def jaccard(agreement: pd.DataFrame) -> pd.DataFrame:
    """Return the agreement of each pair of criteria: place, first, second, ``jaccard``, the mean over ``samples`` of both / either.

    The mean leaves out the samples in which neither criterion finds a sink; ``both_none`` counts them.
    """
    none = agreement["either"] == 0
    index = (agreement["both"] / agreement["either"]).where(~none)
    pairs = agreement.assign(index=index, none=none).groupby(["place", "first", "second"], sort=False)
    return pairs.agg(jaccard=("index", "mean"), samples=("index", "count"), both_none=("none", "sum")).reset_index()


def strongest_heads(heads: pd.DataFrame, group: str = "v_sink") -> pd.DataFrame:
    """Return the heads by their share of attention on a group, the largest first: columns of the table, means over ``samples``."""
    means = {name: (name, "mean") for name in (*GROUPS, "top", "stable_rank")}
    each = heads.groupby(["layer", "head"]).agg(**means, samples=("sample", "count")).reset_index()
    return each.sort_values(group, ascending=False, ignore_index=True)


def _over_samples(table: pd.DataFrame, by: list[str], **more: tuple[str, str]) -> pd.DataFrame:
    """Return statistics of each measure over the samples that have it."""
    long = table.melt(["sample", *by], var_name="measure").dropna(subset="value")
    measures = long.assign(some=long["value"] > 0).groupby([*by, "measure"], sort=False)
    columns = {"mean": ("value", "mean"), "std": ("value", "std"), "samples": ("value", "count"), **more}
    return measures.agg(**columns).reset_index()
