"""The page: what stands where, and which event runs which handler.

Three kinds of event: those that ask anew, the fast tier that follows a moving fader or object, and the slow tier
that writes the answers. On the model visitors take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

import sinkgate as sg

from .components import (
    answer_pair,
    attention_chart,
    attention_maps,
    first_words,
    header,
    learned_picker,
    lens_picker,
    mixer_desk,
    picture_box,
    question_chips,
    scene_composer,
    share_desk,
    status_line,
)
from .handlers import Handlers
from .state import MAX_QUESTION, Desk

FIRST_LAYER = 2  # whose map is shown first
STATE_SECONDS = 3600
CACHE_SECONDS = (3600, 7200)  # uploads are looked through every hour and deleted after two

# threads that may wait for a turn on the model (`turnstile`), where order and bounds are kept
FAST: dict[str, Any] = {"concurrency_id": "fast", "concurrency_limit": 24, "show_progress": "hidden"}
SLOW: dict[str, Any] = {"concurrency_id": "slow", "concurrency_limit": 16, "show_progress": "hidden"}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}

READ_LINK = "(_, mixer, lens) => [window.sinkgate.link(), mixer, lens]"
COMPOSE, SHOW = (f"() => window.sinkgate.say('compose', {on})" for on in ("true", "false"))
SAVE_GATES = """(text) => window.sinkgate.save("gates.json", new Blob([text], { type: "application/json" }))"""


@dataclass
class Parts:
    """The page's components, by what they are for."""

    session: gr.State
    status: gr.HTML
    picture: gr.Image
    composer: gr.HTML
    question: gr.Textbox
    ask: gr.Button
    new_scene: gr.Button
    edit: gr.Button
    done: gr.Button
    questions: gr.HTML
    answers: gr.HTML
    lens: gr.HTML
    maps: gr.HTML
    mixer: gr.HTML
    learned: gr.HTML
    bring: gr.UploadButton
    share: gr.HTML
    gates_text: gr.Textbox
    apply: gr.Button
    save: gr.Button
    load: gr.UploadButton


def theme() -> gr.themes.Base:
    """System fonts and neutral greys; the colours that mean something live in style.css."""
    sans = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    return gr.themes.Base(primary_hue="slate", neutral_hue="slate", text_size="sm", font=sans, font_mono=mono)


def build_page(desk: Desk) -> gr.Blocks:
    """The whole page around one model."""
    handlers = Handlers(desk)
    with gr.Blocks(title="sinkgate", analytics_enabled=False, fill_width=True, delete_cache=CACHE_SECONDS) as page:
        parts = lay_out(desk.vlm, handlers.learned_value(None))
        wire(page, parts, handlers)
        public_endpoint(handlers)
    return page


def lay_out(vlm: sg.VLM, learned_value: dict[str, Any]) -> Parts:
    """Three columns (asking, looking, answering), the mixer and the chart beneath."""
    session = gr.State(None, time_to_live=STATE_SECONDS)
    header(vlm.name)
    status = status_line("Asking about the first picture …")
    with gr.Row(elem_classes="bench"):
        with gr.Column(elem_classes="card asking", min_width=240):
            picture = picture_box(
                sources=("upload", "clipboard", "webcam"),
                show_label=False,
                height=164,
                elem_id="picture",
                buttons=[],
                alt_text="The picture of the question",
                placeholder="Drop a PNG, JPEG or WebP picture, or click to choose one",
            )
            composer = scene_composer()
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
            questions = question_chips()
        with gr.Column(elem_classes="card looking", min_width=320):
            lens = lens_picker(vlm.num_layers, vlm.num_heads, layer=min(FIRST_LAYER, vlm.num_layers - 1))
            maps = attention_maps()
        with gr.Column(elem_classes="card answering", min_width=280):
            answers = answer_pair()
            first_words()
    with gr.Row(elem_classes="bench lower"):
        with gr.Column(elem_classes="card mixing", min_width=320):
            with gr.Row(elem_classes="buttons learning"):
                learned = learned_picker(learned_value)
                bring = gr.UploadButton(
                    "Upload learned gates…",
                    file_count="multiple",
                    file_types=[".json", ".safetensors"],
                    elem_id="learned-upload",
                    min_width=60,
                )
            mixer = mixer_desk(vlm.num_layers, {preset_name(*scales): scales for scales in sg.PRESETS.values()})
        with gr.Column(elem_classes="card charting", min_width=320):
            attention_chart()
    with (
        gr.Accordion("Share and save", open=False, elem_classes="card gates", elem_id="gates"),
        gr.Row(elem_classes="taking"),
    ):
        with gr.Column(min_width=300):
            share = share_desk()
        with gr.Column(min_width=300):
            gates_text = gr.Textbox(
                label="Gates as JSON", lines=4, max_lines=8, placeholder="Paste gates here", elem_id="gates-text"
            )
            with gr.Row(elem_classes="buttons"):
                apply = gr.Button("Apply to mixer", elem_id="gates-apply", min_width=60)
                load = gr.UploadButton("Load gates…", file_types=[".json"], elem_id="gates-load", min_width=60)
                save = gr.Button("Save gates", elem_id="gates-save", min_width=60)
    return Parts(
        session, status, picture, composer, question, ask, new_scene, edit, done, questions, answers,
        lens, maps, mixer, learned, bring, share, gates_text, apply, save, load,
    )  # fmt: skip


