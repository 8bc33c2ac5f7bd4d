"""Data sets fetched from the Hub: only the files asked for, with the commit that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sinkgate.errors import BenchmarkError
from sinkgate.models.load_errors import first_sentence

_REASONS: list[tuple[type[Exception], str]] = [
    (
        GatedRepoError,
        "it is gated: accept its terms on https://huggingface.co/datasets/{hub}, then log in with `hf auth login`",
    ),
    (
        RepositoryNotFoundError,
        "the Hub has no public data set of that name; give parquet files of your own, or log in with `hf auth login` if it is private",
    ),
    (
        RevisionNotFoundError,
        "it has no such revision; https://huggingface.co/datasets/{hub}/commits/main lists them",
    ),
    (
        LocalEntryNotFoundError,
        "it is not in the local cache and the Hub cannot be reached: run `hf download --repo-type dataset {hub}` where there is a "
        "network, or give a folder that holds its parquet files",
    ),
]


class Fetched(NamedTuple):
    """A local copy of a data set, and the commit on the Hub that it is of."""

    folder: Path
    commit: str


def fetch(hub: str, patterns: Sequence[str], revision: str | None = None) -> Fetched:
    """The files of a data set that fit the patterns, from the local cache where they are there already.

    Raises:
        BenchmarkError: the Hub cannot be reached, or has no such data set or revision.
    """
    try:
        folder = Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        reasons = (reason for kind, reason in _REASONS if isinstance(error, kind))
        reason = next(reasons, first_sentence(error)).format(hub=hub)
        raise BenchmarkError(f"{hub} cannot be fetched: {reason}") from error
    return Fetched(folder, folder.name)  # the cache names a snapshot's folder by its commit
