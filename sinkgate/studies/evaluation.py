"""Evaluation of methods on a benchmark: answers to every item, scores, and their changes against the unmodified model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import pandas as pd
import torch

from sinkgate.analysis.statistics import compared, holm, questions_needed, score_interval
from sinkgate.benchmarks import Benchmark, Item
from sinkgate.errors import SinkgateError
from sinkgate.methods import Method, finder_of, reads_pixels
from sinkgate.methods.base import UNMODIFIED, described
from sinkgate.models.finder import finder_settings
from sinkgate.models.vlm import VLM, Finder
from sinkgate.output import steps
from sinkgate.studies.base import OfItems, frame_of, pictures_of, prepared
from sinkgate.studies.runner import Tables
from sinkgate.training.dataset import ExampleCache, slices
from sinkgate.training.evaluation import evaluate

#: "likelihood": the most probable option, or, of open items, whether greedy decoding writes the answer; one forward.
#: "generate": the greedy answer, read by the benchmark's extractor, as public harnesses do.
Scoring = Literal["likelihood", "generate"]
ALIASES: dict[str, Scoring] = {"forced": "likelihood", "written": "generate"}  # names of the first releases


def scoring_named(name: str) -> Scoring:
    """Return the way of scoring with this name or alias.

    Raises:
        SinkgateError: there is none.
    """
    name = ALIASES.get(name, name)
    if name not in get_args(Scoring):
        raise SinkgateError(f"scoring is {name!r}; expected {' or '.join(get_args(Scoring))}")
    return cast(Scoring, name)


@dataclass(frozen=True)
class Evaluation(OfItems):
    """Every method on every item.

    Args:
        vlm: the model.
        benchmark: with the extractors.
        items: questions.
        methods: by name; one has to be called "unmodified".
        scoring: "likelihood" or "generate".
        extractor: name of the benchmark's rule that reads generated answers.
        max_new_tokens: most tokens of a generated answer.
        chunk: items side by side in a forward, and in a part of the results.
        find: finder of sinks; by the methods' own criterion if None.
        attention: measure the attention on each group under each method, too; with the likelihood alone.
        origins: checksums of the methods' files, part of the study's identity.
        about: further facts for the record, such as paths.

    Raises:
        SinkgateError: no method is called "unmodified", scoring or extractor are unknown, or attention is measured on generated answers.

    Example:
        >>> study = Evaluation(vlm, SCENES, SCENES.items(limit=100), {"unmodified": Fixed(sg.Gates.ones(vlm)), "VAR": VAR()})
        >>> results = run(study, "runs/eval")
    """

    kind: ClassVar[str] = "eval"
    vlm: VLM
    benchmark: Benchmark
    items: Sequence[Item]
    methods: Mapping[str, Method]
    scoring: Scoring = "likelihood"
    extractor: str = "robust"
    max_new_tokens: int = 32
    chunk: int = 16
    find: Finder | None = None
    attention: bool = False
    origins: Mapping[str, str | None] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if UNMODIFIED not in self.methods:
            raise SinkgateError(f"methods are {', '.join(self.methods)}; expected one called {UNMODIFIED!r} among them")
        object.__setattr__(self, "scoring", scoring_named(self.scoring))
        if self.attention and self.scoring == "generate":
            raise SinkgateError("attention by group is measured with likelihood scoring; got generate")
        if self.scoring == "generate" and self.extractor not in self.benchmark.extractors:
            known = ", ".join(self.benchmark.extractors)
            raise SinkgateError(f"{self.benchmark.name} has no extractor {self.extractor!r}; there are: {known}")

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        settings: dict[str, Any] = {"methods": list(self.methods), "scoring": self.scoring, "chunk": self.chunk}
        settings["options"] = {name: described(method) for name, method in self.methods.items()}
        settings |= finder_settings(self.finder, self.vlm)
        if self.scoring == "generate":
            settings |= {"extractor": self.extractor, "max_new_tokens": self.max_new_tokens}
        if self.attention:
            settings["attention"] = True
        if self.origins:
            settings["origins"] = dict(self.origins)
        return settings

    @property
    def finder(self) -> Finder:
        """The finder of sinks: ``find``, else by the criterion of the methods."""
        return self.find or finder_of(self.methods.values())

    @property
    def data(self) -> dict[str, Any]:
        """See `OfItems`, and the benchmark's name."""
        return {"benchmark": self.benchmark.name, **super().data}

    def work(self, unit: int) -> Tables:
        """Return tables ``items``, ``answers`` and, if it is measured, ``attention`` of one chunk; raises SinkgateError if an item cannot be prepared."""
        start = unit * self.chunk
        part = self.items[start : start + self.chunk]
        examples = ExampleCache(self.vlm, self.finder, pixels=reads_pixels(self.methods.values()))
        score = self._by_likelihood if self.scoring == "likelihood" else self._by_generation
        numbers = np.arange(start, start + len(part), dtype=np.int32)
        frames = {
            table: pd.concat(
                [pd.DataFrame({"sample": numbers, "method": name, **columns}) for name, columns in by_method.items()],
                ignore_index=True,
            )
            for table, by_method in score(part, examples).items()
        }
        return {"items": frame_of(part, examples, start), **frames}

    def _by_likelihood(self, part: Sequence[Item], examples: ExampleCache) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the columns of each table, by method."""
        prepared(examples, part)
        options: Any = {"examples": examples, "batch_size": self.chunk, "progress": False, "attention": self.attention}
        result = evaluate(self.vlm, self.methods, [item.sample for item in part], **options)
        tables: dict[str, dict[str, dict[str, Any]]] = {"answers": {}}
        for name in self.methods:
            loss = np.array(result.loss[name], dtype=np.float32)
            tables["answers"][name] = {"said": result.chosen[name], "right": result.right[name], "loss": loss}
        if self.attention:
            tables["attention"] = {
                name: {group: np.array([row[group] for row in rows], dtype=np.float32) for group in rows[0]}
                for name, rows in result.attention.items()
            }
        return tables

    def _by_generation(self, part: Sequence[Item], examples: ExampleCache) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the columns of each table, by method."""
        vlm, ready = self.vlm, prepared(examples, part)
        texts: dict[str, list[str]] = {name: [] for name in self.methods}
        runs = product(slices(vlm, len(ready)), self.methods.items())
        for rows, (name, method) in steps(list(runs), "batches of answers"):
            batch = vlm.batch([example.prompt for example in ready[rows]], [example.sinks for example in ready[rows]])
            with torch.no_grad(), method.applied(vlm, batch):
                ids = vlm.model.generate(
                    **batch.inputs,
                    max_new_tokens=vlm.new_tokens(batch.length, self.max_new_tokens),
                    do_sample=False,
                    num_beams=1,
                )
            texts[name] += vlm.tokenizer.batch_decode(ids[:, batch.length :], skip_special_tokens=True)
        true = [self.benchmark.read(item, item.sample.answer) for item in part]
        answers = {}
        for name, generated in texts.items():
            read = [self.benchmark.read(item, text, self.extractor) for item, text in zip(part, generated, strict=True)]
            right = [answer == truth for answer, truth in zip(read, true, strict=True)]
            answers[name] = {"text": [text.strip() for text in generated], "said": read, "right": right}
        return {"answers": answers}


