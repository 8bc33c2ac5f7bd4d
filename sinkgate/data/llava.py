"""LLaVA's format: a JSON list, or JSONL, of records that each hold an image and a conversation about it.

A record is ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}], "source"}``; ``image`` is one path or a
list of them, relative to a folder of images (or a data URL), and is missing from text-only records. ``source`` is optional.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_args

from sinkgate.data.sample import PLACEHOLDER, Sample
from sinkgate.errors import SinkgateError
from sinkgate.images.io import is_data_url

Turns = Literal["first", "all", "context"]
Broken = Literal["stop", "skip"]


class RecordError(SinkgateError):
    """A record that is no valid sample; ``reason`` is its category in the counts."""

    def __init__(self, message: str, reason: str = "broken") -> None:
        super().__init__(message)
        self.reason = reason


def read_llava(
    path: str | Path,
    images: str | Path,
    *,
    turns: Turns = "first",
    broken: Broken = "stop",
    passed: Counter[str] | None = None,
) -> Iterator[Sample]:
    """Return the samples of a LLaVA-format file, in its order; ``kind`` is the record's ``source``, or empty.

    JSONL is read line by line; a JSON list is read into memory. Images must exist, but are not opened.

    Args:
        path: the file; its content decides between a JSON list and JSONL, not its name.
        images: folder to which image paths are relative. A path that leads out of it is an error; links in it are followed.
        turns: "first", the first question and its answer; "all", every question of a conversation as a separate sample without
            the turns before; "context", every question after the turns before it. Turns before the first human one are left out, as in
            LLaVA.
        broken: for an invalid record, "stop" raises, "skip" skips it.
        passed: counts skipped records by reason: "text only" (always skipped), "broken", "missing image".

    Raises:
        SinkgateError: no such file or folder, a file without records or, under "stop", an invalid record; the message names the
            file, the record and the field.

    Example:
        >>> samples = list(read_llava("train.jsonl", "images", broken="skip"))
    """
    path, folder = Path(path), image_folder(images)
    one_of("turns", turns, Turns)
    one_of("broken", broken, Broken)
    if not exists(path):
        raise SinkgateError(f"there is no file {named(path)}; expected a JSON list or JSONL of LLaVA-format records")
    return _read(path, folder, turns, broken, Counter() if passed is None else passed)


def image_folder(folder: str | Path) -> Path:
    """Return the folder as an absolute path without ``..``; raise SinkgateError if it does not exist."""
    if not exists(folder, "dir"):
        raise SinkgateError(
            f"there is no folder {named(folder)}; expected the one to which the records' image paths are relative"
        )
    return Path(os.path.normpath(Path(folder).absolute()))


def exists(path: str | Path, kind: Literal["file", "dir"] = "file") -> bool:
    """Return whether a file or folder exists; False for an impossible path, such as a text of many thousand characters."""
    try:
        return Path(path).is_file() if kind == "file" else Path(path).is_dir()
    except (OSError, ValueError):  # too long a name, or a character that no path may hold
        return False


def named(path: str | Path) -> str:
    """Return a path for a message: short, and without characters that cannot be printed."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 300 else f"{text[:100]}... ({len(text):,} characters)"


