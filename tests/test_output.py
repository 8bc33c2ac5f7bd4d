"""Folders tried before the work, and progress on terminals and in logs."""

import re
import sys

import pytest

from sinkgate import SinkgateError, output
from sinkgate.output import duration, markdown, steps, track, writable_folder


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by ten seconds at each look."""
    times = iter(range(0, 10**6, 10))
    monkeypatch.setattr(output, "monotonic", lambda: float(next(times)))


def test_a_log_gets_a_line_an_item_with_the_time_left(clock, capsys):
    assert list(track("abc", "sweep", done=2, unit="parts", seconds=0, note=lambda: "loss 1")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sweep: 2/5 parts, loss 1" and lines[-1] == "sweep: 5/5 parts, loss 1"
    assert len(lines) == 4 and all(line.endswith(" left, loss 1") for line in lines[1:-1])


def test_a_log_gets_a_line_now_and_then_and_the_last(clock, capsys):
    assert list(track(iter(range(20)), "samples", unit="samples", seconds=60)) == list(range(20))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 10 and lines[-1] == "samples: 20 samples"
    assert list(track(range(3), "samples", seconds=1000)) == [0, 1, 2]
    assert not capsys.readouterr().err, "short work is quiet"


def test_a_terminal_gets_a_bar_that_ends_at_its_total(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(track(range(4), "scenes")) == [0, 1, 2, 3]
    assert "4/4" in capsys.readouterr().err
    assert list(track(range(4), "scenes", show=False)) == [0, 1, 2, 3]
    assert not capsys.readouterr().err


def test_a_log_gets_lines_inside_an_item_that_takes_long(clock, capsys):
    for _ in track(range(2), "sweep", unit="parts", seconds=0, note=lambda: "no V-sinks"):
        assert list(steps(iter("abcdefgh"), "items", 8)) == list("abcdefgh")
    lines = capsys.readouterr().err.splitlines()
    inside = [line for line in lines if "items" in line]
    assert 4 <= len(inside) < 18 and any(" left, no V-sinks" in line for line in inside)
    assert all(re.fullmatch(r"sweep: [01]/2 parts, .*\d/8 items(, .* left)?, no V-sinks", line) for line in inside)
    assert [line for line in lines if line not in inside][-1] == "sweep: 2/2 parts, no V-sinks"


def test_a_bar_shows_the_steps_of_an_item_until_it_is_done(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(output, "REFRESH", 0)
    for _ in track(["a", "b"], "anatomy", unit="parts"):
        assert list(steps("xyz", "samples")) == ["x", "y", "z"]
    frames = capsys.readouterr().err.split("\r")
    assert any("2/3 samples" in frame and "0/2" in frame for frame in frames)
    assert "samples" not in frames[-1]


def test_steps_are_quiet_where_no_line_shows_their_loop(clock, capsys):
    for _ in track(range(2), "sweep", show=False):
        list(steps(range(50), "items"))
    for _ in track([0], "sweep", seconds=10**7):
        for number in track([0], "inner", show=False):
            assert number == 0
    list(steps(range(50), "items"))
    loop = track([0], "sweep", seconds=10**7)
    next(loop)
    loop.close()  # a loop that is left early
    list(steps(range(50), "items"))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (260, "4 min 20 s"), (11400, "3 h 10 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_folder_is_tried_and_left_empty(tmp_path):
    assert list(writable_folder(tmp_path / "new" / "deep").iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SinkgateError, match=f"the folder {folder} cannot be written"):
            writable_folder(folder)


def test_a_table_in_markdown_has_its_numbers_on_the_right():
    table = markdown(("method", "change"), [("none", ""), ("var", "+1.5 (-1 to 2)"), ("front", "< 0.001")])
    assert table.splitlines()[:3] == ["| method | change |", "| --- | ---: |", "| none |  |"]
    assert markdown(["a"], []) == "| a |\n| --- |"
