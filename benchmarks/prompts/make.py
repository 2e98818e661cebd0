"""Write the prompt set: 1,000 panorama prompts over 25 themes and 125 sub-themes, always the same.

    python benchmarks/prompts/make.py

Every prompt is a template over a sub-theme's scene and details (themes.yaml) and a light (or a manner, where
the scene has its own light); a sub-theme's eight prompts use
each template once. The file that it writes is in the repository, and a test checks that the two agree.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "panoramas.jsonl"
LIGHTS = (
    "at sunrise",
    "in clear morning light",
    "under a bright blue sky",
    "on a hazy afternoon",
    "in the golden light before sunset",
    "at dusk under a violet sky",
    "on a moonlit night",
    "under heavy grey clouds",
    "with drifting white clouds",
    "in soft mist",
)
# Themes whose scenes bring their own light or weather take a manner instead.
LIT_THEMES = ("sky", "time of day", "weather", "underwater")
MANNERS = (
    "in rich colours",
    "in muted colours",
    "in fine detail",
    "with great depth",
    "in wide format",
    "in natural colours",
    "in a calm mood",
    "in a dramatic mood",
)
TEMPLATES = (
    "A wide panorama of {scene} {light}, with {a} and {b}.",
    "{Scene} {light}, {a} in the foreground, {b} further away, seen from a high viewpoint.",
    "An endless view: {scene}, {a}, {b} and {c}, {light}.",
    "Panoramic photograph of {scene} {light}, sharp from the foreground to the horizon, {a}.",
    "{Scene} stretching from left to right {light}: first {a}, then {b}, then {c}.",
    "A quiet, detailed scene {light}: {scene}, {a} and {c}.",
    "Ultra wide landscape, {scene}, {a}, {b}, {light}, every part worth a closer look.",
    "{Scene} {light}, {b} on one side and {c} on the other, with a wide open sky.",
)


def prompts() -> list[dict[str, str]]:
    """The set: id, theme, sub_theme and prompt of each, in the order of themes.yaml."""
    themes = yaml.safe_load((HERE / "themes.yaml").read_text(encoding="utf-8"))
    rng = random.Random(25)
    rows = []
    for theme, sub_themes in themes.items():
        for sub_theme, (scene, *details) in sub_themes.items():
            lights = rng.sample(MANNERS if theme in LIT_THEMES else LIGHTS, len(TEMPLATES))
            for template, light in zip(TEMPLATES, lights, strict=True):
                a, b, c = rng.sample(details, 3)
                text = template.format(scene=scene, Scene=scene[0].upper() + scene[1:], light=light, a=a, b=b, c=c)
                rows.append({"id": f"{len(rows):04d}", "theme": theme, "sub_theme": sub_theme, "prompt": text})
    return rows


def text_of(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    OUTPUT.write_text(text_of(prompts()), encoding="utf-8")
