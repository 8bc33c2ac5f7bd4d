"""Handlers of events about pictures, scenes and questions."""

from __future__ import annotations

import random
from dataclasses import asdict
from textwrap import shorten
from typing import Any

from PIL import Image

import sinkgate as sg
from sinkgate.models.loading import BUILT_IN
from sinkgate.scenes.questions import Question
from sinkgate.scenes.scene import Scene

from ..components import uploaded
from ..examples import (
    CLIP,
    CLIP_NOTICE,
    FIRST_KIND,
    FIRST_QUESTION,
    FIRST_SCENE,
    SCENE_SIDE,
    SCENES_ONLY,
    example_clip,
    example_image,
    example_questions,
    random_scene,
)
from ..pictures import open_upload
from ..share_links import GATES_MISSING, STAND_IN, Link
from ..user_session import UserSession, revision_of
from ..view_model import JSON
from .values import (
    MAX_ERROR,
    PageValues,
    Update,
    active,
    calm,
    choice,
    composer_value,
    error_value,
    first_query,
    never_raises,
    remark,
    shown,
)


class QuestionHandlers(PageValues):
    """Handlers of events about pictures, scenes and questions."""

    @never_raises
    def begin(self, mixer: Any, lens: Any) -> Update:
        """Open the page with the first picture of the gallery: a scene and its first question, or a photograph."""
        if isinstance(photograph := self.examples[0], str):
            return self.show_picture(UserSession(), example_image(photograph), mixer, lens, photograph=photograph)
        return self.show_scene(UserSession(), FIRST_SCENE, mixer, lens, (FIRST_KIND, FIRST_QUESTION))

    def load_page(self, share: Any, mixer: Any, lens: Any) -> Update:
        """Open the page, perhaps by the link in its address (`share_links`)."""
        refused: Update = {}
        if share:
            try:
                return self.open_link(UserSession(), Link.from_text(share, self.engine))
            except Exception as error:
                refused = {"status": error_value(error)}
        return self.begin(mixer, lens) | refused

    @never_raises
    def open_view(self, session: UserSession | None, actions: Any) -> Update:
        """Show the view of a link on the open page."""
        return self.open_link(session or UserSession(), Link.from_text(choice(actions, "link"), self.engine))

    def open_link(self, session: UserSession, link: Link) -> Update:
        """Restore everything that a link holds."""
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
            return {
                **self.question_values(session, lens, moved=True),
                "composer": composer_value(session),
                "lens": lens,
                "learned": self.learned_value(session),
            }

    @never_raises
    def new_scene(self, session: UserSession | None, mixer: Any, lens: Any) -> Update:
        """Replace the picture by a random scene."""
        return self.show_scene(session or UserSession(), random.getrandbits(32), mixer, lens)

    @never_raises
    def pick_example(self, session: UserSession | None, questions: Any, mixer: Any, lens: Any) -> Update:
        """Replace the picture by one of the gallery."""
        index = choice(questions, "picture")
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
    ) -> Update:
        """Replace the picture by an uploaded, pasted or photographed one; on an error the last one comes back."""
        try:
            if (source := uploaded(picture)) is None:
                raise sg.ImageError("No picture arrived: upload it again.")
            image = open_upload(source)
            notice = CLIP_NOTICE if isinstance(image, sg.Video) else SCENES_ONLY
            return self.show_picture(session or UserSession(), image, mixer, lens, question.strip(), notice)
        except Exception as error:
            return {**shown(session), "status": error_value(error)}

    def new_picture_anywhere(
        self, session: UserSession | None, picture_anywhere: JSON | None, question: str, mixer: Any, lens: Any
    ) -> Update:
        """Replace the picture by one that was pasted or dropped outside of the picture box."""
        return self.new_picture(session, picture_anywhere, question, mixer, lens)

    def show_picture(
        self,
        session: UserSession,
        image: Image.Image | sg.Video,
        mixer: Any,
        lens: Any,
        question: str = "",
        notice: str = "",
        photograph: str | None = None,
    ) -> Update:
        """Replace the picture by one, or a video, that is no scene.

        Args:
            session: the user's session.
            image: the picture or the video.
            mixer: the mixer's value.
            lens: the page's lens.
            question: to ask; the first example question where empty.
            notice: a sentence for models of scenes only.
            photograph: name of the picture, where it is a photograph of the package.
        """
        with self.engine.scheduler.slot(session, "ask"):
            gates = self.newest_gates(session, mixer)
            self.engine.ask(session, question or self.plain[0], gates, image)
            set_picture(session, image.frames[0] if isinstance(image, sg.Video) else image, photograph=photograph)
            self.set_plain_examples(session)
            if self.engine.vlm.name in BUILT_IN:
                session.notice = f"{notice} {session.notice}".strip()
            return {**self.question_values(session, first_query(lens)), "composer": composer_value(session)}

    def picture_removed(self) -> Update:
        """Say that the page continues with the picture that was removed from its box."""
        return {"status": calm("Picture removed. The maps still show the last one.")}

    def restore_picture(self, session: UserSession | None, questions: Any) -> Update:
        """Put the picture back after an upload that the server refused."""
        reason = choice(questions, "refused")
        text = reason if isinstance(reason, str) else "The file was not uploaded."
        return {**shown(session), "status": {"text": shorten(text, MAX_ERROR, placeholder=" …"), "tone": "warning"}}

    @never_raises
    def ask(self, session: UserSession | None, question: str, mixer: Any, lens: Any) -> Update:
        """Ask a question about the current picture."""
        session = session or UserSession()
        with self.engine.scheduler.slot(session, "ask"):
            self.engine.ask(session, question, self.newest_gates(session, mixer))
            return self.question_values(session, first_query(lens))

    def question_values(self, session: UserSession, lens: Any, moved: bool = False) -> Update:
        """Return the values of components after a question.

        Args:
            session: the user's session.
            lens: the page's lens.
            moved: send the faders also where no learned gates have moved them.
        """
        return {
            "session": session,
            **shown(session),
            "question": session.question,
            "questions": self.questions_value(session),
            "maps": self.frame(session, lens),
            "status": calm(session.notice),
            **self.moved_faders(session, moved),
        }

    def pick_question(self, session: UserSession | None, questions: Any, mixer: Any, lens: Any) -> Update:
        """Ask one of the example questions."""
        question = choice(questions, "question")
        return self.ask(session, question if isinstance(question, str) else "", mixer, lens)

    def show_scene(
        self, session: UserSession, seed: int, mixer: Any, lens: Any, first: tuple[str, str] = ("count", "")
    ) -> Update:
        """Replace the picture by the scene of a seed and ask one of its questions.

        Args:
            session: the user's session.
            seed: of the scene.
            mixer: the mixer's value.
            lens: the page's lens.
            first: kind of the question, and its words if the scene allows them.
        """
        with self.engine.scheduler.slot(session, "ask"):
            scene, (kind, words) = random_scene(seed), first
            examples = example_questions(scene, seed, kind, words)
            question = next((item for item in examples if item.kind == kind), examples[0])
            image = scene.render(SCENE_SIDE)
            self.engine.ask(session, question.question, self.newest_gates(session, mixer), image)
            session.seed = seed
            set_picture(session, image, scene)
            set_examples(session, examples)
            return {**self.question_values(session, first_query(lens)), "composer": composer_value(session)}

    def edit_scene(
        self, session: UserSession | None, composer: Any, mixer: Any, lens: Any, moving: bool = True
    ) -> Update:
        """Ask the same question about the scene as edited.

        Args:
            session: the user's session.
            composer: the composer's value.
            mixer: the mixer's value.
            lens: the page's lens.
            moving: whether an object is still being dragged.
        """
        try:
            session = active(session)
            picture, revision = _edit(composer)
            with self.engine.scheduler.slot(session, "fast"):
                if not session.accepts_edit(picture, revision):
                    return {}
                gates = self.newest_gates(session, mixer)
                scene = Scene.from_dict(composer.get("scene"))
                if scene == session.scene:
                    self.engine.set_gates(session, gates)
                    session.newest_edit = revision
                    return {"maps": self.frame(session, lens, moving), "status": remark(session)}
                image = scene.render(SCENE_SIDE)
                self.engine.ask(session, session.question, gates, image)
                session.scene, session.shown, session.newest_edit = scene, image, revision
                kind = session.kinds.get(session.question)
                examples = example_questions(scene, session.seed, kind, session.question)
                set_examples(session, examples, kind, session.question)
                return {
                    "questions": self.questions_value(session),
                    "maps": self.frame(session, lens, moving),
                    "status": calm(session.notice),
                    **self.moved_faders(session),
                }
        except Exception as error:
            if session is None:
                return {"status": error_value(error)}
            session.newest_edit = max(session.newest_edit, revision_of(composer) or 0)
            return {"status": error_value(error), "composer": composer_value(session)}

    def commit_scene(self, session: UserSession | None, composer: Any, mixer: Any, lens: Any) -> Update:
        """Take the scene when an edit is complete: as `edit_scene`, with the picture."""
        return self.edit_scene(session, composer, mixer, lens, moving=False) | shown(session)


def set_picture(
    session: UserSession, image: Image.Image, scene: Scene | None = None, photograph: str | None = None
) -> None:
    """Set the picture of a session: of a scene, a photograph of the package by its name, or neither."""
    session.shown, session.scene, session.photograph = image, scene, photograph
    session.picture += 1


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


def _edit(edited: Any) -> tuple[int, int]:
    """Return the index of the edited picture and the edit's revision."""
    picture, revision = (edited.get("picture"), edited.get("revision")) if isinstance(edited, dict) else (None, None)
    if not isinstance(picture, int) or not isinstance(revision, int):
        raise sg.SceneError("The edit names no picture: press New scene and edit that.")
    return picture, revision
