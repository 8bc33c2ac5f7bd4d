"""Effects that each demo model shows, as links with a sentence. A test computes every stated answer again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sinkgate as sg
from sinkgate.sinks.gates import Group

from .lens import Lens
from .share_links import Link
from .view_model import JSON


@dataclass(frozen=True)
class Phenomenon:
    """One question under one setting, with the original and the gated answer."""

    title: str
    sentence: str
    seed: int  # of the scene
    kind: str  # of the question
    question: str
    answers: tuple[str, str]
    view: int  # layer of the maps
    group: Group = "v_sink"
    scale: float = 1.0
    layer: int | None = None  # whose group is scaled; None for every layer
    hide: bool = False  # mask sinks

    def link(self, vlm: sg.VLM) -> Link:
        """Return the link that shows it."""
        gates = replace(sg.Gates.ones(vlm).set(self.group, self.scale, self.layer), model=vlm.name)
        return Link(
            vlm.name, self.question, gates, Lens(layer=self.view, hide=self.hide), seed=self.seed, kind=self.kind
        )


@dataclass(frozen=True)
class Demonstration:
    """The fader that "Show me" moves while this question is on the page; ``layer`` None: those of every layer."""

    question: str
    answers: tuple[str, str]
    group: Group
    scale: float
    layer: int | None


COUNT = ("count", "How many objects are there?")
DEMONSTRATIONS = {
    "demo": Demonstration(COUNT[1], ("2", "1"), "v_sink", 0.1, 2),
    "demo-large": Demonstration(COUNT[1], ("2", "3"), "v_sink", 0.1, None),
}
PHENOMENA = {
    "demo": (
        Phenomenon(
            "An answer flips", "V-sinks × 0.1 in layer 2: of two objects, the model counts one.",
            71, *COUNT, ("2", "1"), 2, "v_sink", 0.1, 2,
        ),
        Phenomenon(
            "A color is forgotten", "V-sinks × 0.1 in layer 2: the model still names purple, and no longer orange.",
            26, "colors", "Which colors are there?", ("purple and orange", "purple"), 2, "v_sink", 0.1, 2,
        ),
        Phenomenon(
            "Another layer, no effect", "The same V-sinks × 0.1, but in layer 4: the answer stays 2.",
            71, *COUNT, ("2", "2"), 4, "v_sink", 0.1, 4,
        ),
        Phenomenon(
            "L-sinks scaled away", "L-sinks × 0 in every layer: the answer stays 2.",
            71, *COUNT, ("2", "2"), 4, "l_sink", 0.0,
        ),
        Phenomenon(
            "Mask sinks, read the map", "All faders at 1. Without the sinks, the brightest patch of layer 7 lies on the green circle.",
            188, *COUNT, ("2", "2"), 7, hide=True,
        ),
    ),
    "demo-large": (
        Phenomenon(
            "An answer flips", "V-sinks × 2 in layer 3: the model no longer finds the blue circle.",
            71, "presence", "Is there any blue circle?", ("yes", "no"), 3, "v_sink", 2.0, 3,
        ),
        Phenomenon(
            "A color is forgotten", "V-sinks × 0.1 in every layer: orange is gone, and blue is named instead.",
            26, "colors", "Which colors are there?", ("purple and orange", "blue and purple"), 3, "v_sink", 0.1,
        ),
        Phenomenon(
            "Another layer, no effect", "The same V-sinks × 2, but in layer 4: the answer stays yes.",
            71, "presence", "Is there any blue circle?", ("yes", "yes"), 4, "v_sink", 2.0, 4,
        ),
        Phenomenon(
            "L-sinks scaled away", "L-sinks × 0 in every layer: the answer stays 2.",
            71, *COUNT, ("2", "2"), 4, "l_sink", 0.0,
        ),
        Phenomenon(
            "Mask sinks, read the map", "All faders at 1. Without the sinks, the brightest patch of layer 5 lies on the small triangle.",
            188, "color", "What is the color of the small thing?", ("yellow", "yellow"), 5, hide=True,
        ),
    ),
}  # fmt: skip


def gallery(vlm: sg.VLM) -> list[JSON]:
    """Return the phenomena of a model, each with its link; an empty list for other models than the demo models."""
    return [
        {"title": each.title, "sentence": each.sentence, "link": each.link(vlm).to_text()}
        for each in PHENOMENA.get(vlm.name, ())
    ]


def demonstration(vlm: sg.VLM) -> JSON | None:
    """Return the movement of "Show me" for a model; None where the page chooses it."""
    known = DEMONSTRATIONS.get(vlm.name)
    return known and {"question": known.question, "group": known.group, "layer": known.layer, "scale": known.scale}