# --- reading the results


def accuracies(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task") -> pd.DataFrame:
    """Return the share of right answers: a row for each task and for "all", a column for each method."""
    merged = answers.merge(items[["sample", by]], on="sample")
    methods = answers["method"].unique()
    table = merged.pivot_table("right", by, "method", "mean", sort=False)[methods]
    table.loc["all"] = merged.groupby("method")["right"].mean()
    table.columns.name = None
    return table.reset_index()


def unread(answers: pd.DataFrame) -> str:
    """Return how many generated answers the extractor could not read, in words; "" if there are none."""
    if "text" not in answers or not (count := int(answers["said"].isna().sum())):
        return ""
    return f"The extractor could not read {count} of {len(answers)} generated answers, which count as wrong."


def attention_by_method(attention: pd.DataFrame) -> pd.DataFrame:
    """Return the mean share of attention on each group under each method, in [0, 1]: columns method, v_sink, l_sink, ordinary, text."""
    return attention.drop(columns="sample").groupby("method", sort=False).mean().reset_index()


def changes(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task", seed: int = 0) -> pd.DataFrame:
    """Compare each method with the unmodified model, by task and over "all" items.

    Columns: those of `sinkgate.analysis.statistics.compared`, ``corrected`` (p by Holm over all rows), ``task``, ``method`` and ``needed``,
    the number of questions like these that would show one point (`questions_needed`, a test by itself).
    """
    right = answers.pivot(index="sample", columns="method", values="right").astype(np.int8)
    tasks = [("all", items["sample"]), *((str(task), rows["sample"]) for task, rows in items.groupby(by, sort=False))]
    pictures = pictures_of(items)
    tables = []
    for task, members in tasks:
        labels = None if pictures is None else pictures.loc[members]
        others, plain = right.loc[members].drop(columns=UNMODIFIED), right.loc[members, UNMODIFIED]
        needed = questions_needed(others.sub(plain, axis=0), pictures=labels)
        table = compared(others, plain, seed, labels).assign(needed=needed)
        tables.append(table.rename_axis("method").reset_index().assign(task=task))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(corrected=holm(table["p"]))


def scores(benchmark: Benchmark, items: pd.DataFrame, answers: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return every named score of a benchmark for every method, in [0, 1], and its change from the unmodified model with a 95 % interval.

    Columns score, method, value, change, low, high; the last three are 0 for the unmodified model. A score that these items do not define,
    such as that of a category of which there is none, has no rows.
    """
    frames = {str(name): items.merge(rows, on="sample") for name, rows in answers.groupby("method", sort=False)}
    shared = "picture" in items and not items["picture"].is_unique
    rows = []
    for label, score in benchmark.scores.items():
        plain = score(frames[UNMODIFIED])
        if np.isnan(plain):
            continue
        for name, frame in frames.items():
            value, pictures = score(frame), frame["picture"] if shared else None
            low, high = (0.0, 0.0)
            if name != UNMODIFIED:
                low, high = score_interval(score, frame, frames[UNMODIFIED], seed=seed, pictures=pictures)
            rows.append((label, name, value, value - plain, low, high))
    return pd.DataFrame(rows, columns=["score", "method", "value", "change", "low", "high"])
