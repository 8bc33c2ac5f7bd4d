"""Questions in Parquet files, read row by row by the ``datasets`` library, or in JSON; fetched from the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from itertools import count
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sinkgate.data.llava import RecordError, decode, exists, named, records
from sinkgate.errors import BenchmarkError, SinkgateError, with_remedy
from sinkgate.images.io import Picture, is_data_url
from sinkgate.models.load_errors import first_sentence

Row = Mapping[str, Any]
BATCH = 16  # rows of Parquet read at a time; a picture in them may take megabytes

_REASONS: list[tuple[type[Exception], str]] = [
    (
        GatedRepoError,
        "it is gated: accept its terms on https://huggingface.co/datasets/{hub}, then log in with `hf auth login`",
    ),
    (
        RepositoryNotFoundError,
        "the Hub has no public data set of that name; give files of your own, or log in with `hf auth login` if it is private",
    ),
    (RevisionNotFoundError, "it has no such revision; https://huggingface.co/datasets/{hub}/commits/main lists them"),
    (
        LocalEntryNotFoundError,
        "it is not in the local cache and the Hub cannot be reached: run `hf download --repo-type dataset {hub}` where there is a "
        "network, or give a folder that holds its parquet files",
    ),
]


class Fetched(NamedTuple):
    """A local copy of a data set, and its commit on the Hub."""

    folder: Path
    commit: str


def fetch(hub: str, patterns: Sequence[str], revision: str | None = None) -> Fetched:
    """Fetch the files of a data set that match the patterns, from the local cache if it holds them.

    ``load_dataset(hub, revision=...)`` is not used: it does not report the commit, copies all pictures into a second cache, and does not
    find the files of ``hf download`` offline.

    Raises:
        BenchmarkError: the Hub cannot be reached, or has no such data set or revision.
    """
    try:
        folder = Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        reasons = (reason for kind, reason in _REASONS if isinstance(error, kind))
        raise BenchmarkError(f"{hub} cannot be fetched: {next(reasons, _reason(error)).format(hub=hub)}") from error
    return Fetched(folder, folder.name)  # the cache names a snapshot's folder by its commit


def files_in(location: str | Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files at a place, sorted: the file itself; in a folder those that match the patterns, else all Parquet files, else all JSON.

    Raises:
        BenchmarkError: the path does not exist, or the folder has no such file.
    """
    path = Path(location).expanduser()
    if exists(path):
        return [path]
    if not exists(path, "dir"):
        raise BenchmarkError(
            f"there is no file or folder {named(location)}; give a Parquet or JSON file, or a folder of them"
        )
    for choice in (patterns, ("*.parquet",), ("*.json", "*.jsonl")):
        if files := sorted({file for pattern in choice for file in path.glob(pattern)}):
            return files
    raise BenchmarkError(f"the folder {location} holds no Parquet or JSON files; expected {' or '.join(patterns)}")


class Table:
    """Files with the same columns as one table.

    Args:
        files: in their order.
        columns: columns that every file must have; no others are read.
        renamed: other names of these columns in some files.
        of_file: columns that follow from the name of a file.

    Raises:
        BenchmarkError: a file cannot be read or lacks a column, or there are no rows.
    """

    def __init__(
        self,
        files: Sequence[Path],
        columns: Sequence[str],
        renamed: Mapping[str, str],
        of_file: Callable[[Path], Row],
    ) -> None:
        self.renamed, self.of_file = renamed, of_file
        self.shapes: dict[Path, tuple[list[str], int]] = {}  # columns to read, by their names in the file, and rows
        for file in files:
            names, length = _shape(file)
            known = {*(renamed.get(name, name) for name in names), *of_file(file)}
            missing = [column for column in columns if column not in known]
            if missing and (names or not length):
                raise BenchmarkError(
                    f"{file}: no column {', '.join(missing)}; found {', '.join(names) or 'none'}, expected {', '.join(columns)}"
                )
            self.shapes[file] = [name for name in names if renamed.get(name, name) in columns], length
        if not len(self):
            raise BenchmarkError(f"{', '.join(file.name for file in files)}: there are no rows; is the split empty?")

    def __len__(self) -> int:
        return sum(length for _, length in self.shapes.values())

    def rows(self, numbers: Iterable[int]) -> Iterator[tuple[str, Row | BenchmarkError]]:
        """Yield the rows with some numbers, counted from 0 over all files, in the files' order; each with its place in words.

        For a line of JSON that cannot be read, its error.

        Raises:
            BenchmarkError: a file is broken.
        """
        wanted, start = set(numbers), 0
        for file, (names, length) in self.shapes.items():
            more = self.of_file(file)
            for number, (place, row) in enumerate(_stream(file, names), start):
                if number in wanted:
                    if not isinstance(row, BenchmarkError):
                        row = {**more, **{self.renamed.get(name, name): value for name, value in row.items()}}
                    yield f"{file.name}, {place}", row
            start += length


