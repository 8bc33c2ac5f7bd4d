"""Where images with questions and answers come from: one small file a source."""

from sinkgate.samples.cambrian import category_of, read_cambrian
from sinkgate.samples.llava import read_llava
from sinkgate.samples.sample import Sample
from sinkgate.samples.scenes import CROWDED, scene_samples

__all__ = ["CROWDED", "Sample", "category_of", "read_cambrian", "read_llava", "scene_samples"]
