"""Captions of a scene: a small template grammar with synonyms, word orders, and attributes left unsaid.

A caption never says what the scene does not show. What it does not say may be anything.
"""

from __future__ import annotations

import numpy as np

from panoserve.train.scenes.spec import SceneSpec

_PLACES: dict[str, tuple[str, ...]] = {
    "sea": ("sea", "ocean", "open sea", "calm sea", "the sea", "the ocean", "seascape", "sea horizon", "water"),
    "lake": ("lake", "mountain lake", "calm lake", "still lake", "a lake with reflections", "quiet lake"),
    "mountains": (
        "mountains",
        "mountain range",
        "high mountains",
        "mountain peaks",
        "the alps",
        "rocky mountains",
        "mountain landscape",
    ),
    "desert": ("desert", "desert dunes", "sand dunes", "dunes", "sandy desert", "the sahara", "desert landscape"),
    "forest": ("forest", "woods", "deep forest", "woodland", "the forest", "forest landscape"),
    "hills": ("hills", "rolling hills", "green valley", "countryside", "meadows", "gentle hills", "fields and hills"),
}
_EXTRA_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("sea", "islands"): ("with islands", "with an island", "and islands on the horizon"),
    ("sea", "beach"): ("with a beach", "seen from a sandy beach", "with a sandy shore"),
    ("sea", "boats"): ("with sailing boats", "with sailboats", "with small boats", "with a sailing boat"),
    ("lake", "peaks"): ("below mountains", "with mountains", "surrounded by mountains"),
    ("lake", "pines"): ("with pine trees", "with mountains and pines", "lined with pines"),
    ("lake", "hills"): ("among hills", "with low hills", "between hills"),
    ("mountains", "pines"): ("with pine trees", "above a pine forest", "with a forest", "and fir trees"),
    ("mountains", "meadow"): ("with a meadow", "above a meadow", "over alpine meadows"),
    ("mountains", "bare"): ("with bare rocks", "with steep cliffs"),
    ("desert", "dunes"): ("with high dunes", "with waves of sand"),
    ("desert", "mesas"): ("with mesas", "with red rocks", "with table mountains", "and canyon rocks"),
    ("forest", "pines"): ("of pines", "of pine trees", "of fir trees", "with tall pines"),
    ("forest", "leaves"): ("with leafy trees", "of broad trees", "of oak trees"),
    ("hills", "trees"): ("with trees", "with scattered trees", "and groves of trees"),
    ("hills", "flowers"): ("with flowers", "with wild flowers", "full of flowers", "with a flower meadow"),
    ("hills", "fields"): ("with fields", "with wheat fields", "and farmland"),
}
_TIME_WORDS: dict[str, tuple[str, ...]] = {
    "dawn": ("at dawn", "at sunrise", "at daybreak", "in the early morning", "at first light"),
    "morning": ("in the morning", "in morning light", "on a bright morning", "in the forenoon"),
    "noon": ("at noon", "at midday", "in daylight", "by day", "in bright sunlight", "in the daytime"),
    "sunset": ("at sunset", "at sundown", "in the evening", "at golden hour", "in the evening sun"),
    "dusk": ("at dusk", "at twilight", "in the blue hour", "at nightfall", "after sunset"),
    "night": ("at night", "by night", "in the night", "at midnight", "in the dark"),
}
_TIME_NOUNS: dict[str, tuple[str, ...]] = {
    "dawn": ("dawn", "sunrise", "daybreak"),
    "morning": ("morning", "morning sky"),
    "noon": ("midday", "sunny day", "day", "noon"),
    "sunset": ("sunset", "evening", "evening sky"),
    "dusk": ("dusk", "twilight"),
    "night": ("night", "night sky"),
}
_MOOD_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("dawn", "pink"): ("pink", "rosy"),
    ("dawn", "golden"): ("golden", "yellow", "warm"),
    ("dawn", "lavender"): ("lavender", "lilac", "purple"),
    ("morning", "blue"): ("blue", "fresh", "bright"),
    ("morning", "pale"): ("pale", "soft"),
    ("noon", "blue"): ("blue", "deep blue", "bright blue"),
    ("noon", "turquoise"): ("turquoise", "bright"),
    ("sunset", "red"): ("red", "fiery", "crimson", "burning"),
    ("sunset", "orange"): ("orange", "warm", "glowing"),
    ("sunset", "pink"): ("pink", "rose", "purple"),
    ("sunset", "golden"): ("golden", "yellow", "amber"),
    ("dusk", "violet"): ("violet", "purple", "magenta"),
    ("dusk", "blue"): ("blue", "cold"),
    ("dusk", "teal"): ("teal", "green"),
    ("night", "blue"): ("blue", "dark blue", "deep blue"),
    ("night", "teal"): ("teal", "green", "emerald"),
    ("night", "purple"): ("purple", "violet"),
}
_WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("under a clear sky", "in clear weather", "with a clear sky"),
    "cloudy": (
        "with clouds",
        "under a cloudy sky",
        "with drifting clouds",
        "with white clouds",
        "with scattered clouds",
    ),
    "overcast": (
        "under an overcast sky",
        "under grey clouds",
        "on a gloomy day",
        "in grey weather",
        "under heavy clouds",
    ),
    "mist": ("in fog", "in the mist", "with morning mist", "wrapped in mist", "in haze"),
}
_WEATHER_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "clear": ("clear",),
    "cloudy": ("cloudy",),
    "overcast": ("overcast", "grey", "gloomy"),
    "mist": ("misty", "foggy", "hazy"),
}
_SEASON_WORDS: dict[str, tuple[str, ...]] = {
    "spring": ("in spring", "in springtime", "in april"),
    "summer": ("in summer", "in midsummer", "in july"),
    "autumn": ("in autumn", "in fall", "with autumn colors", "in october"),
    "winter": ("in winter", "in the snow", "covered in snow", "with snow", "in deep winter"),
}
_SEASON_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "spring": ("spring",),
    "summer": ("summer", "green"),
    "autumn": ("autumn", "autumnal"),
    "winter": ("snowy", "winter", "snow covered", "wintry"),
}
_OPENINGS = (
    "",
    "",
    "",
    "",
    "a panorama of",
    "a landscape with",
    "a painting of",
    "an illustration of",
    "a wide view of",
    "a view of",
    "a picture of",
    "a poster of",
    "beautiful",
)
_ENDINGS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "panorama",
    "wide landscape",
    "flat illustration",
    "poster",
    "peaceful",
    "beautiful scenery",
    "minimalist",
)


