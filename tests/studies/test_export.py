"""An export holds what the single calls give, whatever the parts, and passes over what cannot be read."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sinkgate as sg
from sinkgate.cli import cli
from sinkgate.models.finder import SinkFinder
from sinkgate.scenes import Scene
from sinkgate.studies.export import Export, samples_of
from sinkgate.studies.runner import run

TABLES = ("samples", "tokens", "shares", "attention")
QUESTIONS = ("How many objects are there?", "What colors are there?")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from random import Random

    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(2):
        Scene.random(Random(seed)).render().save(folder / f"{seed}.png")
    (folder / "2.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


@pytest.fixture(scope="module")
def samples(pictures):
    return samples_of([pictures], QUESTIONS)


def test_tables_hold_what_single_calls_give(demo, samples, tmp_path):
    study = Export(demo, samples, SinkFinder("attention", "norm"), layers=[2, 5], words=2, rows=2, chunk=4)
    results = run(study, tmp_path, progress=False)
    items, tokens, shares, attention = (results.table(name) for name in TABLES)
    assert items["image"].tolist() == ["0.png", "0.png", "1.png", "1.png", "2.jpg", "2.jpg"]
    assert items["error"].isna().tolist() == [True] * 4 + [False] * 2 and items["answer"].isna().sum() == 2
    number = 3
    prompt = demo.prompt(samples[number].images, samples[number].question)
    sinks = sg.find_sinks(demo, prompt, v_sink="attention", l_sink="norm")
    trace = demo.answer(prompt, max_rows=2)
    item = items.iloc[number]
    assert item["answer"] == trace.text and item["v_sinks"] == int(sinks.v_sink.sum())
    mine = tokens[tokens["sample"] == number].reset_index(drop=True)
    frame = sinks.to_frame()
    frame = frame[frame["layer"].isin([2, 5])].reset_index(drop=True)
    assert mine["group"].tolist() == frame["group"].tolist() and mine["layer"].tolist() == frame["layer"].tolist()
    lens = sg.logit_lens(demo, prompt, layers=[2, 5], top=2)
    assert list(mine["words"][64 + 7]) == [word for word, _ in lens.words(7, 5)]
    assert mine["norm"][64 + 7] == pytest.approx(float(lens.norms[1, 7]), rel=1e-5)
    one = attention[(attention["sample"] == number) & (attention["row"] == 1) & (attention["layer"] == 5)]
    np.testing.assert_allclose(np.stack(list(one["attention"])), trace.attention[5, :, 1].numpy(), atol=1e-6)
    assert np.stack(list(one["attention"])).sum(1) == pytest.approx(1, abs=1e-5)
    part = shares[shares["sample"] == number]
    expected = trace.to_frame(sinks)
    assert part["v_sink"].tolist() == pytest.approx(expected[expected["layer"].isin([2, 5])]["v_sink"].tolist())


def test_parts_and_shards_equal_one_run(demo, samples, tmp_path):
    whole = run(Export(demo, samples, words=1, chunk=2), tmp_path / "whole", progress=False)
    for rank in (1, 0):
        from sinkgate.studies.runner import Shard

        halves = run(Export(demo, samples, words=1, chunk=2), tmp_path / "half", shard=Shard(rank, 2), progress=False)
    assert halves.finished
    for name in TABLES:
        pd.testing.assert_frame_equal(whole.table(name), halves.table(name))


def test_without_words_and_rows(demo, samples, tmp_path):
    results = run(Export(demo, samples[:1], words=0, rows=0), tmp_path, progress=False)
    assert "words" not in results.table("tokens") and not (tmp_path / "attention.parquet").exists()


def test_the_command_line(pictures, tmp_path):
    call = CliRunner().invoke
    done = call(cli, ["export", str(pictures / "0.png"), "--out", str(tmp_path / "out"), "--layers", "2", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["question"] for row in rows] == ["What is in the picture?"]
    assert set(pd.read_parquet(tmp_path / "out" / "tokens.parquet")["layer"]) == {2}


def test_wrong_places_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "folder.png").mkdir()
    for arguments, words in (
        ([str(tmp_path / "none.png"), "--out", "x"], "none.png is not there; expected a picture"),
        ([str(tmp_path / "empty"), "--out", "x"], "empty holds no picture; expected a picture"),
        ([str(tmp_path / "empty")], "--out is missing; expected the folder for the tables"),
        (["--question", "Why?", "--out", "x"], "--question asks about IMAGES"),
        ([str(tmp_path / "none.png"), "--limit", "3", "--out", "x"], "--limit is 3, and IMAGES are exported without"),
        ([str(tmp_path / "none.png"), "--data", "pope", "--out", "x"], "--data is pope, and IMAGES are exported"),
    ):
        done = CliRunner().invoke(cli, ["export", *arguments])
        assert done.exit_code == 1 and isinstance(done.exception, sg.SinkgateError) and words in str(done.exception)
