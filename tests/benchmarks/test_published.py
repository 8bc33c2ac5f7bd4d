"""Prompts, extractors and scores against lmms-eval's own code, where it is installed (``pip install "sinkgate[lmms]"``)."""

import importlib
from pathlib import Path

import pandas as pd
import parquet_files as files
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkgate.benchmarks import benchmark

ROWS = {"mmstar": files.mmstar, "cvbench": files.cvbench, "pope": files.pope}
FOLDER = {"mmstar": ("mmstar", "_default_template_yaml"), "cvbench": ("cv_bench", "_default_template_yaml"), "pope": ("pope", "pope.yaml")}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """The functions of a task, by our name for it."""
    pytest.importorskip("lmms_eval")
    return {name: importlib.import_module(f"lmms_eval.tasks.{folder}.utils") for name, (folder, _) in FOLDER.items()}


@pytest.mark.parametrize("name", list(ROWS))
def test_prompts_and_columns(theirs, name, tmp_path):
    folder, settings_file = FOLDER[name]
    text = (Path(theirs[name].__file__).parent / settings_file).read_text().replace("!function", "")
    options = yaml.safe_load(text)["lmms_eval_specific_kwargs"]["default"]
    to_text = getattr(theirs[name], f"{folder}_doc_to_text")
    rows = [ROWS[name](number) for number in range(6)]
    items = benchmark(name).items(files.write(tmp_path / "a.parquet", rows))
    assert [item.sample.question for item in items] == [to_text(row, options) for row in rows]


@settings(deadline=None)
@given(st.text("ABCDabcdeot(. \n)1Z", max_size=8))
def test_cvbenchs_letters(theirs, text):
    letter = theirs["cvbench"]._extract_answer_letter(text)
    assert benchmark("cvbench").extractors["lmms-eval"](text, tuple("ABCD"), ()) == (letter if letter in set("ABCD") else None)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=30))
def test_mmstars_mean(theirs, marks):
    score = theirs["mmstar"].mmstar_aggregate_results([{"l2_category": name, "score": float(right)} for name, right in marks])  # fmt: skip
    frame = pd.DataFrame(marks, columns=["l2_category", "right"])
    assert benchmark("mmstar").scores["sub-category mean"](frame) == pytest.approx(score)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["ADE20K", "COCO", "Omni3D"]), st.booleans()), max_size=30))
def test_cvbenchs_formula(theirs, marks):
    marks += [("ADE20K", True), ("COCO", False), ("Omni3D", True)]
    rows = [{"source": source, "is_correct": right} for source, right in marks]
    frame = pd.DataFrame(marks, columns=["source", "right"])
    scores = benchmark("cvbench").scores
    assert scores["official"](frame) == pytest.approx(theirs["cvbench"].cv_bench_default_aggregate_results(rows))
    assert scores["micro"](frame) == pytest.approx(theirs["cvbench"].cv_bench_aggregate_results(rows))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no"])), min_size=1, max_size=30))
def test_popes_scores(theirs, pairs):
    rows = [{"ground_truth": true, "prediction": answer, "score": float(true == answer)} for true, answer in pairs]
    frame = pd.DataFrame(pairs, columns=["answer", "said"])
    frame["right"] = frame["answer"] == frame["said"]
    for ours, name in {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "F1": "f1_score"}.items():
        score = getattr(theirs["pope"], f"pope_aggregate_{name}")(rows)
        assert benchmark("pope").scores[ours](frame) == pytest.approx(score)
