"""Cambrian-7M: the category of a source, and a choice that is balanced, seeded and honest about what is missing."""

import json
import sys
from collections import Counter
from runpy import run_path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkgate.data.cambrian as cambrian_module
from sinkgate import SinkgateError
from sinkgate.data import category_of, read_cambrian
from sinkgate.data.cambrian import CATEGORIES, SOURCES, source_name

pytest.importorskip("datasets")

#: As they stand in the published file, with an image path as it stands there.
REAL = {
    ("docvqa_39k.json", "docvqa/1.png"): "ocr", ("chartqa_28k.json", "chartqa/1.png"): "ocr",
    ("random_3rd_dvqa_2325k.json", "dvqa/images/1.png"): "ocr", ("synthdog_500k_modified.json", "synthdog/1.jpg"): "ocr",
    ("ai2d_15k.json", "ai2d/1.png"): "ocr", ("idefics375k.json", "hfdata/st_vqa/1.jpg"): "ocr",
    ("sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json", "coco/1.jpg"): "general",
    ("lnqa_302k.json", "lnqa/1.jpg"): "general", ("lvis_instruct4v_220k.json", "coco/1.jpg"): "general",
    ("allava-laion-500k.json", "allava/1.jpg"): "general", ("idefics375k.json", "hfdata/visual7w/1.jpg"): "general",
    ("gpt77k.json", "clevr/1.png"): "general", ("clevr_700k.json", "clevr/1.png"): "counting",
    ("tallyqa_250k.json", "tallyqa/1.jpg"): "counting", ("websight_800k.json", "websight/1.png"): "code",
    ("idefics375k.json", "hfdata/datikz/1.png"): "code", ("design2code_0k.json", "design2code/1.png"): "code",
    ("geo170k.json", "geo170k/1.png"): "math", ("mathvision_3k.json", "mathvision/1.jpg"): "math",
    ("idefics375k.json", "hfdata/raven/1.jpg"): "math", ("idefics375k.json", "hfdata/tqa/1.jpg"): "math",
    ("pathvqa_32k.json", "pathvqa/1.jpg"): "science", ("scienceqa_12k.json", "scienceqa/1.png"): "science",
    ("filtered_data_engine_161k.json", "data_engine/1.png"): "science",
}  # fmt: skip


@pytest.mark.parametrize(("named", "category"), REAL.items())
def test_published_sources_have_their_category(named, category):
    assert category_of(*named) == category


@given(
    st.sampled_from(sorted({(n, c) for c, names in SOURCES.items() for n in names})),
    st.integers(0, 9999),
    st.sampled_from(["", ".json", ".jsonl"]),
)
def test_size_and_extension_do_not_matter(entry, size, extension):
    name, category = entry
    for written in (name, f"{name}_{size}k", f"{name}_{size}"):
        assert source_name(written + extension) == name and category_of(written + extension) == category


@given(st.text(), st.text())
def test_every_source_has_a_category(source, image):
    assert category_of(source, image) in CATEGORIES


def test_no_data_set_is_in_two_categories():
    names = [name for listed in SOURCES.values() for name in listed]
    assert len(names) == len(set(names)) and not set(SOURCES) - set(CATEGORIES)


def line(number, source, image, **change):
    talk = [{"from": "human", "value": f"<image>\nQuestion {number}?"}, {"from": "gpt", "value": f"Answer {number}"}]
    # ids are numbers and words, images paths and lists, and some fields are missing: as a column of one type could not be
    return {
        "id": number if number % 2 else str(number),
        "image": image,
        "conversations": talk,
        "source": source,
        **change,
    }


@pytest.fixture
def cambrian(tmp_path):
    """Twenty records of each published source, their images, and two records of text alone."""
    lines = []
    for (source, image), _ in REAL.items():
        path = tmp_path / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        lines += [line(len(lines) + i, source, image) for i in range(20)]
    lines[3]["image"] = [lines[3]["image"]]
    text = line(9001, "orca_994k.json", None)
    text["conversations"][0]["value"] = "Hello"
    lines += [text, {name: value for name, value in text.items() if name != "image"}]

    def read(edit=lambda lines: lines, **options):
        written = edit([json.dumps(each) for each in lines])
        (tmp_path / "cambrian.jsonl").write_text("".join(f"{each}\n" for each in written))
        return read_cambrian(tmp_path / "images", tmp_path / "cambrian.jsonl", **options)

    return read


