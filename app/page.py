"""Page layout, and the handler of each event.

There are three kinds of events: questions, the fast tier that follows a moving fader or object, and the slow tier that
generates the answers. A scheduler gives the model to one user after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

import sinkgate as sg
from sinkgate.sinks.glossary import preset_name

from .components import component, picture_box, scene_world
from .engine import MAX_QUESTION, Engine
from .handlers import Handlers
from .phenomena import demonstration, gallery
from .view_model import Lens

FIRST_LAYER = 2  # of the maps, when the page opens
STATE_SECONDS = 3600
CACHE_SECONDS = (3600, 7200)  # uploads are checked every hour and deleted after two

Event = Handler = Callable[..., Any]
# loading marks on no component: even hidden ones lay the page out at every frame while an event runs
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
# threads that may wait for the scheduler, which keeps order and limits
FAST: dict[str, Any] = {"concurrency_id": "fast", "concurrency_limit": 24, **QUIET}
SLOW: dict[str, Any] = {"concurrency_id": "slow", "concurrency_limit": 16, **QUIET}
SWEEP: dict[str, Any] = {"concurrency_id": "sweep", "concurrency_limit": 8, **QUIET}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}

READ_LINK = "(_, mixer, lens) => [window.sinkgate.link(), mixer, lens]"
COMPOSE, SHOW = (f"() => window.sinkgate.publish('compose', {on})" for on in ("true", "false"))
ZERO = " A Key scale of 0 makes the logit 0; it does not remove the token, so its attention may rise."
SAVE_GATES = """(text) => window.sinkgate.save("gates.json", new Blob([text], { type: "application/json" }))"""


@dataclass
class Parts:
    """The components that events read or write."""

    session: gr.State
    status: gr.HTML
    picture: gr.Image
    picture_anywhere: gr.UploadButton
    composer: gr.HTML
    question: gr.Textbox
    ask: gr.Button
    new_scene: gr.Button
    edit: gr.Button
    done: gr.Button
    questions: gr.HTML
    answers: gr.HTML
    lens: gr.HTML
    tokens: gr.HTML
    maps: gr.HTML
    mixer: gr.HTML
    learned: gr.HTML
    upload_learned: gr.UploadButton
    actions: gr.HTML
    history: gr.HTML
    sweep: gr.HTML
    share: gr.HTML
    gates_text: gr.Textbox
    apply: gr.Button
    save: gr.Button
    load: gr.UploadButton


def theme() -> gr.themes.Base:
    """Return system fonts and neutral greys; all other colours are in style.css."""
    sans = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    return gr.themes.Base(primary_hue="slate", neutral_hue="slate", text_size="sm", font=sans, font_mono=mono)


def build_page(engine: Engine) -> gr.Blocks:
    """Return the whole page of one model."""
    handlers = Handlers(engine)
    with gr.Blocks(title="sinkgate", analytics_enabled=False, fill_width=True, delete_cache=CACHE_SECONDS) as page:
        parts = lay_out(engine.vlm, handlers.learned_value(None), engine.backend.interactive)
        connect_events(page, parts, handlers)
        public_endpoint(handlers)
    return page


def lay_out(vlm: sg.VLM, learned_value: dict[str, Any], interactive: bool) -> Parts:
    """Lay out three columns (question, maps, answers), and below them rows with a column for each layer."""
    session = gr.State(None, time_to_live=STATE_SECONDS)
    with gr.Row(elem_classes="top"):
        component("header", {"model": vlm.name})
        buttons = {"phenomena": gallery(vlm), "demonstration": demonstration(vlm), "interactive": interactive}
        actions = component("actions", actions=buttons)
        history = component("history")
    status = component("status", {"text": "Loading the first picture …", "tone": "calm"})
    with gr.Row(elem_classes="panels"):
        with gr.Column(elem_classes="card asking", min_width=240):
            picture = picture_box(
                sources=("upload", "clipboard", "webcam"),
                show_label=False,
                height=120,  # with a question of two lines, the column is no higher than the maps
                elem_id="picture",
                buttons=[],
                alt_text="The picture of the question",
                placeholder="Drop or paste a picture, or click to choose one",
            )
            anywhere = gr.UploadButton("Picture", file_types=["image", "video"], elem_id="picture-anywhere")
            composer = component("composer", {"scene": None, "picture": 0, "revision": 0}, world=scene_world())
            question = gr.Textbox(
                label="Question about the picture",
                show_label=False,
                placeholder="Ask about the picture",
                max_lines=2,
                max_length=2 * MAX_QUESTION,
                elem_id="question",
                html_attributes=gr.InputHTMLAttributes(spellcheck=False, autocomplete="off"),
            )
            with gr.Row(elem_classes="buttons"):
                ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=60)
                new_scene = gr.Button("New scene", elem_id="new-scene", min_width=60)
                edit = gr.Button("Edit the scene", elem_id="edit-scene", min_width=60)
                done = gr.Button("Done", elem_id="edit-done", min_width=60)
            questions = component("questions", {})
        with gr.Column(elem_classes="card looking", min_width=320):
            first = asdict(Lens(layer=min(FIRST_LAYER, vlm.num_layers - 1)))
            lens = component("lens", first, size={"heads": vlm.num_heads})
            tokens = component("tokens")
            maps = component("maps")
        with gr.Column(elem_classes="card answering", min_width=280):
            answers = component("answers", {})
            component("words")
    with gr.Column(elem_classes="card layered"):
        with gr.Row(elem_classes="buttons learning"):
            learned = component("learned", learned_value)
            upload_learned = gr.UploadButton(
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
        faders = component("mixer", scales, mixer={"layers": vlm.num_layers, "presets": presets()})
    with gr.Column(elem_classes="card sweeping empty"):
        swept = component("sweep")
    with gr.Column(elem_classes="card pinning empty"):
        component("pins")
    with (
        gr.Accordion("Share and save", open=False, elem_classes="card gates", elem_id="gates"),
        gr.Row(elem_classes="taking"),
    ):
        with gr.Column(min_width=300):
            share = component("share")
        with gr.Column(min_width=300):
            gates_text = gr.Textbox(
                label="Gates as JSON", lines=4, max_lines=8, placeholder="Paste gates here", elem_id="gates-text"
            )
            with gr.Row(elem_classes="buttons"):
                apply = gr.Button("Apply to mixer", elem_id="gates-apply", min_width=60)
                load = gr.UploadButton("Load gates…", file_types=[".json"], elem_id="gates-load", min_width=60)
                save = gr.Button("Save gates", elem_id="gates-save", min_width=60)
    return Parts(
        session, status, picture, anywhere, composer, question, ask, new_scene, edit, done, questions, answers,
        lens, tokens, maps, faders, learned, upload_learned, actions, history, swept, share, gates_text, apply, save, load,
    )  # fmt: skip


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
        parts: its components.
        handlers: the handlers.
    """
    setting = [parts.mixer, parts.lens]
    answered = [parts.session, parts.picture, parts.question, parts.questions, parts.maps, parts.status, parts.mixer]
    pictured = [*answered, parts.composer]
    edited = [parts.questions, parts.maps, parts.status, parts.mixer, parts.composer]
    streamed = [parts.answers, parts.maps, parts.gates_text, parts.status]
    drawn = [parts.maps, parts.status]
    newest: dict[str, Any] = {"trigger_mode": "always_last"}

    def then_answer(event: Event, handler: Handler, inputs: list[Any], outputs: list[Any], **options: Any) -> None:
        event(handler, inputs, outputs, **newest, **options, **FAST, **PRIVATE).then(
            handlers.stream_answers, [parts.session, parts.mixer], streamed, trigger_mode="multiple", **SLOW, **PRIVATE
        )

    def on_question(
        event: Event, handler: Handler, inputs: list[Any], outputs: list[Any] = answered, **options: Any
    ) -> None:
        then_answer(event, handler, [*inputs, *setting], outputs, **options)

    def on_gates(event: Event, handler: Handler, source: Any, outputs: list[Any]) -> None:
        then_answer(event, handler, [parts.session, source, parts.lens], outputs)

    opened = [*pictured, parts.lens, parts.learned]
    on_question(page.load, handlers.load_page, [parts.share], opened, js=READ_LINK)
    on_question(parts.actions.open, handlers.open_view, [parts.session, parts.actions], opened)
    picture = [parts.session, parts.picture, parts.question]
    on_question(parts.picture.upload, handlers.new_picture, picture, pictured, preprocess=False)
    dropped = [parts.session, parts.picture_anywhere, parts.question]  # by shared.js, wherever on the page
    on_question(parts.picture_anywhere.upload, handlers.new_picture, dropped, pictured, preprocess=False)
    parts.picture.clear(handlers.picture_removed, None, parts.status, **FAST, **PRIVATE)
    on_question(parts.ask.click, handlers.ask, [parts.session, parts.question])
    on_question(parts.question.submit, handlers.ask, [parts.session, parts.question])
    on_question(parts.new_scene.click, handlers.new_scene, [parts.session], pictured)
    on_question(parts.questions.picture, handlers.pick_example, [parts.session, parts.questions], pictured)
    on_question(parts.questions.question, handlers.pick_question, [parts.session, parts.questions])

    scene = [parts.session, parts.composer]
    on_question(parts.composer.commit, handlers.commit_scene, scene, [parts.picture, *edited])
    parts.edit.click(None, None, None, js=COMPOSE, **PRIVATE)
    parts.done.click(None, None, None, js=SHOW, **PRIVATE)

    if handlers.engine.backend.interactive:  # otherwise the page is updated when a fader or object is released
        parts.mixer.input(handlers.set_gates, [parts.session, *setting], drawn, **newest, **FAST, **PRIVATE)
        parts.composer.input(handlers.edit_scene, [*scene, *setting], edited, **newest, **FAST, **PRIVATE)
    parts.mixer.commit(handlers.stream_answers, [parts.session, parts.mixer], streamed, **newest, **SLOW, **PRIVATE)
    parts.mixer.overdue(handlers.catch_up, None, None, trigger_mode="multiple", **FAST, **PRIVATE)
    parts.lens.input(handlers.set_lens, [parts.session, parts.lens], drawn, **newest, **FAST, **PRIVATE)

    moved = [parts.mixer, *drawn]
    on_gates(parts.apply.click, handlers.apply_gates, parts.gates_text, moved)
    loaded = parts.load.upload(handlers.read_file, parts.load, parts.gates_text, **FAST, **PRIVATE)
    on_gates(loaded.then, handlers.apply_gates, parts.gates_text, moved)
    on_gates(parts.learned.choose, handlers.choose_learned, parts.learned, [parts.learned, *moved])
    on_gates(parts.upload_learned.upload, handlers.upload_learned, parts.upload_learned, [parts.learned, *moved])
    on_gates(parts.history.restore, handlers.restore, parts.history, [parts.learned, *moved])

    parts.sweep.start(handlers.sweep, parts.session, parts.sweep, trigger_mode="multiple", **SWEEP, **PRIVATE)
    parts.sweep.stop(handlers.stop_sweep, parts.session, None, trigger_mode="multiple", **FAST, **PRIVATE)

    refused = [parts.session, parts.questions]
    parts.questions.refused(handlers.restore_picture, refused, [parts.picture, parts.status], **FAST, **PRIVATE)
    view = [parts.session, parts.lens]
    parts.tokens.collect(handlers.inspect, view, [parts.tokens, parts.status], **newest, **FAST, **PRIVATE)
    parts.share.collect(handlers.share, view, [parts.share, parts.status], **newest, **FAST, **PRIVATE)
    parts.save.click(None, parts.gates_text, None, js=SAVE_GATES, **PRIVATE)


def public_endpoint(handlers: Handlers) -> None:
    """Add the endpoint of the API: ``answer(image, question, gates_json)``."""
    with gr.Group(visible=False):
        image = picture_box(label="image")
        question = gr.Textbox(label="question")
        gates_json = gr.Textbox(label="gates_json")
        result = gr.JSON(label="answer")
        inputs = [image, question, gates_json]
        gr.Button("answer").click(handlers.answer, inputs, result, api_name="answer", preprocess=False, **SLOW)
