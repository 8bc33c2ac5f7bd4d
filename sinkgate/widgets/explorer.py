"""Faders of Key scales on a session.

Maps and next-token probabilities (`Session.predict`) follow the faders; the answer is generated after a pause, and cancelled by the next move.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from PIL import Image

from sinkgate.errors import ImageError, SinkgateError
from sinkgate.images.io import Picture, open_image
from sinkgate.images.video import Video, as_video
from sinkgate.models.session import Session
from sinkgate.models.trace import Trace
from sinkgate.models.vlm import VLM
from sinkgate.plots.style import GRID
from sinkgate.sinks.gates import PRESETS, Gates
from sinkgate.sinks.glossary import GATED, GROUP_COLORS, GROUP_LABELS, ORIGINAL, preset_name
from sinkgate.widgets.common import MAX_NEW_TOKENS, Shown, cards, fault, following, ipywidgets, small
from sinkgate.widgets.figure import Screen
from sinkgate.widgets.latest_only import LatestOnly

PAUSE = 0.3  # seconds without a move before the answer is generated
FRAME = 0.05  # least seconds between two updates: a browser that receives more lags behind
NAMES = {group: GROUP_LABELS[group] for group in ("v_sink", "l_sink", "rest")}


def explore(vlm: VLM, image: Picture | Video, question: str) -> Explorer:
    """Show a fader of the Key scale for each layer and group; maps, next-token probabilities and the answer follow.

    Errors of the image, the question or the scales appear in the widget, which stays usable. ``explorer.gates`` holds the scales of the faders.

    Args:
        vlm: the model.
        image: picture as a path, bytes or an image object; or a video, whose frames a slider goes through.
        question: question about it.

    Raises:
        SinkgateError: ipywidgets or anywidget is missing.
    """
    return Explorer(vlm, image, question)


class _Request(NamedTuple):
    """An image, a question, and one scale for each layer and group."""

    image: Image.Image | Video | None
    question: str
    v_sink: list[float]
    l_sink: list[float] | None  # None: that of ``rest``
    rest: list[float]


class Explorer(Shown):
    """Widget of `explore`. ``unchanged`` and ``gated`` are the runs on display; ``predictions`` counts the computed settings."""

    def __init__(self, vlm: VLM, image: Picture | Video, question: str) -> None:
        self.vlm, self.predictions = vlm, 0
        self.warm: Session | None = None
        self.unchanged: Trace | None = None
        self.gated: Trace | None = None
        self._shown: Gates | None = None  # gates of the run in ``gated``
        self._answered = False  # True if ``gated`` holds the whole answer
        self._image: Image.Image | Video | None = None
        self._current: tuple[Image.Image | Video | None, str] | None = None
        self._error = ""  # of the current image and question
        self._from_user = True
        self._worker = LatestOnly(self._follow)
        self._build(question)
        self._take(image)
        if self._image:
            self._follow(self._request())
        self._listen()

    def __repr__(self) -> str:
        before, after = (trace.text if trace else "" for trace in (self.unchanged, self.gated))
        return f"explore: {self.question.value[:80]!r}, unchanged {before!r}, gated {after!r}"

    @property
    def gates(self) -> Gates:
        """Gates at the faders' scales.

        Raises:
            GateError: a scale is out of range.
        """
        return self._gates(self._request())

    def settle(self, seconds: float | None = None) -> bool:
        """Wait until maps and answer are those of the newest setting; return False after ``seconds``."""
        return self._worker.settle(seconds)

    # --- layout

    def _build(self, question: str) -> None:
        ipw = ipywidgets()
        hint = "Ask about the picture, then press Enter"
        self.question = ipw.Text(question, placeholder=hint, continuous_update=False, layout={"flex": "1 1 auto"})
        self.upload = ipw.FileUpload(accept="image/*", description="Picture", layout={"width": "120px"})
        self.message, self.summary, self.answers = ipw.HTML(), ipw.HTML(), ipw.HTML(layout={"margin": "0"})
        self.screen = Screen([ORIGINAL, GATED], self.vlm.num_layers)
        self.faders = {group: [self._fader(group, layer) for layer in range(self.vlm.num_layers)] for group in NAMES}
        layout = {"flex": "0 0 auto", "width": "auto"}
        self.presets = {
            name: ipw.Button(description=preset_name(*scales), layout=layout) for name, scales in PRESETS.items()
        }
        self.legend = ipw.HTML(layout={"flex": "1 1 auto"})
        self.separate = ipw.Checkbox(False, description="Separate L-sinks", indent=False, layout={"width": "150px"})
        self._separated()
        pairs = enumerate(zip(*self.faders.values(), strict=True))
        strips = [ipw.VBox([ipw.HTML(f"<center>{layer}</center>"), ipw.HBox(pair)]) for layer, pair in pairs]
        for strip in strips:
            strip.layout = {"flex": "0 0 auto", "border_left": f"1px solid {GRID}"}
        above = [ipw.HBox([self.question, self.upload]), self.message, self.screen.figure, self.answers]
        mixer = [
            ipw.HBox([self.legend, self.separate, *self.presets.values()], layout={"flex_flow": "row wrap"}),
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
        for name, button in self.presets.items():
            button.on_click(lambda _, name=name: self._set_all(*PRESETS[name]))
        self.separate.observe(lambda _: self._separated(), "value")
        for control in (self.question, self.screen.time, self.screen.layer, self.screen.kind):
            control.observe(lambda _: self._worker.put(self._request()), "value")
        self.upload.observe(lambda change: [self._take(bytes(file["content"])) for file in change.new], "value")

    # --- user input

    def _request(self) -> _Request:
        v_sink, l_sink, rest = ([fader.value for fader in self.faders[group]] for group in NAMES)
        return _Request(self._image, self.question.value, v_sink, l_sink if self.separate.value else None, rest)

    def _gates(self, request: _Request) -> Gates:
        return Gates.from_lists(request.v_sink, request.rest, self.vlm.name, l_sink=request.l_sink)

    def _separated(self) -> None:
        """Show the faders of L-sinks, at the scales that they had with the others, or remove them."""
        self._from_user = False
        for fader, rest in zip(self.faders["l_sink"], self.faders["rest"], strict=True):
            fader.value = rest.value
            fader.layout.display = None if self.separate.value else "none"
        self._from_user = True
        names = NAMES if self.separate.value else {group: NAMES[group] for group in ("v_sink", "rest")}
        if self.separate.value:
            names = {**names, "rest": GROUP_LABELS["ordinary"]}
        dots = " ".join(f'<b style="color: {GROUP_COLORS[group]}">●</b> {name}' for group, name in names.items())
        self.legend.value = f"<b>Key scales</b> by layer: {dots}"
        if self.warm:
            self._worker.put(self._request())

    def _touched(self, layer: int) -> None:
        if self._from_user:
            self.screen.layer.value = layer  # the maps follow the fader
            self._worker.put(self._request())

    def _set_all(self, v_sink: float, rest: float) -> None:
        self._from_user = False
        for group, scale in zip(NAMES, (v_sink, rest, rest), strict=True):
            for fader in self.faders[group]:
                fader.value = scale
        self._from_user = True
        self._worker.put(self._request())

    def _take(self, picture: Picture | Video) -> None:
        try:
            if not isinstance(picture, Video):
                picture = as_video(picture, None) or open_image(picture)
            self._image = picture
        except ImageError as error:
            self.message.value = fault(str(error))
        else:
            if self._current:
                self._worker.put(self._request())

    # --- model

    def _follow(self, request: _Request) -> None:
        try:
            if self._current != (request.image, request.question):
                self._ask(request.image, request.question)
            if self.warm:
                self._turn(self.warm, self._gates(request))
            message = self._error
        except SinkgateError as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - the widget stays usable after any error of a model
            message = f"the model failed: {error}"
        self.message.value = fault(message)

    def _ask(self, image: Image.Image | Video | None, question: str) -> None:
        """Start a session for another image or question; after an error the display stays as it is."""
        self._current, self._error = (image, question), ""
        try:
            if image is None:
                raise ImageError("no image yet: upload one")
            warm = Session(self.vlm, self.vlm.prompt(image, question))
            unchanged = warm.answer(max_new_tokens=MAX_NEW_TOKENS)
        except SinkgateError as error:
            self._error = str(error)
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
        if not self._answered and not self._worker.comes(PAUSE):
            answer = warm.answer(gates, max_new_tokens=MAX_NEW_TOKENS, stop=self._worker.comes)
            if not self._worker.comes():
                self.gated, self._answered = answer, True
                self._draw(warm)

    def _draw(self, warm: Session) -> None:
        assert self.unchanged and self.gated
        self.screen.show([self.unchanged, self.gated], warm.sinks)
        answers = {ORIGINAL: self.unchanged.text, GATED: self.gated.text if self._answered else None}
        self.answers.value = cards(answers, self.screen.colors)
