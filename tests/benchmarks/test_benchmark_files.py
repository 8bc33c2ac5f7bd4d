"""Questions from parquet files: what becomes of a row, which rows are drawn, and the sentence for everything that is wrong."""

import base64
import json
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import parquet_files as files
import pytest

from sinkgate import SinkgateError
from sinkgate.benchmarks import BENCHMARKS, Scenes, benchmark
from sinkgate.benchmarks.mmstar import choices_in
from sinkgate.data import Sample
from sinkgate.images.io import open_image
from sinkgate.scenes.questions import KINDS

ROWS = {"mmstar": files.mmstar, "cvbench": files.cvbench, "pope": files.pope}
ON_THE_HUB = {"mmstar": "mmstar.parquet", "cvbench": "test_2d.parquet", "pope": "data/test-00000-of-00003.parquet"}


@pytest.fixture(params=list(ROWS))
def name(request):
    return request.param


@pytest.fixture
def written(tmp_path, name):
    """Writes rows of a benchmark where the Hub has them."""

    def write(*numbers, change=None):
        rows = [ROWS[name](number) for number in numbers]
        for row in rows:
            row.update(change or {})
        return files.write(tmp_path / "hub" / ON_THE_HUB[name], rows)

    return write


def ids(items):
    return [item.id for item in items]


# --- rows


def test_mmstar(tmp_path):
    (item,) = benchmark("mmstar").items(files.write(tmp_path / "a.parquet", [files.mmstar(3)]))
    question = "Which animal is number 3?\nOptions: A: cat, B: dog, C: a hot dog, D: nan\nAnswer with the option's letter from the given choices directly"
    assert item.sample == Sample((files.png(),), question, "D", "coarse perception", ("A", "B", "C", "D"))
    assert item.id == "3" and item.columns == {"category": "coarse perception", "l2_category": "image emotion"}
    assert item.choices == ("cat", "dog", "a hot dog", "nan")


@pytest.mark.parametrize(
    ("question", "choices"),
    [
        ("Who?\nOptions: A: Ann, Bob, B: Cy, C: a, b, D: no", ("Ann, Bob", "Cy", "a, b", "no")),
        (
            "Who?\nOptions: A: Ann, B: Cy, C: not B: Cy, D: no",
            (),
        ),  # a letter again inside an option: nothing is made up
        ("Hint: pick\nQuestion: Who?\nChoices:\n(A) Ann\n(B) Bob", ("Ann", "Bob")),
        ("Who?\n(A) 45°\n(B) 60°\n(C) 90°\n(D) 2, 3", ("45°", "60°", "90°", "2, 3")),
        ("Point A: where?\nOptions: A: here, B: there", ("here", "there")),
        ("Who? Options A B C D", ()),
        ("", ()),
    ],
)
def test_what_mmstars_letters_stand_for(question, choices):
    assert choices_in(question) == choices


def test_cvbench(tmp_path):
    (item,) = benchmark("cvbench").items(files.write(tmp_path / "a.parquet", [files.cvbench(2)]))
    question = (
        "Note: You only need to respond with A, B, C without providing any additional information.\n\n"
        "Which is closer? Select from the following choices.\n(A) chair\n(B) table\n(C) bottle"
    )
    assert item.sample == Sample((files.png(),), question, "C", "Depth", ("A", "B", "C"))
    assert item.columns == {"type": "3D", "source": "Omni3D"} and item.choices == ("chair", "table", "bottle")


def test_pope(tmp_path):
    (item,) = benchmark("pope").items(files.write(tmp_path / "a.parquet", [files.pope(4)]))
    question = "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    assert item.sample == Sample((files.png(),), question, "Yes", "popular", ("Yes", "No"))
    assert item.id == "popular/1" and item.columns == {"category": "popular"}


