"""CV-Bench (Tong et al. 2024, arXiv 2406.16860): 2,638 questions in four tasks, on pictures of ADE20K and COCO (2D) and Omni3D (3D).

Its card averages sources: 1/2 ((ADE20K + COCO) / 2 + Omni3D), here "official"; VLMEvalKit reports the two halves, here "2D" and "3D". lmms-eval
weights all items equally, here "micro". The sink paper does not say which one it reports; 57.29 % is no multiple of 1/2638.

The prompt is lmms-eval's: an instruction to answer with a letter, an empty line, and the data set's own prompt (question and options); VLMEvalKit
omits the instruction. Extractor "lmms-eval" is its rule: the first letter of the text, after blanks and "(", case ignored; so "bottle" is B.
"""

from __future__ import annotations

from string import ascii_uppercase

import numpy as np
import pandas as pd

from sinkgate.analysis.scores import CountedScore
from sinkgate.benchmarks.base import Benchmark, Item, among, mean_over, micro
from sinkgate.benchmarks.extraction import first_letter, letter
from sinkgate.benchmarks.reading import Row, pictures, text
from sinkgate.data import Sample
from sinkgate.errors import BenchmarkError

NOTE = "Note: You only need to respond with {} without providing any additional information.\n\n"
TASKS = ("Count", "Relation", "Depth", "Distance")
SOURCES = ("ADE20K", "COCO", "Omni3D")


def _item(row: Row) -> Item:
    choices, answer = row["choices"], text(row, "answer").strip("()")
    if not isinstance(choices, list) or not 1 < len(choices) <= len(ascii_uppercase):
        raise BenchmarkError(f"column choices is {choices!r:.60}; expected a list of options")
    letters = tuple(ascii_uppercase[: len(choices)])
    if answer not in letters:
        raise BenchmarkError(f"column answer is {answer!r}; expected one of {', '.join(letters)}, in brackets")
    question = NOTE.format(", ".join(letters)) + text(row, "prompt")
    sample = Sample(pictures(row), question, answer, text(row, "task"), letters)
    return Item(
        sample, text(row, "idx"), {name: text(row, name) for name in ("type", "source")}, tuple(map(str, choices))
    )


ADE, COCO, OMNI = (among("source", source) for source in SOURCES)


@CountedScore
def mean_2d(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the mean of the shares of right answers on ADE20K and on COCO."""
    return (ADE.of(answers, counts) + COCO.of(answers, counts)) / 2


@CountedScore
def official(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the mean of the 2D and the 3D score, as the data set's card does."""
    return (mean_2d.of(answers, counts) + OMNI.of(answers, counts)) / 2


CVBENCH = Benchmark(
    name="cvbench",
    hub="nyu-visionx/CV-Bench",
    split="test",
    patterns=("test*.parquet",),
    columns=("idx", "type", "task", "image", "choices", "answer", "prompt", "source"),
    item_of=_item,
    scores={
        "task mean": mean_over("task"),
        "official": official,
        "micro": micro,
        "2D": mean_2d,
        "3D": OMNI,
        **{task: among("task", task) for task in TASKS},
    },
    extractors={"robust": letter, "lmms-eval": first_letter(before=r"[(\s]*")},
)
