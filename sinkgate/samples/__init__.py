"""Where images with questions and answers, or with what is known of them, come from: one small file a source."""

from sinkgate.samples.cambrian import category_of, read_cambrian
from sinkgate.samples.clevr import read_clevr
from sinkgate.samples.llava import read_llava
from sinkgate.samples.pictured import Pictured
from sinkgate.samples.sample import Sample
from sinkgate.samples.scenes import CROWDED, scene_facts, scene_samples

__all__ = [
    "CROWDED",
    "Pictured",
    "Sample",
    "category_of",
    "read_cambrian",
    "read_clevr",
    "read_llava",
    "scene_facts",
    "scene_samples",
]