def _shape(file: Path) -> tuple[list[str], int]:
    """Return the columns of a file and the number of its rows."""
    if _is_json(file):
        rows = [row for _, row in _lines(file)]
        return list(next((row for row in rows if not isinstance(row, BenchmarkError)), {})), len(rows)
    from pyarrow import parquet

    with _reading(file):
        metadata = parquet.read_metadata(file)
        return metadata.schema.to_arrow_schema().names, metadata.num_rows


def _stream(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row | BenchmarkError]]:
    """Yield the rows of a file with their places, with these columns, pictures as stored; without a copy on disk."""
    if _is_json(file):
        for place, row in _lines(file):
            yield place, row if isinstance(row, BenchmarkError) else {name: row.get(name) for name in columns}
        return
    with _reading(file) as datasets:
        rows = datasets.load_dataset(
            "parquet",
            data_files=escape(str(file)),
            split="train",
            streaming=True,
            **cast(Any, {"batch_size": BATCH, "columns": columns}),
        )
        rows = iter(rows.decode(False) if rows.features is not None else rows)
    for number in count():
        with _reading(file):
            row = next(rows, None)
        if row is None:
            return
        yield f"row {number} (from 0)", {name: row[name] for name in columns}


def _lines(file: Path) -> Iterator[tuple[str, Row | BenchmarkError]]:
    """Yield the records of JSON lines or of a JSON list; the error instead of one that is no object."""
    try:
        for place, record in records(file):
            try:
                row = decode(record) if isinstance(record, bytes) else record
            except RecordError as error:
                yield place, BenchmarkError(str(error))
                continue
            yield place, row if isinstance(row, dict) else BenchmarkError(f"{short(row)}; expected an object")
    except (SinkgateError, OSError) as error:
        raise BenchmarkError(f"{file} cannot be read as JSON: {_reason(error)}") from error


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in (".json", ".jsonl")


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """Yield the ``datasets`` library, imported when needed, without its log; turn its errors into BenchmarkError."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise BenchmarkError('reading a benchmark needs datasets: run `pip install "sinkgate[studies]"`') from error
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    except (DatasetsError, OSError, ValueError) as error:  # pyarrow's are among the last two
        raise BenchmarkError(f"{file} cannot be read as Parquet: {_reason(error)}") from error
    finally:
        datasets.logging.set_verbosity(before)


def _reason(error: Exception) -> str:
    """Return the reason of an error of a file: the operating system's with its remedy, else the library's first sentence."""
    return with_remedy(error) if isinstance(error, OSError) and error.errno else first_sentence(error)


def text(row: Row, column: str) -> str:
    """Return the text or number in a column, as text without blanks around it.

    Raises:
        BenchmarkError: it is empty, or neither text nor number.
    """
    value = row[column]
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise BenchmarkError(f"column {column} is {value!r:.60}; expected text")
    return str(value).strip()


def with_images(row: Row, folder: str | Path | None) -> Row:
    """Return the row with the path of its image, if its column ``image`` holds a name and there is a folder of images.

    Raises:
        BenchmarkError: there is no such file in the folder.
    """
    name = row.get("image")
    if folder is None or not isinstance(name, str) or is_data_url(name):
        return row
    path = Path(folder) / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not exists(path):
        raise BenchmarkError(f"column image is {name!r:.60}, but there is no such file in {folder}")
    return {**row, "image": path}


def pictures(row: Row) -> tuple[Picture, ...]:
    """Return the images of a row: paths, bytes, data URLs, the Hub's ``{"bytes", "path"}``, or a list of them.

    A name alone is no image.

    Raises:
        BenchmarkError: one is missing.
    """
    value = row["image"]
    listed = value if isinstance(value, list) else [value]
    files = [each.get("bytes") if isinstance(each, dict) else each for each in listed]
    images = tuple(file for file in files if file and (isinstance(file, bytes | Path) or is_data_url(file)))
    if isinstance(value, str) and not images:
        raise BenchmarkError(
            f"the image in column image is a name, {value!r:.60}; name the folder of the images (images=, --images)"
        )
    if not files or len(images) < len(files):
        raise BenchmarkError("the image in column image is missing; expected the bytes of an image file in every row")
    return images