class _Pen:
    """Picks words at random."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, words: tuple[str, ...]) -> str:
        return words[int(self.rng.integers(len(words)))]

    def maybe(self, chance: float, words: tuple[str, ...]) -> str:
        return self.pick(words) if self.rng.random() < chance else ""


def _lights(spec: SceneSpec) -> tuple[str, ...]:
    words: tuple[str, ...] = ()
    if spec.moon == "full":
        words += ("under a full moon", "in moonlight", "with a full moon", "under the moon", "with a bright moon")
    if spec.moon == "crescent":
        words += ("under a crescent moon", "with a thin moon", "under the moon", "with a crescent moon")
    if spec.stars:
        words += ("under the stars", "with a starry sky", "under a starry sky", "with stars")
    if spec.aurora:
        words = (
            "with northern lights",
            "under the northern lights",
            "with an aurora",
            "under a green aurora",
        ) * 2 + words
    if spec.sun and spec.time in ("dawn", "sunset"):
        words += ("with a low sun", "with the sun on the horizon", "in the sun")
    if spec.sun and spec.time in ("morning", "noon"):
        words += ("in the sun", "with a bright sun", "in sunshine")
    return words


def caption_of(spec: SceneSpec, rng: np.random.Generator) -> str:
    """A caption, lower case and without punctuation but commas; every call draws another one."""
    pen = _Pen(rng)
    style = rng.random()
    place = pen.pick(_PLACES[spec.feature])
    extra = pen.maybe(0.45, _EXTRA_WORDS.get((spec.feature, spec.extra), ("",)))
    seasonal = spec.feature not in ("sea", "desert")
    lights = _lights(spec)
    light = pen.maybe(0.65 if spec.aurora else 0.4, lights) if lights else ""
    mood = pen.pick(_MOOD_WORDS[spec.time, spec.mood])
    chance = 0.85 if spec.season == "winter" else 0.6
    snowy = pen.maybe(chance / 2, _SEASON_ADJECTIVES[spec.season]) if seasonal else ""
    season = pen.maybe(chance / 2, _SEASON_WORDS[spec.season]) if seasonal and not snowy else ""
    misty = pen.maybe(0.45, _WEATHER_ADJECTIVES[spec.weather])
    weather = "" if misty else pen.maybe(0.6, _WEATHER_WORDS[spec.weather])
    if style < 0.4:  # "a misty winter forest at dawn, under ..."
        time = pen.maybe(0.9, _TIME_WORDS[spec.time])
        sky = f"with a {mood} sky" if rng.random() < 0.35 else ""
        head = _join(pen.maybe(0.2, ("calm", "quiet", "wide", "beautiful", "vast")), misty, snowy, place, extra)
        tail = [time, weather, light, season, sky]
        rng.shuffle(tail)
        text = _join(pen.pick(_OPENINGS), head, *tail)
    elif style < 0.72:  # "a red sunset over the sea"
        article = pen.pick(("a", "", "the", "a beautiful"))
        where = _join(
            pen.pick(("over the", "over", "above the", "over a", "at the", "by the")),
            snowy,
            place.removeprefix("the ").removeprefix("a "),
        )
        coloured = mood if rng.random() < 0.75 else ""
        tail = [weather, light, season]
        rng.shuffle(tail)
        text = _join(article, misty, coloured, pen.pick(_TIME_NOUNS[spec.time]), where, extra, *tail)
    else:  # keywords: "snowy mountains, night, full moon"
        sky = f"{mood} sky" if rng.random() < 0.45 else ""
        words = [
            _join(snowy, place, extra),
            pen.maybe(0.9, _TIME_NOUNS[spec.time]),
            misty or weather,
            light,
            season,
            sky,
        ]
        words = [w for w in words if w]
        if rng.random() < 0.5:
            rng.shuffle(words)
        text = ", ".join(words)
    ending = pen.pick(_ENDINGS)
    return f"{text}, {ending}" if ending else text


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)
