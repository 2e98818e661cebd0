"""What lies below a scene one crop high, if its canvas is taller: the ground at the viewer's feet, going on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from panoserve.train.scenes.land import FLOWERS, FOLD, Land, crests
from panoserve.train.scenes.paint import Array, lens, noise, round_trees
from panoserve.train.scenes.palette import mix, rgb

Band = Callable[[Land, Array, int], None]  # paints one band of ground below a skyline [W]; the last is its number


def draw_foreground(land: Land) -> None:
    """Paint in place what is below row 256: bands of the scene's own ground, one below the other, or water."""
    if land.height <= FOLD:
        return
    if land.spec.feature == "sea" and land.spec.extra != "beach":
        _waves(land)
        return
    band, pitch, swing = _BANDS[land.spec.feature]
    base, number = FOLD + pitch * land.rng.uniform(0.3, 0.8), 0
    while base < land.height + 2 * swing:
        top = base + swing * noise(land.rng, land.width, 280, 2)
        band(land, np.maximum(top, FOLD).astype(np.float32), number)
        base, number = base + pitch * land.rng.uniform(0.7, 1.5), number + 1


def _waves(land: Land) -> None:
    """Ripples as wide as those nearest to the viewer."""
    p, rng = land.palette, land.rng
    color = mix(p.sky[3], p.light, 0.35)
    for _ in range(int(land.width * (land.height - FOLD) * 0.0011)):
        x, y = rng.uniform(-40, land.width + 40), rng.uniform(FOLD - 4, land.height + 4)
        lens(land.canvas, x, y, rng.uniform(50, 125), rng.uniform(1.6, 2.4), color, 0.34 * rng.uniform(0.5, 1), 1.3)


def _sand(land: Land, top: Array, number: int) -> None:
    land.layer(top, land.materials.sand, 0.0, fade=120, soft=2)


def _dunes(land: Land, top: Array, number: int) -> None:
    profile = (top.mean() + 8 - 17 * crests(land.rng, land.width, 330)).astype(np.float32)
    profile = np.maximum(profile, FOLD)
    land.layer(profile, land.materials.sand, 0.0, fade=80)
    land.lee(profile, land.materials.sand, 0.0, 330)


def _meadow(land: Land, top: Array, number: int) -> None:
    bare = land.spec.feature == "mountains" and land.spec.extra == "bare"
    land.layer(top, land.materials.grass_far if bare else land.materials.grass, 0.0, fade=100)
    flowery = (land.spec.feature, land.spec.extra) in (("mountains", "meadow"), ("hills", "flowers"))
    if flowery and land.spec.season in ("spring", "summer"):
        land.flowers(top, FLOWERS[land.spec.feature, land.spec.season], float(top.max()) + 40)


def _fields(land: Land, top: Array, number: int) -> None:
    m = land.materials
    fields = land.spec.extra == "fields" and land.spec.season != "winter"
    crops = (rgb("e6cf72"), rgb("a9c45a"), rgb("c9a85c")) if fields else (m.grass,)
    if land.spec.extra == "trees":
        for leaf in m.leaves:
            grove = top + 8 + 60 * np.clip(noise(land.rng, land.width, 150) - 0.1, 0, 1)
            land.trees(round_trees(land.rng, land.width, grove, 26, 40), top, leaf, 30, 0.0)
    if land.spec.extra == "flowers":
        _meadow(land, top, number)
    else:
        land.layer(top, mix(m.grass, crops[number % len(crops)], 0.75), 0.0, fade=70)


def _woods(land: Land, top: Array, number: int) -> None:
    base, height = top + 44, 50.0
    if land.spec.extra == "leaves":
        for leaf in land.materials.leaves:
            land.trees(round_trees(land.rng, land.width, base, height * 0.8, 96), base, leaf, height * 0.9, 0.0)
        land.layer(base + 2, land.materials.grass, 0.0, fade=30, soft=5)
    else:
        land.pines(base, height, 30, 0.03)
        land.layer(base + 12, land.materials.grass, 0.0, fade=40, soft=2)


_BANDS: dict[str, tuple[Band, float, float]] = {  # how a band is painted, rows from one to the next, swing of a skyline
    "sea": (_sand, 42, 12.0),
    "lake": (_meadow, 42, 12.0),
    "mountains": (_meadow, 42, 12.0),
    "desert": (_dunes, 30, 0.0),
    "forest": (_woods, 60, 12.0),
    "hills": (_fields, 32, 14.0),
}
