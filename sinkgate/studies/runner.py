"""Runs of studies: written to a folder part by part, resumed after a kill, and divided among processes.

A study is a number of units, and a finished unit is a folder of its own, written under another name and then renamed: it exists as a whole
or not at all. So a kill loses only the unit in progress, nothing is computed twice, and processes need no communication: each does its
share of the missing units, on one machine or on several with a common disk, and the process that finishes the last unit joins the tables.

    DIR/study.json              study, settings, model, data and versions
    DIR/parts/00007/            one finished unit: TABLE.parquet, TENSORS.safetensors
    DIR/TABLE.parquet           each table's parts in order, once all units are done
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import Tensor

from sinkgate.errors import SinkgateError, with_remedy
from sinkgate.output import disk_errors, track, writable_folder
from sinkgate.studies.provenance import versions
from sinkgate.studies.results import FORMAT, VERSION, Results
from sinkgate.training.dataset import ImageSinks, absent

IDENTITY = ("study", "settings", "model", "data", "units")  # equal in all runs of one folder
CRITERIA = {"settings.v_sink": "V-sinks", "settings.l_sink": "L-sinks"}  # settings that are criteria of sinks
OPTIONS = "settings.options."  # of methods, by name
WORDS = {
    "settings.attention": "attention measured",
    "settings.chunk": "batch size",
    "data.checksum": "the checksum of the samples' content",
    "data.ids": "the checksum of the items' ids",
}
Tables = Mapping[str, pd.DataFrame | dict[str, Tensor]]


class Study(Protocol):
    """A study: ``work`` returns the tables of a unit, in every process and run the same.

    A study may have a dictionary ``about``: further facts that may differ between runs, such as paths; and a method ``sinks``, which
    returns the numbers of sinks in the tables of a unit, for the line of progress. In a ``sequential`` study each unit
    depends on those before it: ``begin`` resets the study, and ``follow`` takes the tables of each unit that an earlier run finished.
    """

    kind: ClassVar[str]

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def model(self) -> dict[str, Any]: ...

    @property
    def data(self) -> dict[str, Any]: ...

    @property
    def units(self) -> int: ...

    def work(self, unit: int) -> Tables: ...


@dataclass(frozen=True)
class Shard:
    """One process's share of the units: every ``of``-th from ``rank``."""

    rank: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.of:
            raise SinkgateError(f"the shard is {self.rank}/{self.of}; expected a number from 0 to one below the second")

    @classmethod
    def here(cls) -> Shard:
        """Return the share of this process under ``accelerate launch`` or ``torchrun``; the whole without a launcher."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the share that a text names: "3/8" is the fourth of eight.

        Raises:
            SinkgateError: the text has another form.
        """
        rank, _, of = text.partition("/")
        if not (rank.isdecimal() and of.isdecimal()):
            raise SinkgateError(f"the shard is {text!r}; expected two numbers such as 0/8")
        return cls(int(rank), int(of))


def run(
    study: Study, out: str | Path, *, shard: Shard | None = None, resume: bool = True, progress: bool = True
) -> Results:
    """Compute the missing units of a study, and join the tables when all are finished.

    Args:
        study: the study.
        out: its folder.
        shard: this process's share; `Shard.here` if None.
        resume: continue the study in the folder; False refuses a folder with a study.
        progress: show the progress and the time left: a bar on the terminal of the first process, or a log line for each part and every
            half minute; beside it the groups of sinks that no image had so far.

    Raises:
        SinkgateError: the folder cannot be written, holds another study, or holds any study and ``resume`` is False; as ``study.work``.

    Example:
        >>> results = run(Sweep(vlm, items, layers=[2]), "runs/sweep")
        >>> results.table("answers")
    """
    out, shard = Path(out), shard or Shard.here()
    results = _start(study, out, resume, shard)
    if results.finished:
        return results
    if getattr(study, "sequential", False):
        _catch_up(study, results, shard)
    share = range(shard.rank, study.units, shard.of)
    missing = [unit for unit in share if not _part(out, unit).is_dir()]
    name = f"{study.kind}, share {shard.rank}/{shard.of}" if shard.of > 1 else study.kind
    alone = shard.rank == 0 or not sys.stderr.isatty()  # bars of several processes on one terminal overwrite each other
    counts: list[ImageSinks] = []
    options: Any = {"done": len(share) - len(missing), "unit": "parts", "seconds": 0, "show": progress and alone}
    for unit in track(missing, name, note=lambda: absent(counts), **options):
        tables = study.work(unit)
        _write(tables, _part(out, unit))
        if count := getattr(study, "sinks", None):
            counts.extend(count(tables))
    return finish(out)


def finish(out: str | Path) -> Results:
    """Join the tables if all units are finished; the same bytes in every process.

    Raises:
        SinkgateError: there is no study, or a part cannot be read.
    """
    results = Results.load(out)
    parts = results.parts
    if results.finished or len(parts) < results.about["units"]:
        return results
    for name in sorted({file.name for part in parts for file in part.glob("*.parquet")}):
        tables = [_read(part / name) for part in parts if (part / name).exists()]
        whole = pa.concat_tables(tables, promote_options="permissive")
        with _replaced(results.folder / name) as aside:
            _save(whole, aside)
    with suppress(OSError):  # files of killed runs stay: another process may be writing there
        (results.folder / "parts" / "tmp").rmdir()
    about = {**results.about, "finished": _now()}
    _write_about(about, results.folder)
    return Results(results.folder, about)


