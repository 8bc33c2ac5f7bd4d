"""The page's own components: `gradio.HTML` whose markup and behaviour are files in components/.

Their values travel as JSON and are drawn by the component's script with ``textContent`` and canvas. Nothing
that a visitor or the model wrote is ever put into a template: Gradio evaluates those.

Plain functions on purpose: Gradio writes a stub file next to every module that subclasses a component.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sinkgate.scenes.scene import BACKGROUNDS, COLORS, GAP, MARGIN, MAX_OBJECTS, SHAPES, SIZES, outline

COMPONENTS = Path(__file__).parent / "components"


def header(model: str) -> gr.HTML:
    """Title, the one sentence that says what this is, the light switch."""
    return _island("header", {"model": model})


def status_line(text: str) -> gr.HTML:
    """One sentence: ``{"text": "...", "tone": "calm" | "warning"}``."""
    return _island("status", {"text": text, "tone": "calm"})


def question_chips() -> gr.HTML:
    """Example pictures and questions; for a random scene also its truth. Events: ``picture``, ``question``, ``refused``."""
    return _island("questions", {})


def scene_composer() -> gr.HTML:
    """A scene to edit: ``{"scene": Scene.to_dict() | None, "picture": 1, "turn": 0}``.

    Events: ``input`` while an object moves, ``commit`` when an edit is made. The page hands back which picture it
    edits and adds to ``turn``, which rises with every edit.
    """
    world = {
        "shapes": {shape: outline(shape) for shape in SHAPES},
        "colors": {name: f"rgb{color}" for name, color in COLORS.items()},
        "sizes": SIZES,
        "backgrounds": {name: f"rgb{color}" for name, color in BACKGROUNDS.items()},
        "most": MAX_OBJECTS,
        "gap": GAP,
        "margin": MARGIN,
    }
    return _island("composer", {"scene": None, "picture": 0, "turn": 0}, world=world)


def answer_pair() -> gr.HTML:
    """The unchanged answer beside the gated one; value as `frames.answers` makes it."""
    return _island("answers", {})


def first_words() -> gr.HTML:
    """The likeliest first words before and after, as paired bars. Draws what the maps were sent."""
    return _island("words", None)


def attention_chart() -> gr.HTML:
    """The share of attention of each group of tokens over the layers, before and after. Draws what the maps were sent."""
    return _island("chart", None)


def lens_picker(layers: int, heads: int, layer: int) -> gr.HTML:
    """Which map is shown: ``{"layer": 3, "head": null, "row": 0, "hide": false, "sheet": 0}``. Event: ``input``."""
    value = {"layer": layer, "head": None, "row": 0, "hide": False, "sheet": 0}
    return _island("lens", value, size={"layers": layers, "heads": heads})


def attention_maps() -> gr.HTML:
    """Attention over a sheet of the image, unchanged beside gated, on one scale; its value is a whole `frames.frame`."""
    return _island("maps", None)


def mixer_desk(layers: int, presets: dict[str, tuple[float, float]]) -> gr.HTML:
    """Two faders a layer: ``{"v_sink": [1.0, ...], "rest": [1.0, ...]}``, scales from 0 to 2.

    Events: ``input`` while a fader moves, ``commit`` when it comes to rest. The page adds ``turn`` to the value, a
    number that rises with every setting, of the page and of the server. Draws rho of learned gates as the maps were sent it.
    """
    ones = [1.0] * layers
    return _island("mixer", {"v_sink": ones, "rest": ones, "turn": 0}, desk={"layers": layers, "presets": presets})


def learned_picker(value: dict[str, Any]) -> gr.HTML:
    """Which learned gates move the faders: ``{"offered": [{"name", "about"}], "chosen": "stack" | None, "off": [3]}``.

    Event: ``choose``, also when the mixer asks to switch a layer on or off.
    """
    return _island("learned", value)


def share_desk() -> gr.HTML:
    """Link, Python and pictures of what the page shows: ``{"link", "python", "lacks"}``. Event: ``collect``.

    Saves as pictures what the maps, the chart and the answers were sent.
    """
    return _island("share", None)


def picture_box(sources: Sequence[str] = ("upload",), **settings: Any) -> gr.Image:
    """An image box; its events pass ``preprocess=False``, so that no file is opened before our own check."""
    return gr.Image(type="filepath", format="jpeg", sources=list(sources), **settings)  # pyright: ignore[reportArgumentType]


def uploaded(value: dict[str, Any] | None) -> str | None:
    """What a picture box was given: the path of an upload (Gradio has checked that it is one) or a data URL."""
    if value is None:
        return None
    return value.get("path") or value.get("url")


def _island(name: str, value: Any, **props: Any) -> gr.HTML:
    return gr.HTML(
        value,
        html_template=(COMPONENTS / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(COMPONENTS / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["island"],
        **props,
    )
