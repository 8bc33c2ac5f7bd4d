"""Cambrian-7M in equal shares of six categories, the paper's training data (section 4).

The file is a JSONL in LLaVA's format of about 7 million records, read once, line by line. It has no field for the
category: that follows from ``source``. Chosen by us, since the paper does not say: the draw of records, and the first
turn of each conversation.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import islice, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from sinkgate.data.llava import (
    Broken,
    RecordError,
    decode,
    exists,
    image_folder,
    is_text_only,
    named,
    one_of,
    samples_of,
)
from sinkgate.data.sample import Sample
from sinkgate.errors import SinkgateError, with_remedy
from sinkgate.output import track

CAMBRIAN = "hf://datasets/nyu-visionx/Cambrian-10M/jsons/Cambrian7M_withsystemprompt.jsonl"
#: Data sets by category, as figure 9 of Cambrian-1 (arXiv 2406.16860) groups them. Every other one is "general".
SOURCES = {
    "ocr": (
        "ai2d", "arxivqa", "chart2text", "chartqa", "clean_llava_instruct_150k_llavar", "docvqa", "dvqa", "finqa", "hitab",
        "iconqa", "infographic_vqa", "random_3rd_dvqa", "rendered_text", "robut_wikisql", "robut_wtq", "screenqa", "st_vqa",
        "synthdog", "tabmwp", "tat_qa", "vistext",
    ),
    "counting": ("clevr", "tallyqa"),
    "code": ("datikz", "design2code", "filtered websight", "websight"),
    "math": ("geo170k", "geomverse", "intergps", "mathvision", "raven", "tqa"),
    "science": ("filtered_data_engine", "pathvqa", "scienceqa"),
}  # fmt: skip
CATEGORIES = ("ocr", "general", "counting", "code", "math", "science")
_CATEGORY = {name: category for category, names in SOURCES.items() for name in names}
_MIXED = "idefics375k"  # many data sets under one name; the image's folder, hfdata/<data set>, tells them apart


def source_name(source: str, image: str = "") -> str:
    """Return the data set that a record's ``source`` names: without extension and size, ``clevr_700k.json`` is ``clevr``.

    ``image`` is the record's image path. It is used for the one source that is a mixture, ``idefics375k.json``.
    """
    name = re.sub(r"(_\d+[km]?)?(_modified)?$", "", re.sub(r"\.jsonl?$", "", source.strip().lower()))
    folders = PurePosixPath(image).parts[:-1]
    return folders[1].lower() if name == _MIXED and len(folders) > 1 else name


def category_of(source: str, image: str = "") -> str:
    """Return one of `CATEGORIES` for a record's ``source`` and image path; "general" if `SOURCES` does not list it."""
    return _CATEGORY.get(source_name(source, image), "general")


