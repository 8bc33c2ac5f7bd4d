"""Where the model works for the page: in this process. `zerogpu.Bench` has the same face, with the GPU in another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sinkgate as sg

if TYPE_CHECKING:
    from PIL import Image

    from sinkgate.methods.lsg import LSG


class Warm(sg.Session):
    """One prompt held warm in this process."""

    def read(self, lsg: LSG) -> sg.Gates:
        """The gates that learned gates give this prompt: one prefill."""
        return lsg.read(self.vlm, self.prompt, self.sinks)


class Bench:
    """A model that is at hand all the time, quick enough to follow a moving fader."""

    follows = True

    def __init__(self, vlm: sg.VLM) -> None:
        self.vlm = vlm

    def prompt(self, image: Image.Image, question: str) -> sg.Prompt:
        """A picture and a question made ready; raises as `sinkgate.VLM.prompt`."""
        return self.vlm.prompt(image, question)

    def open(self, prompt: sg.Prompt, criterion: str) -> Warm:
        """A prompt held warm, its sinks found by a criterion."""
        return Warm(self.vlm, prompt, sg.find_sinks(self.vlm, prompt, v_sink=criterion, l_sink=criterion))
