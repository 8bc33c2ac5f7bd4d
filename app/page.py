"""Page layout, and the handler of each event.

There are three kinds of events: questions, the fast tier that follows a moving fader or object, and the slow tier that
generates the answers. A scheduler gives the model to one user after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from inspect import isgeneratorfunction, signature
from typing import Any

import gradio as gr
import orjson
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.responses import Response

import sinkgate as sg
from sinkgate.sinks.glossary import preset_name

from .components import component, picture_box, scene_world
from .engine import MAX_QUESTION, Engine
from .handlers import Handlers
from .lens import Lens
from .phenomena import demonstration, gallery

FIRST_LAYER = 2  # of the maps, when the page opens
STATE_SECONDS = 3600
CACHE_SECONDS = (3600, 7200)  # uploads are checked every hour and deleted after two

Event = Handler = Callable[..., Any]
Parts = dict[str, Any]  # components by their ids, with ``_`` for ``-``
# loading marks on no component: even hidden ones lay the page out at every frame while an event runs
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
# threads that may wait for the scheduler, which keeps order and limits
FAST: dict[str, Any] = {"concurrency_id": "fast", "concurrency_limit": 24, **QUIET}
SLOW: dict[str, Any] = {"concurrency_id": "slow", "concurrency_limit": 16, **QUIET}
SWEEP: dict[str, Any] = {"concurrency_id": "sweep", "concurrency_limit": 8, **QUIET}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}

# ids of the components that handlers may write
DRAWN = "maps status"
MOVED = f"mixer {DRAWN}"
ASKED = f"session picture question questions {DRAWN} mixer"
PICTURED = f"{ASKED} composer"
OPENED = f"{PICTURED} lens learned"
EDITED = f"questions {DRAWN} mixer composer"
STREAMED = "answers maps gates_text status"

READ_LINK = "(_, mixer, lens) => [window.sinkgate.link(), mixer, lens]"
COMPOSE, SHOW = (f"() => window.sinkgate.publish('compose', {on})" for on in ("true", "false"))
ZERO = " A Key scale of 0 makes the logit 0; it does not remove the token, so its attention may rise."
SAVE_GATES = """(text) => window.sinkgate.save("gates.json", new Blob([text], { type: "application/json" }))"""


def theme() -> gr.themes.Base:
    """Return system fonts and neutral greys; all other colours are in style.css."""
    sans = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    return gr.themes.Base(primary_hue="slate", neutral_hue="slate", text_size="sm", font=sans, font_mono=mono)


def build_page(engine: Engine) -> gr.Blocks:
    """Return the whole page of one model."""
    handlers = Handlers(engine)
    with gr.Blocks(title="sinkgate", analytics_enabled=False, fill_width=True, delete_cache=CACHE_SECONDS) as page:
        lay_out(engine.vlm, handlers.learned_value(None), engine.backend.interactive, tick(handlers))
        parts: Parts = {part.elem_id.replace("-", "_"): part for part in page.blocks.values() if part.elem_id}
        parts["session"] = gr.State(None, time_to_live=STATE_SECONDS)
        connect_events(page, parts, handlers)
        public_endpoint(handlers)
    return page


def lay_out(vlm: sg.VLM, learned_value: dict[str, Any], interactive: bool, set_gates: Handler) -> None:
    """Lay out three columns (question, maps, answers), and below them rows with a column for each layer.

    Args:
        vlm: the model.
        learned_value: the value of the choice of learned gates.
        interactive: whether the page follows a moving fader; otherwise it is updated when one is released.
        set_gates: called for a moving fader.
    """
    with gr.Row(elem_classes="top"):
        component("header", {"model": vlm.name})
        buttons = {"phenomena": gallery(vlm), "demonstration": demonstration(vlm), "interactive": interactive}
        component("actions", actions=buttons)
        component("history")
    component("status", {"text": "Loading the first picture …", "tone": "calm"})
    with gr.Row(elem_classes="panels"):
        with gr.Column(elem_classes="card asking", min_width=240):
            picture_box(
                sources=("upload", "clipboard", "webcam"),
                show_label=False,
                height=120,  # with a question of two lines, the column is no higher than the maps
                elem_id="picture",
                buttons=[],
                alt_text="The picture of the question",
                placeholder="Drop or paste a picture, or click to choose one",
            )
            gr.UploadButton("Picture", file_types=["image", "video"], elem_id="picture-anywhere")
            component("composer", {"scene": None, "picture": 0, "revision": 0}, world=scene_world())
            gr.Textbox(
                label="Question about the picture",
                show_label=False,
                placeholder="Ask about the picture",
                max_lines=2,
                max_length=2 * MAX_QUESTION,
                elem_id="question",
                html_attributes=gr.InputHTMLAttributes(spellcheck=False, autocomplete="off"),
            )
            with gr.Row(elem_classes="buttons"):
                gr.Button("Ask", variant="primary", elem_id="ask", min_width=60)
                gr.Button("New scene", elem_id="new-scene", min_width=60)
                gr.Button("Edit the scene", elem_id="edit-scene", min_width=60)
                gr.Button("Done", elem_id="edit-done", min_width=60)
            component("questions", {})
        with gr.Column(elem_classes="card looking", min_width=320):
            first = asdict(Lens(layer=min(FIRST_LAYER, vlm.num_layers - 1)))
            component("lens", first, size={"heads": vlm.num_heads, "interactive": interactive})
            component("tokens")
            component("maps")
        with gr.Column(elem_classes="card answering", min_width=280):
            component("answers", {})
            component("words")
    with gr.Column(elem_classes="card layered"):
        with gr.Row(elem_classes="buttons learning"):
            component("learned", learned_value)
            gr.UploadButton(
                "Upload learned gates…",
                file_count="multiple",
                file_types=[".json", ".safetensors"],
                elem_id="learned-upload",
                min_width=60,
            )
        component("films", size={"layers": vlm.num_layers})
        component("chart")
        ones = [1.0] * vlm.num_layers
        scales = {"v_sink": ones, "rest": ones, "revision": 0}
        mixer = {"layers": vlm.num_layers, "presets": presets()}
        component("mixer", scales, mixer=mixer, server_functions=[set_gates] if interactive else None)
    with gr.Column(elem_classes="card sweeping empty"):
        component("sweep")
    with gr.Column(elem_classes="card pinning empty"):
        component("pins")
    with (
        gr.Accordion("Share and save", open=False, elem_classes="card gates", elem_id="gates"),
        gr.Row(elem_classes="taking"),
    ):
        with gr.Column(min_width=300):
            component("share")
        with gr.Column(min_width=300):
            gr.Textbox(
                label="Gates as JSON", lines=4, max_lines=8, placeholder="Paste gates here", elem_id="gates-text"
            )
            with gr.Row(elem_classes="buttons"):
                gr.Button("Apply to mixer", elem_id="gates-apply", min_width=60)
                gr.UploadButton("Load gates…", file_types=[".json"], elem_id="gates-load", min_width=60)
                gr.Button("Save gates", elem_id="gates-save", min_width=60)


def presets() -> list[dict[str, Any]]:
    """Return the presets of the mixer: name, title, scales, and the group without which they change nothing.

    Those of V-sinks alone have a twin for L-sinks, offered instead for pictures without V-sinks.
    """
    presets: list[dict[str, Any]] = []
    for v_sink, rest in sg.PRESETS.values():
        name, scales = preset_name(v_sink, rest), {"v_sink": v_sink, "l_sink": rest, "rest": rest}
        title = f"V-sinks × {v_sink:g}, other visual tokens × {rest:g}, in every layer.{ZERO if v_sink == 0 else ''}"
        alone = v_sink != rest == 1
        needs = {"needs": "v_sink", "instead": "l_sink"} if alone else {"needs": None, "instead": None}
        presets.append({"name": name, "title": title, **scales, **needs})
        if alone:
            names = {"name": name.replace("V-", "L-"), "title": title.replace("V-", "L-")}
            scales = {"v_sink": 1.0, "l_sink": v_sink, "rest": 1.0}
            presets.append({**names, **scales, "needs": "l_sink", "instead": "v_sink"})
    return presets


def connect_events(page: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    """Connect each event with its handler.

    Args:
        page: the page.
        parts: its components, by their ids.
        handlers: the handlers.
    """

    def on(event: Event, handler: Handler, outputs: str = "", tier: dict[str, Any] = FAST, **options: Any) -> Any:
        inputs = [parts[name] for name in input_names(handler)]
        options = {"trigger_mode": "always_last", **options, **tier, **PRIVATE}
        return event(by_component(handler, parts), inputs, [parts[name] for name in outputs.split()], **options)

    def then_answer(event: Event, handler: Handler, outputs: str, **options: Any) -> None:
        done = on(event, handler, outputs, **options)
        on(done.then, handlers.stream_answers, STREAMED, SLOW, trigger_mode="multiple")

    then_answer(page.load, handlers.load_page, OPENED, js=READ_LINK)
    then_answer(parts["actions"].open, handlers.open_view, OPENED)
    then_answer(parts["picture"].upload, handlers.new_picture, PICTURED, preprocess=False)
    dropped = parts["picture_anywhere"].upload  # by shared.js, wherever on the page
    then_answer(dropped, handlers.new_picture_anywhere, PICTURED, preprocess=False)
    on(parts["picture"].clear, handlers.picture_removed, "status")
    then_answer(parts["ask"].click, handlers.ask, ASKED)
    then_answer(parts["question"].submit, handlers.ask, ASKED)
    then_answer(parts["new_scene"].click, handlers.new_scene, PICTURED)
    then_answer(parts["questions"].picture, handlers.pick_example, PICTURED)
    then_answer(parts["questions"].question, handlers.pick_question, ASKED)
    on(parts["questions"].refused, handlers.restore_picture, "picture status")

    then_answer(parts["composer"].commit, handlers.commit_scene, f"picture {EDITED}")
    parts["edit_scene"].click(None, None, None, js=COMPOSE, **PRIVATE)
    parts["edit_done"].click(None, None, None, js=SHOW, **PRIVATE)

    if handlers.engine.backend.interactive:  # otherwise the page is updated when an object is released
        on(parts["composer"].input, handlers.edit_scene, EDITED)
    on(parts["mixer"].commit, handlers.stream_answers, STREAMED, SLOW)
    on(parts["mixer"].overdue, handlers.catch_up, trigger_mode="multiple")
    on(parts["lens"].input, handlers.set_lens, DRAWN)

    then_answer(parts["gates_apply"].click, handlers.apply_gates, MOVED)
    then_answer(parts["gates_load"].upload, handlers.load_gates, f"gates_text {MOVED}")
    then_answer(parts["learned"].choose, handlers.choose_learned, f"learned {MOVED}")
    then_answer(parts["learned_upload"].upload, handlers.upload_learned, f"learned {MOVED}")
    then_answer(parts["history"].restore, handlers.restore, f"learned {MOVED}")

    on(parts["sweep"].start, handlers.sweep, "sweep", SWEEP, trigger_mode="multiple")
    on(parts["sweep"].stop, handlers.stop_sweep, trigger_mode="multiple")
    on(parts["tokens"].collect, handlers.inspect, "tokens status")
    on(parts["share"].collect, handlers.share, "share status")
    parts["gates_save"].click(None, parts["gates_text"], None, js=SAVE_GATES, **PRIVATE)


def tick(handlers: Handlers) -> Handler:
    """Return what the mixer calls for a moving fader: one request, since a queued event takes the page four messages."""
    limiter = CapacityLimiter(FAST["concurrency_limit"])

    async def set_gates(values: Any) -> Response:
        key, mixer, lens = values if isinstance(values, list) and len(values) == 3 else (None, None, None)
        session = handlers.engine.session(key)
        update = await run_sync(handlers.set_gates, session, mixer, lens, limiter=limiter)
        return Response(orjson.dumps(update), media_type="application/json")

    return set_gates


def input_names(handler: Handler) -> list[str]:
    """Return the ids of the components that a handler reads: its parameters without a default."""
    return [name for name, each in signature(handler).parameters.items() if each.default is each.empty]


def by_component(handler: Handler, parts: Parts) -> Handler:
    """Return a handler for Gradio, which takes new values by component."""

    def values(update: dict[str, Any] | None) -> Any:
        return None if update is None else {parts[name]: value for name, value in update.items()} or gr.skip()

    def streamed(*inputs: Any) -> Iterator[Any]:
        yield from map(values, handler(*inputs))

    return streamed if isgeneratorfunction(handler) else lambda *inputs: values(handler(*inputs))


def public_endpoint(handlers: Handlers) -> None:
    """Add the endpoint of the API: ``answer(image, question, gates_json)``."""
    with gr.Group(visible=False):
        image = picture_box(label="image")
        question = gr.Textbox(label="question")
        gates_json = gr.Textbox(label="gates_json")
        result = gr.JSON(label="answer")
        inputs = [image, question, gates_json]
        gr.Button("answer").click(handlers.answer, inputs, result, api_name="answer", preprocess=False, **SLOW)
