"""The mixer, live on a warm session.

The light tier (`Session.predict`) follows the faders; the answer is written when the hand rests, and given up as soon as it moves again.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from PIL import Image

from sinkgate.errors import ImageError, SinkgateError
from sinkgate.images.io import Picture, open_image
from sinkgate.models.session import Session
from sinkgate.models.trace import Trace
from sinkgate.models.vlm import VLM
from sinkgate.plots.style import GRID, GROUP_COLORS
from sinkgate.sinks.gates import PRESETS, Gates
from sinkgate.widgets.common import MAX_NEW_TOKENS, Shown, cards, fault, following, ipywidgets, small
from sinkgate.widgets.figure import Screen
from sinkgate.widgets.latest_only import Newest

REST = 0.3  # seconds without a move, after which the answer is written
FRAME = 0.05  # seconds from one drawing to the next at least: a browser that is sent more falls behind
NAMES = {"v_sink": "V-sinks", "rest": "all other patches"}


def explore(vlm: VLM, image: Picture, question: str) -> Explorer:
    """A mixer of Key scales, layer by layer; maps, next-token bars and the answer follow.

    What is wrong with picture, question or scales is said in the widget, which lives on. ``explorer.gates`` is what the faders stand at.

    Raises:
        SinkgateError: ipywidgets or anywidget is missing.
    """
    return Explorer(vlm, image, question)


class _Wish(NamedTuple):
    """What the hand wants to see: a picture, a question, and scales one a layer."""

    image: Image.Image | None
    question: str
    v_sink: list[float]
    rest: list[float]


class Explorer(Shown):
    """See `explore`. ``unchanged`` and ``gated`` are the runs shown; ``predictions`` counts the settings that were computed."""

    def __init__(self, vlm: VLM, image: Picture, question: str) -> None:
        self.vlm, self.predictions = vlm, 0
        self.warm: Session | None = None
        self.unchanged: Trace | None = None
        self.gated: Trace | None = None
        self._shown: Gates | None = None  # what gated was computed under
        self._answered = False  # whether gated holds the whole answer
        self._image: Image.Image | None = None
        self._asked: tuple[Image.Image | None, str] | None = None
        self._refused = ""  # why what was asked could not be
        self._by_hand = True
        self._newest = Newest(self._follow)
        self._build(question)
        self._take(image)
        if self._image:
            self._follow(self._wish())
        self._listen()

    def __repr__(self) -> str:
        before, after = (trace.text if trace else "" for trace in (self.unchanged, self.gated))
        return f"explore: {self.question.value[:80]!r}, unchanged {before!r}, gated {after!r}"

    @property
    def gates(self) -> Gates:
        """What the faders stand at; raises GateError where that is no setting."""
        return self._gates(self._wish())

    def settle(self, seconds: float | None = None) -> bool:
        """Wait until maps and answer are those of the newest setting; False where that takes longer."""
        return self._newest.settle(seconds)

    # --- what is seen and touched

    def _build(self, question: str) -> None:
        ipw = ipywidgets()
        hint = "Ask about the picture, then press Enter"
        self.question = ipw.Text(question, placeholder=hint, continuous_update=False, layout={"flex": "1 1 auto"})
        self.upload = ipw.FileUpload(accept="image/*", description="Picture", layout={"width": "120px"})
        self.message, self.summary, self.answers = ipw.HTML(), ipw.HTML(), ipw.HTML(layout={"margin": "0"})
        self.screen = Screen(["Unchanged", "Gated"], self.vlm.num_layers)
        self.faders = {group: [self._fader(group, layer) for layer in range(self.vlm.num_layers)] for group in NAMES}
        self.presets = [ipw.Button(description=name, layout={"flex": "0 0 auto", "width": "auto"}) for name in PRESETS]
        dots = " ".join(f'<b style="color: {GROUP_COLORS[group]}">●</b> {name}' for group, name in NAMES.items())
        legend = ipw.HTML(f"<b>Key scales</b> by layer: {dots}", layout={"flex": "1 1 auto"})
        pairs = enumerate(zip(*self.faders.values(), strict=True))
        strips = [ipw.VBox([ipw.HTML(f"<center>{layer}</center>"), ipw.HBox(pair)]) for layer, pair in pairs]
        for strip in strips:
            strip.layout = {"flex": "0 0 auto", "border_left": f"1px solid {GRID}"}
        above = [ipw.HBox([self.question, self.upload]), self.message, self.screen.figure, self.answers]
        mixer = [
            ipw.HBox([legend, *self.presets], layout={"flex_flow": "row wrap"}),
            ipw.HBox(strips, layout={"overflow": "auto hidden"}),
        ]
        self.box = ipw.VBox([*above, *mixer, self.screen.controls, self.summary, following()])

    def _fader(self, group: str, layer: int) -> Any:
        look = {"style": {"handle_color": GROUP_COLORS[group]}, "tooltip": f"{NAMES[group]}, layer {layer}"}
        layout = {"width": "40px", "height": "150px", "margin": "0"}
        return ipywidgets().FloatSlider(1, min=0, max=2, step=0.05, orientation="vertical", layout=layout, **look)

    def _listen(self) -> None:
        for column in self.faders.values():
            for layer, fader in enumerate(column):
                fader.observe(lambda _, layer=layer: self._touched(layer), "value")
        for button in self.presets:
            button.on_click(lambda button: self._set_all(*PRESETS[button.description]))
        for control in (self.question, self.screen.layer):
            control.observe(lambda _: self._newest.put(self._wish()), "value")
        self.upload.observe(lambda change: [self._take(bytes(file["content"])) for file in change.new], "value")

    # --- the hand

    def _wish(self) -> _Wish:
        return _Wish(
            self._image, self.question.value, *([fader.value for fader in self.faders[group]] for group in NAMES)
        )

    def _gates(self, wish: _Wish) -> Gates:
        return Gates.from_lists(wish.v_sink, wish.rest, self.vlm.name)

    def _touched(self, layer: int) -> None:
        if self._by_hand:
            self.screen.layer.value = layer  # the maps follow the fader
            self._newest.put(self._wish())

    def _set_all(self, *scales: float) -> None:
        self._by_hand = False
        for column, scale in zip(self.faders.values(), scales, strict=True):
            for fader in column:
                fader.value = scale
        self._by_hand = True
        self._newest.put(self._wish())

    def _take(self, picture: Picture) -> None:
        try:
            self._image = open_image(picture)
        except ImageError as error:
            self.message.value = fault(str(error))
        else:
            if self._asked:
                self._newest.put(self._wish())

    # --- the model

    def _follow(self, wish: _Wish) -> None:
        try:
            if self._asked != (wish.image, wish.question):
                self._ask(wish.image, wish.question)
            if self.warm:
                self._turn(self.warm, self._gates(wish))
            said = self._refused
        except SinkgateError as error:
            said = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises, the widget lives on
            said = f"the model failed: {error}"
        self.message.value = fault(said)

    def _ask(self, image: Image.Image | None, question: str) -> None:
        """Another picture or question; where they cannot be used, what was shown stays."""
        self._asked, self._refused = (image, question), ""
        try:
            if image is None:
                raise ImageError("there is no picture yet; upload one")
            warm = Session(self.vlm, self.vlm.prompt(image, question))
            unchanged = warm.answer(max_new_tokens=MAX_NEW_TOKENS)
        except SinkgateError as error:
            self._refused = str(error)
            return
        if self.warm is None:
            self.screen.begin(unchanged, warm.sinks)
        self.warm, self.unchanged, self._shown = warm, unchanged, None
        self.screen.place(warm)
        self.summary.value = small(warm.sinks.summary())

    def _turn(self, warm: Session, gates: Gates) -> None:
        assert self.unchanged
        if gates != self._shown:
            self._answered = gates.is_identity
            self.gated = self.unchanged if self._answered else warm.predict(gates)
            self._shown = gates
            self.predictions += 1
        self._draw(warm)
        time.sleep(FRAME)
        if not self._answered and not self._newest.comes(REST):
            answer = warm.answer(gates, max_new_tokens=MAX_NEW_TOKENS, stop=self._newest.comes)
            if not self._newest.comes():
                self.gated, self._answered = answer, True
                self._draw(warm)

    def _draw(self, warm: Session) -> None:
        assert self.unchanged and self.gated
        self.screen.show([self.unchanged, self.gated], warm.sinks)
        said = {"Unchanged": self.unchanged.text, "Gated": self.gated.text if self._answered else None}
        self.answers.value = cards(said, self.screen.colors)