def read_cambrian(
    images: str | Path,
    file: str | Path = CAMBRIAN,
    *,
    count: int = 10_000,
    seed: int = 0,
    categories: Sequence[str] = CATEGORIES,
    without: Iterable[str] = (),
    records: int | None = None,
    broken: Broken = "skip",
    partial: bool = False,
    passed: Counter[str] | None = None,
) -> list[Sample]:
    """Return samples of Cambrian-7M in equal shares of its categories; ``kind`` is the category.

    A seeded hash of its line ranks every record, and each category takes the records of lowest rank: a uniform choice without
    replacement in one pass, in memory for ``count`` samples. The same seed chooses the same records at any place in the file; identical
    records count once; and the first n of a larger choice are the choice of n. The categories take turns, so that any first n are
    balanced too; if ``count`` does not divide, the first ones have one more.

    CLEVR is the larger part of the counting share (350 of 600 thousand by Cambrian-1's figure 9). To run the paper's probes (on CLEVR
    scenes) on the trained gates, leave it out: ``without=["clevr"]`` also drops records of other sources with images in a folder
    ``clevr``.

    Args:
        images: folder into which the archives of nyu-visionx/Cambrian-10M were unpacked. Records without their image are skipped.
        file: the JSONL: a path, or an address that the ``datasets`` library can stream, such as the default one on the Hub.
        count: number of samples.
        seed: of the choice.
        categories: categories to draw from, of `CATEGORIES`.
        without: data sets or image folders to leave out, named as by `source_name`.
        records: number of records to read, from the beginning; all if None.
        broken: for an invalid record, "skip" skips it (millions of records may contain some), "stop" raises.
        partial: accept categories with fewer samples than their share.
        passed: counts skipped records by reason: "text only", "left out", "broken", "missing image". Only records of low rank are
            checked for missing images and some faults.

    Raises:
        SinkgateError: ``datasets`` is missing, the file cannot be read or holds no records, a category is short of its share (unless
            ``partial``), or an argument is wrong.

    Example:
        >>> samples = read_cambrian("cambrian/images", count=6000, without=["clevr"])
    """
    folder, left_out = image_folder(images), {name.lower() for name in without}
    one_of("broken", broken, Broken)
    strata = _strata(categories, count)
    passed = Counter() if passed is None else passed
    unmet, number = set(left_out), 0
    lines = track(islice(_lines(file), records), "Cambrian", records, unit="records")
    for number, line in enumerate(lines, 1):
        try:
            record = decode(line)
            source, image = _origin(record)
            if is_text_only(record):
                passed["text only"] += 1
                continue
            if excluded := left_out & {source_name(source, image), *PurePosixPath(image.lower()).parts[:-1]}:
                passed["left out"] += 1
                unmet -= excluded
                continue
            category = category_of(source, image)
            rank = _rank(line, seed)
            if category in strata and strata[category].wants(rank):
                (sample, *_) = samples_of(record, folder)
                strata[category].add(rank, replace(sample, kind=category))
        except RecordError as error:
            if broken == "stop" and error.reason != "missing image":
                raise SinkgateError(f"{file}, record {number}: {error}") from error
            passed[error.reason] += 1
    if not number:
        raise SinkgateError(f"{file} holds no records; expected JSONL of LLaVA-format records")
    if unmet:
        text = f"nothing was left out for {', '.join(sorted(unmet))}: no record has that source or image folder"
        warnings.warn(text, stacklevel=2)
    short = {name: stratum.size - len(stratum.samples) for name, stratum in strata.items()}
    if any(short.values()) and not partial:
        shares = ", ".join(f"{name} ({missing} of {strata[name].size})" for name, missing in short.items() if missing)
        fits = len(strata) * min(len(stratum.samples) for stratum in strata.values())
        raise SinkgateError(
            f"too few records with an image for {shares}; {passed['missing image']} images were missing: unpack more of them, "
            + (f"reduce to count={fits} (--limit and --skip together), " if fits else "")
            + "or in Python leave a category out with categories= or accept fewer with partial=True"
        )
    ranked = [[stratum.samples[rank] for rank in sorted(stratum.samples)] for stratum in strata.values()]
    return [sample for turn in zip_longest(*ranked) for sample in turn if sample is not None]


@dataclass
class _Stratum:
    """The ``size`` samples of lowest rank."""

    size: int
    samples: dict[int, Sample] = field(default_factory=dict)
    highest: list[int] = field(default_factory=list)  # heap of the ranks' negatives

    def wants(self, rank: int) -> bool:
        room = len(self.samples) < self.size
        return rank not in self.samples and (room or (bool(self.highest) and rank < -self.highest[0]))

    def add(self, rank: int, sample: Sample) -> None:
        self.samples[rank] = sample
        heappush(self.highest, -rank)
        if len(self.samples) > self.size:
            del self.samples[-heappop(self.highest)]


def _strata(categories: Sequence[str], count: int) -> dict[str, _Stratum]:
    if not categories or set(categories) - set(CATEGORIES):
        raise SinkgateError(f"categories is {categories!r}; expected some of {', '.join(CATEGORIES)}")
    if count < 1:
        raise SinkgateError(f"count is {count}; expected 1 or more")
    names = list(dict.fromkeys(categories))
    share, rest = divmod(count, len(names))
    return {name: _Stratum(share + (number < rest)) for number, name in enumerate(names)}


def _rank(line: str, seed: int) -> int:
    return int.from_bytes(blake2b(line.encode(), digest_size=8, key=str(seed).encode()).digest())


def _origin(record: Any) -> tuple[str, str]:
    """Return a record's source and its first image path, "" if it has none."""
    if not isinstance(record, dict) or not isinstance(record.get("source"), str):
        raise RecordError("field 'source' is missing or no text; expected a name such as 'clevr_700k.json'")
    image = record.get("image")
    first = image[0] if isinstance(image, list) and image else image
    return record["source"], first if isinstance(first, str) else ""


def _lines(file: str | Path) -> Iterator[str]:
    """Yield the lines of a file, local or on the Hub.

    They are read as text, not by the "json" reader, which needs one type in a column, loses all records of a block with a broken
    line, and took 17 times as long for records of mixed types (datasets 5.2).
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SinkgateError('reading Cambrian needs datasets: run `pip install "sinkgate[train]"`') from error
    if "://" not in str(file) and not exists(file):
        raise SinkgateError(f"there is no file {named(file)}; expected a copy of {CAMBRIAN}")
    try:
        rows = load_dataset("text", data_files=str(file), split="train", streaming=True, encoding_errors="replace")
        yield from (row["text"] for row in rows if row["text"].strip())
    except (OSError, ValueError) as error:
        remedy = "check the network, or give the path of a copy"
        raise SinkgateError(f"{file} cannot be read: {with_remedy(error, remedy)}") from error
