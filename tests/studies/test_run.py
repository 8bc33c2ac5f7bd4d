"""A study's folder: nothing lost, nothing twice, whichever process does the work and however often it is stopped."""

import json
from dataclasses import dataclass, replace

import pandas as pd
import pytest
from dummy_study import DummyStudy, kill_again_and_again, parts, processes, scene_items, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sinkgate.data import scene_facts
from sinkgate.errors import SinkgateError
from sinkgate.models.finder import SinkFinder
from sinkgate.studies.anatomy import Anatomy
from sinkgate.studies.export import Export
from sinkgate.studies.features import Features
from sinkgate.studies.results import Results
from sinkgate.studies.runner import Shard, finish, gather, run
from sinkgate.studies.sweep import Sweep
from sinkgate.training.dataset import ImageSinks, SinkCounts


@pytest.fixture
def whole(tmp_path):
    return run(DummyStudy(), tmp_path / "whole", progress=False)


def test_tables_are_the_parts_in_order(whole):
    rows = whole.table("rows")
    assert rows["sample"].tolist() == list(range(36))
    pd.testing.assert_frame_equal(rows[3:6].reset_index(drop=True), DummyStudy().work(1)["rows"])
    assert whole.table("even")["sample"].tolist() == list(range(0, 36, 6))
    assert (load_file(whole.parts[4] / "states.safetensors")["h"] == DummyStudy().work(4)["states"]["h"]).all()
    assert not (whole.folder / "parts" / "tmp").exists()


def test_what_is_done_is_not_done_again(whole):
    again = DummyStudy()
    assert run(again, whole.folder, progress=False).finished and again.done == []
    part = whole.parts[7]
    about = json.loads((whole.folder / "study.json").read_text())
    (whole.folder / "study.json").write_text(json.dumps({**about, "finished": None}))
    before = tables(whole.folder)
    for file in part.iterdir():
        file.unlink()
    part.rmdir()
    again = DummyStudy()
    assert run(again, whole.folder, progress=False).finished and again.done == [7]
    assert tables(whole.folder) == before


def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rounds = kill_again_and_again(DummyStudy(units=200, seconds=0.02), killed)
    left = DummyStudy(units=200)
    assert run(left, killed, progress=False).finished
    assert len(left.done) == 200 - rounds
    run(DummyStudy(units=200), whole, progress=False)
    assert tables(killed) == tables(whole) and parts(killed) == parts(whole)


