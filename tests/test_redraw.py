"""Redrawing a part of a picture, without an engine: what is given, what is kept, how the drawn side meets it."""

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
from test_extend import noise, toy_encode

from panoserve import PanoramaRequest
from panoserve.errors import InvalidRequestError
from panoserve.serve.extend import Extension
from panoserve.serve.redraw import (
    Redrawing,
    cell_colours,
    depths,
    edge_differences,
    enlarged,
    masked_work,
    opacity_of,
    redraw_picture,
    spread,
)
from panoserve.serve.work import UNPAINTED, Pixels, Round

GRID = CLASS.grid  # 4 codes of 8 pixels
STEP = GRID.downsample
REQUEST = PanoramaRequest(label=1, seed=5)


def opaque(width: int, height: int) -> Pixels:
    return np.full((height, width), 255, dtype=np.uint8)


def begun(pixels: Pixels, opacity: Any) -> Round:
    work = masked_work(pixels, opacity, REQUEST, CLASS)
    assert isinstance(work, Redrawing)
    round_ = work.begin(toy_encode)
    assert [request.canvas(CLASS) for request in round_.requests.values()] == work.canvases
    return round_


def decoded_as(round_: Round, level: int) -> dict[str, Pixels]:
    [request] = round_.requests.values()
    return {"picture": np.full((request.height, request.width, 3), level, dtype=np.uint8)}


