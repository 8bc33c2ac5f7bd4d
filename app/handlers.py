"""What each event of the page does, in the page's own terms: component values in, component values out.

No handler raises (which is why each catches everything): a fault comes back as one sentence for the status
line, and everything else stays as it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr

import sinkgate as sg
from sinkgate.scenes import questions
from sinkgate.scenes.questions import Question
from sinkgate.scenes.scene import Scene

from .api import answer
from .components import uploaded
from .gate_library import Learned, in_layers, uploaded_gates
from .guard import address_of
from .metrics import log_unforeseen
from .share_links import GATES_ARE_AWAY, STAND_IN, Link, shared
from .state import ANSWER_SECONDS, KEPT_UPLOADS, Desk, Session, open_picture
from .view_model import JSON, Lens, answers, frame, image_url, mixer_value, sentence, view_urls

FIRST_SCENE = 71  # seed
FIRST_KIND, FIRST_QUESTION = "count", "How many objects are there?"  # one whose answer layer 2 can turn
GALLERY = (71, 26, 16, 68, 188, 122)  # seeds
SCENE_SIDE = 448  # pixels
TRIES = 3000  # to ask again, about an edited scene, in the words that are on the page; one takes some 10 microseconds
PLAIN_QUESTIONS = ("How many objects are there?", "What color is the background?", "What do you see?")
GENERAL_QUESTIONS = ("What is in the picture?", "Describe the image.", "How many people are there?")
LONGEST_FAULT = 300  # characters: what was uploaded may be quoted
HAND_WINS = "Your hand holds for this question; at the next one the learned gates read again."
SKIP = gr.skip()
STATUS = 5  # its place among what an event that asks returns


class Handlers:
    """The page's events, bound to one desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        general = not any(desk.vlm.unknown_words(question) for question in GENERAL_QUESTIONS)
        self.plain = GENERAL_QUESTIONS if general else PLAIN_QUESTIONS  # of pictures that are no scenes
        self.gallery = [image_url(random_scene(seed).render(SCENE_SIDE).resize((96, 96))) for seed in GALLERY]

    # Each of the next eight returns: session, picture, question, questions, frame, status, mixer; those that bring another
    # picture, the composer too.

    def begin(self, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A visitor arrives: a scene, its first question, the answer's first word."""
        return self.show_scene(Session(), FIRST_SCENE, mixer, lens, (FIRST_KIND, FIRST_QUESTION))

    def arrive(self, link: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A visitor arrives, perhaps by a link (`sharing`); returns lens and learned, too."""
        wrong = None
        try:
            if link:
                return self.open_link(Session(), Link.from_text(link, self.desk))
        except Exception as error:
            wrong = fault(error)
        shown = self.begin(mixer, lens)
        return *shown[:STATUS], wrong or shown[STATUS], *shown[STATUS + 1 :], SKIP, SKIP

    def open_link(self, session: Session, link: Link) -> tuple[Any, ...]:
        """Everything as the link has it; returns what `arrive` does."""
        with self.desk.turns.turn(session, "ask"):
            session.seed = FIRST_SCENE if link.seed is None else link.seed
            session.scene = link.scene or random_scene(session.seed)
            session.image = session.shown = session.scene.render(SCENE_SIDE)
            session.pictures += 1
            examples = example_questions(session.scene, session.seed, link.kind, link.question)
            show_examples(session, examples, link.kind, link.question)
            learned = next((gates for gates in self.desk.learned if gates.name == link.learned), None)
            session.learned = learned and learned.without(link.off)
            self.desk.ask(session, link.question, link.gates)
            self.desk.turn(session, link.gates)  # where the hand had overruled the learned gates
            told = [STAND_IN] * (link.seed is None) + [GATES_ARE_AWAY] * (learned is None and link.learned is not None)
            session.notice = " ".join([*told, session.notice]).strip()
            lens = asdict(link.lens)
            return *self.asked(session, lens, moved=True), composer_value(session), lens, self.learned_value(session)

    def new_scene(self, session: Session | None, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A random scene takes the picture's place."""
        return self.show_scene(session or Session(), random.getrandbits(32), mixer, lens)

    def pick_example(self, session: Session | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A picture of the gallery takes the picture's place."""
        index = _choice(chosen, "picture")
        seed = GALLERY[index] if isinstance(index, int) and 0 <= index < len(GALLERY) else FIRST_SCENE
        return self.show_scene(session or Session(), seed, mixer, lens)

    def new_picture(
        self, session: Session | None, picture: JSON | None, question: str, mixer: Any, lens: Any
    ) -> tuple[Any, ...]:
        """An uploaded, pasted or photographed picture; a broken one leaves the page as it was."""
        session = session or Session()
        if (source := uploaded(picture)) is None:
            told = calm("Picture removed. The maps still show the last one.")
            return session, SKIP, SKIP, SKIP, SKIP, told, SKIP, SKIP
        try:
            image = open_picture(source)
            with self.desk.turns.turn(session, "ask"):
                gates = self.newest_gates(session, mixer)
                self.desk.ask(session, question.strip() or self.plain[0], gates, image)
                session.shown, session.scene = image, None
                session.pictures += 1
                session.examples, session.kinds = [(text, None) for text in self.plain], {}
                return *self.asked(session, _first_query(lens)), composer_value(session)
        except Exception as error:
            return session, SKIP if session.shown is None else session.shown, *refused(session, error)[2:], SKIP

    def picture_removed(self) -> JSON:
        """Say that the page goes on with the picture that was removed from its box; returns status."""
        return calm("Picture removed. The maps still show the last one.")

    def restore_picture(self, session: Session | None, refused: Any) -> tuple[Any, JSON]:
        """Put the picture back after an upload that the server refused; returns picture and status."""
        sentence_ = _choice(refused, "refused")
        said = sentence_ if isinstance(sentence_, str) else "This file was not uploaded."
        status = {"text": shorten(said, LONGEST_FAULT, placeholder=" …"), "tone": "warning"}
        return session.shown if session and session.shown is not None else SKIP, status

    def ask(self, session: Session | None, question: str, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A question about the picture at hand."""
        session = session or Session()
        try:
            with self.desk.turns.turn(session, "ask"):
                self.desk.ask(session, question, self.newest_gates(session, mixer))
                return self.asked(session, _first_query(lens))
        except Exception as error:
            return refused(session, error)

    def asked(self, session: Session, lens: Any, moved: bool = False) -> tuple[Any, ...]:
        """What the page is sent once a question was asked; ``moved`` where the faders are to follow in any case."""
        return (
            session,
            SKIP if session.shown is None else session.shown,
            session.question,
            self.questions_value(session),
            self.frame(session, lens),
            calm(session.notice),
            self.moved_faders(session, moved),
        )

    def pick_question(self, session: Session | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A click on an example question asks it."""
        question = _choice(chosen, "question")
        return self.ask(session, question if isinstance(question, str) else "", mixer, lens)

    def show_scene(
        self, session: Session, seed: int, mixer: Any, lens: Any, first: tuple[str, str] = ("count", "")
    ) -> tuple[Any, ...]:
        """Put the scene of a seed on the page and ask its question of one kind, in these words where they can be."""
        try:
            with self.desk.turns.turn(session, "ask"):
                scene, (kind, words) = random_scene(seed), first
                examples = example_questions(scene, seed, kind, words)
                chosen = next((item for item in examples if item.kind == kind), examples[0])
                image = scene.render(SCENE_SIDE)
                self.desk.ask(session, chosen.question, self.newest_gates(session, mixer), image)
                session.scene, session.shown, session.seed = scene, image, seed
                session.pictures += 1
                show_examples(session, examples)
                return *self.asked(session, _first_query(lens)), composer_value(session)
        except Exception as error:
            return *refused(session, error), SKIP

    def edit_scene(
        self, session: Session | None, edited: Any, mixer: Any, lens: Any, moving: bool = True
    ) -> tuple[Any, ...]:
        """The scene as the composer has it, asked the same question; returns questions, frame, status, mixer, composer."""
        try:
            session = _awake(session)
            with self.desk.turns.turn(session, "fast"):
                if not session.admits_edit(*_edit(edited)):
                    return SKIP, SKIP, SKIP, SKIP, SKIP
                gates = self.newest_gates(session, mixer)
                scene = Scene.from_dict(edited.get("scene"))
                if scene == session.scene:
                    self.desk.turn(session, gates)
                    return SKIP, self.frame(session, lens, moving), remark(session), SKIP, SKIP
                image = scene.render(SCENE_SIDE)
                self.desk.ask(session, session.question, gates, image)
                session.scene, session.shown = scene, image
                kind = session.kinds.get(session.question)
                examples = example_questions(scene, session.seed, kind, session.question)
                show_examples(session, examples, kind, session.question)
                shown = self.questions_value(session), self.frame(session, lens, moving), calm(session.notice)
                return *shown, self.moved_faders(session), SKIP
        except Exception as error:
            return SKIP, SKIP, fault(error), SKIP, composer_value(session) if session else SKIP

    def place_scene(self, session: Session | None, edited: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """The scene when the hand lets go: as `edit_scene`, with the picture before the rest."""
        rest = self.edit_scene(session, edited, mixer, lens, moving=False)
        return session.shown if session else SKIP, *rest

    def turn(self, session: Session | None, mixer: Any, lens: Any) -> tuple[Any, Any]:
        """The fast tier; returns frame and status."""
        try:
            session = _awake(session)
            gates = self.desk.read_gates(mixer)
            if not session.admits(_turn(mixer), gates):
                return SKIP, SKIP
            with self.desk.turns.turn(session, "fast"):
                if not session.admits(_turn(mixer)):
                    return SKIP, SKIP
                self.desk.turn(session, gates)
                return self.frame(session, lens, moving=True), remark(session)
        except Exception as error:
            return SKIP, fault(error)

    def look(self, session: Session | None, lens: Any) -> tuple[Any, Any]:
        """Another layer, head or query: what is there is drawn, and nothing runs unless it was forgotten; returns frame and status."""
        try:
            session = _awake(session)
            if session.case is None:
                self.desk.turn(session, session.wanted or sg.Gates.ones(self.desk.vlm))
            return self.frame(session, lens), SKIP
        except Exception as error:
            return SKIP, fault(error)

    def tell(self, session: Session | None, mixer: Any) -> Iterator[tuple[Any, ...]]:
        """The slow tier, a stream; yields answers, frame, gates as text, status (faults only)."""
        try:
            session = _awake(session)
            gates = self.newest_gates(session, mixer)
            if not session.admits(_turn(mixer)) and not session.outranked:
                return
            first = True
            for told in self.desk.tell(session, gates):
                if told.done:
                    break
                newest = self.frame(session, session.lens) if first else SKIP
                first = False
                yield answers(told), newest, SKIP, SKIP
            else:
                return  # something newer began
            shown = self.frame(session, session.lens)
            text = gates.to_json()
            cut = calm(f"The answer was stopped after {ANSWER_SECONDS:.0f} seconds.") if told.cut else SKIP
            yield answers(told), shown, SKIP if text == session.gates_text else text, cut
            session.gates_text = text
        except Exception as error:
            yield SKIP, SKIP, SKIP, fault(error)

    def apply_gates(self, session: Session | None, text: str, lens: Any) -> tuple[Any, Any, Any]:
        """Gates from JSON; returns mixer, frame, status."""
        try:
            session = _awake(session)
            gates = self.desk.parse_gates(text)
            value = mixer_value(gates)
            with self.desk.turns.turn(session, "fast"):
                self.desk.turn(session, gates)
                value["turn"] = session.outrank()
                told = HAND_WINS if session.case and session.case.by_hand else "These gates are now on the mixer."
                return value, self.frame(session, lens), calm(told)
        except Exception as error:
            return SKIP, SKIP, fault(error)

    # Each of the next two returns: learned, mixer, frame, status.

    def choose_learned(self, session: Session | None, chosen: Any, lens: Any) -> tuple[Any, ...]:
        """Learned gates read the question at hand and move the faders; or some of their layers, or all, are switched off."""
        try:
            session = _awake(session)
            name, off = _learned(chosen)
            if name is None:
                return SKIP, *self.learn(session, None, lens)
            offered = [*self.desk.learned, *session.uploads]
            gates = next((gates for gates in offered if gates.name == name), None)
            if gates is None:
                raise sg.GateError("These gates are no longer here: choose others, or upload them again.")
            return SKIP, *self.learn(session, gates.without(off), lens)
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, fault(error)

    def upload_learned(self, session: Session | None, paths: list[str] | None, lens: Any) -> tuple[Any, ...]:
        """The two files of a gate folder; the gates are put to work at once."""
        try:
            session = _awake(session)
            gates = Learned(f"uploaded {session.uploaded + 1}", uploaded_gates(paths, self.desk.vlm))
            shown = self.learn(session, gates, lens)
            session.uploaded += 1
            session.uploads = [*session.uploads, gates][-KEPT_UPLOADS:]
            return self.learned_value(session), *shown
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, fault(error)

    def learn(self, session: Session, learned: Learned | None, lens: Any) -> tuple[JSON, JSON, JSON]:
        """Give these gates the faders; returns mixer, frame, status."""
        with self.desk.turns.turn(session, "fast"):
            self.desk.learn(session, learned)
            return self.moved_faders(session, always=True), self.frame(session, lens), calm(learned_sentence(learned))

    def learned_value(self, session: Session | None) -> JSON:
        """The learned gates that this visitor can choose, and those that are at work."""
        offered = [*self.desk.learned, *(session.uploads if session else ())]
        learned = session.learned if session else None
        return {
            "offered": [{"name": gates.name, "about": gates.about} for gates in offered],
            "chosen": learned.name if learned else None,
            "off": sorted(learned.off) if learned else [],
        }

    def moved_faders(self, session: Session, always: bool = False) -> Any:
        """The mixer, where learned gates have moved its faders."""
        if session.case is None or not (always or session.case.learned):
            return SKIP
        return {**mixer_value(session.case.gates), "turn": session.outrank()}

    def newest_gates(self, session: Session, mixer: Any) -> sg.Gates:
        """The mixer's gates, unless the page has moved the faders since it sent them."""
        gates = self.desk.read_gates(mixer)
        return gates if session.admits(_turn(mixer)) or session.case is None else session.case.gates

    def read_file(self, path: str | None) -> str:
        """The text of an uploaded gates file; whatever is wrong with it shows when it is applied."""
        if not path:
            return ""
        with Path(path).open("rb") as file:
            return file.read(200_000).decode("utf-8", errors="replace")

    def answer(self, image: JSON | None, question: str | None, gates_json: str | None, request: gr.Request) -> JSON:
        """Answer a question about an image, under gates (JSON; empty: the unchanged model). The public endpoint."""
        try:
            if (source := uploaded(image)) is None:
                raise sg.ImageError("An image is needed.")
            client = address_of(request.client.host)  # each call has a session of its own
            return answer(self.desk, client, open_picture(source), question or "", gates_json or "")
        except Exception as error:
            raise gr.Error(fault(error)["text"], print_exception=False) from None

    def share(self, session: Session | None, lens: Any) -> tuple[Any, Any]:
        """The link and the Python code of what the page shows, built when somebody wants them; returns share and status."""
        try:
            session = _awake(session)
            return shared(session, self.lens(session, lens), self.desk), SKIP
        except Exception as error:
            return SKIP, fault(error)

    def frame(self, session: Session, lens: Any, moving: bool = False) -> JSON:
        """The newest frame of a session; with the link that opens the page again unless something is ``moving``."""
        case, session.lens = session.case, lens
        if case is None:
            raise sg.PromptError("Ask a question first.")
        seen = self.lens(session, lens)
        here = {} if moving else {"here": Link.of(session, seen, self.desk).to_text()}
        return frame(case, seen) | {"question": session.question} | here

    def lens(self, session: Session, lens: Any) -> Lens:
        """The page's lens, bent to what model and prompt have."""
        return Lens.read(lens, self.desk.vlm, len(session.case.prompt.sheets) if session.case else 1)

    def questions_value(self, session: Session) -> JSON:
        """Gallery, example questions, truth, and the picture under the map of each sheet."""
        view, *others = view_urls(session.case.prompt) if session.case else [""]
        return {
            "gallery": self.gallery,
            "chips": [{"question": question, "answer": answer} for question, answer in session.examples],
            "asked": session.question,
            "truth": f"{questions.describe(session.scene)}." if session.scene else "",
            "view": view,
            "other_views": others,
        }


def random_scene(seed: int) -> Scene:
    """The scene that belongs to a seed."""
    return Scene.random(random.Random(seed))


def example_questions(scene: Scene, seed: int, kind: str | None, words: str) -> list[Question]:
    """Return a scene's example questions: one of every kind that it allows.

    Each kind has a random stream of its own, so that an edit changes no other wording than it must; the question
    of ``kind`` is asked in these words as long as the scene allows it.
    """
    asked = (ask_again(scene, seed, name, words if name == kind else "") for name in questions.KINDS)
    return [item for item in asked if item]


def show_examples(session: Session, examples: list[Question], kind: str | None = None, words: str = "") -> None:
    """Offer these questions in a session; a question asked in ``words`` keeps its kind where the scene has none any more."""
    session.examples = [(item.question, item.answer) for item in examples]
    session.kinds = {item.question: item.kind for item in examples} | ({words: kind} if kind and words else {})


def ask_again(scene: Scene, seed: int, kind: str, words: str) -> Question | None:
    """A question of a kind, in these words where they fit the scene; None where it does not allow the kind."""
    first, rng = None, random.Random(f"{seed} {kind}")
    for _ in range(TRIES if words else 1):
        asked = questions.ask(scene, kind, rng)
        if asked and asked.question == words:
            return asked
        first = first or asked
    return first


def composer_value(session: Session) -> JSON:
    """What the composer shows: the session's scene, or None where the picture is none."""
    scene = session.scene.to_dict() if session.scene else None
    return {"scene": scene, "picture": session.pictures, "turn": session.newest_edit}


def learned_sentence(learned: Learned | None) -> str:
    """What learned gates do from now on."""
    if learned is None:
        return "The learned gates are off, and every fader is back at 1."
    resting = f"; {in_layers(sorted(learned.off))} switched off, at 1" if learned.off else ""
    if not learned.on:
        return "Every layer of these gates is switched off: all faders are at 1."
    return f"The gates read every question and set the faders of {in_layers(learned.on)} by themselves{resting}."


def refused(session: Session, error: Exception) -> tuple[Any, ...]:
    """What a question gets that could not be asked: the page stays as it was, and says why."""
    return session, SKIP, SKIP, SKIP, SKIP, fault(error), SKIP


def remark(session: Session) -> JSON:
    """What there is to say while the faders move."""
    return calm(HAND_WINS if session.case and session.case.by_hand else session.notice)


def calm(text: str) -> JSON:
    """A status line that tells something."""
    return {"text": text, "tone": "calm"}


def fault(error: Exception) -> JSON:
    """A status line for what went wrong: our own sentence, or that something unforeseen happened."""
    if isinstance(error, sg.SinkgateError):
        return {"text": shorten(sentence(str(error)), LONGEST_FAULT, placeholder=" …"), "tone": "warning"}
    log_unforeseen(error)
    return {"text": "Something unforeseen went wrong; the page goes on with what it had.", "tone": "warning"}


def _awake(session: Session | None) -> Session:
    if session is None or session.image is None:
        raise sg.PromptError("This page slept for too long and was forgotten. Press Ask, or take a new scene.")
    return session


def _turn(mixer: Any) -> int | None:
    turn = mixer.get("turn") if isinstance(mixer, dict) else None
    return turn if isinstance(turn, int) else None


def _first_query(lens: Any) -> Any:
    """The same lens at the first query: those after it belong to the answer of the question before."""
    return {**lens, "row": 0} if isinstance(lens, dict) else lens


def _edit(edited: Any) -> tuple[int, int]:
    """Which picture the composer edits, and its how manyth edit this is."""
    picture, turn = (edited.get("picture"), edited.get("turn")) if isinstance(edited, dict) else (None, None)
    if not isinstance(picture, int) or not isinstance(turn, int):
        raise sg.SceneError("The edit does not say which picture it is of: take a new scene and edit that.")
    return picture, turn


def _learned(value: Any) -> tuple[str | None, list[int]]:
    """The name of the chosen gates, None for none, and the layers that are switched off."""
    value = value if isinstance(value, dict) else {}
    name, off = value.get("chosen"), value.get("off")
    if not isinstance(name, str | None) or not isinstance(off, list) or not all(type(layer) is int for layer in off):
        raise sg.GateError("The choice of learned gates must hold a name, or null, and a list of layers.")
    return name, off


def _choice(value: Any, key: str) -> Any:
    choice = value.get("choice") if isinstance(value, dict) else None
    return choice.get(key) if isinstance(choice, dict) else None
