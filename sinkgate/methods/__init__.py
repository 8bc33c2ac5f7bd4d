"""Fixed gates and the published methods that the paper is compared with, each behind the door of `sinkgate.methods.method`."""

from sinkgate.methods.method import Fixed, Method

__all__ = ["Fixed", "Method"]
