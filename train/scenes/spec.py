"""What a scene shows, as a value: the words that a caption may use and that the painter obeys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEATURES = ("sea", "lake", "mountains", "desert", "forest", "hills")
TIMES = ("dawn", "morning", "noon", "sunset", "dusk", "night")
WEATHERS = ("clear", "cloudy", "overcast", "mist")
SEASONS = ("spring", "summer", "autumn", "winter")
MOODS: dict[str, tuple[str, ...]] = {
    "dawn": ("pink", "golden", "lavender"),
    "morning": ("blue", "pale"),
    "noon": ("blue", "turquoise"),
    "sunset": ("red", "orange", "pink", "golden"),
    "dusk": ("violet", "blue", "teal"),
    "night": ("blue", "teal", "purple"),
}
EXTRAS: dict[str, tuple[str, ...]] = {
    "sea": ("open", "islands", "beach", "boats"),
    "lake": ("peaks", "pines", "hills"),
    "mountains": ("pines", "meadow", "bare"),
    "desert": ("dunes", "mesas"),
    "forest": ("pines", "leaves"),
    "hills": ("trees", "flowers", "fields"),
}


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """One landscape: the attributes that its caption is drawn from, and the seed of everything unnamed."""

    feature: str
    time: str
    mood: str  # the sky's colour family, one of MOODS[time]
    weather: str
    season: str
    extra: str  # what stands in the landscape, one of EXTRAS[feature]
    moon: str  # "full", "crescent" or "none"; always "none" by day
    stars: bool
    aurora: bool
    seed: int

    @property
    def sun(self) -> bool:
        """Whether a sun stands somewhere over the scene."""
        return self.time in ("dawn", "morning", "noon", "sunset") and self.weather in ("clear", "cloudy")


def sample_spec(seed: int) -> SceneSpec:
    """A random but sensible combination of attributes; the same seed gives the same scene."""
    rng = np.random.default_rng([seed, 0x5CE7E])
    feature = str(rng.choice(FEATURES, p=(0.22, 0.15, 0.2, 0.12, 0.14, 0.17)))
    time = str(rng.choice(TIMES, p=(0.16, 0.13, 0.16, 0.23, 0.12, 0.2)))
    mood = str(rng.choice(MOODS[time]))
    weather = str(rng.choice(WEATHERS, p=(0.42, 0.28, 0.12, 0.18)))
    if feature == "desert" and weather == "overcast":
        weather = "clear"
    season = str(rng.choice(SEASONS, p=(0.22, 0.34, 0.2, 0.24)))
    if feature in ("sea", "desert"):
        season = "summer"
    extra = str(rng.choice(EXTRAS[feature]))
    if feature == "hills" and extra == "flowers" and season in ("autumn", "winter"):
        extra = "trees"
    if feature == "forest" and extra == "leaves" and season == "winter":
        extra = "pines"
    dark = time == "night"
    moon = (
        str(rng.choice(("full", "crescent", "none"), p=(0.5, 0.25, 0.25))) if dark and weather != "overcast" else "none"
    )
    if time == "dusk" and weather == "clear" and rng.random() < 0.4:
        moon = "crescent"
    stars = dark and weather in ("clear", "cloudy")
    aurora = bool(dark and weather == "clear" and feature != "desert" and rng.random() < 0.22)
    return SceneSpec(feature, time, mood, weather, season, extra, moon, stars, aurora, seed)
