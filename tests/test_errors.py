"""Errors of the operating system name the remedy."""

import errno
import os
from pathlib import Path

import pytest

import sinkgate as sg
from sinkgate.errors import with_remedy
from sinkgate.models.load_errors import in_words
from sinkgate.output import writable_folder
from sinkgate.studies.results import Results

REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "a part of the path is a file, give another path",
    errno.EACCES: "change its permissions, or give another path",
    errno.EMFILE: "close files, or raise the process's limit with `ulimit -n`",
    errno.ENOSPC: "free some, or give a path on another disk",
}


@pytest.mark.parametrize("number", REMEDIES)
def test_each_number_has_its_remedy(number):
    assert with_remedy(OSError(number, os.strerror(number))) == f"{os.strerror(number)}; {REMEDIES[number]}"
    assert with_remedy(ValueError("embedded null byte"), "drop it") == "embedded null byte; drop it"


@pytest.mark.parametrize(
    ("act", "method"),
    [
        (lambda path: sg.open_image(path), "read_bytes"),
        (lambda path: sg.open_video(path), "read_bytes"),
        (lambda path: sg.Gates.load(path), "read_text"),
        (lambda path: sg.LSG.from_pretrained(path.parent), "read_text"),
        (lambda path: writable_folder(path / "out"), "mkdir"),
    ],
)
def test_a_file_without_permission_is_named_with_the_remedy(tmp_path, monkeypatch, act, method):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(sg.SinkgateError, match=f"{tmp_path}.*: Permission denied; change its permissions"):
        act(tmp_path / "file")


def test_results_that_cannot_be_opened_are_not_to_be_deleted(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"")

    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr("sinkgate.studies.results.pd.read_parquet", refuse)
    results = Results(tmp_path, {"study": "sweep", "finished": "now", "units": 1})
    with pytest.raises(sg.SinkgateError, match="rows.parquet cannot be read: Too many open files; close files"):
        results.table("rows")


def test_a_full_disk_is_named_while_a_model_is_fetched():
    with (
        pytest.raises(
            sg.UnsupportedModelError, match="cannot be loaded: its files: No space left on device; free some"
        ),
        in_words("someone/model cannot be loaded", "someone/model"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
