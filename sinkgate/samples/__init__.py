"""Where images with questions and answers come from: one small file a source."""

from sinkgate.samples.sample import Sample

__all__ = ["Sample"]
