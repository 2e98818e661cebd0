"""Extending a picture, without an engine: what each side is given, how it meets the picture, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_drawing import CLASS, FakeEngine, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panoserve import PanoramaRequest
from panoserve.errors import InvalidRequestError
from panoserve.redirect.layout import plan_of
from panoserve.serve.extend import (
    Extension,
    Sides,
    Strip,
    axes,
    check_extension,
    extend_picture,
    in_frame,
    in_picture,
    membrane,
)
from panoserve.serve.work import UNPAINTED, Codes, Pixels, Round

GRID = CLASS.grid  # 4 codes of 8 pixels
STEP, CROP = GRID.downsample, GRID.crop_pixels
SIDES = ("left", "right", "up", "down")


def noise(width: int, height: int) -> Pixels:
    """A picture of few levels, so that a toy code can name a square's mean."""
    return np.random.default_rng(width * 1000 + height).integers(0, 60, (height, width, 3), dtype=np.uint8)


def toy_encode(pixels: Pixels) -> Codes:
    """A tokenizer whose code is the mean of its square."""
    rows, columns = pixels.shape[0] // STEP, pixels.shape[1] // STEP
    assert pixels.shape == (rows * STEP, columns * STEP, 3)
    return pixels.reshape(rows, STEP, columns, STEP, 3).mean(axis=(1, 3, 4)).astype(np.int64)


def strip(side: str, pixels: Pixels, length: int, **fields: Any) -> Strip:
    request = PanoramaRequest(label=1, width=CROP, height=CROP, seed=5, **fields).resolve(CLASS)
    return Strip(side, pixels, length, GRID, request, toy_encode)


@pytest.mark.parametrize("side", SIDES)
def test_a_frame_leads_outwards_and_back(side: str) -> None:
    picture = noise(5, 3)
    frame = in_frame(side, picture)
    edges = {"left": picture[:, 0], "right": picture[:, -1], "up": picture[0], "down": picture[-1]}
    assert np.array_equal(frame[-1], edges[side])
    assert np.array_equal(in_picture(side, frame), picture)


