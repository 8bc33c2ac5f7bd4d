"""Event handlers of the page: component values in, component values out.

No handler raises, which is why each catches everything: an error becomes one sentence in the status line, and everything
else stays as it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr
from PIL import Image

import sinkgate as sg
from sinkgate.models.loading import BUILT_IN
from sinkgate.scenes import questions
from sinkgate.scenes.questions import Question
from sinkgate.scenes.scene import Scene
from sinkgate.sinks.words import layers as in_layers

from .api import answer
from .components import uploaded
from .engine import ANSWER_SECONDS, MAX_UPLOADED_GATES, Engine
from .examples import (
    CLIP,
    FIRST_KIND,
    FIRST_QUESTION,
    FIRST_SCENE,
    GALLERY,
    GENERAL_QUESTIONS,
    PHOTOGRAPHS,
    PLAIN_QUESTIONS,
    SCENE_SIDE,
    example_clip,
    example_image,
    example_questions,
    random_scene,
    thumbnail,
)
from .gate_library import LearnedGates, uploaded_gates
from .guard import address_of
from .inspection import text_shares
from .metrics import log_unexpected
from .pictures import open_picture, open_upload
from .share_links import GATES_MISSING, STAND_IN, Link, share_value
from .sweep import sweep
from .user_session import QuestionState, UserSession, revision_of
from .view_model import (
    JSON,
    Lens,
    answers,
    frame,
    image_positions,
    image_url,
    inspection,
    mixer_value,
    sentence,
    view_urls,
)

SCENES_ONLY = "The demo model knows scenes of coloured shapes only. For photographs, load a model that reads them: sinkgate app --model smolvlm-256m."
CLIP_NOTICE = "The demo model was trained on single pictures: it reads the frames as several pictures. Move the slider over the maps through time."
MAX_ERROR = 300  # characters: a message may quote an uploaded file
MANUAL_SETTING = "Manual setting for this question. The learned gates take over at the next one."
EXPIRED = (
    "This session expired after a time without activity, or when memory ran short. Press Ask or New scene to go on."
)
SKIP = gr.skip()
STATUS = 5  # index of the status among the values that asking returns


class Handlers:
    """The page's event handlers, bound to one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        general = not any(engine.vlm.unknown_words(question) for question in GENERAL_QUESTIONS)
        self.plain = GENERAL_QUESTIONS if general else PLAIN_QUESTIONS  # examples for pictures that are no scenes
        self.examples = PHOTOGRAPHS if general else GALLERY
        self.gallery = [image_url(thumbnail(example)) for example in self.examples]

    # The handlers up to `show_scene` return: session, picture, question, questions, frame, status, mixer; those that bring
    # another picture also the composer.

    def begin(self, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Open the page with the first picture of the gallery: a scene and its first question, or a photograph."""
        if isinstance(photograph := self.examples[0], str):
            return self.show_picture(UserSession(), example_image(photograph), mixer, lens, photograph=photograph)
        return self.show_scene(UserSession(), FIRST_SCENE, mixer, lens, (FIRST_KIND, FIRST_QUESTION))

    def load_page(self, link: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Open the page, perhaps by a link (`share_links`); returns lens and learned, too."""
        error_status = None
        try:
            if link:
                return self.open_link(UserSession(), Link.from_text(link, self.engine))
        except Exception as error:
            error_status = error_value(error)
        values = self.begin(mixer, lens)
        return *values[:STATUS], error_status or values[STATUS], *values[STATUS + 1 :], SKIP, SKIP

    def open_view(self, session: UserSession | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:  # noqa: ARG002
        """Show the view of a link on the open page; on an error the page stays as it was. Returns the values of `load_page`."""
        session = session or UserSession()
        try:
            return self.open_link(session, Link.from_text(_choice(chosen, "link"), self.engine))
        except Exception as error:
            return *unchanged_values(session, error), SKIP, SKIP, SKIP

    def open_link(self, session: UserSession, link: Link) -> tuple[Any, ...]:
        """Restore everything that a link holds; returns the values of `load_page`."""
        seed = FIRST_SCENE if link.seed is None else link.seed
        scene = None if link.photograph else link.scene or random_scene(seed)
        image = scene.render(SCENE_SIDE) if scene else example_image(link.photograph or "")
        learned = next((gates for gates in self.engine.learned if gates.name == link.learned), None)
        with self.engine.scheduler.slot(session, "ask"):
            before, session.learned = session.learned, learned and learned.without(link.off)
            try:
                self.engine.ask(session, link.question, link.gates, image)
            except Exception:
                session.learned = before
                raise
            session.seed = seed
            set_picture(session, image, scene, link.photograph)
            if scene:
                examples = example_questions(scene, seed, link.kind, link.question)
                set_examples(session, examples, link.kind, link.question)
            else:
                self.set_plain_examples(session)
            self.engine.set_gates(session, link.gates)  # where the user had overridden the learned gates
            notes = [STAND_IN] * (link.seed is None and scene is not None) + [GATES_MISSING] * (
                learned is None and link.learned is not None
            )
            session.notice = " ".join([*notes, session.notice]).strip()
            lens = {**asdict(link.lens), "revision": revision_of(session.lens) or 0}
            values = self.question_values(session, lens, moved=True)
            return *values, composer_value(session), lens, self.learned_value(session)

    def new_scene(self, session: UserSession | None, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Replace the picture by a random scene."""
        return self.show_scene(session or UserSession(), random.getrandbits(32), mixer, lens)

    def pick_example(self, session: UserSession | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Replace the picture by one of the gallery."""
        index = _choice(chosen, "picture")
        example = self.examples[index if isinstance(index, int) and 0 <= index < len(self.examples) else 0]
        session = session or UserSession()
        if example == CLIP:
            return self.show_picture(session, example_clip(), mixer, lens, notice=CLIP_NOTICE)
        if isinstance(example, str):
            return self.show_picture(session, example_image(example), mixer, lens, photograph=example)
        return self.show_scene(session, example, mixer, lens)

    def set_plain_examples(self, session: UserSession) -> None:
        """Set the example questions about a picture that is no scene."""
        session.examples, session.kinds = [(text, None) for text in self.plain], {}

    def new_picture(
        self, session: UserSession | None, picture: JSON | None, question: str, mixer: Any, lens: Any
    ) -> tuple[Any, ...]:
        """Replace the picture by an uploaded, pasted or photographed one; on an error the page stays as it was."""
        session = session or UserSession()
        try:
            if (source := uploaded(picture)) is None:
                raise sg.ImageError("No picture arrived: upload it again.")
            image = open_upload(source)
        except Exception as error:
            return session, _shown(session), *unchanged_values(session, error)[2:], SKIP
        notice = CLIP_NOTICE if isinstance(image, sg.Video) else SCENES_ONLY
        return self.show_picture(session, image, mixer, lens, question.strip(), notice)

    def show_picture(
        self,
        session: UserSession,
        image: Image.Image | sg.Video,
        mixer: Any,
        lens: Any,
        question: str = "",
        notice: str = "",
        photograph: str | None = None,
    ) -> tuple[Any, ...]:
        """Replace the picture by one, or a video, that is no scene; on an error the page stays as it was.

        Args:
            session: the user's session.
            image: the picture or the video.
            mixer: the mixer's value.
            lens: the page's lens.
            question: to ask; the first example question where empty.
            notice: a sentence for models that know scenes only.
            photograph: name of the picture, where it is a photograph of the package.
        """
        try:
            with self.engine.scheduler.slot(session, "ask"):
                gates = self.newest_gates(session, mixer)
                self.engine.ask(session, question or self.plain[0], gates, image)
                set_picture(session, image.frames[0] if isinstance(image, sg.Video) else image, photograph=photograph)
                self.set_plain_examples(session)
                if self.engine.vlm.name in BUILT_IN:
                    session.notice = f"{notice} {session.notice}".strip()
                return *self.question_values(session, _first_query(lens)), composer_value(session)
        except Exception as error:
            return session, _shown(session), *unchanged_values(session, error)[2:], SKIP

    def picture_removed(self) -> JSON:
        """Say that the page continues with the picture that was removed from its box; returns status."""
        return calm("Picture removed. The maps still show the last one.")

    def restore_picture(self, session: UserSession | None, refused: Any) -> tuple[Any, JSON]:
        """Put the picture back after an upload that the server refused; returns picture and status."""
        reason = _choice(refused, "refused")
        text = reason if isinstance(reason, str) else "The file was not uploaded."
        status = {"text": shorten(text, MAX_ERROR, placeholder=" …"), "tone": "warning"}
        return _shown(session) if session else SKIP, status

    def ask(self, session: UserSession | None, question: str, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Ask a question about the current picture."""
        session = session or UserSession()
        try:
            with self.engine.scheduler.slot(session, "ask"):
                self.engine.ask(session, question, self.newest_gates(session, mixer))
                return self.question_values(session, _first_query(lens))
        except Exception as error:
            return unchanged_values(session, error)

    def question_values(self, session: UserSession, lens: Any, moved: bool = False) -> tuple[Any, ...]:
        """Return the component values after a question.

        Args:
            session: the user's session.
            lens: the page's lens.
            moved: send the faders also where no learned gates have moved them.
        """
        return (
            session,
            _shown(session),
            session.question,
            self.questions_value(session),
            self.frame(session, lens),
            calm(session.notice),
            self.moved_faders(session, moved),
        )

    def pick_question(self, session: UserSession | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Ask one of the example questions."""
        question = _choice(chosen, "question")
        return self.ask(session, question if isinstance(question, str) else "", mixer, lens)

    def show_scene(
        self, session: UserSession, seed: int, mixer: Any, lens: Any, first: tuple[str, str] = ("count", "")
    ) -> tuple[Any, ...]:
        """Replace the picture by the scene of a seed and ask one of its questions.

        Args:
            session: the user's session.
            seed: of the scene.
            mixer: the mixer's value.
            lens: the page's lens.
            first: kind of the question, and its words if the scene allows them.
        """
        try:
            with self.engine.scheduler.slot(session, "ask"):
                scene, (kind, words) = random_scene(seed), first
                examples = example_questions(scene, seed, kind, words)
                chosen = next((item for item in examples if item.kind == kind), examples[0])
                image = scene.render(SCENE_SIDE)
                self.engine.ask(session, chosen.question, self.newest_gates(session, mixer), image)
                session.seed = seed
                set_picture(session, image, scene)
                set_examples(session, examples)
                return *self.question_values(session, _first_query(lens)), composer_value(session)
        except Exception as error:
            return *unchanged_values(session, error), SKIP

    def edit_scene(
        self, session: UserSession | None, edited: Any, mixer: Any, lens: Any, moving: bool = True
    ) -> tuple[Any, ...]:
        """Ask the same question about the scene as edited; returns questions, frame, status, mixer, composer.

        Args:
            session: the user's session.
            edited: the composer's value.
            mixer: the mixer's value.
            lens: the page's lens.
            moving: whether an object is still being dragged.
        """
        try:
            session = _active(session)
            with self.engine.scheduler.slot(session, "fast"):
                if not session.accepts_edit(*_edit(edited)):
                    return SKIP, SKIP, SKIP, SKIP, SKIP
                gates = self.newest_gates(session, mixer)
                scene = Scene.from_dict(edited.get("scene"))
                if scene == session.scene:
                    self.engine.set_gates(session, gates)
                    return SKIP, self.frame(session, lens, moving), remark(session), SKIP, SKIP
                image = scene.render(SCENE_SIDE)
                self.engine.ask(session, session.question, gates, image)
                session.scene, session.shown = scene, image
                kind = session.kinds.get(session.question)
                examples = example_questions(scene, session.seed, kind, session.question)
                set_examples(session, examples, kind, session.question)
                values = self.questions_value(session), self.frame(session, lens, moving), calm(session.notice)
                return *values, self.moved_faders(session), SKIP
        except Exception as error:
            return SKIP, SKIP, error_value(error), SKIP, composer_value(session) if session else SKIP

    def commit_scene(self, session: UserSession | None, edited: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """Take the scene when an edit is complete: as `edit_scene`, with the picture before the other values."""
        rest = self.edit_scene(session, edited, mixer, lens, moving=False)
        return session.shown if session else SKIP, *rest

    def set_gates(self, session: UserSession | None, mixer: Any, lens: Any) -> tuple[Any, Any]:
        """Run the fast tier for a moving fader; returns frame and status."""
        try:
            session = _active(session)
            gates = self.engine.read_gates(mixer)
            if not session.accepts(revision_of(mixer), gates):
                return SKIP, SKIP
            with self.engine.scheduler.slot(session, "fast"):
                if not session.accepts(revision_of(mixer)):
                    return SKIP, SKIP
                before = session.state.sequence if session.state else None
                # the last tick may follow the answers, and then nothing moves any more
                moving = self.engine.set_gates(session, gates).sequence != before
                return self.frame(session, lens, moving), remark(session)
        except Exception as error:
            return SKIP, error_value(error)

    def set_lens(self, session: UserSession | None, lens: Any) -> tuple[Any, Any]:
        """Show another layer, head or query; runs the model only if its results were dropped; returns frame and status."""
        try:
            session = _active(session)
            if session.state is None:
                self.engine.set_gates(session, session.wanted or sg.Gates.ones(self.engine.vlm))
            return self.frame(session, lens), SKIP
        except Exception as error:
            return SKIP, error_value(error)

    def stream_answers(self, session: UserSession | None, mixer: Any) -> Iterator[tuple[Any, ...]]:
        """Run the slow tier; yields answers, frame, gates as text, status (errors and cut answers only)."""
        try:
            session = _active(session)
            gates = self.newest_gates(session, mixer)
            if not session.accepts(revision_of(mixer)) and not session.set_by_server:
                return
            first = True
            for update in self.engine.stream_answers(session, gates):
                if update.done:
                    break
                newest = self.frame(session, session.lens) if first else SKIP
                first = False
                yield answers(update), newest, SKIP, SKIP
            else:
                return  # outdated
            newest, text = self.frame(session, session.lens), gates.to_json()
            cut = calm(f"The answer was stopped after {ANSWER_SECONDS:.0f} seconds.") if update.cut else SKIP
            yield answers(update), newest, SKIP if text == session.gates_text else text, cut
            session.gates_text = text
        except Exception as error:
            yield SKIP, SKIP, SKIP, error_value(error)

    def sweep(self, session: UserSession | None) -> Iterator[JSON]:
        """Sweep the question over every layer and group; yields the sweep as it grows, the reason where it fails."""
        value: JSON = {}
        try:
            for value in sweep(self.engine, _active(session)):
                yield value
        except Exception as error:
            yield value | {"status": "failed", "note": error_value(error)["text"]}

    def catch_up(self) -> None:
        """Do nothing: any event makes a page that has missed the end of its stream open another, which brings all that waits."""

    def stop_sweep(self, session: UserSession | None) -> None:
        """Stop the sweep that runs."""
        if session:
            session.stop_sweep()

    def apply_gates(self, session: UserSession | None, text: str, lens: Any) -> tuple[Any, Any, Any]:
        """Set the faders from JSON; returns mixer, frame, status."""
        try:
            session = _active(session)
            gates = self.engine.parse_gates(text)
            value = mixer_value(gates)
            with self.engine.scheduler.slot(session, "fast"):
                self.engine.set_gates(session, gates)
                value["revision"] = session.own_revision()
                overridden = session.state is not None and session.state.overridden
                status = calm(MANUAL_SETTING if overridden else "These gates are now on the mixer.")
                return value, self.frame(session, lens), status
        except Exception as error:
            return SKIP, SKIP, error_value(error)

    # The next three handlers return: learned, mixer, frame, status.

    def choose_learned(self, session: UserSession | None, chosen: Any, lens: Any) -> tuple[Any, ...]:
        """Let learned gates set the faders, or switch off some of their layers, or all."""
        try:
            session = _active(session)
            return SKIP, *self.set_learned(session, self.chosen_gates(session, chosen), lens)
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, error_value(error)

    def restore(self, session: UserSession | None, step: Any, lens: Any) -> tuple[Any, ...]:
        """Set the faders and the choice of learned gates that a step of the history had."""
        try:
            session = _active(session)
            learned, gates = self.chosen_gates(session, step), self.engine.read_gates(step)
            with self.engine.scheduler.slot(session, "fast"):
                self.engine.set_learned(session, learned)
                self.engine.set_gates(session, gates)
                value = self.moved_faders(session, always=True)
                return self.learned_value(session), value, self.frame(session, lens), remark(session)
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, error_value(error)

    def upload_learned(self, session: UserSession | None, paths: list[str] | None, lens: Any) -> tuple[Any, ...]:
        """Read the two files of a gate folder and let the gates set the faders."""
        try:
            session = _active(session)
            gates = LearnedGates(f"uploaded {session.uploaded + 1}", uploaded_gates(paths, self.engine.vlm))
            values = self.set_learned(session, gates, lens)
            session.uploaded += 1
            session.uploads = [*session.uploads, gates][-MAX_UPLOADED_GATES:]
            return self.learned_value(session), *values
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, error_value(error)

    def chosen_gates(self, session: UserSession, chosen: Any) -> LearnedGates | None:
        """Return the learned gates of a choice, without the layers that are off; None for none.

        Raises:
            GateError: they are no longer here.
        """
        name, off = _learned(chosen)
        if name is None:
            return None
        offered = [*self.engine.learned, *session.uploads]
        gates = next((gates for gates in offered if gates.name == name), None)
        if gates is None:
            raise sg.GateError("These gates are no longer here: choose others, or upload them again.")
        return gates.without(off)

    def set_learned(self, session: UserSession, learned: LearnedGates | None, lens: Any) -> tuple[JSON, JSON, JSON]:
        """Let these gates set the faders; returns mixer, frame, status."""
        with self.engine.scheduler.slot(session, "fast"):
            self.engine.set_learned(session, learned)
            return self.moved_faders(session, always=True), self.frame(session, lens), calm(learned_sentence(learned))

    def learned_value(self, session: UserSession | None) -> JSON:
        """Return the learned gates that this user can choose, and the current choice."""
        offered = [*self.engine.learned, *(session.uploads if session else ())]
        learned = session.learned if session else None
        return {
            "offered": [{"name": gates.name, "about": gates.about} for gates in offered],
            "chosen": learned.name if learned else None,
            "off": sorted(learned.off) if learned else [],
        }

    def moved_faders(self, session: UserSession, always: bool = False) -> Any:
        """Return the mixer's value if learned gates have moved its faders."""
        if session.state is None or not (always or session.state.learned):
            return SKIP
        return {**mixer_value(session.state.gates), "revision": session.own_revision()}

    def newest_gates(self, session: UserSession, mixer: Any) -> sg.Gates:
        """Return the mixer's gates, unless the server has moved the faders since the page sent them."""
        gates = self.engine.read_gates(mixer)
        return gates if session.accepts(revision_of(mixer)) or session.state is None else session.state.gates

    def read_file(self, path: str | None) -> str:
        """Return the text of an uploaded file of gates, which is checked when it is applied."""
        if not path:
            return ""
        with Path(path).open("rb") as file:
            return file.read(200_000).decode("utf-8", errors="replace")

    def answer(self, image: JSON | None, question: str | None, gates_json: str | None, request: gr.Request) -> JSON:
        """Answer a question about an image, under gates (JSON; empty: the original model). The public endpoint."""
        try:
            if (source := uploaded(image)) is None:
                raise sg.ImageError("The image is missing.")
            client = address_of(request.client.host)  # each call has a session of its own
            return answer(self.engine, client, open_picture(source), question or "", gates_json or "")
        except Exception as error:
            raise gr.Error(error_value(error)["text"], print_exception=False) from None

    def share(self, session: UserSession | None, lens: Any) -> tuple[Any, Any]:
        """Build the link and the Python code of the current view; returns share and status."""
        try:
            session = _active(session)
            return share_value(session, self.lens(session.state, lens), self.engine), SKIP
        except Exception as error:
            return SKIP, error_value(error)

    def inspect(self, session: UserSession | None, lens: Any) -> tuple[Any, Any]:
        """Measure what the row of prompt tokens and the panel of a patch show; returns tokens and status.

        Where each run waits for a GPU, tokens are measured when one is chosen as the query, and a patch when it is clicked.
        """
        try:
            session = _active(session)
            with self.engine.scheduler.slot(session, "fast"):
                state = session.state
                if state is None:
                    return SKIP, SKIP
                view, warm = self.lens(state, lens), state.prompt_session
                image = image_positions(state.prompt)
                texts = [position for position in range(state.prompt.length) if position not in image]
                gates = None if state.gates.is_identity else state.gates
                shares = facts = None
                if self.engine.backend.interactive:
                    before = state.text_shares.get(view.layer)
                    if before is None:
                        before = state.text_shares[view.layer] = text_shares(warm, texts, view.layer, None)
                    shares = before, before if gates is None else text_shares(warm, texts, view.layer, gates)
                if view.patch is not None:
                    token = int(state.prompt.sheets[view.sheet].tokens.flatten()[view.patch])
                    facts = warm.patch(token, view.layer, gates)
                self.engine.cache.use(warm)
                return inspection(state, view, shares, facts), SKIP
        except Exception as error:
            return {"error": error_value(error)["text"]}, error_value(error)

    def frame(self, session: UserSession, lens: Any, moving: bool = False) -> JSON:
        """Return the newest frame of a session.

        Args:
            session: the user's session.
            lens: the page's lens.
            moving: leave out the link that restores the page after a reload, which costs time.
        """
        lens, refused = session.newest_lens(lens), {}
        while True:  # until no other thread has moved the faders in between
            if (state := session.snapshot()) is None:
                raise sg.PromptError("Ask a question first.")
            view = self.lens(state, lens)
            if refused:  # no GPU for it, or no slot: the maps show the last prompt token
                view = replace(view, position=None)
            if view.position == (state.query and state.query.position) and (
                state.query is None or state.query.sequence == state.sequence
            ):
                break
            try:
                self.engine.look(session, view.position)
            except sg.SinkgateError as error:
                refused = {"note": error_value(error)["text"]}
        here = {} if moving else {"here": replace(Link.of(session, view, self.engine), gates=state.gates).to_text()}
        return frame(state, view) | {"question": session.question} | refused | here

    def lens(self, state: QuestionState | None, lens: Any) -> Lens:
        """Return the page's lens, with values that model and prompt have."""
        prompt = state.prompt if state else None
        view = Lens.read(lens, self.engine.vlm, len(prompt.sheets) if prompt else 1)
        return view.within(prompt) if prompt else view

    def questions_value(self, session: UserSession) -> JSON:
        """Return gallery, example questions, ground truth, and the picture under the map of each sheet."""
        view, *others = view_urls(session.state.prompt) if session.state else [""]
        return {
            "gallery": self.gallery,
            "chips": [{"question": question, "answer": answer} for question, answer in session.examples],
            "asked": session.question,
            "truth": sentence(questions.describe(session.scene)) if session.scene else "",
            "view": view,
            "other_views": others,
        }


def set_picture(
    session: UserSession, image: Image.Image, scene: Scene | None = None, photograph: str | None = None
) -> None:
    """Set the picture of a session: of a scene, a photograph of the package by its name, or neither."""
    session.shown, session.scene, session.photograph = image, scene, photograph
    session.pictures += 1


def set_examples(session: UserSession, examples: list[Question], kind: str | None = None, words: str = "") -> None:
    """Set the example questions of a session.

    Args:
        session: the user's session.
        examples: the questions.
        kind: of the current question, kept where the scene no longer has one of this kind.
        words: the current question.
    """
    session.examples = [(item.question, item.answer) for item in examples]
    session.kinds = {item.question: item.kind for item in examples} | ({words: kind} if kind and words else {})


def composer_value(session: UserSession) -> JSON:
    """Return the composer's value: the session's scene, or None for another picture."""
    scene = session.scene.to_dict() if session.scene else None
    return {"scene": scene, "picture": session.pictures, "revision": session.newest_edit}


def learned_sentence(learned: LearnedGates | None) -> str:
    """Return the effect of learned gates on the next questions, in a sentence."""
    if learned is None:
        return "Learned gates off: every fader is back at 1."
    if not learned.on:
        return "Every layer of these gates is off: all faders are at 1."
    off = f" Off, at 1: {in_layers(sorted(learned.off))}." if learned.off else ""
    return f"The gates read every question and set the faders of {in_layers(learned.on)}.{off}"


def unchanged_values(session: UserSession, error: Exception) -> tuple[Any, ...]:
    """Return the values after a question that failed: the page stays as it was, and the status gives the reason."""
    return session, SKIP, SKIP, SKIP, SKIP, error_value(error), SKIP


def remark(session: UserSession) -> JSON:
    """Return the status while the faders move."""
    return calm(MANUAL_SETTING if session.state and session.state.overridden else session.notice)


def calm(text: str) -> JSON:
    """Return a status that is no error."""
    return {"text": text, "tone": "calm"}


def error_value(error: Exception) -> JSON:
    """Return the status for an error: the message of a `sinkgate.SinkgateError`, or a sentence without details."""
    if isinstance(error, sg.SinkgateError):
        return {"text": shorten(sentence(str(error)), MAX_ERROR, placeholder=" …"), "tone": "warning"}
    log_unexpected(error)
    return {"text": "Unexpected error: the page keeps its last result. Try again.", "tone": "warning"}


def _active(session: UserSession | None) -> UserSession:
    if session is None or session.image is None:
        raise sg.PromptError(EXPIRED)
    return session


def _shown(session: UserSession) -> Any:
    return SKIP if session.shown is None else session.shown


def _first_query(lens: Any) -> Any:
    """Return the same lens at the first query: those after it belong to the previous answer, prompt tokens to the previous question."""
    return {**lens, "row": 0, "position": None} if isinstance(lens, dict) else lens


def _edit(edited: Any) -> tuple[int, int]:
    """Return the index of the edited picture and the edit's revision."""
    picture, revision = (edited.get("picture"), edited.get("revision")) if isinstance(edited, dict) else (None, None)
    if not isinstance(picture, int) or not isinstance(revision, int):
        raise sg.SceneError("The edit names no picture: press New scene and edit that.")
    return picture, revision


def _learned(value: Any) -> tuple[str | None, list[int]]:
    """Return the name of the chosen gates, None for none, and the layers that are off."""
    value = value if isinstance(value, dict) else {}
    name, off = value.get("chosen"), value.get("off")
    if not isinstance(name, str | None) or not isinstance(off, list) or not all(type(layer) is int for layer in off):
        raise sg.GateError("The choice of learned gates must hold a name, or null, and a list of layers.")
    return name, off


def _choice(value: Any, key: str) -> Any:
    choice = value.get("choice") if isinstance(value, dict) else None
    return choice.get(key) if isinstance(choice, dict) else None
