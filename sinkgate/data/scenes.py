"""The demo world as samples: scenes of shapes, with questions and answers, or with targets for probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from random import Random
from statistics import fmean
from typing import Literal, get_args
from zlib import crc32

from PIL import Image, ImageStat

from sinkgate.data.probe_example import Pictured, Target
from sinkgate.data.sample import Sample
from sinkgate.errors import SinkgateError
from sinkgate.scenes.questions import KINDS, Question, ask, majority_color
from sinkgate.scenes.scene import MAX_OBJECTS, SIZES, Scene

Split = Literal["train", "validation", "test"]
SPLITS = get_args(Split)
CROWDED = (6, 8)  # objects; the demo model was trained on 1 to 5
_MAX_DRAWS = 3000  # scenes without the questions, after which these are considered impossible


def scene_samples(
    count: int,
    seed: int = 0,
    *,
    split: Split = "train",
    kinds: Sequence[str] | None = None,
    per_scene: int = 1,
    counts: tuple[int, int] = (1, MAX_OBJECTS),
    haze: tuple[float, float] = (0.0, 0.0),
    size: int = 448,
) -> Iterator[Sample]:
    """Yield questions about random scenes; ``kind`` is the kind of question.

    The kinds take turns in random order: among the first n samples the numbers of two kinds differ by one at most, and a larger ``count``
    begins with the same samples. A checksum of its content assigns each scene to a split, so no scene is in two splits, for any
    seeds. Pictures are PNG bytes, about 5 to 10 kB each, so that many fit into memory.

    Args:
        count: number of samples.
        seed: of the scenes and questions.
        split: "train", "validation" or "test"; a third of all scenes each.
        kinds: of `sinkgate.scenes.questions.KINDS`; None is all of them.
        per_scene: questions about each scene, of different kinds. A scene is drawn again until it allows all of them.
        counts: least and most objects, as in `Scene.random`; `CROWDED` are more than the demo model was trained on.
        haze: minimum and maximum of it in a picture, in [0, 1): the lost share of contrast. The demo model was trained without haze.
        size: side of the picture in pixels; 448 as in the app.

    Raises:
        SinkgateError: an argument is wrong, or scenes of so few objects hardly ever allow a kind.

    Example:
        >>> samples = list(scene_samples(1000, split="train", kinds=["count"]))
    """
    names = list(KINDS) if kinds is None else list(dict.fromkeys(kinds))
    if not names or set(names) - set(KINDS):
        raise SinkgateError(f"kinds is {kinds!r}; expected some of {', '.join(KINDS)}")
    if not 1 <= per_scene <= len(names):
        raise SinkgateError(f"per_scene is {per_scene}; expected 1 to {len(names)}, as many as there are kinds")
    _check(count, split, counts, haze)
    rng = Random(f"samples/{split}/{seed}")

    def samples() -> Iterator[Sample]:
        while True:
            order = rng.sample(names, len(names))
            for start in range(0, len(order), per_scene):
                scene, questions = _draw(rng, split, order[start : start + per_scene], counts)
                picture = _picture(scene, rng, haze, size)
                yield from (Sample((picture,), item.question, item.answer, item.kind) for item in questions)

    return islice(samples(), count)


def scene_facts(
    count: int,
    seed: int = 0,
    *,
    split: Split = "train",
    counts: tuple[int, int] = (1, MAX_OBJECTS),
    haze: tuple[float, float] = (0.0, 0.0),
    size: int = 128,
) -> Iterator[Pictured]:
    """Yield random scenes with targets for probes.

    Classes: ``count``, ``largest`` (the size of the largest object: large or small), ``background``, ``majority_color`` (left out if
    two colours tie). Labels: ``colors`` and ``shapes``. Arguments and splits are those of `scene_samples`; 128 pixels are twice the
    resolution of the demo model.

    Raises:
        SinkgateError: an argument is wrong.
    """
    _check(count, split, counts, haze)
    rng = Random(f"facts/{split}/{seed}")
    scenes = (_draw(rng, split, [], counts)[0] for _ in range(count))
    return (Pictured(_picture(scene, rng, haze, size), _targets(scene)) for scene in scenes)


def _check(count: int, split: str, counts: tuple[int, int], haze: tuple[float, float]) -> None:
    """Raise SinkgateError for wrong arguments at the call, not at the first sample."""
    if split not in SPLITS:
        raise SinkgateError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if count < 0:
        raise SinkgateError(f"count is {count}; expected 0 or more")
    if not 0 <= haze[0] <= haze[1] < 1:
        raise SinkgateError(f"haze is {haze}; expected two rising numbers from 0 to below 1")
    Scene.random(Random(0), counts)


def _targets(scene: Scene) -> dict[str, Target]:
    targets: dict[str, Target] = {
        "count": str(len(scene.objects)),
        "largest": max((item.size for item in scene.objects), key=SIZES.__getitem__),
        "colors": frozenset(item.color for item in scene.objects),
        "shapes": frozenset(item.shape for item in scene.objects),
        "background": scene.background,
    }
    color = majority_color(scene)
    return targets if color is None else {**targets, "majority_color": color}


def _draw(rng: Random, split: Split, kinds: list[str], counts: tuple[int, int]) -> tuple[Scene, list[Question]]:
    """Draw a scene of the split that allows all of the kinds, with a question of each."""
    for _ in range(_MAX_DRAWS):
        scene = Scene.random(rng, counts)
        if split_of(scene) == split:
            questions = [question for kind in kinds if (question := ask(scene, kind, rng))]
            if len(questions) == len(kinds):
                return scene, questions
    raise SinkgateError(
        f"in {_MAX_DRAWS} scenes of {counts[0]} to {counts[1]} objects none allowed {' and '.join(kinds)}: "
        "choose other kinds, fewer per scene, or more objects"
    )


def split_of(scene: Scene) -> Split:
    """Return the split of a scene: a checksum of its data in thirds."""
    return SPLITS[crc32(repr(scene).encode()) % len(SPLITS)]


def _picture(scene: Scene, rng: Random, haze: tuple[float, float], size: int) -> bytes:
    """Return the scene as PNG, with a random share of its contrast replaced by the grey of its mean."""
    picture = scene.render(size)
    if haze[1]:
        mean = round(fmean(ImageStat.Stat(picture).mean))
        picture = Image.blend(picture, Image.new("RGB", picture.size, (mean, mean, mean)), rng.uniform(*haze))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
