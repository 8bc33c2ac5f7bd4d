"""POPE (Li et al. 2023, arXiv 2305.10355): is there such an object in the picture? 9,000 questions on 500 pictures of COCO.

3,000 each ask for absent objects drawn at random, the most popular ones, and those that go along with what is there ("adversarial"). "Yes" is
the positive answer. As in VLMEvalKit, what is neither yes nor no counts as no "yes": it lowers recall.

The prompt is lmms-eval's: the question, and a line that asks for a single word or phrase. Extractors: "lmms-eval" wants the bare word, so "Yes."
is nothing; "official" (the authors' evaluate.py) takes for yes whatever holds no "no" or "not" before its first full stop, so "I cannot tell." is yes.
The questions are read from lmms-eval's files on the Hub, or from the authors' JSON lines (coco_pope_random.json ...) with the pictures of COCO
val2014 in a folder. lmms-eval's own yes ratio is that of the true answers; ours is, as the authors', of what was said.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sinkgate.benchmarks.base import Benchmark, Item, Score, among, micro
from sinkgate.benchmarks.extraction import bare, no_or_else_yes, yes_no
from sinkgate.benchmarks.reading import Row, pictures, text
from sinkgate.data import Sample
from sinkgate.errors import BenchmarkError

INSTRUCTION = "\nAnswer the question using a single word or phrase."
OPTIONS = ("Yes", "No")  # as models write them
CATEGORIES = ("random", "popular", "adversarial")


def _item(row: Row) -> Item:
    answer, category = text(row, "answer").capitalize(), text(row, "category").lower()
    if answer not in OPTIONS:
        raise BenchmarkError(f"column answer is {answer!r}; expected yes or no")
    sample = Sample(pictures(row), text(row, "question") + INSTRUCTION, answer, category, OPTIONS)
    return Item(sample, f"{category}/{text(row, 'question_id')}", {"category": category}, OPTIONS)


def _of_file(file: Path) -> Row:
    """The category in the name of an official file, such as coco_pope_popular.json."""
    category = next((each for each in CATEGORIES if each in file.stem.lower()), None)
    return {"category": category} if category else {}


def _yes(answers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Where yes is true, and where it was said. Without a column ``said`` one of the two was: the true answer where right, else the other."""
    true = np.asarray(answers["answer"].str.lower() == "yes")
    said = (
        answers["said"].str.lower() == "yes" if "said" in answers else true == np.asarray(answers["right"], dtype=bool)
    )
    return true, np.asarray(said)


def precision(answers: pd.DataFrame) -> float:
    """Share of the said "yes" that are true; 0 where none was said."""
    true, said = _yes(answers)
    return float((true & said).sum() / max(1, said.sum()))


def recall(answers: pd.DataFrame) -> float:
    """Share of the true "yes" that were said; 0 where there are none."""
    true, said = _yes(answers)
    return float((true & said).sum() / max(1, true.sum()))


def f1(answers: pd.DataFrame) -> float:
    """Harmonic mean of precision and recall; 0 where one of them is."""
    true, said = _yes(answers)
    return float(2 * (true & said).sum() / max(1, true.sum() + said.sum()))


def yes_share(answers: pd.DataFrame) -> float:
    """Share of items to which "yes" was said."""
    return float(_yes(answers)[1].mean())


_WHOLE: dict[str, Score] = {
    "accuracy": micro,
    "precision": precision,
    "recall": recall,
    "F1": f1,
    "yes share": yes_share,
}

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
