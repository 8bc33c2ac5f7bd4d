"""CLEVR's scenes: rendered pictures of 3 to 10 objects with the paper's probe targets (section 3).

The scene file is ``{"info", "scenes": [{"image_filename", "objects": [{"shape", "size", "color", "pixel_coords", ...}], ...}]}``; the
files of training and validation are published, that of the test split is not. Cambrian-7M has questions about CLEVR's pictures in its
counting share. Gates to be probed on these pictures should not be trained on them: leave them out there
(``read_cambrian(..., without=["clevr"])``) and probe on the validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

import numpy as np

from sinkgate.data.llava import RecordError, exists, image_folder, named, one_of, read_object
from sinkgate.data.probe_example import Pictured, Target
from sinkgate.errors import SinkgateError

Largest = Literal["apparent", "named"]
SIZES = {"small": 0.35, "large": 0.7}  # as CLEVR's generator scales its objects
BINS = ("small", "medium", "large")


def read_clevr(
    scenes: str | Path,
    images: str | Path,
    *,
    limit: int | None = None,
    largest: Largest = "apparent",
    edges: tuple[float, float] | None = None,
) -> list[Pictured]:
    """Return the pictures of a scene file, in its order, with the paper's four targets.

    ``count`` (a class: "3" to "10") and ``largest`` (a class), ``colors`` and ``shapes`` (the present ones of 8 and 3).
    Images must exist, but are not opened. The whole file is read into memory.

    The paper uses "the bin of the largest object's size" and does not give the bins. Default chosen by us: the largest apparent size, an
    object's size in CLEVR's units over its depth from the camera, in three bins.

    Args:
        scenes: such as ``CLEVR_v1.0/scenes/CLEVR_val_scenes.json``.
        images: the folder of its pictures, such as ``CLEVR_v1.0/images/val``.
        limit: number of scenes, from the first (CLEVR's are in random order); all if None.
        largest: "apparent", or "named": whether any object is "large", else "small".
        edges: the two rising edges of the bins of apparent size; the terciles of these scenes if None. Comparisons of several files
            need the same edges.

    Example:
        >>> pictures = read_clevr("scenes/CLEVR_val_scenes.json", "images/val", limit=1000)

    Raises:
        SinkgateError: no such file or folder, a file of another form or without scenes, a scene whose field is wrong or
            whose image is missing (the message names scene and field), or a wrong argument.
    """
    path, folder = Path(scenes), image_folder(images)
    one_of("largest", largest, Largest)
    if limit is not None and limit < 1:
        raise SinkgateError(f"limit is {limit}; expected 1 or more, or None for all scenes")
    if edges is not None and not 0 < edges[0] < edges[1]:
        raise SinkgateError(f"edges is {edges}; expected two rising positive numbers")
    pictures, sizes = [], []
    for number, scene in enumerate(_scenes(path)[:limit]):
        try:
            objects = _objects(scene)
            pictures.append(Pictured(_image(scene, folder), _targets(objects)))
            if largest == "apparent":
                sizes.append(max(_apparent_sizes(objects)))
        except RecordError as error:
            raise SinkgateError(f"{path}, scene {number}: {error}") from error
    if sizes:
        bins = np.digitize(sizes, np.quantile(sizes, (1 / 3, 2 / 3)) if edges is None else edges)
        for picture, index in zip(pictures, bins, strict=True):
            picture.targets["largest"] = BINS[index]
    return pictures


def _scenes(path: Path) -> list[Any]:
    expected = "expected CLEVR's scene file, such as CLEVR_val_scenes.json"
    content = read_object(path, expected)
    scenes = content.get("scenes")
    if not isinstance(scenes, list):
        raise SinkgateError(f"{path}: field 'scenes' is {_got(content, 'scenes')}, not a list; {expected}")
    if not scenes:
        raise SinkgateError(f"{path} holds no scenes; {expected}")
    return scenes


def _objects(scene: Any) -> list[dict[str, Any]]:
    objects = scene.get("objects") if isinstance(scene, dict) else None
    if not isinstance(objects, list) or not objects:
        raise RecordError(f"field 'objects' is {_got(scene, 'objects')}; expected a list of objects, one at least")
    for index, item in enumerate(objects):
        for field in ("shape", "color", "size"):
            value = item.get(field) if isinstance(item, dict) else None
            if not isinstance(value, str) or (field == "size" and value not in SIZES):
                expected = " or ".join(map(repr, SIZES)) if field == "size" else "text"
                raise RecordError(f"field 'objects[{index}].{field}' is {_got(item, field)}; expected {expected}")
    return objects


def _targets(objects: list[dict[str, Any]]) -> dict[str, Target]:
    return {
        "count": str(len(objects)),
        "largest": max((item["size"] for item in objects), key=SIZES.__getitem__),
        "colors": frozenset(item["color"] for item in objects),
        "shapes": frozenset(item["shape"] for item in objects),
    }


def _apparent_sizes(objects: list[dict[str, Any]]) -> Iterator[float]:
    """Yield size over depth of each object; the depth is the third of its pixel coordinates."""
    for index, item in enumerate(objects):
        match item.get("pixel_coords"):
            case [_, _, int() | float() as depth] if depth > 0:
                yield SIZES[item["size"]] / depth
            case _:
                raise RecordError(
                    f"field 'objects[{index}].pixel_coords' is {_got(item, 'pixel_coords')}; expected x, y and a depth above 0 "
                    '(not needed in Python with largest="named")'
                )


def _image(scene: dict[str, Any], folder: Path) -> Path:
    name = scene.get("image_filename")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise RecordError(f"field 'image_filename' is {_got(scene, 'image_filename')}; expected the name of a file")
    if not exists(folder / name):
        raise RecordError(f"field 'image_filename' is {short(name)}, but there is no file {named(folder / name)}")
    return folder / name


def _got(holder: Any, field: str) -> str:
    return short(holder[field]) if isinstance(holder, dict) and field in holder else "missing"
