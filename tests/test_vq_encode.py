"""Encoding in windows: every code is one that a window around it has."""

from __future__ import annotations

import pytest
import torch
from vq_weights import TINY_VQ, filled_vq

from panoserve.errors import InvalidRequestError
from panoserve.vq.encode import encode_windows

STEP = TINY_VQ.downsample


def noise(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.rand(3, rows * STEP, columns * STEP, generator=generator) * 2 - 1


def test_a_small_picture_is_encoded_whole() -> None:
    vq, image = filled_vq(TINY_VQ), noise(5, 8)
    assert torch.equal(encode_windows(vq, image, side=8), vq.encode(image[None])[0])


@pytest.mark.parametrize(("rows", "columns"), [(6, 19), (17, 7), (12, 13), (9, 8)])
def test_a_code_comes_from_the_window_whose_middle_is_nearest(rows: int, columns: int) -> None:
    vq, image, side = filled_vq(TINY_VQ), noise(rows, columns), 8
    codes = encode_windows(vq, image, side)
    assert codes.shape == (rows, columns)

    def starts(length: int) -> list[int]:
        return sorted({min(start, max(length - side, 0)) for start in range(0, length, side // 2)})

    windows = {}
    for top in starts(rows):
        for left in starts(columns):
            window = image[None, :, top * STEP : (top + side) * STEP, left * STEP : (left + side) * STEP]
            windows[top, left] = vq.encode(window)[0]

    def nearest(place: int, length: int) -> list[int]:
        distance = {start: abs(2 * place + 1 - 2 * start - side) for start in starts(length)}
        return [start for start, d in distance.items() if d == min(distance.values())]

    for row in range(rows):
        for column in range(columns):
            choices = [
                int(windows[top, left][row - top, column - left])
                for top in nearest(row, rows)
                for left in nearest(column, columns)
            ]
            assert int(codes[row, column]) in choices


def test_sizes_that_are_no_whole_codes_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="needs a multiple of 4"):
        encode_windows(filled_vq(TINY_VQ), torch.zeros(3, 4 * STEP + 1, 4 * STEP), side=8)
