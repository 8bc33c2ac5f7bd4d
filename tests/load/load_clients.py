"""Users who behave as people do, each with scenes and gates of their own; every reply is compared with a direct computation."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import httpx
from gradio_client import Client, handle_file
from page_user import Tab, chromium, new_window
from raw_client import RawClient

import sinkgate as sg
from sinkgate.scenes.scene import Scene

TICK = 0.08  # seconds between two settings of a fader that moves
TICKS = 10
QUESTIONS = ("How many objects are there?", "What color is the background?", "Which shapes are there?")
MAX_TOKENS = 32
CLOSE = 2e-3  # of probabilities: rounding, and another order of summation


@dataclass(frozen=True)
class Expected:
    """Answer of the model to one setting."""

    words: dict[str, float]
    text: str


@dataclass
class Errand:
    """One scene, one question, and where the faders are drawn to; with what the replies must be."""

    scene: Scene
    question: str
    v_sink: list[float]
    rest: list[float]
    unchanged: Expected
    gated: Expected


@dataclass
class Notes:
    """Replies to all users."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    right: int = 0


@cache
def demo(name: str = "demo") -> sg.VLM:
    """The model to compare with; loaded before there are threads, since transformers loads one at a time."""
    return sg.load(name)


def errands(vlm: sg.VLM, user: int, count: int) -> list[Errand]:
    """A user's errands, computed without the app."""
    rng = Random(f"user {user}")
    chosen = []
    for _ in range(count):
        scene, question = Scene.random(rng), rng.choice(QUESTIONS)
        scales = [
            [round(rng.uniform(0, 2), 2) if rng.random() < 0.4 else 1.0 for _ in range(vlm.num_layers)] for _ in "vr"
        ]
        prompt = vlm.prompt(scene.render(448), question)
        sinks = sg.find_sinks(vlm, prompt)
        gates = sg.Gates.from_lists(v_sink=scales[0], rest=scales[1])
        both = [_expected(vlm, prompt, sinks, table) for table in (None, gates)]
        chosen.append(Errand(scene, question, *scales, *both))
    return chosen


def _expected(vlm: sg.VLM, prompt: sg.Prompt, sinks: sg.SinkMap, gates: sg.Gates | None) -> Expected:
    trace = vlm.answer(prompt, gates, sinks, max_new_tokens=MAX_TOKENS)
    return Expected(dict(trace.next_token), trace.text)


