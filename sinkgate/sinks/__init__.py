"""Sink criteria, sink groups and fixed gates: pure functions of tensors."""
