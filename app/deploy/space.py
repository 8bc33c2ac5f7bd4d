"""A folder to upload as a Hugging Face Space: ``python app/deploy/space.py build DIR`` makes it, ``python app/deploy/space.py check DIR`` proves it.

The folder holds the page, what it imports of the package, exact versions, and a card whose front matter Spaces reads. Run
by the interpreter of a fresh environment with the folder's requirements, `check` starts it as a Space does.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData, SpaceHardware
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

APP = Path(__file__).parents[1]
ROOT = APP.parent
MAIN = "app/main.py"
ZERO = SpaceHardware.ZERO_A10G.value
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
ZERO_PINS = {"torch": "2.11.0", "spaces": "0.51.3"}  # the newest PyTorch that ZeroGPU's documentation names
PYTHONS = {False: "3.11", True: "3.12.12"}  # on ZeroGPU there is one that is new enough
DEMO = ["demo/weights/*", "demo/gates/*/*"]
KINDS = {".py", ".js", ".html", ".css", ".json", ".jinja", ".safetensors", ".txt", ".md"}
PLAIN_FILES = {"LICENSE", ".gitattributes"}  # whose names say the kind
MOST_BYTES = 10_000_000  # of a file that needs no large-file storage
MOST_WORDS = 60  # characters of the short description
OPTIONS = {"--model", "--revision", "--dtype"}
SECRET = re.compile(
    r"\bhf_\w{30,}|\bsk-[\w-]{20,}|\bgh[pousr]_\w{30,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<![\w.])/(?:home|root|Users)/\w"
)
START_SECONDS = 300
ABOUT = """
# sinkgate

