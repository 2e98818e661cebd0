"""The lower half of a scene, one painter a main feature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from panoserve.train.scenes.paint import Array, Rng, blend, disc, fill_below, lens, noise, peaks, pine_line, round_trees
from panoserve.train.scenes.palette import Color, Materials, Palette, mix, rgb
from panoserve.train.scenes.sky import HORIZON
from panoserve.train.scenes.spec import SceneSpec

Lights = list[tuple[float, float]]
FOLD = 256  # rows of a scene one crop high, where its perspective ends; what lies below is foreground.py's
FLOWERS: dict[tuple[str, str], tuple[Color, ...]] = {  # by feature and season
    ("mountains", "spring"): (rgb("fff4f0"), rgb("f2c14a"), rgb("d878b8")),
    ("mountains", "summer"): (rgb("fff4f0"), rgb("f2c14a"), rgb("d878b8")),
    ("hills", "spring"): (rgb("c890e0"), rgb("fff4fa"), rgb("f4d05c")),
    ("hills", "summer"): (rgb("e8483c"), rgb("f0604c"), rgb("fff0e4")),
}


class Land:
    """The brushes of one scene: canvas, light and randomness in one place."""

    def __init__(self, canvas: Array, spec: SceneSpec, palette: Palette, materials: Materials, rng: Rng) -> None:
        self.canvas, self.spec, self.palette, self.materials, self.rng = canvas, spec, palette, materials, rng
        self.height, self.width = canvas.shape[:2]

    def tone(self, material: Color, distance: float, lit: float = 1.0) -> Color:
        """A material under the scene's light, seen through `distance` (0 here, 1 the horizon) of its air."""
        p = self.palette
        color = material * (p.shade + (p.light - p.shade) * np.float32(lit))
        haze = distance ** (1.0 - 0.5 * p.fog) * (0.8 + 0.16 * p.fog)
        return mix(color, p.haze, float(np.clip(haze, 0, 0.96)))

    def layer(self, top: Array, material: Color, distance: float, fade: float = 60.0, soft: float = 1.2) -> None:
        """Ground below a skyline, lit at the crest and darker (or mistier, in fog) further down."""
        crest, foot = self.tone(material, distance, 1.0), self.tone(material, distance, 0.35)
        if self.palette.fog > 0.5:
            foot = mix(crest, self.palette.haze, 0.72)

        def paint(y: Array, depth: Array) -> Array:
            t = np.clip(depth / fade, 0, 1)[..., None]
            return crest + (foot - crest) * t

        fill_below(self.canvas, top, paint, soft)

    def ridge(self, base: float, rise: float, scale: float, distance: float, snow: bool = True) -> None:
        """A mountain chain whose peaks stand `rise` rows above `base`: lit and shaded faces, snow caps."""
        line = peaks(self.rng, self.width, scale)
        top = base - rise * line
        smooth = np.convolve(np.pad(line, 6, "edge"), np.ones(13) / 13, "valid")
        face = np.clip(np.gradient(smooth) * scale * 0.55 + 0.5, 0, 1).astype(np.float32)
        jitter = noise(self.rng, 300, 15, 2, sharp=True) * 10
        material = self.materials.rock
        lit, dark = self.tone(material, distance, 1.0), self.tone(material, distance, 0.12)
        white, blue = self.tone(self.materials.snow, distance, 1.0), self.tone(self.materials.snow, distance, 0.3)
        foot = mix(dark, self.palette.haze, 0.35 + 0.4 * self.palette.fog)
        cap = base - rise * (1 - 0.85 * self.materials.snow_line) + 7 * noise(self.rng, self.width, 22, 2, sharp=True)
        columns = np.arange(self.width, dtype=np.int64)[None, :]

        def paint(y: Array, depth: Array) -> Array:
            rows = np.clip(y.astype(np.int64), 0, 299)
            shift = 0.5 * np.clip(depth, 0, None) + jitter[rows]
            shade = face[np.clip(columns + shift.astype(np.int64), 0, self.width - 1)][..., None]
            color = dark + (lit - dark) * shade
            if snow:
                icy = np.clip((cap[None, :] - y + 12 * (shade[..., 0] - 0.5)) / 2 + 0.5, 0, 1)[..., None]
                color = color + (blue + (white - blue) * shade - color) * icy
            low = np.clip((y - (base - 0.55 * rise)) / (0.75 * rise), 0, 1)[..., None] * 0.85
            return (color + (foot - color) * low).astype(np.float32)

        fill_below(self.canvas, top, paint)

    def trees(self, top: Array, base: Array, material: Color, height: float, distance: float) -> None:
        """A row of trees with skyline `top` on the ground `base`: light in the crowns, dark (or misty) at the foot."""
        crown, foot = self.tone(material, distance, 0.9), self.tone(material, distance, 0.15)
        if self.palette.fog > 0.5:
            foot = mix(crown, self.palette.haze, 0.6)

        def paint(y: Array, depth: Array) -> Array:
            t = np.clip((y - (base - height)) / height, 0, 1)[..., None]
            return crown + (foot - crown) * t

        fill_below(self.canvas, top, paint)

    def lee(self, profile: Array, material: Color, distance: float, scale: float) -> None:
        """Shade the side of each dune that falls to the right: from the crest a blade of shadow runs down the slope."""
        slope = np.clip(np.gradient(profile), 0, None)
        fall = np.convolve(np.pad(slope, 10, "edge"), np.ones(21) / 21, "valid")
        reach = fall * scale * 0.13
        first = max(0, int(profile.min()) - 1)
        y = np.arange(first, self.height, dtype=np.float32)[:, None]
        inside = (
            np.clip(y - profile + 0.5, 0, 1) * np.clip((profile + reach - y) / 2 + 0.5, 0, 1) * np.clip(reach / 3, 0, 1)
        )
        dark = self.tone(material, distance, 0.25)
        blend(self.canvas, (slice(first, self.height), slice(None)), dark, (inside * 0.85).astype(np.float32))

    def pines(self, base: Array, height: float, spacing: float, distance: float) -> None:
        """A row of conifers."""
        self.trees(pine_line(self.rng, self.width, base, height, spacing), base, self.materials.pine, height, distance)

    def water(self, top: int, lights: Lights) -> None:
        """Water from row `top` down: the low sky at the horizon, deepening towards the viewer, ripples, glints."""
        p, rng = self.palette, self.rng
        far = mix(p.sky[3], self.tone(self.materials.water, 0.3, 0.8), 0.38)
        near = mix(p.sky[1], self.tone(self.materials.water, 0, 0.45), 0.62)

        def paint(y: Array, depth: Array) -> Array:
            t = np.clip((y - top) / (FOLD - top), 0, 1)[..., None] ** 0.7
            return far + (near - far) * t

        fill_below(self.canvas, np.full(self.width, top, np.float32), paint)
        self.ripples(top, mix(p.sky[3], p.light, 0.35), 0.34)
        for x, _ in lights:
            bright = mix(p.sun, p.sky[3], 0.15)
            for y in range(top + 2, FOLD, 3):
                t = (y - top) / (FOLD - top)
                for _ in range(2):
                    spread = 7 + 30 * t
                    lens(
                        self.canvas,
                        x + rng.normal() * spread * 0.5,
                        y + rng.uniform(-1, 1),
                        rng.uniform(12, 26) + 34 * t,
                        0.7 + 1.3 * t,
                        bright,
                        0.78,
                        1.2,
                    )

    def ripples(self, top: int, color: Color, alpha: float) -> None:
        rng = self.rng
        for _ in range(int(self.width * 0.14)):
            t = rng.random() ** 0.8
            lens(
                self.canvas,
                rng.uniform(-40, self.width + 40),
                top + 3 + t * (FOLD - top - 3),
                rng.uniform(18, 42) * (0.5 + 1.9 * t),
                0.5 + 1.6 * t,
                color,
                alpha * rng.uniform(0.5, 1),
                1.3,
            )

    def mirror(self, top: int, strength: float = 0.7) -> None:
        """Reflect what stands above row `top` into the water below it."""
        rows = np.arange(top, FOLD)
        depth = rows - top
        source = np.clip(top - 1 - (depth * 1.25).astype(int), 0, top - 1)
        image = self.canvas[source]
        color = self.tone(self.materials.water, 0.1, 0.6)
        alpha = (strength * (1 - 0.45 * depth / (FOLD - top))).astype(np.float32)
        self.canvas[top:FOLD] = color + (image - color) * alpha[:, None, None]

    def flowers(self, top: Array, colors: tuple[Color, ...], bottom: float = FOLD) -> None:
        """Flowers between a skyline and row `bottom`, larger towards it."""
        rng = self.rng
        for _ in range(int(self.width * 0.55)):
            x = rng.uniform(0, self.width - 1)
            foot = float(top[int(x)])
            t = rng.random()
            y = foot + 6 + t * (bottom - foot - 6)
            color = self.tone(colors[int(rng.integers(len(colors)))], 0.1 * (1 - t), 0.95)
            disc(self.canvas, x, y, 1.0 + 1.9 * t, color, 0.95)