class PageClient(threading.Thread):
    """Runs errands until told to stop, as a page does."""

    def __init__(
        self, address: str, errands: list[Errand], notes: Notes, stop: threading.Event, seed: int, model: str = "demo"
    ) -> None:
        super().__init__(daemon=True)
        self.model = model
        self.address, self.errands, self.notes, self.stop = address, errands, notes, stop
        self.rng = Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.visit()
            except httpx.HTTPStatusError as error:
                self.notes.refused[f"HTTP {error.response.status_code}"] += 1
                self.stop.wait(2)
            except Exception as error:  # noqa: BLE001 - a user who meets a fault is a finding, not the end of the test
                self.notes.wrong.append(f"{type(error).__name__}: {error}"[:300])
                self.stop.wait(2)

    def visit(self) -> None:
        """Arrive, run all errands once, leave."""
        self.client = RawClient(self.address)
        self.turn = self.edits = 0
        try:
            self.timed("arrive", lambda: self.client.send("", "load"))
            for errand in self.planned():
                self.do(errand)
        finally:
            self.client.close()

    def planned(self) -> Iterator[Errand]:
        """The errands in some order, with time to look at each; ends when it is time to stop."""
        for errand in self.rng.sample(self.errands, len(self.errands)):
            if self.stop.is_set():
                return
            yield errand
            self.stop.wait(self.rng.uniform(0.5, 2))

    def do(self, errand: Errand) -> None:
        """Ask, look, draw the faders, let go."""
        self.client.values["question"] = errand.question
        answer = self.timed("ask", lambda: self.client.send("ask", "click"))
        self.key = answer["maps"]["session"] if "maps" in answer else None
        self.faders([1.0] * len(errand.rest), [1.0] * len(errand.rest), "input")
        self.edits += 1
        picture = self.client.values["composer"]["picture"]
        scene = {"scene": errand.scene.to_dict(), "picture": picture, "revision": self.edits}
        placed = self.timed("edit", lambda: self.client.send("composer", "commit", composer=scene))
        self.note_status(placed)
        self.timed("answer", lambda: self.client.follow("composer", "commit"))
        for tick in range(1, TICKS + 1):
            if self.stop.is_set():
                return
            share = tick / TICKS
            setting = [[1 + (scale - 1) * share for scale in scales] for scales in (errand.v_sink, errand.rest)]
            if tick == TICKS:
                setting = [errand.v_sink, errand.rest]
            began = time.monotonic()
            shown = self.timed("fader", partial(self.faders, *setting, "input"))
            time.sleep(max(0.0, TICK - (time.monotonic() - began)))
        self.note_status(shown)
        if "maps" in shown:
            words = {word: gated for word, _, gated in shown["maps"]["words"]}
            self.check("first words", words, errand.gated.words, errand)
        reply = self.timed("answer", lambda: self.faders(errand.v_sink, errand.rest, "commit"))
        self.note_status(reply)
        if "answers" in reply and reply["answers"]["done"]:
            texts = [" ".join(word for word, _ in reply["answers"][side]) for side in ("unchanged", "gated")]
            self.compare(
                "answers", texts, [" ".join(errand.unchanged.text.split()), " ".join(errand.gated.text.split())], errand
            )

    def faders(self, v_sink: list[float], rest: list[float], trigger: str) -> dict:
        """One setting of the mixer."""
        self.turn += trigger == "input"
        turn = max(self.turn, (self.client.values["mixer"] or {}).get("revision", 0))
        self.turn = turn
        mixer = {"v_sink": v_sink, "rest": rest, "revision": turn}
        self.client.values["mixer"] = mixer
        if trigger == "input":
            return self.client.call("mixer", "set_gates", self.key, mixer, self.client.values["lens"])
        return self.client.send("mixer", trigger)

    def timed(self, name: str, act: Callable[[], dict]) -> dict:
        """Do it and note how long it took."""
        began = time.monotonic()
        got = act()
        self.notes.seconds[name].append(time.monotonic() - began)
        return got

    def note_status(self, got: dict) -> None:
        """A refusal is one sentence in the status line."""
        status = got.get("status") or {}
        if status.get("tone") == "warning":
            self.notes.refused[status["text"]] += 1

    def check(self, what: str, got: dict[str, float], expected: dict[str, float], errand: Errand) -> None:
        """Compare probabilities of the words that both have."""
        both = got.keys() & expected.keys()
        same = bool(both) and all(abs(got[word] - expected[word]) < CLOSE for word in both)
        self.compare(what, same, True, errand)

    def compare(self, what: str, got: object, expected: object, errand: Errand) -> None:
        """Note whether a reply is this user's own."""
        if got == expected:
            self.notes.right += 1
        else:
            self.notes.wrong.append(f"{what}: got {got}, expected {expected} ({errand.question})"[:400])


class Program(PageClient):
    """Asks through ``gradio_client``."""

    def visit(self) -> None:
        client = Client(self.address, verbose=False)
        with TemporaryDirectory() as folder:
            for errand in self.planned():
                errand.scene.render(448).save(path := Path(folder) / "scene.png")
                gates = sg.Gates.from_lists(v_sink=errand.v_sink, rest=errand.rest).to_json()
                ask = partial(client.predict, handle_file(path), errand.question, gates, api_name="/answer")
                reply = self.timed("api", ask)
                self.compare("api", reply["text"], errand.gated.text, errand)
                self.check("api's first words", dict(reply["next_token"]), errand.gated.words, errand)


class Person(PageClient):
    """Draws faders with a mouse, in a browser of their own, on the first picture; errands are of that picture."""

    def visit(self) -> None:
        with chromium() as browser:
            tab = Tab(new_window(browser, viewport={"width": 1366, "height": 768}), self.address)
            tab.page.set_default_timeout(90_000)
            for errand in self.planned():
                tab.page.locator("#mixer .preset", has_text="All at 1").click()
                tab.settle()
                for layer, scale in enumerate(errand.v_sink):
                    if scale != 1:
                        tab.drag(layer, scale)
                began = time.monotonic()
                tab.settle()
                tab.settle()  # the map is there; the answer too
                self.notes.seconds["browser, answer"].append(time.monotonic() - began)
                scales = [tab.scale(layer) for layer in range(len(errand.v_sink))]
                expected = self.direct(scales)
                self.compare("browser", tab.answers()[1], expected, errand)
            if tab.errors:
                self.notes.wrong.append(f"browser console: {tab.errors[0]}"[:300])

    def direct(self, scales: list[float]) -> str:
        """Return the model's answer under the scales that the mouse has reached."""
        vlm = demo(self.model)
        prompt = vlm.prompt(Scene.random(Random(71)).render(448), QUESTIONS[0])
        return vlm.answer(prompt, sg.Gates.from_lists(v_sink=scales, rest=[1.0] * len(scales))).text
