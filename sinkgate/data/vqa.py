"""Questions of VQA v2 and of GQA, from the files that their authors publish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

from sinkgate.data.llava import Broken, RecordError, exists, image_folder, named, one_of, read_object
from sinkgate.data.sample import Sample
from sinkgate.errors import SinkgateError

EXPECTED = "expected a whole JSON file of VQA v2 or GQA"
INSTRUCTION = "\nAnswer the question using a single word or phrase."  # LLaVA's, and lmms-eval's


def is_question_file(path: str | Path) -> bool:
    """Return whether a file begins as one of VQA v2 or GQA."""
    with Path(path).open("rb") as file:
        begin = file.read(8192).lstrip()
    return (
        begin.startswith(b"{")
        and b'"conversations"' not in begin
        and (b'"questions"' in begin or b'"imageId"' in begin)
    )


def read_questions(
    path: str | Path,
    images: str | Path,
    annotations: str | Path | None = None,
    *,
    broken: Broken = "stop",
    passed: Counter[str] | None = None,
) -> Iterator[Sample]:
    """Return the questions of VQA v2 or GQA with their answers, in the file's order; ``kind`` is VQA's answer type or GQA's structural type.

    The answer of VQA v2 is the most frequent one of its ten; the published score, which counts all ten, is lmms-eval's. The question is
    followed by LLaVA's instruction to answer in a word or phrase. Files are read into memory; images must exist, but are not opened.

    Args:
        path: such as ``v2_OpenEnded_mscoco_val2014_questions.json`` or ``testdev_balanced_questions.json``.
        images: folder of the images, ``COCO_val2014_000000000042.jpg`` or ``n161313.jpg``.
        annotations: of VQA v2; the file of the same split beside the questions if None. Refused for GQA.
        broken: for an invalid question, "stop" raises, "skip" skips it.
        passed: counts skipped questions by reason: "broken", "missing image".

    Raises:
        SinkgateError: no such file or folder, a file of another form or, under "stop", an invalid question, by its id.

    Example:
        >>> samples = list(read_questions("testdev_balanced_questions.json", "images"))
    """
    path, folder = Path(path), image_folder(images)
    one_of("broken", broken, Broken)
    passed = Counter() if passed is None else passed
    content = read_object(path, EXPECTED)
    of_vqa = isinstance(content.get("questions"), list)
    if annotations is not None and not of_vqa:
        raise SinkgateError(
            f"annotations are {named(annotations)}, but {path}, of GQA, has its answers; leave them out"
        )
    rows = _vqa(content, path, annotations) if of_vqa else _gqa(content)
    return _samples(rows, path, folder, broken, passed)


def _samples(
    rows: Iterator[tuple[Any, Any]], path: Path, folder: Path, broken: Broken, passed: Counter[str]
) -> Iterator[Sample]:
    empty = True
    for identity, (names, row) in rows:
        empty = False
        try:
            yield _sample(names, row, folder)
        except RecordError as error:
            if broken == "stop":
                raise SinkgateError(f"{path}, question {short(identity)}: {error}") from error
            passed[error.reason] += 1
    if empty:
        raise SinkgateError(f"{path} holds no questions; expected those of VQA v2 or GQA")


def _sample(names: tuple[str, ...], row: Any, folder: Path) -> Sample:
    for field in ("question", "answer", "kind"):
        if not isinstance(row.get(field), str) or (field != "kind" and not row[field].strip()):
            raise RecordError(f"field {field!r} is {short(row.get(field))}; expected text")
    images = [folder / name for name in names if "/" not in name and exists(folder / name)]
    if not images:
        raise RecordError(f"there is no file {' or '.join(names)} in {named(folder)}", "missing image")
    return Sample((images[0],), row["question"].strip() + INSTRUCTION, row["answer"].strip(), row["kind"])


def _vqa(content: dict[str, Any], path: Path, annotations: str | Path | None) -> Iterator[tuple[Any, Any]]:
    beside = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    annotations_file = beside if annotations is None else Path(annotations)
    listed = read_object(annotations_file, EXPECTED).get("annotations") if annotations_file != path else None
    if not isinstance(listed, list):
        raise SinkgateError(f"{annotations_file} holds no annotations; expected those of {path.name}")
    answers = {each.get("question_id"): each for each in listed if isinstance(each, dict)}
    split = content.get("data_subtype", "")
    for question in content["questions"]:
        row = question if isinstance(question, dict) else {}
        identity, image = row.get("question_id"), row.get("image_id")
        answer = answers.get(identity, {})
        names = (f"COCO_{split}_{image:012d}.jpg", f"{image:012d}.jpg") if isinstance(image, int) else ("no image_id",)
        more = {"answer": answer.get("multiple_choice_answer"), "kind": answer.get("answer_type", "")}
        yield identity, (names, {"question": row.get("question"), **more})


def _gqa(content: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for identity, question in content.items():
        row = question if isinstance(question, dict) else {}
        types = row.get("types")
        kind = types.get("structural", "") if isinstance(types, dict) else ""
        yield identity, ((f"{row.get('imageId')}.jpg",), {**row, "kind": kind})