def draw_sea(land: Land, lights: Lights) -> None:
    rng, width, extra = land.rng, land.width, land.spec.extra
    if extra in ("islands", "beach"):
        shape = noise(rng, width, 210, 1) + 0.35 * noise(rng, width, 60, 2)
        rise = np.clip(shape - (0.05 if extra == "islands" else 0.3), 0, 1) * 40
        land.layer(HORIZON + 1 - rise, land.materials.rock, 0.62, fade=40)
    land.water(HORIZON, lights)
    if extra == "boats":
        for _ in range(max(1, round(width / 230))):
            _sail_boat(land, rng.uniform(0, width), rng.uniform(0, 1))
    if extra == "islands":
        shape = noise(rng, width, 330, 1) + 0.3 * noise(rng, width, 50, 2)
        rise = np.clip(shape - 0.35, 0, 1) * 62
        top = np.where(rise > 0.5, 178 - rise, 400).astype(np.float32)
        body, dark = land.tone(land.materials.pine, 0.3, 0.75), land.tone(land.materials.pine, 0.3, 0.2)
        fill_below(land.canvas, top, lambda y, d: body + (dark - body) * np.clip(d / 34, 0, 1)[..., None], bottom=179)
    if extra == "beach":
        edge = 226 + 9 * noise(rng, width, 300) + 2 * noise(rng, width, 60)
        land.layer(edge - 3, rgb("ffffff"), 0.05, fade=90, soft=2.5)
        land.layer(edge + 2, land.materials.sand, 0.0, fade=40, soft=2)