def one_of(name: str, value: str, choices: Any) -> None:
    """Raise SinkgateError if an argument is none of a Literal's values."""
    if value not in get_args(choices):
        expected = " or ".join(f'"{choice}"' for choice in get_args(choices))
        raise SinkgateError(f"{name} is {value!r}; expected {expected}")


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """Return the JSON object in a file; raise SinkgateError, which ends in ``expected``, if there is none."""
    if not exists(path):
        raise SinkgateError(f"there is no file {named(path)}; {expected}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SinkgateError(f"{path} is no JSON ({error}); {expected}") from error
    if not isinstance(content, dict):
        raise SinkgateError(f"{path} holds {short(content)}, no object; {expected}")
    return content


def decode(line: str | bytes) -> Any:
    """Return a record from its line of JSON; raise RecordError if it is none."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise RecordError(f"no JSON ({error}); expected one record a line") from error


def samples_of(record: Any, folder: Path, turns: Turns = "first", passed: Counter[str] | None = None) -> list[Sample]:
    """Return the samples of one record, none if it is text-only.

    Args:
        record: a decoded record.
        folder: an image folder as `image_folder` returns it.
        turns: "first", "all" or "context", as in `read_llava`.
        passed: counts, as "empty turn", later questions that are skipped because they or their answers are empty.

    Raises:
        RecordError: the record is invalid.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{short(record)}; expected an object with 'image' and 'conversations'")
    dialogue = [*islice(_dialogue(record), 1 if turns == "first" else None)]
    if is_text_only(record):
        if any(PLACEHOLDER in question for question, _ in dialogue):
            raise RecordError(f"field 'image' is missing though a question holds {PLACEHOLDER}; {_found(record)}")
        return []
    images = tuple(_pictures(record["image"], folder))
    between = turns == "context" and any(PLACEHOLDER in question for question, _ in dialogue[1:])
    questions = [question.strip() for question, _ in dialogue]
    if between:
        questions = [re.sub(rf"({PLACEHOLDER})\s+", r"\1", question).strip() for question in questions]
        _check_places(questions, len(images))
    else:
        questions = [_placed(question, len(images)) for question in questions]
    pairs = [(question, answer.strip()) for question, (_, answer) in zip(questions, dialogue, strict=True)]
    whole = [(question, answer) for question, answer in pairs if question.replace(PLACEHOLDER, "").strip() and answer]
    if not whole or (between and len(whole) < len(pairs)):
        raise RecordError(
            f"field 'conversations': a question or an answer is empty but for {PLACEHOLDER}; expected words"
        )
    if passed is not None and len(whole) < len(pairs):
        passed["empty turn"] += len(pairs) - len(whole)
    source = record.get("source")
    kind = source if isinstance(source, str) else ""
    if turns != "context":
        return [Sample(images, question, answer, kind) for question, answer in whole]
    samples: list[Sample] = []
    for number, (question, answer) in enumerate(whole):
        places = sum(each.count(PLACEHOLDER) for each, _ in whole[: number + 1])
        shown = images[:places] if between else images
        if shown:  # no question before the first image
            samples.append(Sample(shown, question, answer, kind, earlier=tuple(whole[:number])))
    return samples


def _placed(question: str, images: int) -> str:
    """Return the question without placeholders if all are before or all after the text, since LLaVA puts images first; else with all."""
    for pattern in (rf"^(\s|{PLACEHOLDER})+", rf"(\s|{PLACEHOLDER})+$"):
        plain = re.sub(pattern, "", question)
        if PLACEHOLDER not in plain:
            return plain
    _check_places([question], images)
    return question


def _check_places(questions: list[str], images: int) -> None:
    if (count := sum(question.count(PLACEHOLDER) for question in questions)) != images:
        subject = "a question holds" if len(questions) == 1 else "the questions hold"
        raise RecordError(
            f"field 'conversations': {subject} {PLACEHOLDER} {count} times; expected {images}, as there are images"
        )


def is_text_only(record: dict[str, Any]) -> bool:
    """Return whether a record names no image."""
    return not record.get("image")


def _read(path: Path, folder: Path, turns: Turns, broken: Broken, passed: Counter[str]) -> Iterator[Sample]:
    empty = True
    for place, record in records(path):
        empty = False
        try:
            record = decode(record) if isinstance(record, bytes) else record
            samples = samples_of(record, folder, turns, passed)
        except RecordError as error:
            if broken == "stop":
                name = f" (id {short(record['id'])})" if isinstance(record, dict) and "id" in record else ""
                raise SinkgateError(f"{path}, {place}{name}: {error}") from error
            passed[error.reason] += 1
            continue
        if not samples:
            passed["text only"] += 1
        yield from samples
    if empty:
        raise SinkgateError(f"{path} holds no records; expected a JSON list or JSONL of LLaVA-format records")


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every record with its place in the file: members of a JSON list, or undecoded lines of JSONL.

    Raises:
        SinkgateError: it begins as a JSON list but is none.
    """
    with path.open("rb") as file:
        begin = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if not begin.startswith(b"["):
            for number, line in enumerate(file, 1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield f"line {number}", line
            return
        try:
            records = json.loads(file.read())
        except ValueError as error:
            raise SinkgateError(f"{path} begins as a JSON list but is none ({error}); is it cut short?") from error
    yield from ((f"record {number}", record) for number, record in enumerate(records, 1))


def _dialogue(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield questions with their answers; errors in later turns are raised only when reached. Skip a last question without an answer."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        got = short(turns) if "conversations" in record else "missing"
        raise RecordError(f"field 'conversations' is {got}; expected a list of turns; {_found(record)}")
    roles: list[str] = []
    values: list[str] = []
    for index, turn in enumerate(turns):
        match turn:
            case {"from": str(role), "value": str(value)}:
                pass
            case _:
                raise RecordError(
                    f"field 'conversations[{index}]' is {short(turn)}; expected 'from' and 'value', both text"
                )
        if not roles and role != "human":
            continue
        expected = ("human", "gpt")[len(roles) % 2]
        if role != expected:
            raise RecordError(f"field 'conversations[{index}].from' is {short(role)}; expected {expected!r}")
        roles.append(role)
        values.append(value)
        if len(values) % 2 == 0:
            yield values[-2], value
    if len(values) < 2:
        raise RecordError(f"field 'conversations' has {len(turns)} turns; expected one of 'human', then one of 'gpt'")


def _pictures(names: Any, folder: Path) -> Iterator[Path | str]:
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name:
            raise RecordError(f"field 'image' is {short(names)}; expected a path or a list of paths")
        if is_data_url(name):
            yield name
            continue
        path = Path(os.path.normpath(folder / name))
        if not path.is_relative_to(folder):
            raise RecordError(
                f"field 'image' is {short(name)}, which leads out of the image folder; expected a path in it"
            )
        if not exists(path):
            hint = "" if len(name) < 256 else "; is it the picture itself, in base64? expected the name of its file"
            raise RecordError(
                f"field 'image' is {short(name)}, but there is no file {named(path)}{hint}", "missing image"
            )
        yield path


def _found(record: dict[str, Any]) -> str:
    return f"found {', '.join(map(short, record)) or 'no fields'}"
