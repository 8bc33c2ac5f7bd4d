"""The backend that runs the model in this process. `backend_zerogpu` has the same interface and runs it in a GPU process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sinkgate as sg

if TYPE_CHECKING:
    from PIL import Image

    from sinkgate.methods.lsg import LSG


class LocalSession(sg.Session):
    """A prompt whose prefill is kept in this process."""

    def read(self, lsg: LSG) -> sg.Gates:
        """Return the scales that learned gates give this prompt: one prefill."""
        return lsg.read(self.vlm, self.prompt, self.sinks)


class Backend:
    """A model that is always loaded, fast enough to follow a moving fader."""

    interactive = True

    def __init__(self, vlm: sg.VLM) -> None:
        self.vlm = vlm

    def prompt(self, image: Image.Image, question: str) -> sg.Prompt:
        """Return the prompt of a picture and a question; raises as `sinkgate.VLM.prompt`."""
        return self.vlm.prompt(image, question)

    def open(self, prompt: sg.Prompt, criterion: str) -> LocalSession:
        """Return a session of a prompt, its sinks classified by a criterion."""
        return LocalSession(self.vlm, prompt, sg.find_sinks(self.vlm, prompt, v_sink=criterion, l_sink=criterion))