def _sail_boat(land: Land, x: float, near: float) -> None:
    y, size = HORIZON + 5 + 34 * near, 11 + 15 * near
    sail, hull = land.tone(rgb("fffaf0"), 0.1, 1.0), land.tone(rgb("5a3a34"), 0.1, 0.6)
    x0, x1 = max(0, int(x - size)), min(land.width, int(x + size) + 1)
    y0, y1 = int(y - 2 * size), int(y) + 5
    if x0 >= x1:
        return
    gx, gy = np.arange(x0, x1)[None, :] - x, np.arange(y0, y1)[:, None] - y
    up = np.clip(-gy / (1.75 * size), 0, 1)
    main = np.minimum(0.62 * size * (1 - up) - gx, gx - 0.8) + 0.5
    jib = np.minimum(0.42 * size * (1 - 1.15 * up) + gx, -gx - 0.8) + 0.5
    aloft = np.clip(-gy - 1.5, 0, 1) * (up < 1)
    box = (slice(y0, y1), slice(x0, x1))
    blend(land.canvas, box, sail, (np.clip(np.maximum(main, jib), 0, 1) * aloft).astype(np.float32))
    body = np.clip(np.minimum(0.62 * size - np.abs(gx) - 0.8 * gy, 0.5 + 3.5 - np.abs(gy - 1.5)), 0, 1)
    blend(land.canvas, box, hull, (body * (gy > -1.5)).astype(np.float32))