def lengths_of(samples):
    return [(sample.kind, sample.question) for sample in samples]


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 100), seed=st.integers(0, 9))
def test_any_first_samples_are_balanced_and_the_choice_of_fewer(tmp_path_factory, count, seed):
    folder = tmp_path_factory.getbasetemp() / "balanced"
    folder.mkdir(exist_ok=True)
    (folder / "1.png").touch()
    names = [listed[0] for listed in SOURCES.values()] + ["lnqa"]
    lines = [json.dumps(line(i, names[i % 6], "1.png")) for i in range(200)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    samples = read_cambrian(folder, folder / "train.jsonl", count=count, seed=seed)
    assert len(samples) == count == len(set(lengths_of(samples)))
    for n in range(1, count + 1):
        kinds = Counter(sample.kind for sample in samples[:n])
        assert max(kinds.values()) - min(kinds[category] for category in CATEGORIES) <= 1
    fewer = max(1, count // 2)
    assert read_cambrian(folder, folder / "train.jsonl", count=fewer, seed=seed) == samples[:fewer]


def test_the_seed_decides_and_neither_order_nor_repetition_does(cambrian):
    first = cambrian(count=60)
    assert cambrian(count=60) == first
    assert cambrian(lambda lines: lines[::-1], count=60) == first
    assert cambrian(lambda lines: [each for each in lines for _ in range(2)], count=60) == first
    assert set(lengths_of(cambrian(count=60, seed=1))) != set(lengths_of(first))


def test_the_choice_is_uniform(tmp_path):
    """Of 20 records, each of 150 seeds takes 5: every record is taken about 37.5 times."""
    (tmp_path / "1.png").touch()
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(line(i, "clevr", "1.png")) for i in range(20)))
    taken = Counter()
    for seed in range(150):
        taken.update(
            s.question
            for s in read_cambrian(tmp_path, tmp_path / "train.jsonl", count=5, seed=seed, categories=["counting"])
        )
    assert len(taken) == 20 and min(taken.values()) > 15 and max(taken.values()) < 60  # 4.2 standard deviations


def test_what_is_passed_over_is_counted(cambrian, tmp_path):
    (tmp_path / "images/geo170k").mkdir(parents=True, exist_ok=True)
    passed = Counter()
    bad = ["{", json.dumps({"id": 1, "conversations": []}), json.dumps([1]), json.dumps(line(1, "clevr", "../x.png"))]
    gone = [json.dumps(line(8000 + i, "geo170k.json", "geo170k/none.png")) for i in range(5)]
    samples = cambrian(lambda lines: bad + gone + lines, count=120, passed=passed)
    assert Counter(s.kind for s in samples) == dict.fromkeys(CATEGORIES, 20)
    assert passed == {"text only": 2, "broken": 4, "missing image": 5}
    with pytest.raises(SinkgateError, match=r"cambrian.jsonl, record 2: field 'source' is missing"):
        cambrian(lambda lines: lines[:1] + bad[1:], broken="stop")


def test_a_category_that_cannot_be_filled_is_named(cambrian, tmp_path):
    assert cambrian(count=6 * 40)
    (tmp_path / "images/hfdata/datikz/1.png").unlink()
    with pytest.raises(SinkgateError) as error:
        cambrian(
            lambda lines: [each for each in lines if "design2code" not in each and "hidden" not in each], count=6 * 45
        )
    assert "code (25 of 45)" in str(error.value) and "20 images were missing" in str(error.value)
    assert "counting (5 of 45)" in str(error.value) and "math" not in str(error.value)
    assert "reduce to count=120 (--limit and --skip together), or in Python leave a category out" in str(error.value)


def test_partial_takes_what_there_is(cambrian):
    samples = cambrian(count=6 * 50, partial=True)
    assert Counter(s.kind for s in samples) == {**dict.fromkeys(CATEGORIES, 50), "counting": 40}


def test_leaving_clevr_out_leaves_its_pictures_out_everywhere(cambrian, recwarn):
    everything = cambrian(count=6 * 200, partial=True)
    assert sum("clevr" in path.parts for s in everything for path in s.images) == 40
    passed = Counter()
    samples = cambrian(count=6 * 200, partial=True, without=["CLEVR"], passed=passed)
    assert not any("clevr" in path.parts for s in samples for path in s.images) and passed["left out"] == 40
    assert not recwarn
    with pytest.warns(UserWarning, match="nothing was left out for clver"):
        cambrian(count=6, without=["clver"])


def test_only_some_categories_and_only_some_records(cambrian):
    assert {s.kind for s in cambrian(count=30, categories=["math", "ocr"])} == {"math", "ocr"}
    passed = Counter()
    assert len(cambrian(count=100, categories=["ocr"], records=7, partial=True, passed=passed)) == 7


@pytest.mark.parametrize(
    ("options", "named"),
    [({"categories": ["cats"]}, "'cats'"), ({"categories": []}, "expected some of ocr"), ({"count": 0}, "count is 0"), ({"broken": "no"}, "broken is 'no'")],
)  # fmt: skip
def test_wrong_arguments(cambrian, options, named):
    with pytest.raises(SinkgateError, match=named):
        cambrian(**options)


def test_files_that_cannot_be_read(cambrian, tmp_path):
    with pytest.raises(SinkgateError, match="holds no records"):
        cambrian(lambda _: [])
    with pytest.raises(SinkgateError, match="no file none.jsonl"):
        read_cambrian(tmp_path, "none.jsonl")
    with pytest.raises(SinkgateError, match="no folder"):
        read_cambrian(tmp_path / "none")
    with pytest.raises(SinkgateError, match="check the network"):
        read_cambrian(tmp_path)  # the tests are offline


def test_without_datasets_there_is_a_remedy(cambrian, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SinkgateError, match=r'pip install "sinkgate\[train\]"'):
        cambrian()
    run_path(cambrian_module.__file__)  # nor is it needed to import ours
