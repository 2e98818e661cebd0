"""The upper half of a scene: gradient, stars, northern lights, sun or moon with its glow, clouds."""

from __future__ import annotations

import numpy as np

from panoserve.train.scenes.paint import Array, Rng, blend, disc, fill_below, lens, noise, vertical_gradient
from panoserve.train.scenes.palette import Color, Palette, mix, rgb
from panoserve.train.scenes.spec import SceneSpec

HORIZON = 160  # row of the horizon in a 256-row scene: the same in every scene, so that crops continue well
LIGHT_SPACING = 1280  # pixels between one sun (or moon) and the next: about one in a panorama of six crops


def draw_sky(canvas: Array, spec: SceneSpec, palette: Palette, rng: Rng) -> list[tuple[float, float]]:
    """Paint the sky in place; returns the places (x, y) of suns or moons, for glints and reflections."""
    height, width = canvas.shape[:2]
    places = (0.0, 0.40 * HORIZON, 0.78 * HORIZON, float(HORIZON))
    canvas[:] = vertical_gradient(palette.sky, places, height)[:, None]
    if spec.stars:
        _stars(canvas, rng, width)
    if spec.aurora:
        _aurora(canvas, rng, width)
    lights = _lights(spec, rng, width)
    for x, y in lights:
        _glow(canvas, spec, palette, x, y)
    if spec.weather in ("clear", "mist"):
        _streaks(canvas, palette, rng, width, count=3, warm=spec.time in ("dawn", "sunset", "dusk"))
    for x, y in lights:
        _body(canvas, spec, palette, x, y)
    if spec.weather == "overcast":
        _ceiling(canvas, palette, rng, width)
    if spec.weather == "cloudy":
        if spec.time in ("morning", "noon") or rng.random() < 0.35:
            _cumulus(canvas, palette, rng, width)
        else:
            _streaks(canvas, palette, rng, width, count=13, warm=True)
    return lights


def _lights(spec: SceneSpec, rng: Rng, width: int) -> list[tuple[float, float]]:
    if not spec.sun and spec.moon == "none":
        return []
    if spec.sun:
        low, high = {"dawn": (112, 140), "morning": (70, 100), "noon": (34, 58), "sunset": (108, 142)}[spec.time]
    else:
        low, high = (34, 72) if spec.time == "night" else (60, 90)
    y = float(rng.uniform(low, high))
    if width < LIGHT_SPACING:
        return [(float(rng.uniform(0, width)), y)]
    first = rng.uniform(0, LIGHT_SPACING)
    return [(float(first + i * LIGHT_SPACING), y) for i in range(int(np.ceil((width - first) / LIGHT_SPACING)))]


def _glow(canvas: Array, spec: SceneSpec, palette: Palette, x: float, y: float) -> None:
    """Light scattered around sun or moon: a tight halo and a wide, flat one along the horizon."""
    dx = np.arange(canvas.shape[1], dtype=np.float32)[None, :] - x
    dy = np.arange(canvas.shape[0], dtype=np.float32)[:, None] - y
    halo = 0.62 * np.exp(-np.hypot(dx, dy) / (34 if spec.sun else 24))
    wide = np.exp(-np.hypot(dx / 300, dy / 70)) * (0.42 if spec.time in ("dawn", "sunset") else 0.2)
    if not spec.sun:
        wide *= 0.8
    tint = mix(palette.sun, palette.sky[3], 0.25) if spec.sun else mix(palette.sun, palette.sky[2], 0.35)
    blend(canvas, (slice(None), slice(None)), tint, np.clip(halo + wide, 0, 0.9).astype(np.float32))


def _body(canvas: Array, spec: SceneSpec, palette: Palette, x: float, y: float) -> None:
    if spec.sun:
        disc(canvas, x, y, {"noon": 13.0, "morning": 14.0}.get(spec.time, 19.0), palette.sun)
        return
    if spec.moon == "full":
        disc(canvas, x, y, 15, palette.sun)
        shadow = mix(palette.sun, palette.sky[1], 0.2)
        for ox, oy, r in ((-5, -3, 3.6), (4, 4, 3.0), (3, -6, 2.2)):
            disc(canvas, x + ox, y + oy, r, shadow, soft=2)
        return
    _crescent(canvas, x, y, palette.sun)


def _crescent(canvas: Array, x: float, y: float, color: Color, radius: float = 14.0) -> None:
    r = int(radius) + 3
    x0, x1 = max(0, int(x) - r), min(canvas.shape[1], int(x) + r)
    y0, y1 = max(0, int(y) - r), min(canvas.shape[0], int(y) + r)
    if x0 >= x1 or y0 >= y1:
        return
    gx, gy = np.arange(x0, x1)[None, :], np.arange(y0, y1)[:, None]
    inside = np.clip(radius - np.hypot(gx - x, gy - y) + 0.5, 0, 1)
    cut = np.clip(radius * 0.9 - np.hypot(gx - x - 7, gy - y + 3) + 0.5, 0, 1)
    blend(canvas, (slice(y0, y1), slice(x0, x1)), color, (inside * (1 - cut)).astype(np.float32))