def test_two_processes_equal_one(whole, tmp_path):
    out = tmp_path / "two"
    workers = [
        processes.Process(
            target=run, args=(DummyStudy(seconds=0.01), out), kwargs={"shard": Shard(rank, 2), "progress": False}
        )
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert Results.load(out).finished
    assert tables(out) == tables(whole.folder) and parts(out) == parts(whole.folder)


@settings(max_examples=20)  # it writes files
@given(of=st.integers(1, 5), units=st.integers(1, 13))
def test_shards_share_out_every_unit_once(tmp_path_factory, of, units):
    out = tmp_path_factory.mktemp("shards")
    shares = [DummyStudy(units=units) for _ in range(of)]
    ended = [run(study, out, shard=Shard(rank, of), progress=False) for rank, study in enumerate(shares)]
    assert sorted(unit for study in shares for unit in study.done) == list(range(units))
    assert ended[-1].finished
    assert len(ended[-1].table("rows")) == 3 * units


def test_folders_of_machines_without_a_common_disk_are_gathered(whole, tmp_path):
    for rank in range(3):
        assert not run(DummyStudy(), tmp_path / str(rank), shard=Shard(rank, 3), progress=False).finished
    gathered = gather([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    assert not gathered.finished
    with pytest.raises(SinkgateError, match=r"not finished \(8 of 12 parts"):
        gathered.table("rows")
    assert gather([tmp_path / "2", tmp_path / "1"], tmp_path / "all").finished
    assert tables(tmp_path / "all") == tables(whole.folder)
    run(DummyStudy(seed=1), tmp_path / "other", progress=False)
    with pytest.raises(SinkgateError, match=": seed is 0 there and 1 here"):
        gather([tmp_path / "other"], tmp_path / "all")


def test_another_study_is_refused(whole):
    with pytest.raises(SinkgateError, match=": seed is 0 there and 3 here; name another folder"):
        run(DummyStudy(seed=3), whole.folder, progress=False)
    with pytest.raises(SinkgateError, match="units is 12 there and 13 here|data.items"):
        run(DummyStudy(units=13), whole.folder, progress=False)
    with pytest.raises(SinkgateError, match="holds a study already"):
        run(DummyStudy(), whole.folder, resume=False, progress=False)


def test_an_error_in_the_work_keeps_what_was_done(tmp_path):
    class Breaks(DummyStudy):
        def work(self, unit):
            if unit == 5:
                raise SinkgateError("a broken image")
            return super().work(unit)

    with pytest.raises(SinkgateError, match="a broken image"):
        run(Breaks(), tmp_path, progress=False)
    assert len(Results.load(tmp_path).parts) == 5
    study = DummyStudy()
    assert run(study, tmp_path, progress=False).finished and study.done == list(range(5, 12))


def test_a_broken_part_is_named(tmp_path):
    run(DummyStudy(), tmp_path, shard=Shard(0, 2), progress=False)
    (tmp_path / "parts" / "00002" / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(SinkgateError, match="delete the folder .*00002"):
        run(DummyStudy(), tmp_path, shard=Shard(1, 2), progress=False)


def test_what_it_was_made_with_is_told(whole):
    versions = whole.about["made_with"][0]
    assert {"python", "torch", "transformers", "sinkgate"} <= versions.keys()
    assert whole.about["started"] <= whole.about["finished"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": "sinkgate-study", "version": 9}'])
def test_what_is_no_study_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(SinkgateError, match="study"):
        Results.load(tmp_path)
    with pytest.raises(SinkgateError):
        Results.find(tmp_path)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "0/0"])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(SinkgateError, match="shard"):
        Shard.parse(text)


def test_processes_are_numbered_as_launchers_do(monkeypatch):
    assert Shard.here() == Shard(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Shard.here() == Shard.parse("2/3")


def test_a_finished_table_that_is_not_there(whole):
    with pytest.raises(SinkgateError, match="there are: even, rows"):
        whole.table("answers")
    assert finish(whole.folder).finished


def test_a_broken_folder_is_one_sentence(whole, tmp_path):
    (whole.folder / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(SinkgateError, match="rows.parquet cannot be read"):
        whole.table("rows")
    (tmp_path / "study.json").write_text('{"format": "sinkgate-study", "version": 1}')
    with pytest.raises(SinkgateError, match="lacks study, settings"):
        Results.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkgateError, match="cannot be written: .*; a part of the path is a file, give another path"):
        run(DummyStudy(), tmp_path / "file" / "below", progress=False)


def test_what_a_killed_run_left_half_written_is_left_alone(whole):
    about = json.loads((whole.folder / "study.json").read_text())
    (whole.folder / "study.json").write_text(json.dumps({**about, "finished": None}))
    left = whole.folder / "parts" / "tmp" / "someone"
    left.mkdir(parents=True)
    assert run(DummyStudy(), whole.folder, progress=False).finished and left.exists()


def test_only_the_first_share_refuses_a_folder_that_holds_a_study(tmp_path):
    run(DummyStudy(), tmp_path, shard=Shard(0, 2), resume=False, progress=False)
    assert run(DummyStudy(), tmp_path, shard=Shard(1, 2), resume=False, progress=False).finished


def test_a_log_shows_each_part_and_which_share_it_is(tmp_path, capsys):
    run(DummyStudy(units=3), tmp_path / "whole")
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"toy: {done}/3 parts" for done in range(4)
    ]
    run(DummyStudy(units=5), tmp_path / "shared", shard=Shard(1, 2))
    assert capsys.readouterr().err.splitlines()[-1] == "toy, share 1/2: 2/2 parts"


@dataclass(frozen=True)
class Counting(DummyStudy):
    """A study of three images a unit, each of two questions, with V-sinks from some unit on and without L-sinks."""

    first: int = 99

    def work(self, unit):
        return {**super().work(unit), "unit": pd.DataFrame({"number": [unit]})}

    def sinks(self, tables):
        unit = tables["unit"]["number"][0]
        return [ImageSinks(int(unit >= self.first), 0, picture=f"{unit}-{image}") for image in (0, 0, 1, 1, 2, 2)]


def test_a_run_without_sinks_says_so_from_the_eighth_image_on(tmp_path, capsys):
    run(Counting(units=5, first=3), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    notes = [line.partition("no ")[2] for line in lines if line.startswith("toy: ")]
    both, l_sinks = ("V-sinks or L-sinks in {} images so far", "L-sinks in {} images so far")
    assert notes == ["", "", "", both.format(9), l_sinks.format(12), l_sinks.format(15)]


@pytest.mark.parametrize(("v_sink", "images"), [("attention", 2), ("massive", 0)])
def test_every_study_of_sinks_counts_the_images_that_have_some(demo, v_sink, images):
    items, by = scene_items(2), {"v_sink": v_sink, "l_sink": "massive"}
    again = [replace(item, id=f"{item.id} again", sample=replace(item.sample, question="What?")) for item in items]
    items += again  # two questions about each image
    samples, pictures = [item.sample for item in items], list(scene_facts(2, seed=0, split="test"))
    find = SinkFinder(**by)
    studies = [
        Anatomy(demo, samples, layers=[1, 2], **by),
        Export(demo, samples, find, [2], words=0, rows=0, max_new_tokens=1),
        Features(demo, pictures, layers=[2], **by),
        Sweep(demo, items, [2], [(0.5, 1, 0.5)], find=find),
    ]
    for study in studies:
        counts = SinkCounts.of(study.sinks(study.work(0)))
        assert (counts.images, counts.v_sink, counts.l_sink) == (2, images, 0), study.kind
