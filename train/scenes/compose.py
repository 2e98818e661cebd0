"""Draw one scene: sky, then land, to uint8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panoserve.train.scenes.land import PAINTERS, Land
from panoserve.train.scenes.palette import materials_of, palette_of
from panoserve.train.scenes.sky import draw_sky
from panoserve.train.scenes.spec import SceneSpec

DRAWN_HEIGHT = 256  # rows of every scene; the horizon is fixed in these pixels


def draw_scene(spec: SceneSpec, width: int) -> NDArray[np.uint8]:
    """The scene as uint8 [256, width, 3]; the same spec and width give the same picture on every machine."""
    rng = np.random.default_rng([spec.seed, 0xD2A3])
    canvas = np.zeros((DRAWN_HEIGHT, width, 3), np.float32)
    palette, materials = palette_of(spec), materials_of(spec)
    lights = draw_sky(canvas, spec, palette, rng)
    PAINTERS[spec.feature](Land(canvas, spec, palette, materials, rng), lights)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
