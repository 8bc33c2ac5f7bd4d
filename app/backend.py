"""The backend that runs the model in this process. `backend_zerogpu` has the same interface and runs it in a GPU process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

import sinkgate as sg

from .inspection import PatchFacts, patch_facts

if TYPE_CHECKING:
    from PIL import Image

    from sinkgate.methods.lsg import LSG
    from sinkgate.sinks.fine_gates import AnyGates


class LocalSession(sg.Session):
    """A prompt whose prefill is kept in this process."""

    def __init__(self, vlm: sg.VLM, prompt: sg.Prompt, sinks: sg.SinkMap | None = None) -> None:
        super().__init__(vlm, prompt, sinks)
        self._received: dict[str | None, Tensor] = {}

    def read(self, lsg: LSG) -> sg.Gates:
        """Return the scales that learned gates give this prompt: one prefill."""
        return lsg.read(self.vlm, self.prompt, self.sinks)

    def received(self, gates: AnyGates | None = None) -> Tensor:
        """As `sinkgate.Session.received`, computed once for the original model and once for the newest gates."""
        key = None if gates is None or gates.is_identity else gates.to_json()
        if key not in self._received:
            original = {name: value for name, value in self._received.items() if name is None}
            self._received = {**original, key: super().received(gates)}
        return self._received[key]

    def patch(self, token: int, layer: int, gates: sg.Gates | None) -> PatchFacts:
        """Measure one visual token, see `inspection.patch_facts`."""
        return patch_facts(self, token, layer, gates)


class Backend:
    """A model that is always loaded, fast enough to follow a moving fader."""

    interactive = True

    def __init__(self, vlm: sg.VLM) -> None:
        self.vlm = vlm

    def prompt(self, image: Image.Image | sg.Video, question: str) -> sg.Prompt:
        """Return the prompt of a picture or a video and a question; raises as `sinkgate.VLM.prompt`."""
        return self.vlm.prompt(image, question)

    def open(self, prompt: sg.Prompt, criterion: str) -> LocalSession:
        """Return a session of a prompt, its sinks classified by a criterion."""
        return LocalSession(self.vlm, prompt, sg.find_sinks(self.vlm, prompt, v_sink=criterion, l_sink=criterion))
