"""CLEVR's scene file: the paper's four targets, the bins of size, and the sentence for everything that is wrong."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkgate import SinkgateError
from sinkgate.data import Pictured, read_clevr
from sinkgate.data.clevr import BINS


def thing(shape="cube", color="red", size="large", depth=10.0):
    """An object with all fields that the published files have."""
    return {
        "shape": shape, "size": size, "color": color, "material": "rubber", "rotation": 269.8,
        "3d_coords": [-1.45, 2.94, 0.35], "pixel_coords": [235, 144, depth],
    }  # fmt: skip


def scene(number, *objects):
    return {
        "image_index": number, "image_filename": f"CLEVR_val_{number:06d}.png", "split": "val", "objects": list(objects),
        "directions": {"front": [0.75, -0.66, 0.0]}, "relationships": {"front": [[] for _ in objects]},
    }  # fmt: skip


SCENES = [
    scene(0, thing(), thing("sphere", "gray", "small"), thing("sphere", "gray", "small", 7.5)),
    scene(1, *[thing("cylinder", "cyan", "small", 8.0 + i) for i in range(4)]),
    scene(2, thing("cube", "blue", "large", 20.0), thing("cube", "blue", "small", 8.5), thing("cube", "blue", "small")),
]
INFO = {"split": "val", "license": "Creative Commons Attribution (CC BY 4.0)", "version": "1.0", "date": "2/14/2017"}


@pytest.fixture
def clevr(tmp_path):
    """Writes a scene file and empty files for its images, and reads it."""
    (tmp_path / "val").mkdir()

    def read(scenes=SCENES, held=None, **options):
        for each in scenes:
            if isinstance(each, dict) and isinstance(name := each.get("image_filename"), str) and name:
                (tmp_path / "val" / name.rpartition("/")[2]).touch()
        text = json.dumps({"info": INFO, "scenes": scenes}) if held is None else held
        (tmp_path / "CLEVR_val_scenes.json").write_text(text)
        return read_clevr(tmp_path / "CLEVR_val_scenes.json", tmp_path / "val", **options)

    return read


def test_the_four_targets(clevr, tmp_path):
    path = tmp_path / "val" / "CLEVR_val_000000.png"  # empty: it is not opened
    assert clevr()[0] == Pictured(
        path,
        {
            "count": "3",
            "largest": "large",
            "colors": frozenset({"red", "gray"}),
            "shapes": frozenset({"cube", "sphere"}),
        },
    )
    assert [picture.targets["count"] for picture in clevr()] == ["3", "4", "3"]
    assert len(clevr(limit=2)) == 2


def test_size_is_what_it_looks_like_or_what_it_is_called(clevr):
    """Largest over depth: 0.07 (a large one), 0.35 / 8, 0.35 / 8.5 (a small one before a large one far off)."""
    assert [picture.targets["largest"] for picture in clevr()] == ["large", "medium", "small"]
    assert [picture.targets["largest"] for picture in clevr(edges=(0.042, 0.08))] == ["medium", "medium", "small"]
    assert [picture.targets["largest"] for picture in clevr(largest="named")] == ["large", "small", "large"]


@given(depths=st.lists(st.floats(5, 15).map(lambda depth: round(depth, 3)), min_size=3, max_size=40, unique=True))
def test_bins_of_thirds_hold_alike_many_and_keep_the_order(tmp_path_factory, depths):
    folder = tmp_path_factory.getbasetemp() / "clevr"
    folder.mkdir(exist_ok=True)
    (folder / "a.png").touch()
    scenes = [{**scene(0, thing(depth=depth)), "image_filename": "a.png"} for depth in depths]
    (folder / "scenes.json").write_text(json.dumps({"scenes": scenes}))
    bins = [BINS.index(picture.targets["largest"]) for picture in read_clevr(folder / "scenes.json", folder)]
    assert [bins[i] for i in sorted(range(len(depths)), key=lambda i: -depths[i])] == sorted(bins)
    assert max(Counter(bins).values()) - min(Counter(bins).get(i, 0) for i in range(3)) <= 1


def without(field):
    return {name: value for name, value in SCENES[1].items() if name != field}


BROKEN = [
    (["x"], ("scene 1", "'objects' is missing")),
    (without("objects"), ("scene 1", "'objects' is missing", "list of objects")),
    (scene(1), ("'objects' is []", "one at least")),
    (without("image_filename"), ("scene 1", "'image_filename' is missing", "name of a file")),
    ({**SCENES[1], "image_filename": "../secret.png"}, ("'../secret.png'", "name of a file")),
    ({**SCENES[1], "objects": [thing(), 7]}, ("'objects[1].shape' is missing", "expected text")),
    (scene(1, thing(color=3)), ("'objects[0].color' is 3", "expected text")),
    (scene(1, thing(), thing(size="huge")), ("'objects[1].size' is 'huge'", "'small' or 'large'")),
    (scene(1, thing(depth=0)), ("'objects[0].pixel_coords' is [235, 144, 0]", "depth above 0", "named")),
    (scene(1, {**thing(), "pixel_coords": [235, 144]}), ("'objects[0].pixel_coords' is [235, 144]",)),
]


@pytest.mark.parametrize(("broken", "named"), BROKEN)
def test_a_wrong_field_is_named_with_its_scene(clevr, broken, named):
    with pytest.raises(SinkgateError) as error:
        clevr([SCENES[0], broken])
    assert all(part in str(error.value) for part in (*named, "CLEVR_val_scenes.json"))


def test_names_of_size_need_no_depth(clevr):
    bare = scene(0, {name: value for name, value in thing().items() if name != "pixel_coords"})
    assert clevr([bare], largest="named")[0].targets["largest"] == "large"


def test_a_missing_image(clevr, tmp_path):
    clevr()
    (tmp_path / "val" / "CLEVR_val_000001.png").unlink()
    with pytest.raises(
        SinkgateError, match="scene 1: field 'image_filename' is 'CLEVR_val_000001.png', but there is no"
    ):
        read_clevr(tmp_path / "CLEVR_val_scenes.json", tmp_path / "val")


def test_files_that_cannot_be_read(clevr, tmp_path):
    with pytest.raises(SinkgateError, match="there is no file .*none.json; expected CLEVR's scene file"):
        read_clevr(tmp_path / "none.json", tmp_path)
    with pytest.raises(SinkgateError, match="there is no folder"):
        read_clevr(tmp_path / "none.json", tmp_path / "none")
    for held, named in (
        ("{", "is no JSON"),
        ("[]", "holds \\[\\], no object"),
        ("{}", "'scenes' is missing"),
        ('{"scenes": 3}', "'scenes' is 3"),
    ):
        with pytest.raises(SinkgateError, match=named):
            clevr(held=held)
    with pytest.raises(SinkgateError, match="holds no scenes"):
        clevr([])


@pytest.mark.parametrize(
    ("options", "named"),
    [({"largest": "biggest"}, "largest is 'biggest'"), ({"limit": 0}, "limit is 0"), ({"edges": (2, 1)}, r"edges is \(2, 1\)")],
)  # fmt: skip
def test_wrong_arguments(clevr, options, named):
    with pytest.raises(SinkgateError, match=named):
        clevr(**options)
