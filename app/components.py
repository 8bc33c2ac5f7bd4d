"""Components of the page: `gradio.HTML` with markup and scripts from components/.

Values are JSON and are drawn by the component's script with ``textContent`` and canvas. Text of users and models is never
put into a template, because Gradio evaluates templates.

These are no subclasses because Gradio writes a stub file next to every module that subclasses a component.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sinkgate.scenes.scene import BACKGROUNDS, COLORS, GAP, MARGIN, MAX_OBJECTS, SHAPES, SIZES, outline

COMPONENTS = Path(__file__).parent / "components"


def component(name: str, value: Any = None, **props: Any) -> gr.HTML:
    """Return a component. The first lines of its script describe its value and its events.

    Args:
        name: of its files in components/, and its id.
        value: as JSON.
        props: further values for the script, which do not change.
    """
    return gr.HTML(
        value,
        html_template=(COMPONENTS / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(COMPONENTS / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["component"],
        **props,
    )


def scene_world() -> dict[str, Any]:
    """Return shapes, colours, sizes and limits of scenes, for the scene editor."""
    return {
        "shapes": {shape: outline(shape) for shape in SHAPES},
        "colors": {name: f"rgb{color}" for name, color in COLORS.items()},
        "sizes": SIZES,
        "backgrounds": {name: f"rgb{color}" for name, color in BACKGROUNDS.items()},
        "most": MAX_OBJECTS,
        "gap": GAP,
        "margin": MARGIN,
    }


def picture_box(sources: Sequence[str] = ("upload",), **settings: Any) -> gr.Image:
    """Return an image box; its events pass ``preprocess=False``, so that no file is opened before it is checked."""
    return gr.Image(type="filepath", format="jpeg", sources=list(sources), **settings)  # pyright: ignore[reportArgumentType]


def uploaded(value: dict[str, Any] | None) -> str | None:
    """Return the content of a picture box: the path of an upload, which Gradio has checked, or a data URL."""
    if value is None:
        return None
    return value.get("path") or value.get("url")
