"""Draw one scene: sky, then land, to uint8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panoserve.train.scenes.foreground import draw_foreground
from panoserve.train.scenes.land import FOLD, PAINTERS, Land
from panoserve.train.scenes.palette import materials_of, palette_of
from panoserve.train.scenes.sky import draw_sky
from panoserve.train.scenes.spec import SceneSpec

DRAWN_HEIGHT = FOLD  # rows of every scene one crop high; the horizon is fixed in these pixels


def draw_scene(spec: SceneSpec, width: int, height: int = DRAWN_HEIGHT, own_land: bool = False) -> NDArray[np.uint8]:
    """The scene as uint8 [height, width, 3]; the same arguments give the same picture on every machine.

    Its first 256 rows do not depend on `height`; below them the foreground goes on. With `own_land` the land has random
    numbers of its own, so that scenes of one seed have the same land under any sky.
    """
    canvas = np.zeros((height, width, 3), np.float32)
    palette, materials = palette_of(spec), materials_of(spec)
    rng = np.random.default_rng([spec.seed, 0xD2A3])
    lights = draw_sky(canvas, spec, palette, rng)
    if own_land:
        rng = np.random.default_rng([spec.seed, 0x1A9D])
    land = Land(canvas, spec, palette, materials, rng)
    PAINTERS[spec.feature](land, lights)
    draw_foreground(land)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
