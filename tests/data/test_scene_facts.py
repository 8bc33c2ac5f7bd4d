"""Facts of the demo world: what is said of a picture is what is in it."""

import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from sinkgate import SceneError, SinkgateError
from sinkgate.data import CROWDED, scene_facts
from sinkgate.scenes import Scene
from sinkgate.scenes.scene import BACKGROUNDS, COLORS, SHAPES


def test_facts_are_what_the_pixels_show():
    for picture in scene_facts(30, size=256):
        pixels = np.asarray(Image.open(io.BytesIO(picture.image))).reshape(-1, 3)
        shown = {tuple(pixel) for pixel in pixels}
        assert picture.targets["colors"] == {name for name, rgb in COLORS.items() if rgb in shown}
        assert tuple(pixels[0]) == BACKGROUNDS[picture.targets["background"]]
        assert 1 <= len(picture.targets["shapes"]) <= int(picture.targets["count"])
        assert picture.targets["shapes"] <= set(SHAPES)
        painted = (pixels != pixels[0]).any(1).mean()  # a small shape fills at most 0.048 of the picture
        assert picture.targets["largest"] == "large" or painted < 0.05 * int(picture.targets["count"])


def test_the_first_of_more_are_the_same_and_splits_are_apart():
    first = list(scene_facts(5, seed=3))
    assert list(scene_facts(8, seed=3))[:5] == first and list(scene_facts(5, seed=4)) != first
    pictures = [
        {picture.image for picture in scene_facts(40, split=split)} for split in ("train", "validation", "test")
    ]
    assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2] and not pictures[1] & pictures[2]


def test_level_colors_have_no_majority():
    pictures = list(scene_facts(60))
    missing = [picture for picture in pictures if "majority_color" not in picture.targets]
    assert 0 < len(missing) < 60 and all(len(picture.targets["colors"]) > 1 for picture in missing)


def test_arguments_of_scenes_hold():
    assert all(int(picture.targets["count"]) >= 6 for picture in scene_facts(5, counts=CROWDED))
    (clear,), (hazed,) = scene_facts(1), scene_facts(1, haze=(0.5, 0.6))
    spread = [np.asarray(Image.open(io.BytesIO(each.image))).std() for each in (clear, hazed)]
    assert clear.targets == hazed.targets and spread[1] < 0.6 * spread[0]
    for wrong in ({"split": "all"}, {"haze": (0.5, 0.1)}, {"counts": (0, 3)}, {"count": -1}):
        with pytest.raises(SinkgateError):
            scene_facts(**{"count": 1, **wrong})


def test_one_object_of_a_clip_moves_apart_from_the_others():
    for seed in range(20):
        scene = Scene.random(Random(seed), (1, 3))
        scenes = scene.clip(Random(seed), 6)
        assert scenes[0] == scene and scenes == scene.clip(Random(seed), 6) and len(scenes) == 6
        for each in scenes:
            Scene.from_dict(each.to_dict())  # gaps and margins hold
        still = set(scenes[0].objects).intersection(*(each.objects for each in scenes))
        assert len(still) == len(scene.objects) - 1
        (first,), (last,) = (set(each.objects) - still for each in (scenes[0], scenes[-1]))
        assert max(abs(first.x - last.x), abs(first.y - last.y)) >= 0.3
    with pytest.raises(SceneError, match="at least 2"):
        scene.clip(Random(0), 1)
