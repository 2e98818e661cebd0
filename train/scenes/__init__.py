"""Procedural landscapes: what a scene shows (spec), its colours (palette), its brushes (paint), sky, land, captions."""

from panoserve.train.scenes.compose import DRAWN_HEIGHT, draw_scene
from panoserve.train.scenes.spec import SceneSpec, sample_spec

__all__ = ["DRAWN_HEIGHT", "SceneSpec", "draw_scene", "sample_spec"]
