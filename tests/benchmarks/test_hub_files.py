"""Questions from the Hub: the files that are asked for, their commit, and what is said where they cannot be had."""

import parquet_files as files
import pytest
from httpx import Request, Response
from huggingface_hub import errors

from sinkgate import SinkgateError
from sinkgate.benchmarks import benchmark, reading


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """Stands for the Hub's cache; keeps what was asked of it."""
    calls = []
    folder = tmp_path / "snapshots" / "bc98d668301d"

    def snapshot_download(name, **options):
        calls.append((name, options))
        files.write(folder / "test_2d.parquet", map(files.cvbench, range(4)))
        return str(folder)

    monkeypatch.setattr(reading, "snapshot_download", snapshot_download)
    return calls


def test_only_the_splits_files_are_fetched_and_the_commit_is_told(requests):
    fetched = benchmark("cvbench").fetch("v1")
    assert fetched.commit == "bc98d668301d" == fetched.folder.name
    options = {"repo_type": "dataset", "revision": "v1", "allow_patterns": ["test*.parquet"]}
    assert requests == [("nyu-visionx/CV-Bench", options)]


def test_what_is_fetched_is_read_like_local_files(requests):
    cvbench = benchmark("cvbench")
    assert cvbench.items(limit=2, revision="v1") == cvbench.items(cvbench.fetch().folder, limit=2)
    assert [options["revision"] for _, options in requests] == ["v1", None]


def test_a_revision_of_local_files_is_refused(tmp_path):
    with pytest.raises(SinkgateError, match=f"revision is 'v1', and {tmp_path} has none; leave out one of the two"):
        benchmark("cvbench").items(tmp_path, revision="v1")


def test_without_a_network():
    """The tests run with HF_HUB_OFFLINE=1 and the data sets are not in the cache."""
    with pytest.raises(SinkgateError) as raised:
        benchmark("mmstar").items()
    assert str(raised.value) == (
        "Lin-Chen/MMStar cannot be fetched: it is not in the local cache and the Hub cannot be reached: run "
        "`hf download --repo-type dataset Lin-Chen/MMStar` where there is a network, or give a folder that holds its parquet files"
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "no public data set of that name"), (errors.GatedRepoError, "accept its terms on https://huggingface.co/datasets/lmms-lab/POPE"),
        (errors.RevisionNotFoundError, "no such revision; https://huggingface.co/datasets/lmms-lab/POPE/commits/main"), (OSError, "No space left on device"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(monkeypatch, kind, message):
    def refuse(*_, **__):
        if kind is OSError:
            raise OSError(28, "No space left on device")
        raise kind("404", response=Response(404, request=Request("GET", "https://huggingface.co")))

    monkeypatch.setattr(reading, "snapshot_download", refuse)
    with pytest.raises(SinkgateError, match=f"lmms-lab/POPE cannot be fetched: .*{message}"):
        benchmark("pope").items()