def draw_lake(land: Land, lights: Lights) -> None:
    rng, width, extra = land.rng, land.width, land.spec.extra
    shore = HORIZON + 10
    if extra == "hills":
        for i, distance in enumerate((0.6, 0.42, 0.25)):
            top = HORIZON - 44 + 17 * i + 15 * noise(rng, width, 240 - 40 * i, 2)
            land.layer(top, mix(land.materials.grass_far, land.materials.grass, i / 2), distance)
    else:
        land.ridge(HORIZON + 8, 104, 330, 0.62)
        land.ridge(HORIZON + 12, 70, 240, 0.4)
    bank = shore - 3 + 2 * noise(rng, width, 200)
    if extra == "pines":
        land.pines(bank - 2, 30, 15, 0.26)
    elif land.spec.season == "autumn" and extra == "hills":
        for leaf in land.materials.leaves:
            land.trees(round_trees(rng, width, bank, 19, 46), bank, leaf, 19, 0.2)
    else:
        land.pines(bank, 13, 9, 0.34)
    land.mirror(shore)
    land.ripples(shore, mix(land.palette.sky[3], land.palette.light, 0.4), 0.26)
    near = 240 + 9 * noise(rng, width, 180, 2)
    land.layer(near, land.materials.grass, 0.02, fade=30)


def draw_mountains(land: Land, lights: Lights) -> None:
    rng, width, extra = land.rng, land.width, land.spec.extra
    land.ridge(HORIZON + 6, 122, 360, 0.66)
    land.ridge(HORIZON + 22, 100, 280, 0.44)
    if extra == "bare":
        land.ridge(HORIZON + 48, 84, 240, 0.18)
        land.layer(226 + 9 * noise(rng, width, 220, 2), land.materials.grass_far, 0.02, fade=50)
        return
    hill = 176 + 10 * noise(rng, width, 260, 2)
    land.layer(hill, land.materials.grass_far, 0.26)
    if extra == "pines":
        land.pines(hill + 12, 24, 15, 0.2)
        front = 214 + 9 * noise(rng, width, 240, 2)
        land.pines(front, 44, 27, 0.07)
        land.layer(front + 14, land.materials.grass, 0.02, fade=40)
        return
    land.pines(hill + 8, 15, 26, 0.22)
    land.layer(200 + 9 * noise(rng, width, 300, 2), land.materials.grass, 0.12)
    meadow = 226 + 7 * noise(rng, width, 230, 2)
    land.layer(meadow, land.materials.grass, 0.0, fade=50)
    if land.spec.season in ("spring", "summer"):
        land.flowers(meadow, FLOWERS["mountains", land.spec.season])


def draw_desert(land: Land, lights: Lights) -> None:
    rng, width = land.rng, land.width
    if land.spec.extra == "mesas":
        steps = 34 * np.clip(noise(rng, width, 130) * 3.2 - 0.7, 0, 1) + 16 * np.clip(
            noise(rng, width, 90) * 4 - 1.6, 0, 1
        )
        land.layer(HORIZON + 4 - steps, rgb("c0714c"), 0.42, fade=60)
    else:
        land.ridge(HORIZON + 4, 30, 260, 0.7, snow=False)
    for base, swing, scale, distance in (
        (166, 9, 330, 0.42),
        (180, 15, 300, 0.26),
        (202, 18, 280, 0.12),
        (230, 17, 330, 0.0),
    ):
        profile = base - swing * crests(rng, width, scale)
        sand = land.materials.sand
        land.layer(profile, sand, distance, fade=80)
        land.lee(profile, sand, distance, scale)


