"""Images: opening files, and the grid of patches and visual tokens."""