def preset_name(v_sink: float, rest: float) -> str:
    """Return the name of a setting that is the same in every layer: its scales."""
    if v_sink == rest:
        return "All at 1" if rest == 1 else f"All × {rest:g}"
    return f"V-sinks × {v_sink:g}" if rest == 1 else f"Others × {rest:g}"


def wire(page: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    """Connect the events."""
    setting = [parts.mixer, parts.lens]
    asked = [parts.session, parts.picture, parts.question, parts.questions, parts.maps, parts.status, parts.mixer]
    anew = [*asked, parts.composer]
    edited = [parts.questions, parts.maps, parts.status, parts.mixer, parts.composer]
    told = [parts.answers, parts.maps, parts.gates_text, parts.status]

    def asks(
        event: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: list[Any],
        outputs: list[Any] = asked,
        **more: Any,
    ) -> None:
        event(handler, [*inputs, *setting], outputs, trigger_mode="always_last", **more, **FAST, **PRIVATE).then(
            handlers.tell, [parts.session, parts.mixer], told, trigger_mode="multiple", **SLOW, **PRIVATE
        )

    asks(page.load, handlers.arrive, [parts.share], [*anew, parts.lens, parts.learned], js=READ_LINK)
    pictured = [parts.session, parts.picture, parts.question]
    asks(parts.picture.upload, handlers.new_picture, pictured, anew, preprocess=False)
    parts.picture.clear(handlers.picture_removed, None, parts.status, **FAST, **PRIVATE)
    asks(parts.ask.click, handlers.ask, [parts.session, parts.question])
    asks(parts.question.submit, handlers.ask, [parts.session, parts.question])
    asks(parts.new_scene.click, handlers.new_scene, [parts.session], anew)
    asks(parts.questions.picture, handlers.pick_example, [parts.session, parts.questions], anew)
    asks(parts.questions.question, handlers.pick_question, [parts.session, parts.questions])

    composed = [parts.session, parts.composer]
    asks(parts.composer.commit, handlers.place_scene, composed, [parts.picture, *edited])
    parts.edit.click(None, None, None, js=COMPOSE, **PRIVATE)
    parts.done.click(None, None, None, js=SHOW, **PRIVATE)

    shown = [parts.maps, parts.status]
    if handlers.desk.bench.follows:  # else the page moves on when the hand lets go
        turned, composing = [parts.session, *setting], [*composed, *setting]
        parts.mixer.input(handlers.turn, turned, shown, trigger_mode="always_last", **FAST, **PRIVATE)
        parts.composer.input(handlers.edit_scene, composing, edited, trigger_mode="always_last", **FAST, **PRIVATE)
    parts.mixer.commit(handlers.tell, [parts.session, parts.mixer], told, trigger_mode="always_last", **SLOW, **PRIVATE)
    parts.lens.input(handlers.look, [parts.session, parts.lens], shown, trigger_mode="always_last", **FAST, **PRIVATE)

    def moves(event: Callable[..., Any], handler: Callable[..., Any], given: Any, outputs: list[Any]) -> None:
        event(handler, [parts.session, given, parts.lens], outputs, trigger_mode="always_last", **FAST, **PRIVATE).then(
            handlers.tell, [parts.session, parts.mixer], told, trigger_mode="multiple", **SLOW, **PRIVATE
        )

    moved = [parts.mixer, *shown]
    moves(parts.apply.click, handlers.apply_gates, parts.gates_text, moved)
    read = parts.load.upload(handlers.read_file, parts.load, parts.gates_text, **FAST, **PRIVATE)
    moves(read.then, handlers.apply_gates, parts.gates_text, moved)
    moves(parts.learned.choose, handlers.choose_learned, parts.learned, [parts.learned, *moved])
    moves(parts.bring.upload, handlers.upload_learned, parts.bring, [parts.learned, *moved])
    refused = [parts.session, parts.questions]
    parts.questions.refused(handlers.restore_picture, refused, [parts.picture, parts.status], **FAST, **PRIVATE)
    taken = [parts.session, parts.lens]
    parts.share.collect(
        handlers.share, taken, [parts.share, parts.status], trigger_mode="always_last", **FAST, **PRIVATE
    )
    parts.save.click(None, parts.gates_text, None, js=SAVE_GATES, **PRIVATE)


def public_endpoint(handlers: Handlers) -> None:
    """The one endpoint for programs: ``answer(image, question, gates_json)``."""
    with gr.Group(visible=False):
        image = picture_box(label="image")
        question = gr.Textbox(label="question")
        gates_json = gr.Textbox(label="gates_json")
        result = gr.JSON(label="answer")
        asked = [image, question, gates_json]
        gr.Button("answer").click(handlers.answer, asked, result, api_name="answer", preprocess=False, **SLOW)
