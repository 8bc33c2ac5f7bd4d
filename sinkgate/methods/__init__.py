"""Methods that change what a model does with visual tokens: fixed gates, learned gates and published baselines."""

from sinkgate.methods.base import Fixed, Method, criterion_of, finder_of, reads_pixels
from sinkgate.methods.fastv import FastV
from sinkgate.methods.lora import LoRA
from sinkgate.methods.pai import PAI
from sinkgate.methods.registers import Registers, find_register_neurons
from sinkgate.methods.reweight import Reweight, ReweightConfig
from sinkgate.methods.scaling_vis import AdaptVis, ScalingVis
from sinkgate.methods.sink_to_front import SinkToTheFront
from sinkgate.methods.suppress import Remove, Suppress
from sinkgate.methods.vaf import VAF
from sinkgate.methods.var import VAR

__all__ = [
    "PAI",
    "VAF",
    "VAR",
    "AdaptVis",
    "FastV",
    "Fixed",
    "LoRA",
    "Method",
    "Registers",
    "Remove",
    "Reweight",
    "ReweightConfig",
    "ScalingVis",
    "SinkToTheFront",
    "Suppress",
    "criterion_of",
    "find_register_neurons",
    "finder_of",
    "reads_pixels",
]