def test_popes_own_json_lines(tmp_path):
    images = tmp_path / "val2014"
    images.mkdir()
    (images / "COCO_val2014_000000310196.jpg").write_bytes(files.png())
    lines = [
        {
            "question_id": number,
            "image": "COCO_val2014_000000310196.jpg",
            "text": f"Is there a {name}?",
            "label": answer,
        }
        for number, (name, answer) in enumerate([("dog", "yes"), ("cat", "no")], 1)
    ]
    for category in ("random", "popular"):
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / f"coco_pope_{category}.json").write_text(text)
    items = benchmark("pope").items(tmp_path, images=images)
    assert [(item.id, item.sample.answer, item.columns["category"]) for item in items] == [
        ("popular/1", "Yes", "popular"), ("popular/2", "No", "popular"), ("random/1", "Yes", "random"), ("random/2", "No", "random")
    ]  # fmt: skip
    assert items[0].sample.question == "Is there a dog?\nAnswer the question using a single word or phrase."
    assert open_image(items[0].sample.images[0]).size == (4, 4)
    with pytest.raises(SinkgateError, match=r"is a name.*--images"):
        benchmark("pope").items(tmp_path)
    with pytest.raises(SinkgateError, match="there is no such file in"):
        benchmark("pope").items(tmp_path / "coco_pope_random.json", images=tmp_path)
    (tmp_path / "questions.json").write_text(text)
    with pytest.raises(SinkgateError, match="no column category; found question_id, image, text, label"):
        benchmark("pope").items(tmp_path / "questions.json", images=images)
    for leaving in ("../val2014/COCO_val2014_000000310196.jpg", str(images / "COCO_val2014_000000310196.jpg")):
        (tmp_path / "coco_pope_random.json").write_text(json.dumps({**lines[0], "image": leaving}))
        with pytest.raises(SinkgateError, match="there is no such file in"):
            benchmark("pope").items(tmp_path / "coco_pope_random.json", images=images)


def test_a_json_list_is_read_like_lines_and_a_broken_one_is_named(tmp_path):
    rows = [{"question_id": 1, "question": "Is there a dog?", "answer": "no", "category": "random", "image": "a.png"}]
    (tmp_path / "a.png").write_bytes(files.png())
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (item,) = benchmark("pope").items(tmp_path / "a.json", images=tmp_path)
    assert item.id == "random/1" and item.sample.images == (tmp_path / "a.png",)
    (tmp_path / "a.json").write_text('[{"question_id": 1, "quest')
    with pytest.raises(SinkgateError, match=r"a\.json cannot be read as JSON: "):
        benchmark("pope").items(tmp_path / "a.json", images=tmp_path)


