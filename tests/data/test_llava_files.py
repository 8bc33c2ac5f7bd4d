"""LLaVA's format: what is read, what is skipped, and the sentence for everything else."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sinkgate import SinkgateError
from sinkgate.data import Sample, read_llava
from sinkgate.data.llava import samples_of


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def record(image="coco/a.png", talk=("<image>\nWhat is it?", "A cat."), **more):
    return {"id": "000000033471", "image": image, "conversations": turns(*talk), **more}


TEXT_ONLY = {"id": "wgByO4Y_0", "model": "", "conversations": turns("Tell a joke.", "No.")}


@pytest.fixture
def folder(tmp_path):
    for name in ("images/coco/a.png", "images/b.png", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.fixture(params=["json", "jsonl"])
def written(folder, request):
    """Writes records in one of the two forms; read back by `read_llava` with the folder's images."""

    def write(*records, **options):
        path = folder / f"train.{request.param}"
        lines = [json.dumps(each) for each in records]
        path.write_text(json.dumps(records, indent=1) if request.param == "json" else "\n".join(lines) + "\n")
        return list(read_llava(path, folder / "images", **options))

    return write


def test_images_questions_and_answers_are_read(written, folder):
    samples = written(
        record(source="vqa_v2.json"), record("b.png", ("Why?\n<image>", "So.")), record(["coco/a.png", "b.png"])
    )
    cat, other = folder / "images/coco/a.png", folder / "images/b.png"
    assert samples == [
        Sample((cat,), "What is it?", "A cat.", "vqa_v2.json"), Sample((other,), "Why?", "So."),
        Sample((cat, other), "What is it?", "A cat."),
    ]  # fmt: skip


def test_of_many_turns_the_first_or_all(written):
    talk = ("<image>\nOne?", "1", "Two?", "2", "Three?")
    assert [(s.question, s.answer) for s in written(record(talk=talk))] == [("One?", "1")]
    assert [(s.question, s.answer) for s in written(record(talk=talk), turns="all")] == [("One?", "1"), ("Two?", "2")]


def test_turns_in_context_have_those_before_them(written, folder):
    talk = ("<image>\nOne?", "1", "Two?", " ", "Three?", "3", "Four?")
    passed = Counter()
    first, third = written(record(talk=talk), turns="context", passed=passed)
    assert (first.question, first.earlier) == ("One?", ()) and passed == {"empty turn": 1}
    assert (third.question, third.answer, third.earlier) == ("Three?", "3", (("One?", "1"),))
    assert third.parts == "Three?" and third.turns == [("One?", "1")]

    both = record(["coco/a.png", "b.png"], talk=("Hi", "Hello", "<image>\nOne?", "1", "And <image>?", "2"))
    cat, other = folder / "images/coco/a.png", folder / "images/b.png"
    one, two = written(both, turns="context")
    assert (one.images, two.images) == ((cat,), (cat, other)), "no question stands before the first image"
    assert one.parts == [None, "One?"] and one.turns == [("Hi", "Hello")]
    assert two.parts == ["And ", None, "?"] and two.turns == [("Hi", "Hello"), ([None, "One?"], "1")]
    with pytest.raises(SinkgateError, match="the questions hold <image> 2 times; expected 1"):
        written({**both, "image": "b.png"}, turns="context")
    with pytest.raises(SinkgateError, match="is empty"):
        written(record(["coco/a.png", "b.png"], talk=("<image>", "1", "And <image>?", "2")), turns="context")


def test_a_broken_later_turn_does_not_discard_the_first(written):
    talk = ("<image>\nOne?", "1", "Two?", " ", "Three?", "3")
    assert [(s.question, s.answer) for s in written(record(talk=talk))] == [("One?", "1")]
    passed = Counter()
    assert [s.answer for s in written(record(talk=talk), turns="all", passed=passed)] == ["1", "3"]
    assert passed == {"empty turn": 1}
    for later in ({"from": "human", "value": None}, {"from": "gpt", "value": "again"}, "no turn"):
        spoken = {**record(), "conversations": [*turns("<image>\nOne?", "1"), later]}
        assert [s.question for s in written(spoken)] == ["One?"]
        with pytest.raises(SinkgateError, match=r"conversations\[2\]"):
            written(spoken, turns="all")


def test_places_within_a_question_are_kept(written, folder):
    both = ["coco/a.png", "b.png"]
    named = "First <image>, then <image>: which is larger?"
    samples = written(
        record(both, (named, "B")), record(both, ("<image>\n<image>\nWhich?", "B")), record(talk=("In <image>, what?", "A")),
        record(both, ("<image> or <image>", "A")), record(both, ("A: <image>\nB: <image>", "A")),
    )  # fmt: skip
    assert [sample.question for sample in samples] == [
        named, "Which?", "In <image>, what?", "<image> or <image>", "A: <image>\nB: <image>",
    ]  # fmt: skip
    assert samples[0].parts == ["First ", None, ", then ", None, ": which is larger?"]
    assert samples[1].parts == "Which?" and samples[3].parts == [None, " or ", None]
    with pytest.raises(SinkgateError, match="holds <image> 2 times; expected 1"):
        written(record(talk=("First <image>, then <image>?", "B")))


def test_turns_before_the_first_human_one_are_left_out(written):
    spoken = [{"from": "gpt", "value": "Hello."}, *turns("<image>\nOne?", "1")]
    assert [s.question for s in written({**record(), "conversations": spoken})] == ["One?"]


def test_text_only_records_are_passed_over_and_counted(written):
    passed = Counter()
    assert len(written(TEXT_ONLY, record(), {**TEXT_ONLY, "image": None}, passed=passed)) == 1
    assert passed == {"text only": 2}


