"""The app's command line, without a browser."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from app_process import ROOT

import sinkgate as sg
from app.main import main


def start(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *options])
    main()


def test_the_options_of_a_model_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def load(model: str, **options: Any) -> sg.VLM:
        received.update(options, model=model)
        raise sg.SinkgateError("not today")

    monkeypatch.setattr(sg, "load", load)
    flags = {
        "model": "m",
        "revision": "r",
        "device": "cpu",
        "device_map": "auto",
        "dtype": "float16",
        "quantize": "4bit",
    }
    options = [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)]
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, *options)
    assert received == flags and stop.value.code == "m: not today"
    with pytest.raises(SystemExit):
        start(monkeypatch)
    assert received == {**dict.fromkeys(flags), "model": "demo-large"}


def test_a_folder_of_gates_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "--gates", "nowhere")
    assert stop.value.code == 2 and "there is no folder nowhere" in capsys.readouterr().err


def test_sinkgate_app_in_a_clone_is_the_script_with_its_options() -> None:
    command = [sys.executable, "-m", "sinkgate", "app", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: main.py") and "--behind-proxy" in done.stdout
