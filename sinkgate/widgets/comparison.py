"""Gate settings side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinkgate.errors import GateError
from sinkgate.images.io import Picture
from sinkgate.images.video import Video
from sinkgate.methods import criterion_of
from sinkgate.methods.lsg import LSG
from sinkgate.models.session import Session
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.sinks.gates import Gates
from sinkgate.sinks.glossary import ORIGINAL
from sinkgate.widgets.common import MAX_NEW_TOKENS, Shown, cards, following, ipywidgets
from sinkgate.widgets.figure import Screen


def compare(vlm: VLM, image: Picture | Video, question: str, gates: Mapping[str, Gates | LSG]) -> Comparison:
    """Show the unmodified model beside named settings: maps of a selectable layer, next-token probabilities and answers.

    Args:
        vlm: the model.
        image: picture as a path, bytes or an image object, or a video.
        question: question about it.
        gates: settings by name. Learned gates read the question; sinks are classified by the criterion that they were trained with.

    Raises:
        GateError: gates that change something are called "Unchanged", the name of the unmodified model.
        SinkgateError: ipywidgets or anywidget is missing; ImageError, PromptError, GateError: an argument is invalid.
    """
    return Comparison(vlm, image, question, gates)


class Comparison(Shown):
    """Widget of `compare`. ``traces`` holds each run by name, "Unchanged" first."""

    def __init__(self, vlm: VLM, image: Picture | Video, question: str, gates: Mapping[str, Gates | LSG]) -> None:
        ipw = ipywidgets()
        prompt, criterion = vlm.prompt(image, question), criterion_of(gates.values())
        self.warm = Session(vlm, prompt, find_sinks(vlm, prompt, v_sink=criterion, l_sink=criterion))
        tables = {name: g.read(vlm, prompt, self.warm.sinks) if isinstance(g, LSG) else g for name, g in gates.items()}
        if "Unchanged" in tables and not tables["Unchanged"].is_identity:
            raise GateError('"Unchanged" is the name of the unmodified model here; give these gates another one')
        settings: dict[str, Gates | None] = {"Unchanged": None, **tables}
        self.traces = {name: self.warm.answer(each, max_new_tokens=MAX_NEW_TOKENS) for name, each in settings.items()}
        titles = [ORIGINAL, *list(self.traces)[1:]]
        self.screen = Screen(titles, vlm.num_layers)
        self.screen.place(self.warm)
        self.screen.begin(self.traces["Unchanged"], self.warm.sinks)
        for control in (self.screen.time, self.screen.layer, self.screen.kind):
            control.observe(self._draw, "value")
        self._draw()
        texts = {title: trace.text for title, trace in zip(titles, self.traces.values(), strict=True)}
        answers = ipw.HTML(cards(texts, self.screen.colors), layout={"margin": "0"})
        self.box = ipw.VBox([self.screen.figure, answers, self.screen.controls, following()])

    def __repr__(self) -> str:
        return "compare: " + ", ".join(f"{name} {trace.text!r}" for name, trace in self.traces.items())

    def _draw(self, _change: Any = None) -> None:
        self.screen.show([*self.traces.values()], self.warm.sinks)
