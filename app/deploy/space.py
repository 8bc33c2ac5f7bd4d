"""Folder of a Hugging Face Space: ``python app/deploy/space.py build DIR`` writes it, ``python app/deploy/space.py check DIR`` starts it.

The folder holds the package with the app in it, as a wheel does, an app file of two lines, exact versions, and a card
whose front matter Spaces reads. Run ``check`` with the interpreter of an environment that has the folder's requirements alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import SpaceCardData, SpaceHardware

ROOT = Path(__file__).parents[2]
APP_FILE = "app.py"
ZERO = SpaceHardware.ZERO_A10G.value
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
ZERO_PINS = {"torch": "2.11.0", "spaces": "0.51.3"}  # the newest PyTorch that ZeroGPU's documentation names
PYTHONS = {False: "3.11", True: "3.12.12"}  # ZeroGPU offers one version that is new enough
SUFFIXES = {".py", ".js", ".html", ".css", ".json", ".jinja", ".safetensors", ".typed"}
PARTS = {"README.md", "requirements.txt", "LICENSE", ".gitattributes", APP_FILE, "sinkgate"}
MAX_BYTES = 10_000_000  # of a file outside large-file storage
SECRET = re.compile(
    r"\bhf_\w{30,}|\bsk-[\w-]{20,}|\bgh[pousr]_\w{30,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<![\w.])/(?:home|root|Users)/\w"
)
DEMOS = {"demo-large": "-large", "demo": "", "demo-small": ""}  # ends of the names of their folders in sinkgate/demo
START_SECONDS = 300
START = '''"""Start the app on a Space."""

from sinkgate.app.main import main

main({arguments!r})
'''
ABOUT = """
# sinkgate

A few visual tokens of a vision-language model receive most of the attention, whatever the question: attention sinks. Here a
model answers questions about an image while you scale the Keys of its sinks, layer by layer, and watch attention maps, next-token
probabilities and the answer change. The method is that of
[When Sinks Help or Hurt](https://arxiv.org/abs/2604.03316).

This Space runs {model}. Images and questions stay in memory, are not logged, and are deleted when you leave.
"""


def build(folder: Path, hardware: str, model: str, revision: str | None) -> None:
    """Write the folder, replacing an earlier one; a ``.git`` in it stays.

    Args:
        folder: destination, empty or written by an earlier build.
        hardware: name as on Spaces; ``zero-a10g`` is ZeroGPU.
        model: a demo model or a Hub id. Users of the Space cannot choose another.
        revision: commit of the model on the Hub, 40 hexadecimal digits.

    Raises:
        ValueError: the folder holds other files, the hardware is unknown, the model is not pinned to a commit, or a demo model is.
    """
    known = sorted(kind.value for kind in SpaceHardware)
    if hardware not in known:
        raise ValueError(f"hardware is {hardware!r}; expected one of {', '.join(known)}")
    if problem := model_problem(model, revision):
        raise ValueError(problem)
    if folder.exists() and (other := {path.name for path in folder.iterdir()} - PARTS - {".git"}):
        raise ValueError(f"{folder} holds {min(other)}, which is not part of a Space: give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "sinkgate", ignore_errors=True)
    copy_package(folder / "sinkgate", model)
    arguments = ["--model", model, *(["--revision", revision] if revision else [])]
    (folder / APP_FILE).write_text(START.format(arguments=arguments), encoding="utf-8")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8")
    pins = read_pins((ROOT / "requirements.txt").read_text(encoding="utf-8")) | (ZERO_PINS if hardware == ZERO else {})
    lines = [CPU_WHEELS] if hardware.startswith("cpu") else []
    lines += [f"{name}=={version}" for name, version in pins.items()]
    (folder / "requirements.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    front = SpaceCardData(
        title="sinkgate",
        short_description="Attention sinks of a vision-language model, live",
        sdk="gradio",
        sdk_version=pins["gradio"],
        python_version=PYTHONS[hardware == ZERO],
        app_file=APP_FILE,
        suggested_hardware=hardware,
        license="apache-2.0",
        models=None if model in DEMOS else [model],
        tags=["attention", "interpretability", "vision-language-model"],
    )
    about = ABOUT.format(model="a small model of shapes" if model in DEMOS else f"{model} at revision {revision}")
    (folder / "README.md").write_text(f"---\n{front.to_yaml()}\n---\n{about}", encoding="utf-8")


def copy_package(target: Path, model: str) -> None:
    """Copy the package with the app in it, without studies and without weights and gates of other demo models than this one."""
    sources = {ROOT / "sinkgate": target, ROOT / "app": target / "app"}
    others = {end for end in DEMOS.values() if end != DEMOS.get(model)}
    left_out = {
        "app/deploy",
        "sinkgate/demo/studies",
        "sinkgate/demo/studies-large",
        *(f"sinkgate/demo/{kind}{end}" for kind in ("weights", "gates") for end in others),
    }
    for source, place in sources.items():
        for path in source.rglob("*"):
            parents = {parent.relative_to(ROOT).as_posix() for parent in path.parents if parent.is_relative_to(ROOT)}
            if path.is_file() and path.suffix in SUFFIXES and not parents & left_out:
                copy = place / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def model_problem(model: str, revision: str | None) -> str:
    """Return the reason why a Space must not run this model; empty if it may."""
    if model in DEMOS:
        return f"the revision is {revision!r}, and {model} is part of the package: leave it out" if revision else ""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return f"the model is {model!r}; expected a demo model ({', '.join(DEMOS)}) or a Hub id, owner/name"
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return (
            f"the revision of {model} is {revision!r}; expected a commit, 40 hexadecimal digits, so that the Space never changes "
            "by itself: the model's page on the Hub lists commits under Files and versions"
        )
    return ""


def problems_in(folder: Path) -> Iterator[str]:
    """Yield a sentence for each missing part and each file that must not be uploaded."""
    for name in sorted(PARTS - {path.name for path in folder.iterdir()}):
        yield f"{name} is missing from {folder}: `build` writes it"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield f"{name} is a link"
        elif path.is_dir() or name.startswith(".git/") or "__pycache__" in path.parts:
            continue
        elif path.suffix not in SUFFIXES and name not in PARTS:
            yield f"{name} is not part of a Space"
        elif path.suffix != ".safetensors" and path.stat().st_size > MAX_BYTES:
            yield f"{name} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} fit outside large-file storage"
        elif path.suffix != ".safetensors" and SECRET.search(path.read_text(encoding="utf-8")):
            yield f"{name} holds a key or a path of a home directory"


def start_problems(folder: Path, command: Sequence[str] = (APP_FILE,)) -> list[str]:
    """Start the app as a Space does, ask it a question and stop it; return a sentence for each failure."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        space = {"SYSTEM": "spaces", "SPACE_ID": "owner/sinkgate", "SPACE_HOST": "owner-sinkgate.hf.space"}
        served = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "GRADIO_NUM_PORTS": "1"}
        quiet = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, **space, **served, **quiet}
        log = Path(home) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_SECONDS
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    return [f"the app did not start: {log.read_text(errors='replace')[-2000:]}"]
                time.sleep(0.2)
            return [] if ask(f"http://127.0.0.1:{port}", Path(home)) else ["the app returns an empty answer"]
        except Exception as error:  # noqa: BLE001 - any error means that the app does not work
            return [f"the app started and does not answer: {error}"]
        finally:
            process.terminate()
            process.wait(60)


