"""MMStar (Chen et al. 2024, arXiv 2403.20330): 1,500 questions that need the picture, 250 in each of six categories, 18 sub-categories.

The prompt is lmms-eval's: the question, which includes the options, and an instruction to answer with the letter (without a full stop). The paper's
scores fit lmms-eval's mean over sub-categories; VLMEvalKit weights all items equally. Some questions are padded with options "nan"; like
both harnesses we do not change them.

Extractor "lmms-eval" is the rule of its releases up to 0.7.1: the first character of the text, or the one after "(", "option " or "the answer is ", case
ignored; so "Bottle" is B. Releases from 0.7.2 rank many formats instead, which is not repeated here: run lmms-eval itself (`sinkgate.benchmarks.lmms`).
"""

from __future__ import annotations

import re

from sinkgate.benchmarks.base import Benchmark, Item, among, mean_over, micro
from sinkgate.benchmarks.extraction import first_letter, letter
from sinkgate.benchmarks.reading import Row, pictures, text
from sinkgate.data import Sample
from sinkgate.errors import BenchmarkError

LETTERS = ("A", "B", "C", "D")
INSTRUCTION = "\nAnswer with the option's letter from the given choices directly"
CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "science & technology",
    "math",
)


def _item(row: Row) -> Item:
    question, answer, category = text(row, "question"), text(row, "answer").upper(), text(row, "category")
    if answer not in LETTERS:
        raise BenchmarkError(f"column answer is {answer!r}; expected one of {', '.join(LETTERS)}")
    prompt = question.replace(" Please answer yes or no.", "") + INSTRUCTION  # as lmms-eval does
    sample = Sample(pictures(row), prompt, answer, category, LETTERS)
    columns = {"category": category, "l2_category": text(row, "l2_category")}
    return Item(sample, text(row, "index"), columns, choices_in(question))


def choices_in(question: str) -> tuple[str, ...]:
    """Return the texts of A, B, ... in a question that ends in "Options: A: one, B: two, ..." or in "(A) one (B) two ..."; () for any other."""
    for form in (r"(?:^|[,\s])([A-D]):\s", r"(?:^|\s)\(([A-D])\)\s?"):
        marks = list(re.finditer(form, question))
        first = max((index for index, mark in enumerate(marks) if mark[1] == "A"), default=0)
        marks = marks[first:]
        if len(marks) > 1 and tuple(mark[1] for mark in marks) == LETTERS[: len(marks)]:
            ends = [*(mark.start() for mark in marks[1:]), len(question)]
            return tuple(question[mark.end() : end].strip(" ,\n") for mark, end in zip(marks, ends, strict=True))
    return ()


MMSTAR = Benchmark(
    name="mmstar",
    hub="Lin-Chen/MMStar",
    split="val",
    patterns=("mmstar.parquet",),
    columns=("index", "question", "image", "answer", "category", "l2_category"),
    item_of=_item,
    scores={
        "sub-category mean": mean_over("l2_category"),
        "micro": micro,
        **{category: among("category", category, mean_over("l2_category")) for category in CATEGORIES},
    },
    extractors={
        "robust": letter,
        "lmms-eval": first_letter(before=r"(?:\(|option |the answer is )?"),
    },
)
