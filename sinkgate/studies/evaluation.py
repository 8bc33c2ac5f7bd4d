"""Methods examined on a benchmark: what each says to every item, and how the scores change with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch

from sinkgate.analysis.statistics import compared, holm, score_interval
from sinkgate.benchmarks import Benchmark, Item
from sinkgate.errors import SinkgateError
from sinkgate.methods import Method, finder_of
from sinkgate.models.vlm import VLM, Finder
from sinkgate.studies.base import OfItems, finder_settings, frame_of, ready
from sinkgate.studies.runner import Tables
from sinkgate.training.dataset import Lessons, batches
from sinkgate.training.evaluation import evaluate

#: "forced": the most probable of the options, or, where there are none, whether greedy decoding would write the answer; one forward.
#: "written": the greedy answer in full, read by the benchmark's extractor; what public harnesses do.
Asking = Literal["forced", "written"]
BASE = "unmodified"


@dataclass(frozen=True)
class Examination(OfItems):
    """Every method on every item; one of them has to be called "unmodified".

    ``extractor``: which of the benchmark's rules reads written answers. ``chunk``: items side by side in a forward, and in a part of the
    results. ``find`` finds the sinks; by the methods' own criterion where None. ``origins``: a checksum of what a method was read from. ``about``: what else is to be told.
    """

    kind: ClassVar[str] = "eval"
    vlm: VLM
    benchmark: Benchmark
    items: Sequence[Item]
    methods: Mapping[str, Method]
    asking: Asking = "forced"
    extractor: str = "robust"
    max_new_tokens: int = 32
    chunk: int = 16
    find: Finder | None = None
    origins: Mapping[str, str | None] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if BASE not in self.methods:
            raise SinkgateError(f"methods are {', '.join(self.methods)}; expected one called {BASE!r} among them")
        if self.asking not in get_args(Asking):
            raise SinkgateError(f"asking is {self.asking!r}; expected {' or '.join(get_args(Asking))}")
        if self.asking == "written" and self.extractor not in self.benchmark.extractors:
            known = ", ".join(self.benchmark.extractors)
            raise SinkgateError(f"{self.benchmark.name} has no extractor {self.extractor!r}; there are: {known}")

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        told = {
            "methods": list(self.methods),
            "asking": self.asking,
            "chunk": self.chunk,
            **finder_settings(self.finder, self.vlm),
        }
        if self.asking == "written":
            told |= {"extractor": self.extractor, "max_new_tokens": self.max_new_tokens}
        return {**told, **({"origins": dict(self.origins)} if self.origins else {})}

    @property
    def finder(self) -> Finder:
        """The finder of sinks: ``find``, else by the criterion of the methods."""
        return self.find or finder_of(self.methods.values())

    @property
    def data(self) -> dict[str, Any]:
        """See `OfItems`; with the benchmark."""
        return {"benchmark": self.benchmark.name, **super().data}

    def work(self, unit: int) -> Tables:
        """Tables ``items`` and ``answers`` of one chunk; raises SinkgateError where an item cannot be asked."""
        start = unit * self.chunk
        part = self.items[start : start + self.chunk]
        lessons = Lessons(self.vlm, self.finder)
        ask = self._forced if self.asking == "forced" else self._written
        numbers = np.arange(start, start + len(part), dtype=np.int32)
        answers = [
            pd.DataFrame({"sample": numbers, "method": name, **told}) for name, told in ask(part, lessons).items()
        ]
        return {"items": frame_of(part, lessons, start), "answers": pd.concat(answers, ignore_index=True)}

    def _forced(self, part: Sequence[Item], lessons: Lessons) -> dict[str, dict[str, Any]]:
        ready(lessons, part)
        samples = [item.sample for item in part]
        marks = evaluate(self.vlm, self.methods, samples, lessons=lessons, batch_size=self.chunk, progress=False)
        return {
            name: {
                "said": marks.said[name],
                "right": marks.right[name],
                "loss": np.array(marks.loss[name], dtype=np.float32),
            }
            for name in self.methods
        }

    def _written(self, part: Sequence[Item], lessons: Lessons) -> dict[str, dict[str, Any]]:
        vlm = self.vlm
        made = ready(lessons, part)
        texts: dict[str, list[str]] = {name: [] for name in self.methods}
        for chosen, _ in batches(vlm, made):
            batch = vlm.batch([lesson.prompt for lesson in made[chosen]], [lesson.sinks for lesson in made[chosen]])
            for name, method in self.methods.items():
                with torch.no_grad(), method.applied(vlm, batch):
                    ids = vlm.model.generate(
                        **batch.inputs,
                        max_new_tokens=vlm.new_tokens(batch.length, self.max_new_tokens),
                        do_sample=False,
                        num_beams=1,
                    )
                texts[name] += vlm.tokenizer.batch_decode(ids[:, batch.length :], skip_special_tokens=True)
        answers = {}
        for name, told in texts.items():
            said = [self.benchmark.read(item, text, self.extractor) for item, text in zip(part, told, strict=True)]
            true = [self.benchmark.read(item, item.sample.answer) for item in part]
            right = [word == answer for word, answer in zip(said, true, strict=True)]
            answers[name] = {"text": [text.strip() for text in told], "said": said, "right": right}
        return answers


# --- reading the results


def accuracies(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task") -> pd.DataFrame:
    """Share of right answers: a row a task and one for "all", a column a method."""
    told = answers.merge(items[["sample", by]], on="sample")
    methods = answers["method"].unique()
    table = told.pivot_table("right", by, "method", "mean", sort=False)[methods]
    table.loc["all"] = told.groupby("method")["right"].mean()
    table.columns.name = None
    return table.reset_index()


def changes(items: pd.DataFrame, answers: pd.DataFrame, by: str = "task", seed: int = 0) -> pd.DataFrame:
    """Each method against the unmodified model, by task and over "all" items: the columns of `sinkgate.analysis.statistics.compared`,
    ``corrected``, p by Holm over all rows, with ``task`` and ``method``."""
    right = answers.pivot(index="sample", columns="method", values="right").astype(np.int8)
    tasks = [("all", items["sample"]), *((str(task), rows["sample"]) for task, rows in items.groupby(by, sort=False))]
    tables = [
        compared(right.loc[chosen].drop(columns=BASE), right.loc[chosen, BASE], seed)
        .rename_axis("method")
        .reset_index()
        .assign(task=task)
        for task, chosen in tasks
    ]
    found = pd.concat(tables, ignore_index=True)
    return found.assign(corrected=holm(found["p"]))


def scores(benchmark: Benchmark, items: pd.DataFrame, answers: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Every named score of a benchmark for every method, in [0, 1], and its change from the unmodified model with a 95 % interval.

    Columns score, method, value, change, low, high; the last three are 0 for the unmodified model. A score that these items do not define,
    such as that of a category of which there is none, has no rows.
    """
    frames = {str(name): items.merge(rows, on="sample") for name, rows in answers.groupby("method", sort=False)}
    rows = []
    for label, score in benchmark.scores.items():
        plain = score(frames[BASE])
        if np.isnan(plain):
            continue
        for name, frame in frames.items():
            value = score(frame)
            low, high = (0.0, 0.0) if name == BASE else score_interval(score, frame, frames[BASE], seed=seed)
            rows.append((label, name, value, value - plain, low, high))
    return pd.DataFrame(rows, columns=["score", "method", "value", "change", "low", "high"])
