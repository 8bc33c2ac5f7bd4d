"""POPE (Li et al. 2023, arXiv 2305.10355): 9,000 questions on 500 pictures of COCO, each on the presence of an object.

3,000 each ask for absent objects drawn at random, the most popular ones, and those that often occur with the present ones ("adversarial"). "Yes" is
the positive answer. As in VLMEvalKit, an answer that is neither yes nor no does not count as "yes": it lowers recall.

The prompt is lmms-eval's: the question, and an instruction to answer with a single word or phrase. Extractors: "lmms-eval" accepts the bare word only, so
"Yes." is no answer; "official" (the authors' evaluate.py) reads every text without "no" or "not" before its first full stop as yes, "I cannot tell." too.
The questions are read from lmms-eval's files on the Hub, or from the authors' JSON lines (coco_pope_random.json ...) with the pictures of COCO
val2014 in a folder. lmms-eval's own yes ratio is that of the true answers; this one, like the authors', is that of the model's answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sinkgate.analysis.scores import CountedScore
from sinkgate.benchmarks.base import Benchmark, Item, among, micro, share
from sinkgate.benchmarks.extraction import bare, no_or_else_yes, yes_no
from sinkgate.benchmarks.reading import Row, pictures, text
from sinkgate.data import Sample
from sinkgate.data.vqa import INSTRUCTION
from sinkgate.errors import BenchmarkError

OPTIONS = ("Yes", "No")  # as models write them
CATEGORIES = ("random", "popular", "adversarial")


def _item(row: Row) -> Item:
    answer, category = text(row, "answer").capitalize(), text(row, "category").lower()
    if answer not in OPTIONS:
        raise BenchmarkError(f"column answer is {answer!r}; expected yes or no")
    sample = Sample(pictures(row), text(row, "question") + INSTRUCTION, answer, category, OPTIONS)
    return Item(sample, f"{category}/{text(row, 'question_id')}", {"category": category}, OPTIONS)


def _of_file(file: Path) -> Row:
    """Return the category in the name of an official file, such as coco_pope_popular.json."""
    category = next((each for each in CATEGORIES if each in file.stem.lower()), None)
    return {"category": category} if category else {}


def _yes(answers: pd.DataFrame, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each draw the number of items with the true answer "yes", with the model's answer "yes", and with both.

    Without a column ``said``, the model's answer is the true one if it is right, else the other of the two.
    """
    true = np.asarray(answers["answer"].str.lower() == "yes")
    answered = (
        answers["said"].str.lower() == "yes" if "said" in answers else true == np.asarray(answers["right"], dtype=bool)
    )
    return counts @ true, counts @ np.asarray(answered), counts @ (true & np.asarray(answered))


@CountedScore
def precision(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the share of answers "yes" that are right; 0 if there are none."""
    _, answered, both = _yes(answers, counts)
    return both / np.maximum(1, answered)


@CountedScore
def recall(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the share of items with the true answer "yes" that were answered so; 0 if there are none."""
    true, _, both = _yes(answers, counts)
    return both / np.maximum(1, true)


@CountedScore
def f1(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of precision and recall; 0 if one of them is 0."""
    true, answered, both = _yes(answers, counts)
    return 2 * both / np.maximum(1, true + answered)


@CountedScore
def yes_share(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the share of items that were answered with "yes"."""
    return share(_yes(answers, counts)[1], counts.sum(1))


_WHOLE = {"accuracy": micro, "precision": precision, "recall": recall, "F1": f1, "yes share": yes_share}

POPE = Benchmark(
    name="pope",
    hub="lmms-lab/POPE",
    split="test",
    patterns=("data/test-*.parquet",),
    columns=("question_id", "question", "answer", "image", "category"),
    renamed={"text": "question", "label": "answer"},
    of_file=_of_file,
    item_of=_item,
    scores=_WHOLE
    | {
        f"{name} ({category})": among("category", category, score)
        for category in CATEGORIES
        for name, score in _WHOLE.items()
    },
    extractors={"robust": yes_no, "lmms-eval": bare, "official": no_or_else_yes},
)
