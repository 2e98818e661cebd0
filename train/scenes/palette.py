"""Colours: skies by time of day and mood, the light that falls on the land, and materials by season.

All colours are float32 RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoserve.train.scenes.spec import SceneSpec

Color = NDArray[np.floating[Any]]


def rgb(code: str) -> Color:
    """`rrggbb` as float32 [3]."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def mix(a: Color, b: Color, t: float) -> Color:
    """a at t = 0, b at t = 1."""
    return (a + (b - a) * np.float32(t)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one scene's air and light."""

    sky: tuple[Color, Color, Color, Color]  # zenith, upper, lower, horizon
    light: Color  # multiplies a material in the light
    shade: Color  # multiplies a material in the shade
    sun: Color
    cloud_lit: Color
    cloud_dark: Color
    haze: Color  # what distance fades to
    fog: float  # 0 clear air, 1 thick mist


# time, mood -> zenith, upper, lower, horizon | light, shade | sun | cloud lit, cloud dark
_SKIES = {
    ("dawn", "pink"): "5d70ad 9a8fc4 ecaabb fdd8ba | ffd9cc 8a7fae | fff0c8 | ffd9d2 b892b8",
    ("dawn", "golden"): "6396c4 a4c4d6 f4dcb0 fdc87e | ffe2b4 8b93a8 | fff4cc | fff0d6 d0a896",
    ("dawn", "lavender"): "625ca4 9385c6 cdb2dc f6d3dc | f2d6ee 7c74ad | ffeede | f2d9ec a58fc4",
    ("morning", "blue"): "4690d6 7db6e8 bedef2 fcf2de | fff6e6 93a8bf | fffbe6 | ffffff b9cbdc",
    ("morning", "pale"): "78aed4 a9cee3 dceaec fdf3e0 | fff3dc 9db0bd | fffbe6 | ffffff c6d2da",
    ("noon", "blue"): "1d6cc8 4696e2 8ac4f0 d5eef9 | ffffff 8ba3c0 | fffef2 | ffffff b4c9e0",
    ("noon", "turquoise"): "1a8cc0 4db6da 98dae8 e0f6f2 | ffffff 88aab8 | fffef2 | ffffff b0d0d8",
    ("sunset", "red"): "3a2152 962c50 e04a38 ffa24e | ff9c78 6a3a62 | ffe08a | ff7a52 74305a",
    ("sunset", "orange"): "414c80 ae667c f48c48 ffd47c | ffc48a 7a5f80 | fff0b0 | ffb070 94607e",
    ("sunset", "pink"): "4b4084 aa5c9a f2839a ffcca0 | ffb4b4 75588e | fff0c4 | ffa8b0 90589a",
    ("sunset", "golden"): "5c7ea8 c4a684 f8bc5e ffe69c | ffd894 8d7f80 | fffad0 | ffe0a0 b08c78",
    ("dusk", "violet"): "1d1a48 47327c 8c54a2 e08eac | b48cc8 453874 | ffe6c8 | b878b4 3c2e6c",
    ("dusk", "blue"): "132852 264a82 547cae bcb8c6 | 94a8cc 34487a | ffeed6 | 88a0c4 2c4674",
    ("dusk", "teal"): "0e2d44 1e566a 50908f ecbc90 | a4b8ac 2f5466 | ffeed0 | 98b0a4 28505e",
    ("night", "blue"): "050c28 0b1b46 153168 2c5490 | 7c9ad0 283a6c | f6f2dc | 4c6ca4 182c5c",
    ("night", "teal"): "031520 06303f 0e505c 2c7a7e | 74b0b4 1e4854 | eef6e4 | 3c8088 0c3844",
    ("night", "purple"): "0c0724 1e1148 39206c 68428e | a08cd0 382868 | f8ecdc | 6c509c 281850",
}


def palette_of(spec: SceneSpec) -> Palette:
    """The palette of a scene: its time and mood, then its weather."""
    sky, light, sun, cloud = ([rgb(code) for code in part.split()] for part in _SKIES[spec.time, spec.mood].split("|"))
    base = Palette((sky[0], sky[1], sky[2], sky[3]), light[0], light[1], sun[0], cloud[0], cloud[1], sky[3], 0.0)
    if spec.weather == "overcast":
        return _overcast(base)
    if spec.weather == "mist":
        return _misty(base)
    return base


def _grey(color: Color, amount: float) -> Color:
    luminance = np.float32(color @ np.array([0.3, 0.59, 0.11], np.float32))
    return mix(color, np.full(3, luminance, np.float32), amount)


def _overcast(p: Palette) -> Palette:
    """A closed grey ceiling: colours pale, contrast between light and shade goes."""
    top = _grey(mix(p.sky[0], p.sky[3], 0.35), 0.6)
    low = _grey(mix(p.sky[2], p.sky[3], 0.4), 0.45)
    sky = (top, mix(top, low, 0.4), mix(top, low, 0.75), low)
    dark = _grey(p.cloud_dark, 0.5)
    return replace(
        p,
        sky=sky,
        light=_grey(mix(p.light, p.shade, 0.5), 0.35),
        shade=_grey(mix(p.shade, p.light, 0.15), 0.35),
        cloud_lit=_grey(mix(p.cloud_lit, low, 0.4), 0.4),
        cloud_dark=mix(dark, top, 0.3),
        haze=low,
        fog=0.2,
    )


def _misty(p: Palette) -> Palette:
    """Mist takes the colour of the low sky and swallows distance."""
    haze = mix(p.sky[2], p.sky[3], 0.65)
    sky = (mix(p.sky[0], haze, 0.3), mix(p.sky[1], haze, 0.45), mix(p.sky[2], haze, 0.7), haze)
    return replace(p, sky=sky, light=mix(p.light, haze, 0.15), shade=mix(p.shade, haze, 0.2), haze=haze, fog=1.0)


@dataclass(frozen=True, slots=True)
class Materials:
    """What the land is made of, in white light."""

    grass: Color
    grass_far: Color
    leaves: tuple[Color, ...]  # broad-leaved trees
    pine: Color
    rock: Color
    snow_line: float  # share of a mountain's height that is white: 0 none, 1 all
    snow: Color
    sand: Color
    water: Color


_SEASONS = {
    "spring": ("96c256 7fb27a", "8fbf62 b5d084 f0b8c8", "3c7a50", 0.3),
    "summer": ("6aa648 6a9c70", "3f7c3c 578f42 2f6a44", "2a6248", 0.16),
    "autumn": ("c2a04a b09a68", "d6792c c4502a e0a238", "4a6040", 0.25),
    "winter": ("eaf0f8 dfe8f4", "b8c4d4 a4b2c6 ccd6e2", "3e5e66", 0.9),
}


def materials_of(spec: SceneSpec) -> Materials:
    """The materials of a scene's season."""
    grass, leaves, pine, snow_line = _SEASONS[spec.season]
    near, far = (rgb(code) for code in grass.split())
    return Materials(
        grass=near,
        grass_far=far,
        leaves=tuple(rgb(code) for code in leaves.split()),
        pine=rgb(pine),
        rock=rgb("8a90a4") if spec.season == "winter" else rgb("8c8794"),
        snow_line=snow_line,
        snow=rgb("f8fbff"),
        sand=rgb("ecc48c"),
        water=rgb("2f7fa8"),
    )
