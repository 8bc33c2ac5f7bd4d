"""Folder of a Space: its contents, and the files that must not be in it. The CI also starts it, without a network (`.ci/run`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from app.deploy import space
from sinkgate.models.loading import ALIASES, BUILT_IN

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    space.build(folder, "cpu-basic", "demo-large", None)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "space")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "app/deploy/space.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_a_built_folder_has_no_problems(built):
    assert list(space.problems_in(built)) == []


def test_front_matter_and_requirements_are_the_projects_pins(built):
    front = SpaceCard.load(built / "README.md").data
    pins = space.read_pins((ROOT / "requirements.txt").read_text())
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"]
    assert front["app_file"] == space.APP_FILE and front["suggested_hardware"] == "cpu-basic"
    assert front["license"] == "apache-2.0" and front["python_version"] == "3.11" and not front.get("models")
    assert all(0 < len(front[key]) <= 60 and front[key].isascii() for key in ("title", "short_description"))
    head, *lines = (built / "requirements.txt").read_text().split("\n")
    assert head == space.CPU_WHEELS and space.read_pins("\n".join(lines)) == pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines if line)


def test_the_package_is_what_a_wheel_holds_without_studies(built):
    modules = {path.relative_to(ROOT / "sinkgate") for path in (ROOT / "sinkgate").rglob("*.py")}
    app = {Path("app") / path.relative_to(ROOT / "app") for path in (ROOT / "app").rglob("*.py")}
    expected = modules | {path for path in app if "deploy" not in path.parts}
    assert {path.relative_to(built / "sinkgate") for path in (built / "sinkgate").rglob("*.py")} == expected
    assert not [path for path in (built / "sinkgate" / "demo").glob("studies*") if path.is_dir()]
    assert [path.parent.name for path in built.rglob("model.safetensors") if "gates" not in str(path)] == [
        "weights-large"
    ]


def test_every_demo_model_is_known_with_its_folders(tmp_path):
    assert set(space.DEMOS) == {*BUILT_IN, *ALIASES}
    for name, end in space.DEMOS.items():
        assert BUILT_IN[ALIASES.get(name, name)].name == f"weights{end}"
    space.copy_package(tmp_path, "demo-small")
    assert (tmp_path / "demo" / "weights" / "model.safetensors").exists() and (tmp_path / "demo" / "gates").exists()
    assert not (tmp_path / "demo" / "weights-large").exists()


def test_a_version_history_stays_and_old_modules_go(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / "sinkgate" / "old.py").write_text("")
    space.build(folder, "cpu-basic", "demo-large", None)
    assert (folder / ".git" / "HEAD").exists() and not (folder / "sinkgate" / "old.py").exists()
    assert list(space.problems_in(folder)) == []


def test_other_folders_stay_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds thesis.tex, which is not part of a Space"):
        space.build(tmp_path, "cpu-basic", "demo-large", None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_model_is_pinned_and_has_no_demo_beside_it(tmp_path):
    space.build(tmp_path, space.ZERO, "llava-hf/llava-1.5-7b-hf", COMMIT)
    assert list(space.problems_in(tmp_path)) == []
    front = SpaceCard.load(tmp_path / "README.md").data
    assert front["models"] == ["llava-hf/llava-1.5-7b-hf"] and front["python_version"] == "3.12.12"
    assert space.read_pins((tmp_path / "requirements.txt").read_text()).items() >= space.ZERO_PINS.items()
    assert not [*tmp_path.rglob("model.safetensors")]
    assert (
        f"main(['--model', 'llava-hf/llava-1.5-7b-hf', '--revision', '{COMMIT}'])" in (tmp_path / "app.py").read_text()
    )


@pytest.mark.parametrize(
    ("hardware", "model", "revision", "message"),
    [
        ("gpu", "demo", None, "hardware is 'gpu'; expected one of a100-large"),
        ("cpu-basic", "../weights", COMMIT, "expected a demo model (demo-large, demo, demo-small) or a Hub id"),
        ("cpu-basic", "demo", COMMIT, "demo is part of the package: leave it out"),
        ("cpu-basic", "owner/name", None, "the revision of owner/name is None; expected a commit"),
        ("cpu-basic", "owner/name", "main", "expected a commit, 40 hexadecimal digits"),
    ],
)
def test_wrong_options_are_refused(tmp_path, hardware, model, revision, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        space.build(tmp_path, hardware, model, revision)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "LICENSE").unlink(), "LICENSE is missing"),
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
        (write("sinkgate/weights.bin", b""), "sinkgate/weights.bin is not part of a Space"),
        (write("sinkgate/.env", b"KEY=1"), "sinkgate/.env is not part of a Space"),
        (write("sinkgate/big.json", b" " * 10_000_001), "sinkgate/big.json has 10,000,001 bytes"),
        (write("sinkgate/key.py", b"token = 'hf_" + b"a" * 34 + b"'"), "sinkgate/key.py holds a key"),
        (write("sinkgate/notes.py", b"# see /home/somebody/notes"), "sinkgate/notes.py holds a key or a path"),
        (lambda folder: (folder / "sinkgate" / "link.py").symlink_to("/etc/passwd"), "sinkgate/link.py is a link"),
    ],
)
def test_files_that_must_not_be_uploaded_are_named(folder, change, message):
    change(folder)
    assert any(message in problem for problem in space.problems_in(folder))


def test_secrets_of_a_clone_are_not_copied(tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    for name in ("sinkgate", "app"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    for name in ("LICENSE", "requirements.txt"):
        shutil.copyfile(ROOT / name, clone / name)
    (clone / "app" / ".env").write_text("KEY=1")
    (clone / "sinkgate" / "notes.txt").write_text("private")
    monkeypatch.setattr(space, "ROOT", clone)
    space.build(tmp_path / "space", "cpu-basic", "demo-large", None)
    assert not [*(tmp_path / "space").rglob(".env"), *(tmp_path / "space").rglob("notes.txt")]


def test_an_app_that_does_not_start_is_reported(folder):
    (folder / "app.py").write_text("raise SystemExit('no port today')")
    (problem,) = space.start_problems(folder)
    assert "did not start" in problem and "no port today" in problem


def test_both_commands(tmp_path):
    done = run("build", tmp_path / "space")
    assert done.returncode == 0 and "ready to be uploaded" in done.stdout, done.stderr
    (tmp_path / "space" / "LICENSE").unlink()
    failed = run("check", tmp_path / "space", "--no-start")
    assert failed.returncode == 1 and failed.stderr.startswith("LICENSE is missing from")
    absent = run("check", tmp_path / "nowhere")
    assert absent.returncode == 1 and "nowhere" in absent.stderr and "Traceback" not in absent.stderr
