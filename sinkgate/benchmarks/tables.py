"""Questions in parquet files, as the Hub keeps them, read row by row: never more in memory than a row group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from sinkgate.errors import BenchmarkError
from sinkgate.models.load_errors import first_sentence

Row = Mapping[str, Any]
BATCH = 16  # rows read at a time; a picture in them may take megabytes
BUFFER = 1 << 20  # bytes; with this, and without pre-buffering, a file of pictures is not held whole


def files_in(place: str | Path, patterns: Sequence[str] = ("*.parquet",)) -> list[Path]:
    """The parquet files at a place, sorted: the file itself; in a folder those that fit the patterns, else all that lie in it.

    Raises:
        BenchmarkError: there is no such place, or no parquet file in the folder.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BenchmarkError(f"there is no file or folder {place}; give a parquet file, or a folder of them")
    fitting = {file for pattern in patterns for file in path.glob(pattern)}
    found = sorted(fitting or path.glob("*.parquet"))
    if not found:
        raise BenchmarkError(f"the folder {place} holds no parquet files; expected {' or '.join(patterns)}")
    return found


class Table:
    """Parquet files with the same columns as one table; only the columns asked for are read.

    Raises:
        BenchmarkError: a file is no parquet file or lacks a column, or there are no rows at all.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.files, self.columns = list(files), list(columns)
        self.lengths = [self._length(file) for file in self.files]
        if not len(self):
            raise BenchmarkError(f"{_names(self.files)}: there are no rows; is the split empty?")

    def __len__(self) -> int:
        return sum(self.lengths)

    def rows(self, numbers: Iterable[int]) -> Iterator[tuple[str, Row]]:
        """The rows of some numbers, counted from 0 over all files, in the files' order; each with its place in words.

        Raises:
            BenchmarkError: a file is broken.
        """
        wanted = set(numbers)
        number = 0
        for file in self.files:
            start = number
            with _open(file) as opened:
                for batch in opened.iter_batches(BATCH, columns=self.columns):
                    for place in range(len(batch)):
                        if number in wanted:
                            yield f"{file.name}, row {number - start} (from 0)", batch.slice(place, 1).to_pylist()[0]
                        number += 1

    def _length(self, file: Path) -> int:
        with _open(file) as opened:
            found = opened.schema_arrow.names
            missing = [column for column in self.columns if column not in found]
            if missing:
                raise BenchmarkError(
                    f"{file}: no column {', '.join(missing)}; found {', '.join(found) or 'none'}, expected {', '.join(self.columns)}"
                )
            return opened.metadata.num_rows


def text(row: Row, column: str) -> str:
    """What a column says, as text without blanks around it.

    Raises:
        BenchmarkError: nothing, or something that is neither text nor number.
    """
    value = row[column]
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise BenchmarkError(f"column {column} is {value!r:.60}; expected text")
    return str(value).strip()


def pictures(row: Row, column: str = "image") -> tuple[bytes, ...]:
    """The image files of a row, from bytes, from the Hub's ``{"bytes", "path"}``, or from a list of either; a path alone is no image.

    Raises:
        BenchmarkError: one is missing.
    """
    value = row[column]
    listed = value if isinstance(value, list) else [value]
    files = [each.get("bytes") if isinstance(each, dict) else each for each in listed]
    found = tuple(file for file in files if isinstance(file, bytes) and file)
    if not files or len(found) < len(files):
        raise BenchmarkError(
            f"the image in column {column} is missing; expected the bytes of an image file in every row"
        )
    return found


@contextmanager
def _open(file: Path) -> Iterator[parquet.ParquetFile]:
    """The file, opened; what pyarrow raises within the block becomes a sentence."""
    try:
        with parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise BenchmarkError(f"{file} cannot be read as parquet: {first_sentence(error)}") from error


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)
