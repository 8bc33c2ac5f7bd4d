"""Components of the page: `gradio.HTML` with markup and scripts from components/.

Values are JSON and are drawn by the component's script with ``textContent`` and canvas. Text of users and models is never
put into a template, because Gradio evaluates templates.

These are functions because Gradio writes a stub file next to every module that subclasses a component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from sinkgate.scenes.scene import BACKGROUNDS, COLORS, GAP, MARGIN, MAX_OBJECTS, SHAPES, SIZES, outline

from .view_model import Lens

COMPONENTS = Path(__file__).parent / "components"


def header(model: str) -> gr.HTML:
    """Return title, description, share button and the switch between light and dark."""
    return _component("header", {"model": model})


def status_line(text: str) -> gr.HTML:
    """Return the status line. Value: ``{"text": "...", "tone": "calm" | "warning"}``."""
    return _component("status", {"text": text, "tone": "calm"})


def question_chips() -> gr.HTML:
    """Return example pictures and questions, and the ground truth of a scene. Events: ``picture``, ``question``, ``refused``."""
    return _component("questions", {})


def scene_composer() -> gr.HTML:
    """Return the scene editor. Value: ``{"scene": Scene.to_dict() | None, "picture": 1, "revision": 0}``.

    Events: ``input`` while an object moves, ``commit`` when an edit is complete. The page sends back the index of the edited
    picture, and a ``revision`` that rises with every edit.
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
    return _component("composer", {"scene": None, "picture": 0, "revision": 0}, world=world)


def answer_pair() -> gr.HTML:
    """Return both answers. Value: that of `view_model.answers`."""
    return _component("answers", {})


def next_token_bars() -> gr.HTML:
    """Return the next-token probabilities before and after, as paired bars. Drawn from the frames of the maps."""
    return _component("words", None)


def attention_chart() -> gr.HTML:
    """Return the chart of attention shares by layer, before and after. Drawn from the frames of the maps."""
    return _component("chart", None)


def lens_picker(heads: int, layer: int) -> gr.HTML:
    """Return the controls of the attention map, but for its layer, which is chosen by a thumbnail.

    Value: that of `view_model.Lens` as a dictionary. Event: ``input``.

    Args:
        heads: number of attention heads.
        layer: index of the first layer to show.
    """
    return _component("lens", asdict(Lens(layer)), size={"heads": heads})


def layer_films(layers: int) -> gr.HTML:
    """Return one thumbnail a layer, of which one is chosen for the maps. Drawn from the frames of the maps."""
    return _component("films", None, size={"layers": layers})


def prompt_tokens() -> gr.HTML:
    """Return the prompt's tokens as a row to choose the query from. Value: that of `view_model.inspection`. Event: ``collect``.

    The panel of a patch, which belongs to the maps, is drawn from the same value.
    """
    return _component("tokens", None)


def attention_maps() -> gr.HTML:
    """Return both attention maps and their difference. Value: a whole `view_model.frame`, which other components draw, too."""
    return _component("maps", None)


def mixer(layers: int, presets: list[dict[str, Any]]) -> gr.HTML:
    """Return a fader for each layer and group. Value: ``{"v_sink": [1.0, ...], "rest": [1.0, ...], "revision": 0}``, scales from 0 to 4.

    ``l_sink`` holds the scales of L-sinks where they differ from those of ordinary tokens, which then are ``rest`` alone.
    Events: ``input`` while a fader moves, ``commit`` when it comes to rest, ``overdue`` when a result does not come.
    ``revision`` rises with every setting, of the page and of the server. Draws the scales of learned gates from the frames of the maps.
    """
    ones = [1.0] * layers
    value = {"v_sink": ones, "rest": ones, "revision": 0}
    return _component("mixer", value, mixer={"layers": layers, "presets": presets})


def learned_picker(value: dict[str, Any]) -> gr.HTML:
    """Return the choice of learned gates. Value: ``{"offered": [{"name", "about"}], "chosen": "stack" | None, "off": [3]}``.

    Event: ``choose``, also when the mixer switches a layer on or off.
    """
    return _component("learned", value)


def action_buttons(phenomena: list[dict[str, Any]], demonstration: dict[str, Any] | None, interactive: bool) -> gr.HTML:
    """Return the buttons above the mixer. Value: ``{"choice": {"link": "..."}}``. Event: ``open``, to show the view of a link.

    Args:
        phenomena: those of the model, ``{"title", "sentence", "link"}``.
        demonstration: the movement of "Show me", ``{"question", "group", "layer", "scale"}``; the page chooses one where None.
        interactive: whether the page follows a moving fader.
    """
    return _component(
        "actions",
        None,
        actions={"phenomena": phenomena, "demonstration": demonstration, "interactive": interactive},
    )


def faders_history() -> gr.HTML:
    """Return undo and redo of the faders, of the choice of learned gates, and of the scene.

    Value: the step to restore where it changes that choice, ``{"v_sink", "rest", "chosen": "stack" | None, "off": [3]}``, with
    ``l_sink`` as in the mixer. Event: ``restore``.
    """
    return _component("history", None)


def question_sweep() -> gr.HTML:
    """Return the sweep of a question as a heat map. Value: that of `sweep.Sweep`, with ``note`` where it failed.

    Events: ``start``, ``stop``.
    """
    return _component("sweep", None)


def pinned_settings() -> gr.HTML:
    """Return up to four settings side by side, which the page holds itself. Drawn from the frames of the maps and the answers."""
    return _component("pins", None)


def share_panel() -> gr.HTML:
    """Return link, Python code and figures of the view. Value: ``{"link", "python", "lacks"}``. Event: ``collect``.

    Figures are drawn from the values of maps, chart and answers.
    """
    return _component("share", None)


def picture_box(sources: Sequence[str] = ("upload",), **settings: Any) -> gr.Image:
    """Return an image box; its events pass ``preprocess=False``, so that no file is opened before it is checked."""
    return gr.Image(type="filepath", format="jpeg", sources=list(sources), **settings)  # pyright: ignore[reportArgumentType]


def uploaded(value: dict[str, Any] | None) -> str | None:
    """Return the content of a picture box: the path of an upload, which Gradio has checked, or a data URL."""
    if value is None:
        return None
    return value.get("path") or value.get("url")


def _component(name: str, value: Any, **props: Any) -> gr.HTML:
    return gr.HTML(
        value,
        html_template=(COMPONENTS / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(COMPONENTS / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["component"],
        **props,
    )
