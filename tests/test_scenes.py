"""The procedural scenes: deterministic, in range, and captioned with what they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from panoserve.train.scenes import DRAWN_HEIGHT, SceneSpec, draw_scene, sample_spec
from panoserve.train.scenes.captions import caption_of
from panoserve.train.scenes.sky import HORIZON
from panoserve.train.scenes.spec import EXTRAS, FEATURES, MOODS, TIMES


def _spec(**changes: object) -> SceneSpec:
    values = {
        "feature": "sea", "time": "noon", "mood": "blue", "weather": "clear", "season": "summer", "extra": "open",
        "moon": "none", "stars": False, "aurora": False, "seed": 3,
    }  # fmt: skip
    return SceneSpec(**{**values, **changes})  # type: ignore[arg-type]


def test_a_seed_always_draws_the_same_scene_and_another_seed_another_one() -> None:
    assert sample_spec(5) == sample_spec(5)
    first = draw_scene(sample_spec(5), 160)
    assert np.array_equal(first, draw_scene(sample_spec(5), 160))
    assert not np.array_equal(first, draw_scene(sample_spec(6), 160))


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_with_every_extra_fills_the_picture(feature: str) -> None:
    for extra in EXTRAS[feature]:
        picture = draw_scene(_spec(feature=feature, extra=extra), 96)
        assert picture.shape == (DRAWN_HEIGHT, 96, 3) and picture.dtype == np.uint8
        assert picture[:HORIZON].std() > 1 and picture[HORIZON:].std() > 1


@pytest.mark.parametrize("feature", FEATURES)
def test_a_tall_scene_goes_on_below_the_first_crop(feature: str) -> None:
    for extra in EXTRAS[feature]:
        spec = _spec(feature=feature, extra=extra)
        tall = draw_scene(spec, 96, 2 * DRAWN_HEIGHT)
        assert tall.shape == (2 * DRAWN_HEIGHT, 96, 3)
        flat = draw_scene(spec, 96)
        same = (tall[: DRAWN_HEIGHT - 8] == flat[: DRAWN_HEIGHT - 8]).mean()
        assert same > 0.98, "the foreground begins at the fold (tops of trees may reach over it)"
        assert tall[DRAWN_HEIGHT:].std() > 1 and tall[-60:].astype(float).std(axis=0).max() > 1


def test_land_of_its_own_is_the_same_under_any_sky() -> None:
    night = _spec(feature="mountains", extra="bare", time="night", mood="blue")
    starry = replace(night, stars=True)  # stars take random numbers
    below = slice(HORIZON + 60, None)
    first, second = (draw_scene(spec, 96, own_land=True)[below] for spec in (night, starry))
    assert np.array_equal(first, second)
    assert not np.array_equal(draw_scene(night, 96)[below], draw_scene(starry, 96)[below])


def test_sampled_attributes_are_known_and_fit_together() -> None:
    specs = [sample_spec(seed) for seed in range(300)]
    assert {s.feature for s in specs} == set(FEATURES)
    assert {s.time for s in specs} == set(TIMES)
    for s in specs:
        assert s.mood in MOODS[s.time] and s.extra in EXTRAS[s.feature]
        assert s.moon == "none" or s.time in ("dusk", "night")
        assert not (s.stars and s.time != "night")


def test_the_time_of_day_sets_the_light() -> None:
    noon = draw_scene(_spec(), 128).mean()
    night = draw_scene(_spec(time="night", mood="blue"), 128).mean()
    assert noon > 2 * night


def test_a_red_sunset_is_red_and_a_clear_noon_is_blue() -> None:
    red = draw_scene(_spec(time="sunset", mood="red", weather="mist"), 128)[:HORIZON].mean(axis=(0, 1))
    blue = draw_scene(_spec(weather="mist"), 128)[:HORIZON].mean(axis=(0, 1))
    assert red[0] > red[2] + 40
    assert blue[2] > blue[0] + 40


def test_the_sky_is_the_same_all_along_a_scene_without_clouds_or_sun() -> None:
    sky = draw_scene(_spec(time="dusk", mood="violet"), 640)[4]
    assert np.ptp(sky.astype(int), axis=0).max() <= 1


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (("sunset", "sundown"), lambda s: s.time == "sunset" or s.time == "dusk"),
        (("dawn", "sunrise"), lambda s: s.time == "dawn"),
        (("night", "midnight"), lambda s: s.time in ("night", "dusk")),
        (("moon", "moonlight"), lambda s: s.moon != "none"),
        (("sea", "ocean", "seascape"), lambda s: s.feature == "sea"),
        (("desert", "dunes"), lambda s: s.feature == "desert"),
        (("lake",), lambda s: s.feature == "lake"),
        (("snowy", "snow"), lambda s: s.season == "winter"),
        (("misty", "foggy", "fog"), lambda s: s.weather == "mist"),
        (("aurora", "northern"), lambda s: s.aurora),
    ],
)
def test_captions_only_say_what_the_scene_shows(words: tuple[str, ...], allowed: object) -> None:
    rng = np.random.default_rng(0)
    said = 0
    for seed in range(600):
        spec = sample_spec(seed)
        if set(words) & set(caption_of(spec, rng).replace(",", " ").split()):
            said += 1
            assert allowed(spec), (spec, words)  # type: ignore[operator]
    assert said > 1


def test_captions_differ_from_call_to_call_and_stay_short() -> None:
    rng = np.random.default_rng(0)
    captions = {caption_of(sample_spec(1), rng) for _ in range(50)}
    assert len(captions) > 30
    assert all(caption == caption.lower() and len(caption) < 200 for caption in captions)