BROKEN = [
    (["not", "a", "record"], ("expected an object",)),
    ({"id": 7, "picture": "b.png", "text": "Hi"}, ("(id 7)", "'conversations' is missing", "'picture', 'text'")),
    (record() | {"conversations": "Hi"}, ("'conversations' is 'Hi'", "expected a list")),
    (record() | {"conversations": [{"role": "user", "content": "Hi"}]}, ("conversations[0]", "'role'", "'from' and 'value'")),
    (record() | {"conversations": [{"from": "human", "value": 3}, *turns("a", "b")]}, ("conversations[0]", "3")),
    (record() | {"conversations": turns("a", "b")[:1] * 2}, ("conversations[1].from", "'human'", "expected 'gpt'")),
    (record(talk=()), ("has 0 turns",)),
    (record(talk=("<image>", "A cat.")), ("empty but for <image>",)),
    (record(talk=("What?", " ")), ("'conversations'", "empty")),
    ({"conversations": turns("<image>\nWhat?", "A cat."), "images": ["b.png"]}, ("'image' is missing", "'images'")),
    (record(7), ("'image' is 7", "a path or a list of paths")),
    (record(["b.png", None]), ("'image' is", "None", "list of paths")),
    (record("../secret.png"), ("'image' is '../secret.png'", "leads out")),
    (record("coco/../../secret.png"), ("leads out",)),
    (record("/etc/passwd"), ("leads out",)),
    (record(["b.png", "../secret.png"]), ("leads out",)),
    (record("coco/none.png"), ("'image' is 'coco/none.png'", "no file")),
    (record("coco"), ("no file",)),
    (record("iVBORw0KGgo" * 500), ("no file", "5,5", "base64")),
    (record("a\0b.png"), ("no file",)),
    (record("a\ud800.png"), ("no file",)),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "named"), BROKEN)
def test_a_broken_record_stops_with_its_place_or_is_counted(written, wrong, named):
    with pytest.raises(SinkgateError) as error:
        written(record(), wrong)
    assert all(part in str(error.value) for part in (*named, "train.json", " 2")), error.value
    passed = Counter()
    assert len(written(record(), wrong, record("b.png"), broken="skip", passed=passed)) == 2
    assert passed == {"missing image" if "no file" in named else "broken": 1}


def test_samples_before_a_broken_line_are_given_first(folder):
    path = folder / "train.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps(record()).encode()
        + b'\n\n{"id": 3, "conv\n\xff\n'
        + json.dumps(record("b.png")).encode()
    )
    reader = read_llava(path, folder / "images")
    assert next(reader).answer == "A cat."
    with pytest.raises(SinkgateError, match=r"train.jsonl, line 3: no JSON .*; expected one record a line"):
        next(reader)
    passed = Counter()
    assert len(list(read_llava(path, folder / "images", broken="skip", passed=passed))) == 2
    assert passed == {"broken": 2}


def test_jsonl_is_not_read_ahead(folder):
    path = folder / "train.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps(record(note="x" * 1000)) + "\n" for _ in range(3000))
    reader = read_llava(path, folder / "images")
    next(reader)
    with path.open("r+") as file:
        file.truncate(2_000_000)
    with pytest.raises(SinkgateError, match="line"):
        list(reader)


@pytest.mark.parametrize(
    ("text", "named"), [("", "no records"), (" \n\n", "no records"), ("[]", "no records"), ('[{"id": 1},', "cut short")]
)
def test_a_file_without_records(folder, text, named):
    path = folder / "train.json"
    path.write_text(text)
    with pytest.raises(SinkgateError, match=named) as error:
        list(read_llava(path, folder / "images", broken="skip"))
    assert "train.json" in str(error.value)


def test_wrong_arguments_are_told_at_once(folder):
    path = folder / "train.json"
    path.write_text(json.dumps([record()]))
    for arguments, options, named in (
        ((folder / "none.json", folder), {}, "no file"),
        ((path, folder / "none"), {}, "no folder"),
        (("x" * 5000, folder), {}, r"no file x+\.\.\. \(5,000 characters\)"),
        ((path, "x" * 5000), {}, r"no folder x+\.\.\. \(5,000 characters\)"),
        ((path, folder), {"turns": "last"}, "turns is 'last'; expected \"first\" or \"all\""),
        ((path, folder), {"broken": "ignore"}, "broken is 'ignore'"),
    ):  # fmt: skip
        with pytest.raises(SinkgateError, match=named):
            read_llava(*arguments, **options)


def test_a_relative_folder_refuses_as_well(folder, monkeypatch):
    monkeypatch.chdir(folder / "images")
    Path("train.json").write_text(json.dumps([record("b.png"), record("../secret.png")]))
    reader = read_llava("train.json", ".")
    assert next(reader).images == (folder / "images/b.png",)
    with pytest.raises(SinkgateError, match="leads out"):
        next(reader)


@given(
    st.lists(
        st.sampled_from(["..", ".", "coco", "a.png", "", "/", "b.png", "secret.png", "images"]), min_size=1, max_size=6
    )
)
def test_no_path_leads_out_of_the_folder(tmp_path_factory, parts):
    folder = tmp_path_factory.getbasetemp() / "images"
    (folder / "coco").mkdir(parents=True, exist_ok=True)
    for path in (folder / "coco/a.png", folder / "b.png", folder.parent / "secret.png", folder.parent / "a.png"):
        path.touch()
    try:
        samples = samples_of(record("/".join(parts)), folder)
    except SinkgateError:
        return
    assert all(path.resolve().is_relative_to(folder.resolve()) for sample in samples for path in sample.images)
