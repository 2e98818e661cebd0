"""Shared vocabulary as values: the token grid, the canvas, and the shape of a model."""
