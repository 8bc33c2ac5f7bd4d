"""A survey's numbers are those of single calls, its card sums them up, and cards of models stand side by side."""

import json

import pytest
from typer.testing import CliRunner

import sinkgate as sg
from sinkgate.cli import cli
from sinkgate.data import photographs, scene_samples
from sinkgate.images.io import open_image
from sinkgate.models.session import Session
from sinkgate.models.vlm import find_sinks
from sinkgate.output import markdown
from sinkgate.studies.anatomy import Anatomy
from sinkgate.studies.runner import run
from sinkgate.studies.survey import (
    EFFECTS,
    Survey,
    card,
    compared,
    effects,
    read_card,
    samples_for,
    write_card,
)


@pytest.fixture(scope="module")
def samples():
    return list(scene_samples(4, split="test"))


@pytest.fixture(scope="module")
def results(demo, samples, tmp_path_factory):
    return run(Survey(demo, samples, layers=[2, 7], chunk=3), tmp_path_factory.mktemp("survey"), progress=False)


def test_effects_are_those_of_single_predictions(demo, samples):
    prompt = demo.prompt(samples[0].images, samples[0].parts)
    sinks = find_sinks(demo, prompt)
    rows = effects(demo, Session(demo, prompt, sinks), 0.5, [2, 7])
    plain = demo.predict(prompt).probabilities
    groups = {(row["layer"], row["group"]) for row in rows}
    assert {(2, "v_sink"), (7, "v_sink"), (2, "ordinary"), (7, "ordinary")} <= groups
    for row in rows:
        mask = getattr(sinks, row["group"])
        assert row["tokens"] == int((mask if mask.dim() == 1 else mask[row["layer"]]).sum()) > 0
        gated = demo.predict(
            prompt, sg.Gates.ones(demo).set(row["group"], 0.5, row["layer"]), sinks=sinks
        ).probabilities
        assert row["variation"] == pytest.approx(float((gated - plain).abs().sum() / 2), abs=1e-4)
        assert row["before"] == pytest.approx(float(plain.max()), abs=1e-4)
        assert row["after"] == pytest.approx(float(gated[plain.argmax()]), abs=1e-4)
        assert row["changed"] == (int(gated.argmax()) != int(plain.argmax()))
    identity = effects(demo, Session(demo, prompt, sinks), 1.0, [2])
    assert all(row["variation"] == 0 and not row["changed"] for row in identity)


def test_tables_are_the_anatomy_s_and_the_effects(demo, samples, results):
    anatomy = Anatomy(demo, samples, layers=[2, 7], chunk=4).work(0)
    for name, table in anatomy.items():
        assert results.table(name)["sample"].tolist() == table["sample"].tolist(), name
    table = results.table("effects")
    assert list(table.columns) == ["sample", *EFFECTS] and sorted(set(table["layer"])) == [2, 7]
    assert table["sample"].unique().tolist() == [0, 1, 2, 3]


def test_a_card_sums_the_tables_up(results):
    tokens, table, images = (results.table(name) for name in ("tokens", "effects", "images"))
    content = card(results)
    v_sinks = tokens[tokens["group"] == "v_sink"].groupby("layer")["per_token"].mean()
    of = content["groups"]["v_sink"]
    assert of["layer"] == v_sinks.idxmax() and of["attention_per_token"] == pytest.approx(v_sinks.max())
    means = table[table["group"] == "v_sink"].groupby("layer")["variation"].mean()
    effect = content["effects"]["groups"]["v_sink"]
    assert effect["layer"] == means.idxmax() and effect["variation"] == pytest.approx(means.max())
    assert list(effect["by_layer"]) == ["2", "7"]
    attention = images[images["criterion"] == "attention"]["v_sinks"]
    assert content["sinks"]["attention"]["v_sinks"]["mean"] == pytest.approx(attention.mean(), abs=0.01)
    assert content["sinks"]["attention"]["v_sinks"]["share_of_images"] == pytest.approx(
        (attention > 0).mean(), abs=1e-3
    )
    assert content["dimensions"]["llm"] == [] and content["data"]["samples"] == 4


def test_cards_are_read_back_and_compared(results, tmp_path):
    path = write_card(results)
    content = read_card(results.folder)
    assert content == read_card(path) == json.loads(json.dumps(card(results)))
    other = json.loads(json.dumps(content))
    other["model"]["name"], other["groups"] = "other", {}
    table = compared([content, other, content])
    assert list(table.columns) == ["demo", "other", "demo (3)"]
    assert table.loc["V-sinks: attention per token", "other"] == "" != table.loc["V-sinks: attention per token", "demo"]
    (tmp_path / "other.json").write_text(json.dumps(other))
    shown = CliRunner().invoke(cli, ["compare-models", str(results.folder), str(tmp_path / "other.json"), "--markdown"])
    table = compared([content, other])
    assert shown.exit_code == 0 and shown.stdout == markdown(["", *table.columns], table.itertuples()) + "\n"
    assert shown.stdout.startswith("|  | demo | other |\n| --- | --- | --- |\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no card of a survey.*sinkgate survey"),
        ("[]", "expected the format"),
        ('{"format": "sinkgate-survey", "version": 99}', "has version 99; this sinkgate reads up to 1"),
    ],
)
def test_what_is_no_card_gets_a_sentence(tmp_path, content, message):
    (tmp_path / "survey.json").write_text(content)
    with pytest.raises(sg.SinkgateError, match=message):
        read_card(tmp_path)


def test_a_card_that_is_not_there_is_named_once(tmp_path):
    with pytest.raises(sg.SinkgateError) as error:
        read_card(tmp_path)
    assert str(error.value).count("survey.json") == 1 and "No such file" in str(error.value)


def test_another_study_has_no_card(demo, samples, tmp_path):
    anatomy = run(Anatomy(demo, samples[:1]), tmp_path, progress=False)
    with pytest.raises(sg.SinkgateError, match="holds no finished survey"):
        card(anatomy)


def test_photographs_are_read_and_the_demo_gets_scenes(demo):
    pictures = photographs()
    assert len(pictures) == 8 and "cat" in pictures
    assert all(max(open_image(path).size) <= 400 for path in pictures.values())
    terms = (next(iter(pictures.values())).parent / "README.md").read_text()
    assert all(f"`{name}.jpg`" in terms for name in pictures)
    samples, about = samples_for(demo)
    assert len(samples) == 26 and "scenes" in about["images"]
    samples, about = samples_for(demo, questions=["How many objects are there?"])
    assert len(samples) == 8 and samples[0].images == (pictures["astronaut"],)


def test_the_command_writes_card_and_page(tmp_path):
    cat = str(photographs()["cat"])
    command = ["survey", cat, "--question", "How many objects are there?", "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(cli, command)
    assert shown.exit_code == 0, shown.output
    assert "V-sinks by attention" in shown.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Card of the model" in page and "Effect of a scale on the next token" in page
    assert read_card(tmp_path / "out")["about"]["images"] == [cat]
    refused = CliRunner().invoke(cli, ["survey", cat, "--push", "you/sinks"])
    assert isinstance(refused.exception, sg.SinkgateError) and "--out" in str(refused.exception)
