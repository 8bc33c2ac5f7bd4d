"""The embedded demo: a small world of shapes and a model trained on it."""
