"""Commands of the demo world and the app."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from sinkgate.output import track, writable_folder


def scenes(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and scenes.jsonl.")],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same scenes.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Side of the pictures in pixels.")] = 448,
) -> None:
    """Draw random scenes of the demo world, with questions and true answers."""
    from sinkgate.scenes.questions import ask_all
    from sinkgate.scenes.scene import Scene

    with (writable_folder(out) / "scenes.jsonl").open("w", encoding="utf-8") as lines:
        for index in track(range(count), "scenes", unit="scenes"):
            rng = Random(f"scenes/{seed}/{index}")
            scene = Scene.random(rng)
            name = f"{index:04d}.png"
            scene.render(size).save(out / name)
            questions = [vars(question) for question in ask_all(scene, rng)]
            lines.write(json.dumps({"image": name, **scene.to_dict(), "questions": questions}) + "\n")
    typer.echo(f"{count} scenes in {out}")


def app(context: typer.Context) -> None:
    """Start the app, with the options of app/main.py; list them with --help."""
    root = Path(__file__).parents[2]
    in_clone = (root / "pyproject.toml").exists() and (root / "app").is_dir()
    started = [str(root / "app" / "main.py")] if in_clone else ["-m", "sinkgate.app.main"]
    os.execv(sys.executable, [sys.executable, *started, *context.args])
