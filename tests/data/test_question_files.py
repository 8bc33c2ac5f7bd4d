"""VQA v2 and GQA as their authors publish them; rows of data sets; data URLs."""

import base64
import json
from collections import Counter

import parquet_files
import pytest

import sinkgate as sg
from sinkgate.data import Sample, read_llava, read_questions
from sinkgate.data.vqa import INSTRUCTION, is_question_file
from sinkgate.errors import SinkgateError
from sinkgate.images.io import open_image

ABOUT = {
    "info": {"description": "This is v2.0 of the VQA dataset.", "year": 2017},
    "license": {"url": "http://creativecommons.org/licenses/by/4.0/"},
}


@pytest.fixture
def folder(tmp_path):
    for name in ("COCO_val2014_000000262148.jpg", "000000393225.jpg", "n161313.jpg"):
        (tmp_path / name).write_bytes(parquet_files.png())
    return tmp_path


@pytest.fixture
def vqa(folder):
    """Files of VQA v2, and their path."""

    def write(questions=None, answers=None):
        rows = [(262148, 262148000, "Where is he looking?"), (393225, 393225001, "Is it daytime?")]
        listed = [{"image_id": image, "question_id": number, "question": text} for image, number, text in rows]
        annotated = [
            {
                "question_type": "none of the above", "multiple_choice_answer": answer, "image_id": image, "answer_type": kind,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}], "question_id": number,
            }
            for (image, number, _), answer, kind in zip(rows, ("down", "yes"), ("other", "yes/no"), strict=True)
        ]  # fmt: skip
        path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
        more = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014"}
        path.write_text(json.dumps({**ABOUT, **more, "questions": listed if questions is None else questions}))
        content = {**ABOUT, "annotations": annotated if answers is None else answers}
        (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(content))
        return path

    return write


def test_vqa_v2(vqa, folder):
    path = vqa()
    assert is_question_file(path) and not is_question_file(folder / "v2_mscoco_val2014_annotations.json")
    first, second = read_questions(path, folder)
    picture = folder / "COCO_val2014_000000262148.jpg"
    assert first == Sample((picture,), f"Where is he looking?{INSTRUCTION}", "down", "other")
    assert second.images == (folder / "000000393225.jpg",) and (second.answer, second.kind) == ("yes", "yes/no")
    named = read_questions(path, folder, folder / "v2_mscoco_val2014_annotations.json")
    assert next(named) == first


def test_gqa(folder):
    path = folder / "testdev_balanced_questions.json"
    row = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "bird (775)"}],
        "question": "Is the bird blue?", "imageId": "n161313", "isBalanced": True, "groups": {"global": None, "local": "06-b"},
        "answer": "no", "types": {"semantic": "attr", "structural": "verify", "detailed": "verifyAttr"}, "fullAnswer": "No, it is red.",
    }  # fmt: skip
    path.write_text(json.dumps({"201307251": row, "20130": {**row, "imageId": "n2"}}))
    assert is_question_file(path)
    passed: Counter[str] = Counter()
    (sample,) = read_questions(path, folder, broken="skip", passed=passed)
    assert sample == Sample((folder / "n161313.jpg",), f"Is the bird blue?{INSTRUCTION}", "no", "verify")
    assert passed == {"missing image": 1}
    with pytest.raises(SinkgateError, match=r"question '20130': there is no file n2\.jpg"):
        list(read_questions(path, folder))
    with pytest.raises(
        SinkgateError, match=r"annotations are answers\.json, but .*, of GQA, has its answers; leave them"
    ):
        read_questions(path, folder, "answers.json")


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([{"image_id": 262148, "question": "Why?", "question_id": 1}], None, "question 1: field 'answer' is None"),
        ([{"question": "Why?", "question_id": 262148000}], None, "there is no file no image_id"),
        (["Why?"], None, "question None: field 'question' is None"),
        ([], None, "holds no questions"),
        (None, {}, "holds no annotations"),
    ],
)
def test_a_wrong_question_is_named(vqa, folder, questions, answers, message):
    with pytest.raises(SinkgateError, match=message):
        list(read_questions(vqa(questions, answers), folder))


def test_files_of_another_form(folder):
    for text, message in (("[1]", "holds [1]"), ('{"questions"', "is no JSON"), ("{}", "holds no questions")):
        (folder / "a.json").write_text(text)
        with pytest.raises(SinkgateError) as raised:
            list(read_questions(folder / "a.json", folder))
        assert message in str(raised.value)
    with pytest.raises(SinkgateError, match="there is no file none"):
        read_questions("none.json", folder)


def test_rows_of_a_data_set_are_samples(tiny):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": {"bytes": parquet_files.png(color), "path": None}, "question": "red?", "answer": "yes"}
        for color in ("red", "blue")
    ]
    stored = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    samples = Sample.list_of(stored)
    assert [open_image(sample.images[0]).getpixel((0, 0)) for sample in samples] == [(255, 0, 0), (0, 0, 255)]
    result = sg.evaluate(tiny, {"one": sg.methods.Fixed(sg.Gates.ones(tiny))}, stored, progress=False)
    assert len(result.right["one"]) == 2
    two = Sample.of(
        {"images": [parquet_files.png()] * 2, "question": "A <image> or <image>?", "answer": 2, "options": ["1", "2"]}
    )
    assert len(two.images) == 2 and two.parts == ["A ", None, " or ", None, "?"]
    assert (two.answer, two.options, two.kind) == ("2", ("1", "2"), "")
    with pytest.raises(SinkgateError, match="a row has the columns question, image; expected"):
        Sample.of({"question": "Why?", "image": b""})


def test_data_urls_are_pictures(folder):
    url = "data:image/png;base64," + base64.b64encode(parquet_files.png("blue")).decode()
    assert open_image(url).getpixel((0, 0)) == (0, 0, 255)
    record = {
        "image": url,
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Blue."}],
    }
    (folder / "a.json").write_text(json.dumps([record]))
    (sample,) = read_llava(folder / "a.json", folder)
    assert sample.images == (url,) and sample.question == "What?"
