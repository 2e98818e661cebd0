"""Two passes without an engine: what the first pass draws, what the second is given, and what is refused."""

from __future__ import annotations

from dataclasses import replace
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
from panoserve.configs.grid import Canvas
from panoserve.errors import InvalidRequestError
from panoserve.redirect.layout import crop_windows, plan_of
from panoserve.serve.two_pass import (
    MAX_HOLD,
    check_two_pass,
    coarse_request,
    draw_two_pass,
    encoded,
    given_shares,
    guided_request,
)

GRID = CLASS.grid  # 4 codes of 8 pixels
STEP, CROP = GRID.downsample, GRID.crop_pixels


def asked(width: int = 4 * CROP, height: int = 2 * CROP, **fields: Any) -> PanoramaRequest:
    values: dict[str, Any] = {"label": 1, "width": width, "height": height, "stride": 3, "seed": 5, **fields}
    return check_two_pass(PanoramaRequest(**values), CLASS)


def mean_code(picture: Image.Image) -> torch.Tensor:
    """A tokenizer whose code is the mean of its square, of 64 levels."""
    pixels = np.asarray(picture, dtype=np.int64)
    squares = pixels.reshape(pixels.shape[0] // STEP, STEP, pixels.shape[1] // STEP, STEP, 3)
    return torch.from_numpy(squares.mean(axis=(1, 3, 4)).astype(np.int64) // 4)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // STEP, width // STEP, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


@given(
    rows=st.integers(4, 12),
    columns=st.integers(5, 14),
    stride=st.integers(1, 4),
    row_stride=st.integers(1, 4),
    loop=st.booleans(),
    hold=st.floats(0, MAX_HOLD),
)
@settings(deadline=None)
def test_every_crop_begins_with_what_is_given(
    rows: int, columns: int, stride: int, row_stride: int, loop: bool, hold: float
) -> None:
    """The slow twin: each code's share, from how far it is behind the first row and column that its crop draws."""
    canvas = Canvas(rows, columns)
    windows = [place for _, place in crop_windows(canvas, GRID, stride, row_stride, loop)]
    shares = given_shares(canvas, windows, GRID.side, hold, reach=0.5)
    drawn: set[tuple[int, int]] = set()
    for row, column in windows:
        cells = {(r, c): (row + r, (column + c) % columns) for r in range(GRID.side) for c in range(GRID.side)}
        own = {place: cell for place, cell in cells.items() if cell not in drawn}
        drawn |= set(cells.values())
        if not own:
            continue
        top, left = min(r for r, _ in own), min(c for _, c in own)
        for (r, c), cell in own.items():
            expected = max(hold, 1 - min(r - top, c - left) / 2)
            assert shares[cell] == pytest.approx(expected)
    assert len(drawn) == rows * columns


def test_the_first_pass_is_one_crop_high() -> None:
    prompts = [{"label": 2, "left": 64, "right": 0.75, "top": 0, "bottom": 33}, {"label": 3, "left": 0.5}]
    request = replace(asked(prompts=prompts, loop=True), blend=16)
    coarse = coarse_request(request, CLASS)
    assert (coarse.width, coarse.height, coarse.seed, coarse.loop) == (2 * CROP, CROP, 5, True)
    first, second = coarse.prompts or ()
    assert (first.left, first.right, first.top, first.bottom) == (32, 0.75, 0, 16)
    assert (second.left, second.right, second.top, second.bottom) == (0.5, None, 0, None)
    assert coarse.blend == 8 and coarse_request(replace(asked(), blend=0.3), CLASS).blend == 0.3
    assert replace(coarse, blend=0).resolve(CLASS).windows(CLASS)  # a request like any other
    odd = coarse_request(asked(7 * STEP, 5 * STEP), CLASS)
    assert (odd.width, odd.height) == (6 * STEP, CROP)
    tall = coarse_request(asked(5 * STEP, 9 * STEP, loop=True), CLASS)
    assert (tall.width, tall.height) == (CROP + STEP, 7 * STEP), "a loop is wider than a crop"


def test_the_second_pass_is_given_codes_of_the_enlarged_picture() -> None:
    request = asked(40 * STEP, 20 * STEP)
    picture = noise(20 * STEP, 10 * STEP)
    codes = mean_code(picture.resize((40 * STEP, 20 * STEP), Image.Resampling.LANCZOS))
    shares = given_shares(request.canvas(CLASS), request.windows(CLASS), GRID.side, 0.3)
    made = guided_request(request, CLASS, picture, mean_code, 0.3)
    assert made.given is not None and made.seed == 6
    there = made.given >= 0
    assert torch.equal(made.given[there], codes[there])
    assert bool(there[torch.from_numpy(shares == 1)].all())
    assert there.float().mean().item() == pytest.approx(shares.mean(), abs=0.05)
    again = guided_request(request, CLASS, picture, mean_code, 0.3)
    assert torch.equal(made.given, again.given)  # type: ignore[arg-type]
    other = guided_request(asked(40 * STEP, 20 * STEP, label=2), CLASS, picture, mean_code, 0.3)
    assert torch.equal(made.given, other.given)  # type: ignore[arg-type]
    plan = plan_of(made.engine_args(CLASS), GRID)
    assert sum(len(list(plan.drawn(lane))) for lane in plan.lanes) == int((~there).sum())


def test_a_loop_is_enlarged_and_encoded_all_around() -> None:
    """A picture turned about itself has codes that are turned: no edge is special."""
    picture = noise(12 * STEP, CROP)
    turned = Image.fromarray(np.roll(np.asarray(picture), 6 * STEP, axis=1))
    seen: list[tuple[int, int]] = []

    def encode(image: Image.Image) -> torch.Tensor:
        seen.append(image.size)
        return mean_code(image)

    size = (24 * STEP, 2 * CROP)
    one, two = (encoded(image, size, CLASS, encode, loop=True) for image in (picture, turned))
    assert one.shape == (8, 24) and torch.equal(two, one.roll(12, dims=1))
    assert seen == [(28 * STEP, 2 * CROP)] * 2, "half a crop more on either side"
    plain = encoded(picture, size, CLASS, encode, loop=False)
    assert torch.equal(plain[:, 4:-4], one[:, 4:-4]) and not torch.equal(plain, one)


def test_both_passes_are_one_batch_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "started", [])
    engine: Any = FakeEngine(write_folder(tmp_path / "model", CLASS), context="recompute")
    requests = [PanoramaRequest(label=n, width=96, height=64, seed=10 * n, context="recompute") for n in (1, 2)]
    made = draw_two_pass(engine, requests, progress=False)
    drawn = FakeEngine.started[0]["requests"]
    assert [(r.label, r.seed, r.height) for r in drawn] == [(1, 10, 32), (2, 20, 32), (1, 11, 64), (2, 21, 64)]
    assert [r.given is None for r in drawn] == [True, True, False, False]
    assert [(two.request.seed, two.request.given, two.panorama.request.seed) for two in made] == [
        (10, None, 11), (20, None, 21),
    ]  # fmt: skip
    assert made[0].panorama.image is not None and made[0].coarse.image is not None
    assert draw_two_pass(engine, requests[:1], decode=False, progress=False)[0].panorama.image is None


@pytest.mark.parametrize(
    ("fields", "hold", "field", "message"),
    [
        ({"height": CROP}, 0.2, "height", "128x32 pixels, but two passes need more than one crop (32) each way"),
        ({"width": CROP}, 0.2, "width", "32x64 pixels"),
        ({"given": torch.full((8, 16), -1)}, 0.2, "given", "given cannot be set"),
        ({}, 1.0, "hold", "hold is 1.0, but must be a number from 0 to 0.95"),
        ({"label": 99}, 0.2, "label", "from 0 to 9"),
    ],
)
def test_what_is_wrong_is_said_first(fields: dict[str, Any], hold: float, field: str, message: str) -> None:
    request = PanoramaRequest(**{"label": 1, "width": 4 * CROP, "height": 2 * CROP, **fields})
    with pytest.raises(InvalidRequestError) as caught:
        check_two_pass(request, CLASS, hold=hold)
    assert caught.value.param == field
    assert message in str(caught.value)
