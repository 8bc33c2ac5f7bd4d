"""A study's folder: long work is written into it as it goes, goes on from it after a kill, and is shared out over processes.

Work is cut into units, and a finished unit is a folder of its own, written aside and then renamed: it is there as a whole or not at
all. So nothing is lost but the unit at work, nothing is done twice, and processes need not talk: each does its share of
the units that are missing, on one machine or on many that share the disk, and whoever finds all of them done puts the tables together.

    DIR/study.json              what is studied, on which model and data, with which versions
    DIR/parts/00007/            one finished unit: TABLE.parquet, TENSORS.safetensors
    DIR/TABLE.parquet           each table's parts in order, once all units are done
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
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

from sinkgate.errors import SinkgateError
from sinkgate.output import disk_errors, track, writable_folder
from sinkgate.studies.provenance import versions
from sinkgate.studies.results import FORMAT, VERSION, Results

IDENTITY = ("study", "settings", "model", "data", "units")  # what a continued run has to share
CRITERIA = {"settings.v_sink": "V-sinks", "settings.l_sink": "L-sinks"}  # settings that are criteria of sinks
Tables = Mapping[str, pd.DataFrame | dict[str, Tensor]]


class Study(Protocol):
    """What can be run: ``work`` gives a unit's tables, the same whoever does it and whenever.

    A study may have a dictionary ``about`` beside: what is told of it and need not be the same when it goes on, such as paths.
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
    """One process's share of the units: every ``of``-th from ``rank`` on."""

    rank: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.of:
            raise SinkgateError(f"the shard is {self.rank}/{self.of}; expected a number from 0 to one below the second")

    @classmethod
    def here(cls) -> Shard:
        """This process's, as ``accelerate launch`` and ``torchrun`` number processes; the whole where neither was used."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "3/8", the fourth of eight.

        Raises:
            SinkgateError: it is nothing of the kind.
        """
        rank, _, of = text.partition("/")
        if not (rank.isdecimal() and of.isdecimal()):
            raise SinkgateError(f"the shard is {text!r}; expected two numbers such as 0/8")
        return cls(int(rank), int(of))


def run(
    study: Study, out: str | Path, *, shard: Shard | None = None, resume: bool = True, progress: bool = True
) -> Results:
    """Do the units of a study that are not there yet, and put the tables together once all are.

    Args:
        study: what to do.
        out: its folder.
        shard: this process's share; `Shard.here` where None.
        resume: go on with what lies in the folder; False refuses a folder that holds any.
        progress: show how far it is, with the time left: a bar on the terminal of the first process, a line a part in a log.

    Raises:
        SinkgateError: the folder holds another study, or any where ``resume`` is False; as ``study.work``.
    """
    out, shard = Path(out), shard or Shard.here()
    results = _begun(study, out, resume, shard)
    if results.finished:
        return results
    share = range(shard.rank, study.units, shard.of)
    missing = [unit for unit in share if not _part(out, unit).is_dir()]
    name = f"{study.kind}, share {shard.rank}/{shard.of}" if shard.of > 1 else study.kind
    alone = shard.rank == 0 or not sys.stderr.isatty()  # bars of several processes on one terminal overwrite each other
    for unit in track(missing, name, done=len(share) - len(missing), unit="parts", seconds=0, show=progress and alone):
        _write(study.work(unit), _part(out, unit))
    return finish(out)