def ask(address: str, folder: Path) -> str:
    """Return the answer to a question about a plain image."""
    from gradio_client import Client, handle_file
    from PIL import Image

    Image.new("RGB", (224, 224), "navy").save(folder / "plain.png")
    client = Client(address, verbose=False)
    question = "What color is the background?"
    return client.predict(handle_file(folder / "plain.png"), question, "", api_name="/answer")["text"]


def read_pins(text: str) -> dict[str, str]:
    """Return exact versions by name, of the lines that have one."""
    return dict(
        line.strip().split("==") for line in text.splitlines() if "==" in line and not line.startswith(("#", "-"))
    )


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description="Write the folder of a Hugging Face Space, or check one.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="write the folder")
    building.add_argument("folder", type=Path)
    building.add_argument(
        "--hardware", default="cpu-basic", help="name as on Spaces; zero-a10g is ZeroGPU (default: %(default)s)"
    )
    building.add_argument(
        "--model",
        default="demo-large",
        help=f"{', '.join(DEMOS)} or a Hub id; users cannot choose another (default: %(default)s)",
    )
    building.add_argument("--revision", help="commit of the model on the Hub, 40 hexadecimal digits")
    checking = commands.add_parser(
        "check", help="check the files, start the app, ask a question; exit status 1 on failure"
    )
    checking.add_argument("folder", type=Path)
    checking.add_argument(
        "--no-start", action="store_true", help="check the files alone, without a download of the model"
    )
    options = parser.parse_args()
    try:
        if options.command == "build":
            build(options.folder, options.hardware, options.model, options.revision)
        problems = list(problems_in(options.folder))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    if not problems and options.command == "check" and not options.no_start:
        problems = start_problems(options.folder)
    if problems:
        sys.exit("\n".join(problems))
    sys.stdout.write(f"{options.folder} is ready to be uploaded.\n")


if __name__ == "__main__":
    main()