Some visual tokens of a vision-language model draw far more attention than they deserve: attention sinks. Here a model answers
questions about a picture while you turn the Keys of its sinks up and down, layer by layer, and watch attention maps, next-token
probabilities and the answer follow. The method is that of
[When Sinks Help or Hurt](https://arxiv.org/abs/2604.03316).

This Space runs {model}. Pictures and questions stay in memory, are not logged, and are forgotten when you leave.
"""


# --- making it


def build(folder: Path, hardware: str, model: str, revision: str | None) -> None:
    """Write the folder; one that was written before is written anew, a version history in it stays.

    Raises:
        ValueError: the folder holds other things, the hardware is unknown, or the model is not pinned.
    """
    known = {kind.value for kind in SpaceHardware}
    if hardware not in known:
        raise ValueError(f"there is no hardware {hardware!r}; Spaces have {', '.join(sorted(known))}")
    if problem := model_problem(model, revision):
        raise ValueError(problem)
    made = {"README.md", "requirements.txt", "LICENSE", ".gitattributes", ".git", "app"}
    if folder.exists() and (strange := {path.name for path in folder.iterdir()} - made):
        raise ValueError(f"{folder} holds {min(strange)}, which is no part of a Space of ours: give an empty folder")
    shutil.rmtree(folder / "app", ignore_errors=True)
    copy_app(folder / "app", demo=model == "demo", zero=hardware == ZERO)
    if model != "demo":
        (folder / "app" / "options.txt").write_text(f"--model {model}\n--revision {revision}\n", encoding="utf-8")
    pins = write_requirements(folder / "requirements.txt", hardware)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8")
    front = SpaceCardData(
        title="sinkgate",
        short_description="Attention sinks of a vision-language model, live",
        sdk="gradio",
        sdk_version=pins["gradio"],
        python_version=PYTHONS[hardware == ZERO],
        app_file=MAIN,
        suggested_hardware=hardware,
        license="apache-2.0",
        models=None if model == "demo" else [model],
        tags=["attention", "interpretability", "vision-language-model"],
    )
    about = ABOUT.format(model="a small model of shapes" if model == "demo" else f"{model} at revision {revision}")
    (folder / "README.md").write_text(f"---\n{front.to_yaml()}\n---\n{about}", encoding="utf-8")


def copy_app(app: Path, demo: bool, zero: bool) -> None:
    """The page, and beside it the files of the package that it imports."""
    files, _ = reached(APP / "main.py", [APP, ROOT], without={"tools"} if zero else {"tools", "zerogpu"})
    parts = [*APP.glob("components/*"), APP / "style.css"]
    data = [path for pattern in ["*.json", *(DEMO if demo else [])] for path in (ROOT / "sinkgate").glob(pattern)]
    for path in {*files, *parts, *data}:
        target = app / path.relative_to(APP if path.is_relative_to(APP) else ROOT)
        if path.suffix in KINDS - {".md"} and path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def write_requirements(path: Path, hardware: str) -> dict[str, str]:
    """The project's exact versions, with what the hardware wants otherwise; returns them by name."""
    pins = read_pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    pins |= ZERO_PINS if hardware == ZERO else {}
    head = [CPU_WHEELS] if hardware.startswith("cpu") else []
    path.write_text("\n".join([*head, *(f"{name}=={pin}" for name, pin in pins.items()), ""]), encoding="utf-8")
    return pins


# --- checking it


def check(folder: Path, start: bool) -> list[str]:
    """What is wrong with the folder, one sentence each; it is started where nothing is."""
    if not (folder / "README.md").is_file() or not (folder / "requirements.txt").is_file():
        return [f"{folder} holds no README.md and requirements.txt: `build` makes them"]
    card: Any = SpaceCard.load(folder / "README.md", ignore_metadata_errors=True).data
    text = (folder / "requirements.txt").read_text(encoding="utf-8")
    problems = [
        *requirement_problems(text),
        *card_problems(folder, card, read_pins(text)),
        *option_problems(folder, card),
        *file_problems(folder),
        *import_problems(folder, read_pins(text)),
    ]
    return problems or (start_problems(folder) if start else [])


def requirement_problems(text: str) -> Iterator[str]:
    """Requirements without an exact version."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("#") and line != CPU_WHEELS and not re.fullmatch(r"[\w.-]+==[\w.+]+", line):
            yield f"requirements.txt: {line!r} names no exact version; expected name==version"


def card_problems(folder: Path, card: Any, pins: dict[str, str]) -> Iterator[str]:
    """What the front matter says that is not so."""
    hardware = card.get("suggested_hardware")
    zero = hardware == ZERO
    wanted = {
        "sdk": "gradio",
        "sdk_version": pins.get("gradio"),
        "app_file": MAIN,
        "license": "apache-2.0",
        "python_version": PYTHONS[zero],
    }
    for key, value in wanted.items():
        if str(card.get(key)) != value:
            yield f"README.md: {key} is {card.get(key)!r}; expected {value!r}"
    if hardware not in {kind.value for kind in SpaceHardware}:
        yield f"README.md: suggested_hardware is {hardware!r}, which Spaces do not have"
    for name, pin in ZERO_PINS.items() if zero else ():
        if pins.get(name) != pin:
            yield f"requirements.txt: ZeroGPU needs {name}=={pin}, this has {pins.get(name)}"
    for key in ("title", "short_description"):
        words = card.get(key) or ""
        if not 0 < len(words) <= MOST_WORDS or not words.isascii():
            yield f"README.md: {key} is {words!r}; expected 1 to {MOST_WORDS} plain characters"
    if not (folder / MAIN).is_file() or not (folder / "LICENSE").is_file():
        yield f"{MAIN} or LICENSE is missing: `build` copies them"


def option_problems(folder: Path, card: Any) -> Iterator[str]:
    """Options that a Space may not have, and a model that is not pinned: visitors get this one and no other."""
    path = folder / "app" / "options.txt"
    words = path.read_text(encoding="utf-8").split() if path.exists() else []
    given = dict(zip(words[::2], words[1::2], strict=False))
    for name in given.keys() - OPTIONS:
        yield f"app/options.txt: {name} is none of {', '.join(sorted(OPTIONS))}"
    model = given.get("--model", "demo")
    if problem := model_problem(model, given.get("--revision")):
        yield f"app/options.txt: {problem}"
    if (card.get("models") or []) != ([] if model == "demo" else [model]):
        yield f"README.md: models are {card.get('models')}, app/options.txt has {model}"


def model_problem(model: str, revision: str | None) -> str:
    """Why a Space must not run this model; empty where it may."""
    if model == "demo":
        return ""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return f"the model is {model!r}; expected demo or a Hub id, owner/name"
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return (
            f"the revision of {model} is {revision!r}; expected a commit, 40 hexadecimal digits, so that what runs stays the same: "
            "the model's page on the Hub lists them under Files and versions"
        )
    return ""


def file_problems(folder: Path) -> Iterator[str]:
    """Files that are too large, of a kind that no Space of ours holds, links, or with something in them that is nobody's business."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".git/") or name == ".git" or "__pycache__" in path.parts or path.is_dir():
            continue
        if path.is_symlink():
            yield f"{name} is a link"
        elif path.suffix not in KINDS and path.name not in PLAIN_FILES:
            yield f"{name} is of a kind that does not belong into a Space"
        elif path.stat().st_size > MOST_BYTES:
            yield f"{name} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} go without large-file storage"
        elif path.suffix != ".safetensors" and SECRET.search(path.read_text(encoding="utf-8")):
            yield f"{name} holds what looks like a key, or a path of somebody's machine"


def import_problems(folder: Path, pins: dict[str, str]) -> Iterator[str]:
    """Modules that the app imports and the requirements, with all that they require, do not bring."""
    _, outside = reached(folder / MAIN, [folder / "app"], without={"tools", "zerogpu"})
    brought = required(set(pins))
    providers = packages_distributions()
    for module in sorted(outside - set(sys.stdlib_module_names)):
        if not {canonicalize_name(name) for name in providers.get(module, ())} & brought:
            yield f"{module} is imported, but nothing in requirements.txt brings it"


def start_problems(folder: Path) -> list[str]:
    """Start the app as a Space does, ask it a question, and stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        space = {"SYSTEM": "spaces", "SPACE_ID": "owner/sinkgate", "SPACE_HOST": "owner-sinkgate.hf.space"}
        served = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "GRADIO_NUM_PORTS": "1"}
        quiet = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, **space, **served, **quiet}
        log = Path(home) / "log"
        with log.open("wb") as said:
            process = subprocess.Popen([sys.executable, MAIN], cwd=folder, env=env, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_SECONDS
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    return [f"the app did not start: {log.read_text(errors='replace')[-2000:]}"]
                time.sleep(0.2)
            return [] if ask(f"http://127.0.0.1:{port}", Path(home)) else ["the app answers with nothing"]
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the app does not work
            return [f"the app started and does not answer: {error}"]
        finally:
            process.terminate()
            process.wait(60)


def ask(address: str, folder: Path) -> str:
    """The answer to a question about a plain picture."""
    from gradio_client import Client, handle_file
    from PIL import Image

    Image.new("RGB", (224, 224), "navy").save(folder / "plain.png")
    client = Client(address, verbose=False)
    question = "What color is the background?"
    return client.predict(handle_file(folder / "plain.png"), question, "", api_name="/answer")["text"]


# --- what imports what


def reached(start: Path, roots: list[Path], without: set[str]) -> tuple[set[Path], set[str]]:
    """The files under the roots that running one file imports, and the names of all other packages.

    What functions import counts for files beside ``start``; the package imports in functions what only other uses of it need.
    """
    files, outside, todo = set(), set(), [start]
    while todo:
        path = todo.pop()
        if path in files:
            continue
        files.add(path)
        for module in imported(ast.parse(path.read_text(encoding="utf-8")), path.parent == start.parent):
            parts = module.split(".")
            if parts[0] in without:
                continue
            for length in range(1, len(parts) + 1):
                stems = [root.joinpath(*parts[:length]) for root in roots]
                options = [option for stem in stems for option in (stem.with_suffix(".py"), stem / "__init__.py")]
                found = next((option for option in options if option.is_file()), None)
                if found:
                    todo.append(found)
                elif length == 1:
                    outside.add(parts[0])
    return files, outside


def imported(node: ast.AST, within: bool) -> Iterator[str]:
    """Modules that code imports when it runs, and what it takes from them; also inside functions where ``within``."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not within:
        return
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{name.name}" for name in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child, within)


def required(names: set[str]) -> set[str]:
    """These distributions and all that they require, as far as they are installed here."""
    found, todo = set(), [(name, "") for name in names]
    while todo:
        name, extra = todo.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for needed in map(Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed.name, more) for more in ("", *needed.extras)]
    return {name for name, _ in found}