def finish(out: str | Path) -> Results:
    """Put the tables together if all units are done; the same bytes whoever does it.

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
        _replace(results.folder / name, lambda place, whole=whole: _save(whole, place))
    with suppress(OSError):  # what killed runs left there stays: another process may be writing
        (results.folder / "parts" / "tmp").rmdir()
    about = {**results.about, "finished": _now()}
    _write_about(about, results.folder)
    return Results(results.folder, about)


def gather(folders: Iterable[str | Path], out: str | Path) -> Results:
    """One study of the parts that lie in several folders, such as those of machines that share no disk.

    Raises:
        SinkgateError: they are not of one study.
    """
    out = Path(out)
    for folder in folders:
        results = Results.load(folder)
        kept = _keep(results.about, out)
        _agree(kept, results.about, out)
        more = [each for each in results.about["made_with"] if each not in kept["made_with"]]
        if more:
            _write_about({**kept, "made_with": kept["made_with"] + more}, out)
        for part in results.parts:
            place = out / "parts" / part.name
            if not place.is_dir():
                aside = _aside(out)
                shutil.copytree(part, aside)
                _settle(aside, place)
    return finish(out)


def chunks(count: int, size: int) -> int:
    """How many units of ``size`` samples there are.

    Raises:
        SinkgateError: there is no sample.
    """
    if count < 1:
        raise SinkgateError("there is no sample to study; expected one at least")
    return -(-count // size)


# --- inside


def _begun(study: Study, out: Path, resume: bool, shard: Shard) -> Results:
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
    about = json.loads(json.dumps(about))  # as it will be read again: tuples are lists
    if not resume and shard.rank == 0 and (out / "study.json").exists():
        raise SinkgateError(f"{out} holds a study already; name another folder, or let it go on (--resume)")
    kept = _keep(about, out)
    _agree(kept, about, out)
    if about["made_with"][0] not in kept["made_with"] and kept["finished"] is None:
        kept = {**kept, "made_with": kept["made_with"] + about["made_with"]}
        _write_about(kept, out)
    return Results(out, kept)


def _keep(about: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the folder says it is; ``about`` where it says nothing yet."""
    if (out / "study.json").exists():
        return Results.load(out).about
    with disk_errors(f"the folder {out} cannot be written; give another one"):
        (out / "parts").mkdir(parents=True, exist_ok=True)
    fresh = {**about, "finished": None}
    _write_about(fresh, out)
    return fresh


def _agree(kept: dict[str, Any], about: dict[str, Any], out: Path) -> None:
    there, here = _flat({key: kept[key] for key in IDENTITY}), _flat({key: about[key] for key in IDENTITY})
    for key in [*here, *there]:
        if there.get(key) != here.get(key):
            if group := CRITERIA.get(key):
                raise SinkgateError(
                    f"{out} was begun with {group} by {there.get(key, 'no criterion on record')}, this is a study of {group} by "
                    f"{here.get(key, 'no criterion')}; name another folder, or the same criterion, dimensions and tau as there"
                )
            raise SinkgateError(
                f"{out} holds another study: {key} is {there.get(key)} there and {here.get(key)} here; name another folder"
            )


def _write_about(about: dict[str, Any], out: Path) -> None:
    _replace(out / "study.json", lambda place: place.write_text(json.dumps(about, indent=1) + "\n"))


def _flat(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, each in value.items():
        flat |= _flat(each, f"{above}{key}.") if isinstance(each, dict) else {f"{above}{key}": each}
    return flat


def _part(out: Path, unit: int) -> Path:
    return out / "parts" / f"{unit:05d}"


def _aside(out: Path) -> Path:
    return out / "parts" / "tmp" / uuid4().hex


def _write(tables: Tables, place: Path) -> None:
    """A finished unit, whole or not at all."""
    aside = _aside(place.parents[1])
    with disk_errors(f"{place} cannot be written"):
        aside.mkdir(parents=True)
    for name, content in tables.items():
        if isinstance(content, pd.DataFrame):
            _save(pa.Table.from_pandas(content, preserve_index=False), aside / f"{name}.parquet")
        else:
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, aside / f"{name}.safetensors")
    _settle(aside, place)


def _settle(aside: Path, place: Path) -> None:
    try:
        aside.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(aside)  # another process was quicker with the same


def _save(table: pa.Table, place: Path) -> None:
    pq.write_table(table.replace_schema_metadata(None), place, compression="zstd")


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SinkgateError(
            f"{path} cannot be read ({error}); delete the folder {path.parent} and run again"
        ) from error


def _replace(place: Path, write: Any) -> None:
    aside = place.with_name(f".{place.name}-{uuid4().hex}")
    with disk_errors(f"{place} cannot be written"):
        write(aside)
        aside.replace(place)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