def test_a_bad_row_stops_with_its_line_or_is_counted(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(files.png()).decode()
    good = {"question_id": 1, "text": "Is there a dog?", "label": "no", "image": url, "objects": ["a", 1]}
    bad = [
        '{"question_id": 2, "te',
        "[1]",
        json.dumps({**good, "label": "perhaps"}),
        json.dumps({**good, "image": "a.png"}),
    ]
    for number, line in enumerate(bad):
        path = tmp_path / f"coco_pope_random_{number}.json"
        path.write_text("\n".join([json.dumps(good), line, json.dumps({**good, "question_id": 3, "objects": 4})]))
        with pytest.raises(SinkgateError, match=rf"pope: coco_pope_random_{number}\.json, line 2: "):
            benchmark("pope").items(path)
        passed = Counter()
        items = benchmark("pope").items(path, broken="skip", passed=passed)
        assert ids(items) == ["random/1", "random/3"] and passed == {"broken": 1}
        assert items[0].sample.images == (url,)


def test_pictures_stay_as_they_are_stored_where_the_hub_marks_them_as_images(tmp_path):
    """Such files would be decoded by datasets."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([files.mmstar(number) for number in range(3)])
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    assert [item.sample.images for item in benchmark("mmstar").items(tmp_path / "a.parquet")] == [(files.png(),)] * 3


def test_a_folder_with_a_name_like_a_pattern(tmp_path):
    path = files.write(tmp_path / "data[1] *" / "a.parquet", [files.mmstar(0)])
    assert ids(benchmark("mmstar").items(path)) == ["0"]


def test_without_datasets(tmp_path, monkeypatch):
    path = files.write(tmp_path / "a.parquet", [files.mmstar(0)])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        SinkgateError, match=r'reading a benchmark needs datasets: run `pip install "sinkgate\[studies\]"`'
    ):
        benchmark("mmstar").items(path)


def test_pictures_open_and_equal_ones_are_held_once(tmp_path):
    items = benchmark("pope").items(files.write(tmp_path / "a.parquet", map(files.pope, range(12))))
    assert len({id(item.sample.images[0]) for item in items}) == 2
    assert open_image(items[0].sample.images[0]).size == (4, 4)


@pytest.mark.parametrize("image", [files.png(), [files.png()], [{"bytes": files.png(), "path": None}]])
def test_pictures_as_bytes_or_lists(tmp_path, image):
    (item,) = benchmark("mmstar").items(files.write(tmp_path / "a.parquet", [files.mmstar(0, image=image)]))
    assert item.sample.images == (files.png(),)


def test_several_pictures_of_one_question(tmp_path):
    pictures = [files.png("red"), files.png("blue")]
    (item,) = benchmark("mmstar").items(files.write(tmp_path / "a.parquet", [files.mmstar(0, image=pictures)]))
    assert item.sample.images == tuple(pictures)


# --- which rows


def test_a_file_or_a_folder_as_the_hub_lays_it_out_or_any_folder(written, name, tmp_path):
    path = written(0, 1, 2)
    spare = files.write(path.parent / "spare" / "other.parquet", [ROWS[name](9)])
    expected = benchmark(name).items(path)
    assert benchmark(name).items(str(path)) == expected == benchmark(name).items(tmp_path / "hub")
    assert ids(benchmark(name).items(spare.parent)) == ids(benchmark(name).items(spare))


def test_files_follow_each_other(tmp_path):
    for start in (0, 30):
        files.write(
            tmp_path / f"test_{start:02}.parquet", map(files.cvbench, range(start, start + 30)), row_group_size=7
        )
    assert ids(benchmark("cvbench").items(tmp_path)) == [str(number) for number in range(60)]


def test_a_larger_limit_holds_a_smaller_one_and_draws_anywhere(tmp_path):
    path = files.write(tmp_path / "a.parquet", map(files.mmstar, range(50)))
    drawn = [ids(benchmark("mmstar").items(path, limit, seed=3)) for limit in (1, 5, 20, 50, 99)]
    assert [len(each) for each in drawn] == [1, 5, 20, 50, 50]
    assert all(set(few) <= set(many) for few, many in pairwise(drawn))
    assert all(each == sorted(each, key=int) for each in drawn)
    assert drawn[1] != ids(benchmark("mmstar").items(path, 5, seed=4))
    assert max(map(int, drawn[2])) > 20


# --- what is wrong


def test_a_missing_column(written, name):
    path = written(0)
    table = files.parquet.read_table(path).drop_columns(["image", "answer"])
    files.parquet.write_table(table, path)
    with pytest.raises(SinkgateError, match=r"no column .*(answer|image).*; found .*question.*, expected .*image"):
        benchmark(name).items(path)


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "1.png"}, {"bytes": b"", "path": "1.png"}, []])
def test_a_missing_image(tmp_path, name, image):
    rows = [ROWS[name](0), ROWS[name](1, image=image)]
    if isinstance(image, list):
        rows[0]["image"] = [files.png()]
    path = files.write(tmp_path / "a.parquet", rows)
    with pytest.raises(
        SinkgateError, match=rf"{name}: a.parquet, row 1 \(from 0\): the image in column image is missing"
    ):
        benchmark(name).items(path)


@pytest.mark.parametrize("answer", ["Z", "(Z)", "perhaps", None, " "])
def test_an_answer_that_is_no_option(tmp_path, name, answer):
    path = files.write(tmp_path / "a.parquet", [ROWS[name](0, answer=answer), ROWS[name](1)])
    with pytest.raises(SinkgateError, match=rf"{name}: a.parquet, row 0 \(from 0\): column answer is .*expected"):
        benchmark(name).items(path)


@pytest.mark.parametrize("choices", [None, [], ["one"], "A"])
def test_choices_that_are_none(tmp_path, choices):
    path = files.write(tmp_path / "a.parquet", [files.cvbench(0, choices=choices)])
    with pytest.raises(SinkgateError, match=r"row 0 \(from 0\): column choices is .*expected a list of options"):
        benchmark("cvbench").items(path)


def test_an_item_that_is_there_twice(tmp_path, name):
    files.write(tmp_path / "a.parquet", [ROWS[name](0), ROWS[name](1)])
    files.write(tmp_path / "b.parquet", [ROWS[name](1)])
    with pytest.raises(SinkgateError, match=r"b.parquet, row 0 \(from 0\): item \S+ occurs twice"):
        benchmark(name).items(tmp_path)


def test_an_empty_table(written, name):
    path = written(0)
    files.parquet.write_table(files.parquet.read_table(path).slice(0, 0), path)
    with pytest.raises(SinkgateError, match="there are no rows; is the split empty"):
        benchmark(name).items(path)


def test_no_parquet_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(SinkgateError, match=r"a\.parquet cannot be read as Parquet: "):
        benchmark("mmstar").items(tmp_path / "a.parquet")


def test_a_file_cut_short(tmp_path):
    path = files.write(tmp_path / "a.parquet", map(files.mmstar, range(20)))
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes(len(data) // 2) + data[200 + len(data) // 2 :])
    with pytest.raises(SinkgateError, match=r"a\.parquet"):
        benchmark("mmstar").items(path)


def test_no_files_and_no_place(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SinkgateError, match=r"holds no Parquet or JSON files; expected mmstar\.parquet"):
        benchmark("mmstar").items(tmp_path)
    with pytest.raises(SinkgateError, match="there is no file or folder"):
        benchmark("mmstar").items(tmp_path / "nothing")


@pytest.mark.parametrize("limit", [0, -3])
def test_limits_below_one(name, limit):
    with pytest.raises(SinkgateError, match=f"limit is {limit}; expected 1 or more"):
        benchmark(name).items("nowhere", limit)


def test_unknown_names():
    with pytest.raises(SinkgateError, match="'mmbench'; there are: mmstar, cvbench, pope, scenes"):
        benchmark("mmbench")
    (item,) = benchmark("scenes").items(limit=1)
    with pytest.raises(SinkgateError, match="scenes has no extractor 'lmms-eval'; there are: robust"):
        benchmark("scenes").read(item, "red", "lmms-eval")


# --- scenes


def test_scenes_are_open_questions_of_every_kind():
    items = benchmark("scenes").items(limit=13)
    assert {item.sample.kind for item in items} == set(KINDS)
    assert all(item.columns == {"scope": KINDS[item.sample.kind].scope} for item in items)
    assert all(item.sample.options == () for item in items)
    assert benchmark("scenes").read(items[0], f" {items[0].sample.answer.title()}. ") == items[0].sample.answer
    assert open_image(items[0].sample.images[0]).size == (128, 128)


def test_scenes_by_seed_split_and_haze():
    first = benchmark("scenes").items(limit=4)
    assert benchmark("scenes").items(limit=6)[:4] == first
    assert benchmark("scenes").items(limit=4, seed=1) != first
    base = BENCHMARKS["scenes"]
    assert isinstance(base, Scenes)
    hazed, other = Scenes(**{**vars(base), "haze": (0.6, 0.6)}), Scenes(**{**vars(base), "split": "train"})
    assert [item.sample.question for item in other.items(limit=4)] != [item.sample.question for item in first]

    def contrast(items):
        return np.mean([np.std(open_image(item.sample.images[0])) for item in items])

    assert contrast(hazed.items(limit=4)) < 0.6 * contrast(first)


def test_scenes_are_not_read():
    with pytest.raises(SinkgateError, match="scenes are drawn, not read"):
        benchmark("scenes").items("folder")