def read_pins(text: str) -> dict[str, str]:
    """Exact versions by name, of the lines that have one."""
    lines = (line.strip().split("==") for line in text.splitlines() if not line.startswith(("#", "-")))
    return {parts[0]: parts[1] for parts in lines if len(parts) == 2}


def main() -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(description="Make the folder of a Hugging Face Space, or prove one.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="write the folder")
    making.add_argument("folder", type=Path)
    making.add_argument(
        "--hardware", default="cpu-basic", help="as Spaces name it (default: %(default)s); zero-a10g is ZeroGPU"
    )
    making.add_argument("--model", default="demo", help="demo or a Hub id; visitors get this one and no other")
    making.add_argument("--revision", help="the commit of the model on the Hub, 40 hexadecimal digits")
    proving = commands.add_parser(
        "check", help="say what is wrong with the folder; the exit status is 1 where something is"
    )
    proving.add_argument("folder", type=Path)
    proving.add_argument(
        "--no-start", action="store_true", help="do not start it, as where the model would be downloaded"
    )
    options = parser.parse_args()
    if options.command == "build":
        options.folder.mkdir(parents=True, exist_ok=True)
        try:
            build(options.folder, options.hardware, options.model, options.revision)
        except ValueError as error:
            sys.exit(str(error))
    problems = check(options.folder, start=options.command == "check" and not options.no_start)
    if problems:
        sys.exit("\n".join(problems))
    sys.stdout.write(f"{options.folder} is ready to be uploaded.\n")


if __name__ == "__main__":
    main()
