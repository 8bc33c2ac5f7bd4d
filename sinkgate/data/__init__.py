"""Readers of data: images with questions and answers, or with targets for probes. One small file for each source."""

from sinkgate.data.cambrian import category_of, read_cambrian
from sinkgate.data.clevr import read_clevr
from sinkgate.data.llava import read_llava
from sinkgate.data.photos import photographs
from sinkgate.data.probe_example import Pictured
from sinkgate.data.sample import Sample
from sinkgate.data.scenes import CROWDED, scene_facts, scene_samples
from sinkgate.data.vqa import read_questions

__all__ = [
    "CROWDED",
    "Pictured",
    "Sample",
    "category_of",
    "photographs",
    "read_cambrian",
    "read_clevr",
    "read_llava",
    "read_questions",
    "scene_facts",
    "scene_samples",
]
