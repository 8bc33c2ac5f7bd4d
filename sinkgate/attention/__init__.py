"""Attention-level tools: scale Keys, record attention rows, run part of a forward pass."""
