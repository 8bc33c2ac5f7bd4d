"""Every command of the page "Reproduce the paper", in its order, on a tiny model and tiny files of the published form."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from random import Random

import parquet_files
import pytest
import typer
from joblib import parallel_config
from lmms_interface import adapter_class
from test_examples import blocks
from tokenizers import AddedToken
from transformers import AutoModelForImageTextToText, AutoProcessor

import sinkgate as sg
from sinkgate import cli
from sinkgate.models import loading
from sinkgate.scenes import Scene
from sinkgate.studies import evaluation

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/pages/guides/reproduce.md"
FOLDER = "docs/pages/guides/reproduce"
SAMPLES = 6  # of each command
#: Programs that are not run; those of sinkgate are run within the test.
PROGRAMS = ("sinkgate", "hf", "curl", "tar", "unzip", "pip", "python", "python3", "sbatch", "scontrol")
SHIM = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$CALLS"; printf '\\0' >> "$CALLS"
"""
#: What the paper's model and layers are here. The demo model answers in words: it gets letters.
HERE = {
    "llava-1.5-7b --dtype bfloat16": "{model}",
    "model=llava-1.5-7b,dtype=bfloat16": "model={model}",
    "650": "41",
    "1415,2533": "5",
    "--tau 20": "--tau 2",
    "L10=10": "L10=2",
    "lora-10": "lora-2",
    "--limit 2000 $FEW": "--limit 10",  # probes take no fewer
    "--figures pdf": "--figures html",  # Chrome draws PDFs, slowly
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder that looks like the clone with its data."""
    lab = tmp_path_factory.mktemp("lab")
    source = Path(sg.__file__).parent / "demo" / "weights"
    processor, model = AutoProcessor.from_pretrained(source), AutoModelForImageTextToText.from_pretrained(source)
    processor.tokenizer.add_tokens([AddedToken(letter, single_word=True, normalized=False) for letter in "ABCDEF"])
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    decoder = model.model.language_model
    decoder.layers, model.config.text_config.num_hidden_layers = decoder.layers[:3], 3  # less to wait for
    processor.save_pretrained(lab / "model")
    model.save_pretrained(lab / "model")
    scripts = lab / FOLDER
    scripts.mkdir(parents=True)
    for script in (ROOT / FOLDER).iterdir():
        (scripts / script.name).write_text(here(script.read_text(), lab))
    programs = lab / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(SHIM)
        (programs / name).chmod(0o755)
    pictures(lab / "data")
    return lab


def here(text: str, lab: Path) -> str:
    for paper, tiny in HERE.items():
        text = text.replace(paper, tiny.format(model=lab / "model"))
    return text


def pictures(data: Path) -> None:
    """Files in the published forms."""
    rng = Random(0)
    names = [f"CLEVR_val_{number:06d}.png" for number in range(2 * SAMPLES)]
    val = data / "CLEVR_v1.0/images/val"
    val.mkdir(parents=True)
    scenes = []
    for number, name in enumerate(names):
        scene = Scene.random(rng)
        scene.render(size=64).save(val / name)
        objects = [
            {"shape": "cube", "color": item.color, "size": item.size, "pixel_coords": [9, 9, 8.0 + number]}
            for item in scene.objects
        ]
        scenes.append({"image_filename": name, "objects": objects})
    (data / "CLEVR_v1.0/scenes").mkdir()
    (data / "CLEVR_v1.0/scenes/CLEVR_val_scenes.json").write_text(json.dumps({"scenes": scenes}))
    png = (val / names[0]).read_bytes()
    for name, row in (("mmstar", parquet_files.mmstar), ("cvbench", parquet_files.cvbench)):
        rows = [row(number, image={"bytes": png, "path": None}) for number in range(2 * SAMPLES)]
        parquet_files.write(data / name / f"{name}.parquet", rows)
    cambrian = data / "cambrian"
    (cambrian / "jsons").mkdir(parents=True)
    lines = []
    for number, name in enumerate(names * 3):
        source = ("chartqa", "sharegpt4v", "clevr", "datikz", "geo170k", "pathvqa")[number % 6]
        (cambrian / source).mkdir(exist_ok=True)
        (cambrian / source / name).write_bytes((val / name).read_bytes())
        turns = [
            {"from": "human", "value": f"<image>\nHow many objects are there? {number}"},
            {"from": "gpt", "value": "3"},
        ]
        lines.append({"id": number, "image": f"{source}/{name}", "source": f"{source}.json", "conversations": turns})
    (cambrian / "jsons/Cambrian7M_withsystemprompt.jsonl").write_text("\n".join(map(json.dumps, lines)))


def called(script: str, lab: Path, *arguments: str, **variables: str) -> list[list[str]]:
    """Run a script in Bash, and return the calls of the programs in their order."""
    calls = lab / "calls"
    calls.write_bytes(b"")
    path = os.pathsep.join((str(lab / "programs"), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "CALLS": str(calls), "REHEARSE": str(SAMPLES), **variables}
    command = ["bash", "-euo", "pipefail", "-c", script, "bash", *arguments]
    done = subprocess.run(command, cwd=lab, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return [call.split("\0") for call in calls.read_bytes().decode().split("\0\0") if call]


@pytest.fixture
def run(lab, monkeypatch, capfd):
    """Run a call of sinkgate in this process."""
    load = functools.cache(loading.load)
    monkeypatch.chdir(lab)
    monkeypatch.setattr(loading, "load", lambda source, **_: load(source))
    monkeypatch.setattr(evaluation, "score_interval", functools.partial(evaluation.score_interval, draws=5))

    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["sinkgate", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        output = capfd.readouterr()
        assert not stopped.value.code, f"{shlex.join(arguments)}\n{output.err}"
        return output

    with parallel_config(backend="threading"):  # a new process imports for longer than it fits probes
        yield run


@pytest.fixture
def lmms(monkeypatch):
    """The adapter of lmms-eval, on a bare interface where lmms-eval is not installed."""
    return adapter_class(monkeypatch)


def test_every_command_of_the_page_runs(lab, run, lmms):
    page = here(PAGE.read_text(encoding="utf-8"), lab)
    before, done = "", []
    for _, block in blocks(page, "bash"):
        if "venv" in block:
            continue  # the environment is this one
        for program, *arguments in called(f"{before}\n{block}", lab):
            done.append((program, *arguments))
            if program == "sinkgate":
                run(arguments)
            elif program == "sbatch":
                jobs(arguments, lab, run)
            elif "lmms_eval" in arguments:
                options = dict(pair.split("=") for pair in arguments[arguments.index("--model_args") + 1].split(","))
                assert lmms(options.pop("model"), **options).gated == ("gates" in options)
        before += "".join(
            f"{line}\n" for line in block.splitlines() if line.startswith(("source ", "GATES=", "BASELINES="))
        )
    assert {"hf", "curl", "unzip", "tar", "sinkgate", "sbatch", "python"} <= {program for program, *_ in done}
    [(_, expected)] = blocks(page, "text")
    assert expected.count("\n") > 15
    missing = [path for path in expected.split() if not (lab / path).is_file()]
    assert not missing
    one, shards = (lab / f"runs/{name}/answers.parquet" for name in ("sweep-mmstar", "sweep-array"))
    assert one.read_bytes() == shards.read_bytes(), "the jobs of an array equal one process"


@pytest.mark.parametrize("step", ["survey", "anatomy", "probe", "sweep", "train", "stack", "eval"])
def test_every_step_takes_a_batch_size(step):
    """The remedy that the page names for a small GPU."""
    options = typer.main.get_command(cli.cli).commands[step].params
    assert any("--batch-size" in option.opts for option in options)


def jobs(arguments, lab, run):
    """Run a file of sbatch as SLURM does, for two of an array."""
    script = next(argument for argument in arguments if argument.endswith(".sbatch"))
    rest = arguments[arguments.index(script) + 1 :]
    text = (lab / script).read_text()
    for line in text.splitlines():
        assert not line.startswith("#SBATCH") or line.startswith("#SBATCH --")
    shards = {"SHARDS": "2"} if any("SHARDS" in argument for argument in arguments) else {}
    for task in ("0", "1"):
        [(_, *call)] = called(text, lab, *rest, SLURM_ARRAY_TASK_ID=task, SLURM_JOB_ID="7", **shards)
        run(call)
