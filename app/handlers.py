"""What each event of the page does, in the page's own terms: component values in, component values out.

No handler raises (which is why each catches everything): a fault comes back as one sentence for the status
line, and everything else stays as it was.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from frames import JSON, Lens, answers, frame, image_url, mixer_value, view_url
from live import MAX_NEW_TOKENS, Desk, Session, open_picture

import sinkgate as sg
from sinkgate.demo import questions
from sinkgate.demo.scenes import Scene
from sinkgate.plots import shares_figure

FIRST_SCENE, FIRST_KIND = 219, "size"  # seed and kind of the first question: one whose answer layer 5 can turn
GALLERY = (219, 91, 11, 58, 103, 102)  # seeds
SCENE_SIDE, CHART_HEIGHT = 448, 218  # pixels
PLAIN_QUESTIONS = ("How many objects are there?", "What color is the background?", "What do you see?")
SKIP = gr.skip()


class Handlers:
    """The page's events, bound to one desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.gallery = [image_url(random_scene(seed).render(SCENE_SIDE).resize((96, 96))) for seed in GALLERY]

    # Each of the next five returns: session, picture, question, questions, frame, status.

    def begin(self, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A visitor arrives: a scene, its first question, the answer's first word."""
        return self.show_scene(Session(), random_scene(FIRST_SCENE), mixer, lens, FIRST_KIND)

    def new_scene(self, session: Session | None, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A random scene takes the picture's place."""
        return self.show_scene(session or Session(), Scene.random(random.Random()), mixer, lens)

    def pick_example(self, session: Session | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A picture of the gallery takes the picture's place."""
        index = _choice(chosen, "picture")
        seed = GALLERY[index] if isinstance(index, int) and 0 <= index < len(GALLERY) else FIRST_SCENE
        return self.show_scene(session or Session(), random_scene(seed), mixer, lens)

    def new_picture(
        self, session: Session | None, picture: str | None, question: str, mixer: Any, lens: Any
    ) -> tuple[Any, ...]:
        """An uploaded, pasted or photographed picture; a broken one leaves the page as it was."""
        session = session or Session()
        if picture is None:
            return session, SKIP, SKIP, SKIP, SKIP, calm("The picture was taken away; what you see is still about it.")
        try:
            image = open_picture(picture)
        except Exception as error:
            return session, session.shown, SKIP, SKIP, SKIP, fault(error)
        session.image, session.shown, session.scene = image, picture, None
        session.examples = [(text, None) for text in PLAIN_QUESTIONS]
        return self.ask(session, question.strip() or PLAIN_QUESTIONS[0], mixer, lens)

    def ask(self, session: Session | None, question: str, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A question about the picture at hand."""
        session = session or Session()
        try:
            gates = self.desk.read_gates(mixer)
            session.admits(_turn(mixer))
            self.desk.ask(session, question, gates)
            return (
                session,
                SKIP if session.shown is None else session.shown,
                session.question,
                self.questions_value(session),
                self.frame(session, lens),
                calm(session.notice),
            )
        except Exception as error:
            return session, SKIP, SKIP, SKIP, SKIP, fault(error)

    def pick_question(self, session: Session | None, chosen: Any, mixer: Any, lens: Any) -> tuple[Any, ...]:
        """A click on an example question asks it."""
        question = _choice(chosen, "question")
        return self.ask(session, question if isinstance(question, str) else "", mixer, lens)

    def show_scene(self, session: Session, scene: Scene, mixer: Any, lens: Any, kind: str = "count") -> tuple[Any, ...]:
        """Put a scene on the page and ask one of its questions."""
        session.scene = scene
        session.image = session.shown = scene.render(SCENE_SIDE)
        asked = questions.ask_all(scene, random.Random(str(scene)))
        session.examples = [(item.question, item.answer) for item in asked]
        first = next((item for item in asked if item.kind == kind), asked[0])
        return self.ask(session, first.question, mixer, lens)

    def turn(self, session: Session | None, mixer: Any, lens: Any) -> tuple[Any, Any]:
        """The fast tier; returns frame and status."""
        try:
            session = _awake(session)
            gates = self.desk.read_gates(mixer)
            if not session.admits(_turn(mixer)):
                return SKIP, SKIP
            self.desk.turn(session, gates)
            return self.frame(session, lens), calm(session.notice)
        except Exception as error:
            return SKIP, fault(error)

    def look(self, session: Session | None, lens: Any) -> tuple[Any, Any]:
        """Another layer, head or query: nothing runs, what is there is drawn; returns frame and status."""
        try:
            return self.frame(_awake(session), lens), SKIP
        except Exception as error:
            return SKIP, fault(error)

    def tell(self, session: Session | None, mixer: Any, lens: Any) -> Iterator[tuple[Any, ...]]:
        """The slow tier, a stream; yields answers, frame, chart, gates as text, status (faults only)."""
        try:
            session = _awake(session)
            gates = self.desk.read_gates(mixer)
            if not session.admits(_turn(mixer)):
                return
            first = True
            for unchanged, gated, case in self.desk.tell(session, gates):
                if case.gated_done:
                    break
                newest = self.frame(session, lens) if first else SKIP
                first = False
                yield answers(unchanged, gated, session.sequence, done=False), newest, SKIP, SKIP, SKIP
            else:
                return  # something newer began
            shown = self.frame(session, lens)
            shares = shown["shares"]
            chart = shares_figure(shares["unchanged"], None if gates.is_identity else shares["gated"], CHART_HEIGHT)
            done = answers(unchanged, gated, session.sequence, done=True)
            text = gates.to_json()
            yield done, shown, chart, SKIP if text == session.gates_text else text, SKIP
            session.gates_text = text
        except Exception as error:
            yield SKIP, SKIP, SKIP, SKIP, fault(error)

    def apply_gates(self, session: Session | None, text: str, lens: Any) -> tuple[Any, Any, Any]:
        """Gates from JSON; returns mixer, frame, status."""
        try:
            session = _awake(session)
            gates = self.desk.parse_gates(text)
            value = mixer_value(gates)
            self.desk.turn(session, gates)
            return value, self.frame(session, lens), calm("These gates are now on the mixer.")
        except Exception as error:
            return SKIP, SKIP, fault(error)

    def read_file(self, path: str | None) -> str:
        """The text of an uploaded gates file; whatever is wrong with it shows when it is applied."""
        if not path:
            return ""
        with Path(path).open("rb") as file:
            return file.read(200_000).decode("utf-8", errors="replace")

    def answer(self, image: str | None, question: str, gates_json: str = "") -> JSON:
        """Answer a question about an image, under gates (JSON; empty: the unchanged model). The public endpoint."""
        vlm = self.desk.vlm
        try:
            if not image:
                raise sg.ImageError("An image is needed.")
            prompt = vlm.prompt(open_picture(image), question)
            gates = self.desk.parse_gates(gates_json) if gates_json.strip() else sg.Gates.ones(vlm)
            sinks = sg.find_sinks(vlm, prompt)
            trace = vlm.answer(prompt, gates, sinks, max_new_tokens=MAX_NEW_TOKENS)
        except sg.SinkgateError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return {
            "text": trace.text,
            "next_token": [[token, share] for token, share in trace.next_token],
            "v_sink": sinks.v_sink.nonzero().flatten().tolist(),
            "l_sink": [layer.nonzero().flatten().tolist() for layer in sinks.l_sink],
            "scales": gates.scales.tolist(),
        }

    def frame(self, session: Session, lens: Any) -> JSON:
        """The newest frame of a session."""
        case = session.case
        if case is None:
            raise sg.PromptError("Ask a question first.")
        return frame(case, Lens.read(lens, self.desk.vlm), session.sequence, self.desk.fast_peak)

    def questions_value(self, session: Session) -> JSON:
        """Gallery, example questions, truth and the picture under the maps."""
        case = session.case
        return {
            "gallery": self.gallery,
            "chips": [{"question": question, "answer": answer} for question, answer in session.examples],
            "asked": session.question,
            "truth": f"{questions.describe(session.scene)}." if session.scene else "",
            "view": view_url(case) if case else "",
            "view_id": session.sequence,
        }


def random_scene(seed: int) -> Scene:
    """The scene that belongs to a seed."""
    return Scene.random(random.Random(seed))


def calm(text: str) -> JSON:
    """A status line that tells something."""
    return {"text": text, "tone": "calm"}


def fault(error: Exception) -> JSON:
    """A status line for what went wrong: our own sentence, or that something unforeseen happened."""
    if isinstance(error, sg.SinkgateError):
        sentence = str(error)
        return {"text": sentence[:1].upper() + sentence[1:].rstrip(".") + ".", "tone": "warning"}
    traceback.print_exception(error)
    return {"text": "Something unforeseen went wrong; the page goes on with what it had.", "tone": "warning"}


def _awake(session: Session | None) -> Session:
    if session is None or session.image is None:
        raise sg.PromptError("This page slept for too long and was forgotten. Press Ask, or take a new scene.")
    return session


def _turn(mixer: Any) -> int | None:
    turn = mixer.get("turn") if isinstance(mixer, dict) else None
    return turn if isinstance(turn, int) else None


def _choice(value: Any, key: str) -> Any:
    choice = value.get("choice") if isinstance(value, dict) else None
    return choice.get(key) if isinstance(choice, dict) else None