def _stars(canvas: Array, rng: Rng, width: int) -> None:
    white = rgb("f4f6ff")
    for _ in range(int(width * 0.085)):
        y = rng.uniform(3, HORIZON - 18) * rng.uniform(0.55, 1)
        bright = rng.uniform(0.35, 1) * (1 - 0.55 * y / HORIZON)
        disc(canvas, rng.uniform(0, width), y, rng.choice((0.8, 1.1, 1.6), p=(0.5, 0.35, 0.15)), white, bright)


def _aurora(canvas: Array, rng: Rng, width: int) -> None:
    """Curtains of green light fading upwards."""
    for tint, level in ((rgb("58f0a0"), 92.0), (rgb("46d8c0"), 64.0)):
        foot = level + 16 * noise(rng, width, 260) + 7 * noise(rng, width, 70)
        strength = np.clip(0.62 + 0.5 * noise(rng, width, 210), 0.12, 1) * (0.85 + 0.15 * noise(rng, width, 16))
        up = foot[None, :] - np.arange(HORIZON, dtype=np.float32)[:, None]
        alpha = np.where(up > 0, np.exp(-up / 30), np.exp(up / 5)) * strength[None, :] * 0.62
        blend(canvas, (slice(0, HORIZON), slice(None)), tint, alpha.astype(np.float32))


def _streaks(canvas: Array, palette: Palette, rng: Rng, width: int, count: int, warm: bool) -> None:
    """Long flat clouds, `count` per 640 pixels; lit from below near the horizon when the sun is low."""
    for _ in range(max(1, round(count * width / 640))):
        x, y = rng.uniform(0, width), rng.uniform(22, HORIZON - 18)
        low = y / HORIZON
        color = mix(palette.cloud_dark, palette.cloud_lit, low if warm else 0.85)
        long, thick = rng.uniform(110, 330), rng.uniform(2.5, 6.5)
        for _ in range(3):
            dx, dy = rng.uniform(-0.3, 0.3) * long, rng.uniform(-1.1, 1.1) * thick
            lens(canvas, x + dx, y + dy, long * rng.uniform(0.45, 1), thick * rng.uniform(0.5, 1), color, 0.72, 2.5)


def _cumulus(canvas: Array, palette: Palette, rng: Rng, width: int) -> None:
    """Heaped clouds with flat feet; higher ones are larger and nearer."""
    places = np.sort(rng.uniform(26, HORIZON - 26, round(5.5 * width / 640)))[::-1]
    for y in places:
        near = 1 - y / HORIZON
        w, h = rng.uniform(90, 150) * (0.6 + 0.9 * near), rng.uniform(17, 26) * (0.6 + 0.9 * near)
        _heap(canvas, rng, rng.uniform(-30, width + 30), y + h / 2, w, h, palette)


def _heap(canvas: Array, rng: Rng, x: float, foot: float, w: float, h: float, palette: Palette) -> None:
    x0, x1 = max(0, int(x - w / 2)), min(canvas.shape[1], int(x + w / 2) + 1)
    if x0 >= x1:
        return
    u = (np.arange(x0, x1) - x) / (w / 2)
    top = np.zeros(x1 - x0)
    for center in np.linspace(-0.72, 0.72, 6) + rng.uniform(-0.08, 0.08, 6):
        r = rng.uniform(0.22, 0.36)
        bump = (0.55 + 0.55 * (1 - center * center)) * rng.uniform(0.7, 1)
        top = np.maximum(top, bump * np.sqrt(np.clip(1 - ((u - center) / r) ** 2, 0, 1)))
    rise = h * top
    y0, y1 = max(0, int(foot - 1.3 * h) - 2), min(canvas.shape[0], int(foot) + 8)
    gy = np.arange(y0, y1)[:, None]
    alpha = np.clip((gy - (foot - rise[None, :])) / 1.5 + 0.5, 0, 1) * np.clip((foot - gy) / 6 + 0.5, 0, 1)
    alpha = alpha * np.clip(rise / 3, 0, 1)[None, :] * 0.94
    lit = np.clip((foot - gy) / h, 0, 1)[..., None]
    color = palette.cloud_dark + (palette.cloud_lit - palette.cloud_dark) * lit
    blend(canvas, (slice(y0, y1), slice(x0, x1)), color.astype(np.float32), alpha.astype(np.float32))


def _ceiling(canvas: Array, palette: Palette, rng: Rng, width: int) -> None:
    """Bands of stratus, drawn from the horizon up so that nearer bands hang in front."""
    for level, tone in ((118, 0.85), (92, 0.66), (66, 0.45), (38, 0.22), (10, 0.05)):
        color = mix(palette.cloud_dark, palette.cloud_lit, tone)
        edge = level + 9 * noise(rng, width, 150, 2) + 3.5 * noise(rng, width, 40)
        upside = canvas[::-1]
        fill_below(upside, canvas.shape[0] - 1 - edge, color, soft=9)
