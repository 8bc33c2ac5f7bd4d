"""Where the app finds its options: the command line, a file beside it, the environment; in this order."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def read(monkeypatch, tmp_path):
    from app import main

    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "PORT", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)

    def read(*line, written=None, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if written is not None:
            (tmp_path / "options.txt").write_text(written)
        monkeypatch.setattr(main, "WRITTEN", tmp_path / "options.txt")
        monkeypatch.setattr(sys, "argv", ["main.py", *line])
        return main.read_options()

    return read


def test_defaults_are_for_this_machine_alone(read):
    options = read()
    assert (options.host, options.port, options.model, options.revision) == ("127.0.0.1", 7860, "demo", None)


def test_the_environment_names_host_and_port(read):
    options = read(PORT="8081", GRADIO_SERVER_NAME="0.0.0.0")
    assert (options.host, options.port) == ("0.0.0.0", 8081)
    assert read(GRADIO_SERVER_PORT="8082").port == 8082  # the name that is about this app wins
    assert read("--port", "8083").port == 8083


def test_options_are_read_from_the_file_beside_the_app(read):
    options = read(written="--model owner/name\n--revision 0123\n")
    assert (options.model, options.revision) == ("owner/name", "0123")
    assert read("--model", "demo").model == "demo"