def gather(folders: Iterable[str | Path], out: str | Path) -> Results:
    """Join the parts of one study from several folders, such as those of machines without a common disk.

    Raises:
        SinkgateError: they are not of one study.
    """
    out = Path(out)
    for folder in folders:
        results = Results.load(folder)
        stored = _stored(results.about, out)
        _check_same(stored, results.about, out)
        more = [each for each in results.about["made_with"] if each not in stored["made_with"]]
        if more:
            _write_about({**stored, "made_with": stored["made_with"] + more}, out)
        for part in results.parts:
            place = out / "parts" / part.name
            if not place.is_dir():
                aside = _aside(out)
                shutil.copytree(part, aside)
                _settle(aside, place)
    return finish(out)


def chunks(count: int, size: int) -> int:
    """Return the number of units of ``size`` samples.

    Raises:
        SinkgateError: there is no sample.
    """
    if count < 1:
        raise SinkgateError("there is no sample to study; expected one at least")
    return -(-count // size)


# --- inside


def _start(study: Study, out: Path, resume: bool, shard: Shard) -> Results:
    if not (out / "study.json").exists():
        writable_folder(out / "parts")  # before settings, which may run the model
    about = {
        "format": FORMAT,
        "version": VERSION,
        "study": study.kind,
        "settings": study.settings,
        "model": study.model,
        "data": study.data,
        "units": study.units,
        "about": getattr(study, "about", {}),
        "made_with": [versions()],
        "started": _now(),
        "finished": None,
    }
    about = json.loads(json.dumps(about))  # as it is read again: tuples are lists
    if not resume and shard.rank == 0 and (out / "study.json").exists():
        raise SinkgateError(f"{out} holds a study already; name another folder, or let it go on (--resume)")
    stored = _stored(about, out)
    _check_same(stored, about, out)
    if about["made_with"][0] not in stored["made_with"] and stored["finished"] is None:
        stored = {**stored, "made_with": stored["made_with"] + about["made_with"]}
        _write_about(stored, out)
    return Results(out, stored)


def _catch_up(study: Any, results: Results, shard: Shard) -> None:
    """Pass the finished units to a sequential study, in order."""
    if shard.of > 1:
        raise SinkgateError(
            f"each part of a {study.kind} depends on those before, so {shard.of} processes cannot share it; run it as one process"
        )
    study.begin()
    for part in results.parts:
        study.follow({file.stem: _read(file).to_pandas() for file in sorted(part.glob("*.parquet"))})


def _stored(about: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return the record in the folder; if there is none, write ``about`` there and return it."""
    if (out / "study.json").exists():
        return Results.load(out).about
    with disk_errors(f"the folder {out} cannot be written"):
        (out / "parts").mkdir(parents=True, exist_ok=True)
    fresh = {**about, "finished": None}
    _write_about(fresh, out)
    return fresh


def _check_same(stored: dict[str, Any], about: dict[str, Any], out: Path) -> None:
    """Raise if the folder holds another study."""
    stored_facts, facts = _flat({key: stored[key] for key in IDENTITY}), _flat({key: about[key] for key in IDENTITY})
    if "options" not in stored["settings"]:  # of an older release
        facts = {key: value for key, value in facts.items() if not key.startswith(OPTIONS)}
    for key in [*facts, *stored_facts]:
        if stored_facts.get(key) != facts.get(key):
            raise SinkgateError(f"{out} {_difference(key, stored_facts.get(key), facts.get(key))}")


def _difference(key: str, stored: Any, new: Any) -> str:
    """Return in words the difference between a study and that of a folder, and the remedy."""
    if group := CRITERIA.get(key):
        return (
            f"was begun with {group} by {stored or 'no criterion on record'}, this is a study of {group} by {new or 'no criterion'}; name "
            "another folder, or the same criterion, dimensions and tau as there"
        )
    if key.startswith(OPTIONS):
        name = key.removeprefix(OPTIONS)
        if not (stored and new):
            return f"was begun {'with' if stored else 'without'} the method {name}; name another folder"
        return f"was begun with other options of the method {name}: {stored} there, {new} here; name another folder, or the same options"
    label = WORDS.get(
        key, key.removeprefix("settings.").replace("_", " ").replace("origins.", "the checksum of the files of ")
    )
    if all(value is None or isinstance(value, bool) for value in (stored, new)):
        words = f"{label} there, not here" if stored else f"{label} here, not there"
    else:
        before, now = ("not set" if value is None else value for value in (stored, new))
        words = f"{label} is {before} there and {now} here"
    return f"holds another study: {words}; name another folder"


def _write_about(about: dict[str, Any], out: Path) -> None:
    with _replaced(out / "study.json") as aside:
        aside.write_text(json.dumps(about, indent=1) + "\n")


def _flat(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, each in value.items():
        flat |= _flat(each, f"{above}{key}.") if isinstance(each, dict) else {f"{above}{key}": each}
    return flat


def _part(out: Path, unit: int) -> Path:
    return out / "parts" / f"{unit:05d}"


def _aside(out: Path) -> Path:
    return out / "parts" / "tmp" / uuid4().hex


def _write(tables: Tables, folder: Path) -> None:
    """Write a finished unit, whole or not at all."""
    aside = _aside(folder.parents[1])
    with disk_errors(f"{folder} cannot be written"):
        aside.mkdir(parents=True)
    for name, content in tables.items():
        if isinstance(content, pd.DataFrame):
            _save(pa.Table.from_pandas(content, preserve_index=False), aside / f"{name}.parquet")
        else:
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, aside / f"{name}.safetensors")
    _settle(aside, folder)


def _settle(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(aside)  # another process has written the same


def _save(table: pa.Table, path: Path) -> None:
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        remedy = f"delete the folder {path.parent} and run again"
        raise SinkgateError(f"{path} cannot be read: {with_remedy(error, remedy)}") from error


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yield a file to write, which then replaces another as a whole."""
    aside = path.with_name(f".{path.name}-{uuid4().hex}")
    with disk_errors(f"{path} cannot be written"):
        yield aside
        aside.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
