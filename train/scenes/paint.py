"""The brushes: one-dimensional noise along a scene, and anti-aliased fills on a float32 canvas [H, W, 3] in 0..1.

Everything is a function of x in pixels, so that a scene may have any width, and edges are smoothed analytically.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoserve.train.scenes.palette import Color

Array = NDArray[np.floating[Any]]
Rng = np.random.Generator


def noise(rng: Rng, width: int, scale: float, octaves: int = 1, sharp: bool = False, gain: float = 0.5) -> Array:
    """Value noise [width] in -1..1, features `scale` pixels long; `sharp` joins lattice points by straight lines."""
    total = np.zeros(width, np.float32)
    amplitude, norm = 1.0, 0.0
    for _ in range(octaves):
        x = np.arange(width) / scale + rng.random()
        cell = x.astype(int)
        t = x - cell
        if not sharp:
            t = t * t * (3 - 2 * t)
        values = rng.uniform(-1, 1, int(width / scale) + 3)
        total += (amplitude * (values[cell] * (1 - t) + values[cell + 1] * t)).astype(np.float32)
        norm += amplitude
        amplitude *= gain
        scale /= 2.07
    return total / np.float32(norm)


def peaks(rng: Rng, width: int, scale: float) -> Array:
    """A mountain skyline [width] in 0..1: high and low points in turn, joined by broken straight lines."""
    count = int(2 * width / scale) + 6
    gaps = rng.uniform(0.6, 1.4, count) * scale / 2
    places = np.cumsum(gaps) - scale
    heights = np.where(np.arange(count) % 2 == 0, rng.uniform(0.55, 1.0, count), rng.uniform(0.12, 0.45, count))
    line = np.interp(np.arange(width), places, heights).astype(np.float32)
    rough = noise(rng, width, scale / 3.5, 3, sharp=True)
    return np.clip(line + 0.11 * rough, 0, 1.1)


def vertical_gradient(stops: tuple[Color, ...], places: tuple[float, ...], rows: int) -> Array:
    """[rows, 3]: colours `stops` at heights `places` (in rows), joined smoothly."""
    y = np.arange(rows)
    return np.stack([np.interp(y, places, [s[c] for s in stops]) for c in range(3)], axis=1).astype(np.float32)


def blend(canvas: Array, box: tuple[slice, slice], color: Array | Color, alpha: Array | float) -> None:
    """Lay `color` over a box of the canvas with opacity `alpha` [rows, columns]."""
    region = canvas[box]
    a = np.asarray(alpha, np.float32)
    if a.ndim == 2:
        a = a[..., None]
    region += (color - region) * a


def fill_below(
    canvas: Array,
    top: Array,
    color: Color | Callable[[Array, Array], Array],
    soft: float = 1.2,
    bottom: int | None = None,
) -> None:
    """Fill everything below the skyline `top` [W] (in rows), down to row `bottom`.

    color: one colour, or a function of (row number [n, 1], depth below the skyline [n, W]) giving [n, W or 1, 3].
    """
    height = canvas.shape[0] if bottom is None else bottom
    first = int(np.clip(np.floor(top.min()) - 2, 0, height))
    if first >= height:
        return
    y = np.arange(first, height, dtype=np.float32)[:, None]
    depth = y - top[None, :]
    alpha = np.clip(depth / soft + 0.5, 0, 1)
    paint = color(y, depth) if callable(color) else color
    blend(canvas, (slice(first, height), slice(None)), paint, alpha)


def lens(
    canvas: Array, x: float, y: float, width: float, thick: float, color: Color, alpha: float, soft: float = 1.5
) -> None:
    """A thin horizontal lens: a streak of cloud, a glint on water."""
    x0, x1 = max(0, int(x - width / 2)), min(canvas.shape[1], int(x + width / 2) + 2)
    y0, y1 = max(0, int(y - thick - soft)), min(canvas.shape[0], int(y + thick + soft) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    u = np.clip(1 - ((np.arange(x0, x1) - x) / (width / 2)) ** 2, 0, 1)
    d = thick * u[None, :] - np.abs(np.arange(y0, y1)[:, None] - y)
    a = np.clip(d / soft + 0.5, 0, 1) * np.minimum(1, 3 * u)[None, :] * alpha
    blend(canvas, (slice(y0, y1), slice(x0, x1)), color, a.astype(np.float32))


def disc(canvas: Array, x: float, y: float, radius: float, color: Color, alpha: float = 1.0, soft: float = 1.2) -> None:
    """A round spot."""
    r = radius + soft
    x0, x1 = max(0, int(x - r) - 1), min(canvas.shape[1], int(x + r) + 2)
    y0, y1 = max(0, int(y - r) - 1), min(canvas.shape[0], int(y + r) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    distance = np.hypot(np.arange(x0, x1)[None, :] - x, np.arange(y0, y1)[:, None] - y)
    a = np.clip((radius - distance) / soft + 0.5, 0, 1) * alpha
    blend(canvas, (slice(y0, y1), slice(x0, x1)), color, a.astype(np.float32))


def pine_line(rng: Rng, width: int, base: Array, height: float, spacing: float) -> Array:
    """Skyline [W] of a row of conifers standing on `base`: narrow cones with stepped branches."""
    top = base.astype(np.float32).copy()
    x = rng.uniform(-spacing, 0)
    while x < width + spacing:
        h = height * rng.uniform(0.6, 1.15)
        half = h * rng.uniform(0.2, 0.27)
        x0, x1 = max(0, int(x - half)), min(width, int(x + half) + 2)
        if x0 < x1:
            u = np.abs(np.arange(x0, x1) - x) / half
            steps = 4.0
            branch = u + 0.10 * (1 - np.mod(u * steps, 1.0)) * (u > 0.06)
            foot = base[int(np.clip(x, 0, width - 1))]
            tree = foot - h * np.clip(1 - branch, 0, 1)
            top[x0:x1] = np.minimum(top[x0:x1], np.where(u <= 1, tree, top[x0:x1]))
        x += spacing * rng.uniform(0.5, 1.6)
    return top


def round_trees(rng: Rng, width: int, base: Array, size: float, spacing: float) -> Array:
    """Skyline [W] of a row of broad-leaved crowns standing on `base`."""
    top = base.astype(np.float32).copy()
    x = rng.uniform(-spacing, 0)
    while x < width + spacing:
        h, half = size * rng.uniform(0.7, 1.2), size * rng.uniform(0.45, 0.7)
        x0, x1 = max(0, int(x - half)), min(width, int(x + half) + 2)
        if x0 < x1:
            u = np.clip(np.abs(np.arange(x0, x1) - x) / half, 0, 1)
            foot = base[int(np.clip(x, 0, width - 1))]
            top[x0:x1] = np.minimum(top[x0:x1], foot - h * np.sqrt(1 - u * u))
        x += spacing * rng.uniform(0.4, 1.7)
    return top