@given(width=st.integers(9, 90), height=st.integers(9, 90), seed=st.integers(0, 99), share=st.floats(0.01, 0.5))
@settings(deadline=None, max_examples=40)
def test_any_mask_of_any_picture(width: int, height: int, seed: int, share: float) -> None:
    """Codes that a transparent pixel touches are drawn, the others given; pixels outside the mask stay as they are."""
    pixels, opacity = noise(width, height), opaque(width, height)
    opacity[np.random.default_rng(seed).random((height, width)) < share / STEP**2] = 0
    opacity[height // 2, width // 2] = 0
    opacity[0, 0] = opacity[-1, -1] = 255
    round_ = begun(pixels, opacity)
    request = round_.requests["picture"].resolve(CLASS)  # a request like any other
    assert request.given is not None
    rows, columns = request.given.shape
    assert (rows, columns) == (-(-height // STEP), -(-width // STEP))
    for row, column in np.ndindex(rows, columns):
        square = opacity[row * STEP : (row + 1) * STEP, column * STEP : (column + 1) * STEP]
        assert (request.given[row, column] == -1) == (square == 0).any()
    result = round_.finish(decoded_as(round_, 200))
    assert isinstance(result, np.ndarray) and result.shape == pixels.shape
    assert np.array_equal(result[opacity == 255], pixels[opacity == 255])


def test_the_tokenizer_does_not_see_what_is_hidden() -> None:
    """It sees the surrounding colours there, so that given codes do not tell of it."""
    pixels, opacity = np.full((48, 80, 3), 60, dtype=np.uint8), opaque(80, 48)
    pixels[16:32, 32:48] = 255
    opacity[16:32, 32:48] = 0
    seen = []
    masked_work(pixels, opacity, REQUEST, CLASS).begin(lambda shown: (seen.append(shown), toy_encode(shown))[1])
    assert (seen[0] == 60).all()


def test_half_transparent_pixels_are_mixed() -> None:
    pixels, opacity = np.full((48, 80, 3), 60, dtype=np.uint8), opaque(80, 48)
    opacity[16:32, 32:48] = 0
    opacity[16:32, 48:64] = 128  # more there than not: its codes are given
    round_ = begun(pixels, opacity)
    given_codes = round_.requests["picture"].given
    assert given_codes is not None and (given_codes == -1).nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    seen = round_.preview(decoded_as(round_, 160))
    assert (seen[16:32, 32:48] == 160).all() and (seen[16:32, 48:64] == 110).all()


def test_a_preview_is_grey_where_nothing_is_drawn_yet() -> None:
    pixels, opacity = noise(80, 48), opaque(80, 48)
    opacity[8:40, 32:48] = 0
    round_ = begun(pixels, opacity)
    decoded = decoded_as(round_, 200)
    decoded["picture"][24:] = UNPAINTED
    seen = round_.preview(decoded)
    assert (seen[8:24, 32:48] == 200).all() and (seen[24:40, 32:48] == UNPAINTED).all()
    assert np.array_equal(seen[opacity == 255], pixels[opacity == 255])


def test_colours_are_brought_together_at_the_edge() -> None:
    pixels, opacity = np.full((160, 320, 3), 110, dtype=np.uint8), opaque(320, 160)
    opacity[40:120, 80:240] = 0
    round_ = begun(pixels, opacity)
    result = round_.finish(decoded_as(round_, 100))
    assert isinstance(result, np.ndarray)
    levels = result[80, :, 0].astype(int)
    assert (levels[:80] == 110).all() and (levels[240:] == 110).all()
    assert levels[80] >= 108 and levels[88] == 100, "a quarter of a crop inwards nothing is left of the correction"
    assert (np.diff(levels[80:160]) <= 0).all() and (np.diff(levels[160:240]) >= 0).all()


def test_the_correction_follows_the_edge() -> None:
    """Left of the hole the picture is brighter than what was drawn, right of it darker."""
    colours = np.full((9, 12, 3), 100, dtype=np.float32)
    colours[:, :4], colours[:, 8:] = 120, 80
    cells = np.zeros((9, 12), dtype=bool)
    cells[3:6, 4:8] = True
    differences = edge_differences(colours, np.full_like(colours, 100), cells)
    assert differences[4, 4, 0] > 5 and differences[4, 7, 0] < -5
    assert abs(differences[4, 5, 0]) < abs(differences[4, 4, 0])


def test_a_gradient_or_a_horizon_is_no_seam() -> None:
    """Colours that change downwards, smoothly and at once, go on in what is drawn: there is nothing to correct."""
    levels = np.array([0, 10, 20, 30, 40, 50, 150, 150, 150, 150], dtype=np.float32)
    colours = np.repeat(np.repeat(levels[:, None, None], 12, axis=1), 3, axis=2)
    cells = np.zeros((10, 12), dtype=bool)
    cells[2:5, 4:8] = True  # in the gradient, its lower edge above the horizon
    assert np.abs(edge_differences(colours, colours, cells)[cells]).max() < 1e-4
    brighter = edge_differences(colours, colours + 8, cells)
    assert np.abs(brighter[cells] + 8).max() < 1e-4


def test_depths() -> None:
    cells = np.zeros((6, 9), dtype=bool)
    cells[1:6, 1:8] = True
    assert depths(cells, 2).tolist()[3] == [-0.5, 0.5, 1.5, 2, 2, 2, 1.5, 0.5, -0.5]


def test_spreading_keeps_what_is_known_and_stays_within_it() -> None:
    values = np.random.default_rng(0).random((13, 22, 3)).astype(np.float32)
    known = np.random.default_rng(1).random((13, 22)) < 0.1
    filled = spread(values, known)
    assert np.array_equal(filled[known], values[known])
    assert filled.min() >= values[known].min() - 1e-5 and filled.max() <= values[known].max() + 1e-5
    assert (spread(values, np.zeros_like(known)) == 0).all()


def test_cells_and_pixels() -> None:
    pixels = noise(32, 16)
    there = np.ones((16, 32), dtype=bool)
    there[:8, :8] = False
    there[8:, :4] = False
    colours, known = cell_colours(pixels, there, STEP)
    assert known.tolist() == [[False, True, True, True], [True, True, True, True]]
    assert np.allclose(colours[1, 0], pixels[8:, 4:8].mean(axis=(0, 1)))
    assert enlarged(np.full((2, 4, 3), 7, dtype=np.float32), STEP).shape == (16, 32, 3)


def test_what_leaves_one_rectangle_is_an_extension() -> None:
    """The usual way to ask for one in OpenAI's API: a picture in the middle of a larger, transparent one."""
    pixels, opacity = noise(96, 64), np.zeros((64, 96), dtype=np.uint8)
    opacity[8:60, 16:64] = 255
    work = masked_work(pixels, opacity, REQUEST, CLASS)
    assert isinstance(work, Extension)
    assert (work.sides.left, work.sides.right, work.sides.up, work.sides.down) == (16, 32, 8, 4)
    assert (work.request.width, work.request.height) == (96, 64)
    assert np.array_equal(work.pixels, pixels[8:60, 16:64])
    opacity[30, 30] = 254
    assert isinstance(masked_work(pixels, opacity, REQUEST, CLASS), Redrawing)


def test_everything_can_be_drawn_anew() -> None:
    round_ = begun(noise(80, 48), np.zeros((48, 80), dtype=np.uint8))
    given_codes = round_.requests["picture"].given
    assert given_codes is not None and bool((given_codes == -1).all())
    result = round_.finish(decoded_as(round_, 90))
    assert isinstance(result, np.ndarray) and (result == 90).all()


BAD: list[tuple[Any, dict[str, Any], str, str | None]] = [
    (opaque(80, 48), {}, "nowhere transparent", "mask"),
    (None, {"width": 80}, "width cannot be set", "width"),
    (None, {"given": torch.full((6, 10), -1)}, "given cannot be set", "given"),
    (None, {"loop": True}, "cannot be a loop", "loop"),
    (None, {"label": 99}, "label is 99", "label"),
    ("below", {}, "one rectangle, around which is drawn: up is 40 pixels", "mask"),
]


@pytest.mark.parametrize(("opacity", "fields", "message", "param"), BAD)
def test_what_is_wrong_is_named(opacity: Any, fields: dict[str, Any], message: str, param: str | None) -> None:
    if opacity is None:
        opacity = opaque(80, 48)
        opacity[8:40, 32:48] = 0
    elif isinstance(opacity, str):
        opacity = opaque(80, 48)
        opacity[:40] = 0
    with pytest.raises(InvalidRequestError, match=message) as caught:
        masked_work(noise(80, 48), opacity, PanoramaRequest(**{"label": 1, **fields}), CLASS)
    assert caught.value.param == param


def test_what_picture_and_mask_both_keep_is_kept() -> None:
    picture = Image.new("RGB", (8, 4), (1, 2, 3))
    mask = Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    mask.putpixel((1, 1), (0, 0, 0, 99))
    clear = Image.new("LA", (8, 4), (7, 255))
    clear.putpixel((2, 2), (7, 0))
    assert opacity_of(picture) is None
    assert np.array_equal(opacity_of(picture, picture), opaque(8, 4))  # type: ignore[arg-type]
    opacity = opacity_of(clear, mask)
    assert opacity is not None and opacity.dtype == np.uint8
    expected = np.full((4, 8), 255)
    expected[1, 1], expected[2, 2] = 99, 0
    assert np.array_equal(opacity, expected)
    with pytest.raises(InvalidRequestError, match="the mask is 8x3 pixels, but the picture is 8x4") as caught:
        opacity_of(picture, mask.crop((0, 0, 8, 3)))
    assert caught.value.param == "mask"


def test_a_picture_without_a_hole_is_refused(tmp_path: Path) -> None:
    engine: Any = FakeEngine(write_folder(tmp_path / "model", CLASS), context="reuse")
    with pytest.raises(InvalidRequestError, match="nowhere transparent"):
        redraw_picture(engine, Image.fromarray(noise(80, 48)), None, REQUEST)


def test_from_pictures_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer of random weights, sizes that are no whole codes, and prompts along the picture."""
    monkeypatch.setattr(FakeEngine, "started", [])
    engine: Any = FakeEngine(write_folder(tmp_path / "model", CLASS), context="reuse")
    picture = Image.fromarray(noise(61, 45))
    mask = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (20, 10, 37, 33))
    request = PanoramaRequest(label=1, seed=5, prompts=[{"label": 2, "left": 0.5}])
    made = redraw_picture(engine, picture, mask, request)
    kept = np.array(mask)[..., 3] == 255
    assert made.image.size == picture.size == (made.request.width, made.request.height)
    assert np.array_equal(np.array(made.image)[kept], np.array(picture)[kept])
    [drawn] = FakeEngine.started[0]["requests"]
    assert (drawn.width, drawn.height, drawn.seed) == (64, 48, 5)
    assert int((drawn.given == -1).sum()) == 3 * 4