def crests(rng: Rng, width: int, scale: float) -> Array:
    """Dune profile [W] in 0..1: long windward slopes, short lee slopes, round feet."""
    count = int(width / scale) + 4
    edges = np.cumsum(rng.uniform(0.6, 1.4, count)) * scale - scale * rng.uniform(0.5, 1.5)
    heights = rng.uniform(0.55, 1, count)
    x = np.arange(width)
    cell = np.clip(np.searchsorted(edges, x) - 1, 0, count - 2)
    t = np.clip((x - edges[cell]) / (edges[cell + 1] - edges[cell]), 0, 1)
    up, down = np.clip(t / 0.66, 0, 1), np.clip((1 - t) / 0.34, 0, 1)
    shape = np.where(t < 0.66, 0.5 - 0.5 * np.cos(np.pi * up**1.15), 0.5 - 0.5 * np.cos(np.pi * down**1.5))
    return (heights[cell] * shape).astype(np.float32)


def draw_forest(land: Land, lights: Lights) -> None:
    rng, width = land.rng, land.width
    land.layer(HORIZON - 34 + 22 * noise(rng, width, 300, 2), land.materials.pine, 0.78)
    rows = ((150, 22, 11, 0.6), (168, 34, 16, 0.42), (190, 50, 24, 0.24), (220, 72, 38, 0.06))
    for base, height, spacing, distance in rows:
        line = base + 8 * noise(rng, width, 240, 2)
        if land.spec.extra == "leaves":
            for leaf in land.materials.leaves:
                crowns = round_trees(rng, width, line, height * 0.8, spacing * 3.0)
                land.trees(crowns, line, leaf, height * 0.9, distance)
            land.layer(line + 2, land.materials.grass, distance, fade=30, soft=5)
        else:
            land.pines(line, height, spacing, distance)
    land.layer(240 + 6 * noise(rng, width, 200, 2), land.materials.grass, 0.0, fade=40, soft=2)


def draw_hills(land: Land, lights: Lights) -> None:
    rng, width, extra = land.rng, land.width, land.spec.extra
    m = land.materials
    land.layer(HORIZON - 22 + 14 * noise(rng, width, 320, 2), m.grass_far, 0.7)
    land.layer(HORIZON - 6 + 14 * noise(rng, width, 280, 2), m.grass_far, 0.5)
    crops = (
        (rgb("e6cf72"), rgb("a9c45a"), rgb("c9a85c"))
        if extra == "fields" and land.spec.season != "winter"
        else (m.grass,)
    )
    for i, (base, distance) in enumerate(((174, 0.32), (192, 0.18), (212, 0.06))):
        top = base + 13 * noise(rng, width, 300 - 20 * i, 2)
        if extra == "trees":
            for leaf in m.leaves:
                size = 15 + 6 * i
                grove = top + 5 + 60 * np.clip(noise(rng, width, 150) - 0.1, 0, 1)  # sinks the row between groves
                land.trees(round_trees(rng, width, grove, size, 22 + 6 * i), top, leaf, size * 1.2, distance * 0.8)
        land.layer(top, mix(m.grass, crops[i % len(crops)], 0.75), distance, fade=44)
    front = 232 + 8 * noise(rng, width, 260, 2)
    land.layer(front, m.grass, 0.0, fade=40)
    if extra == "flowers":
        land.flowers(np.full(width, 216.0, np.float32), FLOWERS["hills", land.spec.season])


PAINTERS: dict[str, Callable[[Land, Lights], None]] = {
    "sea": draw_sea,
    "lake": draw_lake,
    "mountains": draw_mountains,
    "desert": draw_desert,
    "forest": draw_forest,
    "hills": draw_hills,
}
