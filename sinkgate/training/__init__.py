"""Training, evaluation and stacking of methods."""
