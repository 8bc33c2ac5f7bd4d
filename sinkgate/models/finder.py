"""Finders of sinks as values: called on prompts, written into the record of a study, and put in words."""

from __future__ import annotations

from dataclasses import dataclass

from sinkgate.models.dimensions import sink_criteria
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM, Finder, find_sinks, find_v_sinks
from sinkgate.sinks.criteria import Choice, Criterion, SinkCriteria, SinkDimensions
from sinkgate.sinks.sink_map import SinkMasks


@dataclass(frozen=True)
class SinkFinder:
    """Find sinks by one criterion for each side of a model.

    Args:
        v_sink: criterion of V-sinks, as in `sinkgate.find_sinks`.
        l_sink: criterion of L-sinks, likewise.
        v_only: leave L-sinks out, at the cost of the encoder alone; every other visual token counts as ordinary.

    Example:
        >>> vlm = sg.load("demo")
        >>> SinkFinder("norm", "massive").settings(vlm)["v_sink"]
        'NormOutliers(times=2.0, threshold=None)'
    """

    v_sink: str | Criterion | Choice = "auto"
    l_sink: str | Criterion | Choice = "auto"
    v_only: bool = False

    def __call__(self, vlm: VLM, prompt: Prompt) -> SinkMasks:
        """Return the sinks of a prompt; raises as `sinkgate.find_sinks`."""
        known = self.v_sink == self.l_sink == "auto" and prompt.sinks is not None
        if self.v_only and not known:
            return find_v_sinks(vlm, prompt, self.v_sink)
        return find_sinks(vlm, prompt, v_sink=self.v_sink, l_sink=self.l_sink)

    def criteria(self, vlm: VLM) -> SinkCriteria:
        """Return the criteria that are held for a model, "auto" decided; raises as `sinkgate.sink_criteria`."""
        # a name that needs no discovery stands for the side that is left out
        return sink_criteria(vlm, v_sink=self.v_sink, l_sink="norm" if self.v_only else self.l_sink)

    def settings(self, vlm: VLM) -> dict[str, str]:
        """Return the criteria that are held for a model, with all their arguments: part of what identifies a study."""
        settings = self.criteria(vlm).settings
        return {"v_sink": settings["v_sink"]} if self.v_only else settings

    def describe(self, vlm: VLM) -> str:
        """Return in words by which criteria the sinks of a model are found, and what "auto" tried before."""
        held = self.criteria(vlm)
        if self.v_only:
            return f"V-sinks by {_named(held.v_sink)}."
        named = f"V-sinks by {_named(held.v_sink)}, L-sinks by {_named(held.l_sink)}."
        return " ".join([named, *held.sentences()])


def finder_settings(find: Finder, vlm: VLM) -> dict[str, str]:
    """Return the criteria by which a function finds sinks, with all their arguments; its name where it is no `SinkFinder`."""
    if find is find_sinks:
        find = SinkFinder()
    if isinstance(find, SinkFinder):
        return find.settings(vlm)
    return dict.fromkeys(("v_sink", "l_sink"), getattr(find, "__qualname__", type(find).__qualname__))


def _named(choice: Choice) -> str:
    tau = f" (tau {choice.criterion.tau:.3g})" if isinstance(choice.criterion, SinkDimensions) else ""
    return choice.in_words() + tau
