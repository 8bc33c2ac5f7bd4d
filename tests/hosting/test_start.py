"""Options of the app: the command line, then the environment."""

from __future__ import annotations

import pytest

from app import main


@pytest.fixture
def read(monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "PORT", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)

    def read(*line, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return main.read_options(line)

    return read


def test_defaults_are_for_this_machine_alone(read):
    options = read()
    assert (options.host, options.port, options.model, options.revision) == ("127.0.0.1", 7860, "demo-large", None)


def test_the_environment_names_host_and_port(read):
    options = read(PORT="8081", GRADIO_SERVER_NAME="0.0.0.0")
    assert (options.host, options.port) == ("0.0.0.0", 8081)
    assert read(GRADIO_SERVER_PORT="8082").port == 8082  # Gradio's own name takes precedence
    assert read("--port", "8083").port == 8083


def test_options_may_come_from_python(read):
    options = read("--model", "owner/name", "--revision", "0123")
    assert (options.model, options.revision) == ("owner/name", "0123")
