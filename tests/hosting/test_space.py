"""The folder of a Space: what is in it, what is found wrong with it, and that it runs without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from app.deploy import space

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = ["unshare", "-rn", sys.executable, "tests/hosting/offline.py"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    space.build(folder, "cpu-basic", "demo", None)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "space")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "app/deploy/space.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_what_is_built_is_right(built):
    assert space.check(built, start=False) == []


def test_front_matter_agrees_with_the_pins(built):
    front = SpaceCard.load(built / "README.md").data
    pins = space.read_pins((ROOT / "requirements.txt").read_text())
    assert front["sdk_version"] == pins["gradio"] and front["app_file"] == "app/main.py"
    assert space.read_pins((built / "requirements.txt").read_text()) == pins


def test_a_version_history_stays(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / "app" / "old.py").write_text("")
    space.build(folder, "cpu-basic", "demo", None)
    assert (folder / ".git" / "HEAD").exists() and not (folder / "app" / "old.py").exists()
    assert space.check(folder, start=False) == []


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds thesis.tex, which is no part of a Space"):
        space.build(tmp_path, "cpu-basic", "demo", None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_model_is_the_only_one_and_pinned(tmp_path):
    space.build(tmp_path, space.ZERO, "llava-hf/llava-1.5-7b-hf", COMMIT)
    assert space.check(tmp_path, start=False) == []
    pins = space.read_pins((tmp_path / "requirements.txt").read_text())
    assert pins.items() >= space.ZERO_PINS.items()
    assert (tmp_path / "app" / "zerogpu.py").exists() and not [*tmp_path.rglob("model.safetensors")]
    (tmp_path / "app" / "options.txt").write_text("--model llava-hf/llava-1.5-7b-hf --revision main --host 0.0.0.0")
    found = "\n".join(space.check(tmp_path, start=False))
    assert "the revision of llava-hf/llava-1.5-7b-hf is 'main'; expected a commit" in found
    assert "--host is none of" in found


@pytest.mark.parametrize(
    ("hardware", "model", "revision", "said"),
    [
        ("gpu", "demo", None, "there is no hardware 'gpu'; Spaces have a100-large"),
        ("cpu-basic", "../weights", COMMIT, "expected demo or a Hub id"),
        ("cpu-basic", "owner/name", None, "the revision of owner/name is None; expected a commit"),
        ("cpu-basic", "owner/name", "main", "expected a commit, 40 hexadecimal digits"),
    ],
)
def test_what_cannot_be_built_is_said(tmp_path, hardware, model, revision, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        space.build(tmp_path, hardware, model, revision)


def replace(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace("README.md", "sdk: gradio", "sdk: docker"), "sdk is 'docker'; expected 'gradio'"),
        (replace("README.md", "sdk_version: ", "sdk_version: 1"), "README.md: sdk_version is"),
        (replace("README.md", "app_file: app/main.py", "app_file: app.py"), "app_file is 'app.py'"),
        (replace("README.md", "'3.11'", "'3.8'"), "python_version is '3.8'; expected '3.11'"),
        (replace("README.md", "cpu-basic", "cpu-huge"), "suggested_hardware is 'cpu-huge'"),
        (replace("README.md", "cpu-basic", "zero-a10g"), "ZeroGPU needs spaces=="),
        (replace("README.md", "title: sinkgate", "title: 🚰"), "title is '🚰'; expected 1 to 60 plain characters"),
        (replace("README.md", "license: apache-2.0", "license: apache-2.0\nmodels: [a/b]"), "models are ['a/b']"),
        (replace("requirements.txt", "plotly==", "plotly>="), "'plotly>=7.1.0' names no exact version"),
        (replace("requirements.txt", "limits==5.8.0", ""), "limits is imported, but nothing in requirements.txt"),
        (lambda folder: (folder / "LICENSE").unlink(), "app/main.py or LICENSE is missing"),
        (write("app/weights.bin", b""), "app/weights.bin is of a kind that does not belong"),
        (write("app/.env", b"KEY=1"), "app/.env is of a kind that does not belong"),
        (write("app/big.json", b" " * 10_000_001), "app/big.json has 10,000,001 bytes"),
        (write("app/key.py", b"token = 'hf_" + b"a" * 34 + b"'"), "app/key.py holds what looks like a key"),
        (write("app/notes.md", b"see /home/somebody/notes"), "app/notes.md holds what looks like a key, or a path"),
        (lambda folder: (folder / "app" / "link.py").symlink_to("/etc/passwd"), "app/link.py is a link"),
        (replace("app/main.py", "import os", "import os, numba"), "numba is imported, but nothing"),
        (lambda folder: (folder / "README.md").unlink(), "holds no README.md and requirements.txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(folder, change, said):
    change(folder)
    assert any(said in problem for problem in space.check(folder, start=False)), space.check(folder, start=False)


def test_an_app_that_does_not_start_is_found(folder):
    (folder / "app" / "main.py").write_text("raise SystemExit('no port today')")
    (problem,) = space.check(folder, start=True)
    assert "did not start" in problem and "no port today" in problem


def test_the_commands_say_what_they_did(tmp_path):
    done = run("build", tmp_path / "space")
    assert done.returncode == 0 and "ready to be uploaded" in done.stdout
    (tmp_path / "space" / "LICENSE").unlink()
    failed = run("check", tmp_path / "space", "--no-start")
    assert failed.returncode == 1 and failed.stderr.strip() == "app/main.py or LICENSE is missing: `build` copies them"


def test_it_starts_and_answers_without_a_network(built):
    """As a Space starts it; a step of the CI does the same in an environment of its own."""
    if not shutil.which("unshare") or subprocess.run([*OFFLINE, "true"], cwd=ROOT).returncode:
        pytest.skip("no network namespaces here")
    check = [*OFFLINE, sys.executable, "app/deploy/space.py", "check", str(built)]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
