"""sinkgate: find attention sinks in vision-language models and gate their Keys, layer by layer."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import sinkgate._threads  # noqa: F401 - first, before anything imports torch
from sinkgate._version import __version__ as __version__

if TYPE_CHECKING:
    from sinkgate.analysis.logit_lens import LogitLens, logit_lens
    from sinkgate.analysis.relevancy import Relevancy, relevancy
    from sinkgate.analysis.report import Report, report
    from sinkgate.analysis.sweep import Setting, choose, oracle
    from sinkgate.attention.patch import attached
    from sinkgate.attention.recorder import Recorder
    from sinkgate.data import Sample
    from sinkgate.errors import (
        GateError,
        ImageError,
        PromptError,
        SceneError,
        SinkgateError,
        TrainingError,
        UnsupportedModelError,
    )
    from sinkgate.images.io import open_image
    from sinkgate.images.layout import Sheet
    from sinkgate.images.video import Video, open_video
    from sinkgate.methods.lsg import LSG, LSGConfig
    from sinkgate.methods.runtime import export_runtime
    from sinkgate.models.dimensions import discover, sink_criteria
    from sinkgate.models.loading import load
    from sinkgate.models.prompts import Prompt
    from sinkgate.models.session import Session
    from sinkgate.models.trace import Trace
    from sinkgate.models.vlm import VLM, find_sinks
    from sinkgate.sinks.criteria import CRITERIA, SinkCriteria, SinkDimensions
    from sinkgate.sinks.discovery import Discovery
    from sinkgate.sinks.evidence import discover_dimensions, gather_evidence
    from sinkgate.sinks.fine_gates import FineGates
    from sinkgate.sinks.gates import PRESETS, Gates
    from sinkgate.sinks.known_dimensions import known
    from sinkgate.sinks.sink_map import SinkMap, SinkMasks
    from sinkgate.training.evaluation import EvaluationResult, Marks, evaluate
    from sinkgate.training.stacking import stack
    from sinkgate.training.trainer import train
    from sinkgate.widgets import compare, explore, sweep_map

__all__ = [
    "CRITERIA",
    "LSG",
    "PRESETS",
    "VLM",
    "Discovery",
    "EvaluationResult",
    "FineGates",
    "GateError",
    "Gates",
    "ImageError",
    "LSGConfig",
    "LogitLens",
    "Marks",
    "Prompt",
    "PromptError",
    "Recorder",
    "Relevancy",
    "Report",
    "Sample",
    "SceneError",
    "Session",
    "Setting",
    "Sheet",
    "SinkCriteria",
    "SinkDimensions",
    "SinkMap",
    "SinkMasks",
    "SinkgateError",
    "Trace",
    "TrainingError",
    "UnsupportedModelError",
    "Video",
    "attached",
    "choose",
    "compare",
    "discover",
    "discover_dimensions",
    "evaluate",
    "explore",
    "export_runtime",
    "find_sinks",
    "gather_evidence",
    "known",
    "load",
    "logit_lens",
    "open_image",
    "open_video",
    "oracle",
    "relevancy",
    "report",
    "sink_criteria",
    "stack",
    "sweep_map",
    "train",
]

#: Public names by the module that is imported when one of them is first used: torch and transformers take seconds.
_MODULES = {
    "analysis.logit_lens": "LogitLens logit_lens",
    "analysis.relevancy": "Relevancy relevancy",
    "analysis.report": "Report report",
    "analysis.sweep": "Setting choose oracle",
    "attention.patch": "attached",
    "attention.recorder": "Recorder",
    "data": "Sample",
    "errors": "GateError ImageError PromptError SceneError SinkgateError TrainingError UnsupportedModelError",
    "images.io": "open_image",
    "images.layout": "Sheet",
    "images.video": "Video open_video",
    "methods.lsg": "LSG LSGConfig",
    "methods.runtime": "export_runtime",
    "models.dimensions": "discover sink_criteria",
    "models.loading": "load",
    "models.prompts": "Prompt",
    "models.session": "Session",
    "models.trace": "Trace",
    "models.vlm": "VLM find_sinks",
    "sinks.criteria": "CRITERIA SinkCriteria SinkDimensions",
    "sinks.discovery": "Discovery",
    "sinks.evidence": "discover_dimensions gather_evidence",
    "sinks.fine_gates": "FineGates",
    "sinks.gates": "PRESETS Gates",
    "sinks.known_dimensions": "known",
    "sinks.sink_map": "SinkMap SinkMasks",
    "training.evaluation": "EvaluationResult Marks evaluate",
    "training.stacking": "stack",
    "training.trainer": "train",
    "widgets": "compare explore sweep_map",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Return a public name, or a package within this one with its public modules."""
    if name in _HOME:
        return getattr(import_module(f"sinkgate.{_HOME[name]}"), name)
    for module in (inside := [each for each in _MODULES if each.partition(".")[0] == name]):
        import_module(f"sinkgate.{module}")
    if inside:
        return sys.modules[f"sinkgate.{name}"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
