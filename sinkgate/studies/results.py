"""Results of a study, read from its folder, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from sinkgate.errors import SinkgateError, with_remedy

FORMAT, VERSION = "sinkgate-study", 1
KEYS = ("study", "settings", "model", "data", "units", "made_with", "started", "finished")


@dataclass(frozen=True)
class Results:
    """The folder of a study and its record, ``about``, from study.json."""

    folder: Path
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Return the results in a folder, finished or not.

        Raises:
            SinkgateError: there is no study.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SinkgateError(f"{folder} holds no study: it has no study.json") from None
        except ValueError as error:
            raise SinkgateError(f"{folder / 'study.json'} is no JSON ({error})") from error
        if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
            raise SinkgateError(f"{folder / 'study.json'} is no study of format {FORMAT}, version {VERSION}")
        if missing := [key for key in KEYS if key not in about]:
            raise SinkgateError(f"{folder / 'study.json'} lacks {', '.join(missing)}; was it changed by hand?")
        return cls(folder, about)

    @classmethod
    def find(cls, folder: str | Path) -> list[Results]:
        """Return all studies in a folder and below, by path.

        Raises:
            SinkgateError: there is none.
        """
        studies = [cls.load(file.parent) for file in sorted(Path(folder).rglob("study.json"))]
        if not studies:
            raise SinkgateError(f"there is no study in {folder}; a study's folder holds a study.json")
        return studies

    @property
    def study(self) -> str:
        """Its kind: "anatomy", "probes", "sweep", ..."""
        return self.about["study"]

    @property
    def finished(self) -> bool:
        """True if the tables are joined."""
        return self.about["finished"] is not None

    @property
    def parts(self) -> list[Path]:
        """Folders of the finished units, in order."""
        return sorted(path for path in (self.folder / "parts").glob("[0-9]*") if path.is_dir())

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of a finished study.

        Raises:
            SinkgateError: the study is not finished, or has no such table.
        """
        if not self.finished:
            raise SinkgateError(
                f"the {self.study} in {self.folder} is not finished ({len(self.parts)} of {self.about['units']} parts are there); "
                "the same command continues it"
            )
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            tables = ", ".join(file.stem for file in sorted(self.folder.glob("*.parquet"))) or "none"
            raise SinkgateError(f"the {self.study} in {self.folder} has no table {name!r}; there are: {tables}")
        try:
            return pd.read_parquet(path)
        except (pa.ArrowException, OSError) as error:
            remedy = 'set "finished" to null in study.json and run again: its parts are joined anew'
            raise SinkgateError(f"{path} cannot be read: {with_remedy(error, remedy)}") from error