@given(
    side=st.sampled_from(SIDES),
    width=st.integers(STEP, 90),
    height=st.integers(STEP, 90),
    length=st.integers(1, 100),
    stride=st.integers(1, GRID.side - 1),
)
@settings(deadline=None)
def test_every_side_of_any_picture(side: str, width: int, height: int, length: int, stride: int) -> None:
    """Codes meet the edge, exactly what is new is drawn, every crop draws, and the part has the size asked for."""
    length = min(length, CROP) if side == "up" else length
    pixels = noise(width, height)
    made = strip(side, pixels, length, stride=stride)
    request = made.request.resolve(CLASS)  # a request like any other
    codes = in_frame(side, request.given.numpy()) if side != "left" else request.given.numpy().T
    frame = in_frame(side, pixels)
    frame = np.pad(frame, ((0, 0), (0, -frame.shape[1] % STEP), (0, 0)), mode="edge")
    across = frame.shape[1] // STEP
    assert codes[made.known - 1, :across].tolist() == toy_encode(frame[-STEP:])[0].tolist()
    new = -(-length // STEP)
    assert (codes[made.known : made.known + new, :across] == -1).all()
    assert not (codes[: made.known, :across] == -1).any()
    if side != "up" and min(across, len(frame) // STEP) >= GRID.side:
        lanes = plan_of(request.engine_args(CLASS), GRID).lanes
        crops = -(-new // stride)
        assert len({lane.row if side == "down" else lane.column for lane in lanes}) == crops
    decoded = np.full((request.height, request.width, 3), 100, dtype=np.uint8)
    assert made.part(decoded).shape == ((height, length, 3) if side in ("left", "right") else (length, width, 3))


@pytest.mark.parametrize("side", SIDES)
def test_colours_are_brought_together_at_the_edge(side: str) -> None:
    pixels = np.full((64, 64, 3), 110, dtype=np.uint8)
    made = strip(side, pixels, CROP)
    decoded = np.full((made.request.height, made.request.width, 3), 100, dtype=np.uint8)
    frame = in_frame(side, made.part(decoded))
    levels = frame.mean(axis=(1, 2))
    assert 109 <= levels[0] <= 110 and levels[-1] == 100
    assert (np.diff(levels) <= 0).all()


@pytest.mark.parametrize("side", SIDES)
def test_no_line_stays_at_the_edge(side: str) -> None:
    """What is drawn is right on average, and 20 levels darker in its first pixel; far away nothing changes."""
    pixels = np.full((64, 64, 3), 110, dtype=np.uint8)
    made = strip(side, pixels, CROP)
    frame = np.full((made.request.height, made.request.width, 3), 110, dtype=np.uint8)
    frame = axes(side, frame).copy()
    seam = made.known * STEP
    frame[seam : seam + STEP] = np.array([90, 94, 100, 110, 115, 120, 125, 126], dtype=np.uint8)[:, None, None]
    levels = in_frame(side, made.part(axes(side, frame))).mean(axis=(1, 2))
    assert levels[0] == pytest.approx(110, abs=1.5) and levels[-1] == pytest.approx(110, abs=4)


def test_a_membrane_is_held_at_the_edge_and_forgets_fine_differences_first() -> None:
    """The slow twin: every wave by itself. A level fades over the reach, three waves on 40 pixels much sooner."""
    values = np.random.default_rng(0).normal(size=(40, 2))
    made = membrane(values, 30, reach=16)
    places, k = (np.arange(40) + 0.5) / 40, np.arange(40)[:, None]
    basis = np.cos(np.pi * k * places) * np.where(k == 0, np.sqrt(1 / 40), np.sqrt(2 / 40))  # orthonormal
    for away in (0, 1, 10):
        fading = np.exp(-(away + 0.5) * (np.pi * k / 40 + 1 / 16))
        assert np.allclose(made[away], basis.T @ (fading * (basis @ values)))
    level, waves = np.ones((40, 1)), np.cos(6 * np.pi * places)[:, None]
    assert membrane(level, 17, 16)[16].max() == pytest.approx(np.exp(-16.5 / 16))
    assert membrane(waves, 17, 16)[16].max() < 0.01


@pytest.mark.parametrize("side", SIDES)
def test_crops_that_would_not_overlap_see_the_edge_all_the_same(side: str) -> None:
    assert strip(side, noise(64, 64), CROP, stride=GRID.side).known == 1


def test_sides_have_seeds_of_their_own() -> None:
    seeds = {side: strip(side, noise(64, 64), 8).request.seed for side in SIDES}
    assert sorted(seeds.values()) == [5, 6, 7, 8]


BAD: list[tuple[tuple[int, int], dict[str, int], dict[str, Any], str]] = [
    ((64, 64), {}, {}, "left, right, up and down are all 0"),
    ((64, 64), {"left": -8}, {}, "left is -8"),
    ((64, 64), {"right": 2**21}, {}, "right is 2097152"),
    ((64, 64), {"up": CROP + 1}, {}, "up is 33 pixels, but at most one crop \\(32\\)"),
    ((64, 16), {"right": 64}, {}, "128x16 pixels, but must be at least one crop, 32x32"),
    ((64, 7), {"right": 8, "down": 64}, {}, "the picture is 64x7 pixels, but must be at least 8x8"),
    ((64, 64), {"right": 8}, {"width": 640}, "width cannot be set"),
    ((64, 64), {"right": 8}, {"prompts": [{"label": 2}]}, "prompts cannot be set"),
    ((64, 64), {"right": 8}, {"given": torch.full((8, 8), -1)}, "given cannot be set"),
    ((64, 64), {"right": 8}, {"loop": True}, "cannot be a loop"),
    ((64, 64), {"right": 8}, {"label": 99}, "label is 99"),
]


@pytest.mark.parametrize(("size", "sides", "fields", "message"), BAD)
def test_what_is_wrong_is_named(
    size: tuple[int, int], sides: dict[str, int], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check_extension(size, Sides(**sides), PanoramaRequest(**{"label": 1, **fields}), CLASS)


def test_previews_show_what_is_there() -> None:
    """At the size of the whole, grey where nothing is drawn yet; and the canvases are known before anything is."""
    pixels = noise(61, 45)
    request = check_extension((61, 45), Sides(left=3, right=50, up=9, down=21), PanoramaRequest(label=1, seed=5), CLASS)
    work = Extension(pixels, Sides(left=3, right=50, up=9, down=21), request, GRID)
    first = work.begin(toy_encode)
    canvases = list(first.requests.values())
    decoded = {
        side: np.full((strip.height, strip.width, 3), 50, dtype=np.uint8) for side, strip in first.requests.items()
    }
    decoded["right"][8:] = UNPAINTED
    seen = first.preview(decoded)
    assert seen.shape == (75, 114, 3)
    assert np.array_equal(seen[9:54, 3:64], pixels)
    assert (seen[9:54, :3] == 50).all() and (seen[9:17, 64:] == 50).all()
    for part in (seen[:9], seen[54:], seen[17:54, 64:]):
        assert (part == UNPAINTED).all()
    second = first.finish(decoded)
    assert isinstance(second, Round) and list(second.requests) == ["up", "down"]
    canvases += second.requests.values()
    assert work.canvases == [request.canvas(CLASS) for request in canvases]
    assert work.rows == 48 // 8 + 48 // 8 + 40 // 8 + 32 // 8


def test_a_large_picture_counts_however_little_is_drawn() -> None:
    pixels = noise(400, 100)
    request = check_extension((400, 100), Sides(right=1), PanoramaRequest(label=1), CLASS)
    work = Extension(pixels, Sides(right=1), request, GRID)
    assert work.codes == 51 * 13 > sum(canvas.codes for canvas in work.canvases)


def test_all_sides_of_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are no whole codes; the picture stays as it is; the sides come first, at its height."""
    monkeypatch.setattr(FakeEngine, "started", [])
    engine: Any = FakeEngine(write_folder(tmp_path / "model", CLASS), context="reuse")
    picture = Image.fromarray(noise(61, 45))
    made = extend_picture(engine, picture, Sides(left=3, right=50, up=9, down=21), PanoramaRequest(label=1, seed=5))
    assert made.image.size == (3 + 61 + 50, 9 + 45 + 21) == (made.request.width, made.request.height)
    assert np.array_equal(np.array(made.image)[9:54, 3:64], np.array(picture))
    assert list(made.drawings) == ["left", "right", "up", "down"]
    heights = [request.height for request in FakeEngine.started[0]["requests"]]
    assert heights == [48, 48, 40, 32]
    assert made.request.seed == 5 and not made.truncated
