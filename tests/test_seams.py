"""The seam ratio: 1 for pictures without seams, more where crops do not meet."""

from __future__ import annotations

import numpy as np
import pytest

from panoserve.benchmarks.seams import Steps, drawn_by, seam_steps
from panoserve.configs.grid import Canvas, Grid
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.plan import Plan

GRID = Grid(side=4, downsample=8)


def plan(rows: int = 4, columns: int = 10, loop: bool = False) -> Plan:
    return canvas_plan(Canvas(rows, columns), GRID, 3, "recompute", loop=loop)


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(8 * rows, 8 * columns, 3), dtype=np.uint8)


def test_the_first_crop_draws_a_square_and_the_others_their_stride() -> None:
    assert drawn_by(plan()).tolist() == [[0] * 4 + [1] * 3 + [2] * 3] * 4


def test_noise_has_no_seam() -> None:
    for rows, columns, axis in ((4, 40, 1), (40, 4, 0), (22, 22, 0), (22, 22, 1)):
        assert seam_steps(noise(rows, columns), plan(rows, columns), axis).ratio == pytest.approx(1, abs=0.05)


def test_the_axes_are_counted_apart() -> None:
    image = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (32, 80, 3))  # changes downwards only
    assert seam_steps(image, plan(), 0).borders == 0 and seam_steps(image, plan(), 0).other > 0
    across = seam_steps(image, plan(), 1)
    assert across.borders == 2 * 32 and across.border == across.other == 0


def test_a_crop_of_another_brightness_is_found() -> None:
    image = noise(4, 10) // 16
    image[:, 32:56] += 100  # the second crop, whose two borders are the picture's only ones
    steps = seam_steps(image, plan(), 1)
    assert steps.borders == 2 * 32 and steps.border / steps.borders > 90
    assert steps.ratio > 10
    shifted = noise(4, 10) // 16
    shifted[:, 36:60] += 100  # the same elsewhere is not a seam
    assert seam_steps(shifted, plan(), 1).ratio < 1


def test_a_loop_has_a_border_more() -> None:
    image = noise(4, 12) // 16
    image[:, :4] += 100  # right at the left edge
    open_steps, closed = (seam_steps(image, plan(columns=12, loop=loop), 1, loop) for loop in (False, True))
    assert closed.ratio > 3 > open_steps.ratio


def test_pictures_are_counted_together() -> None:
    one, two = Steps(10, 1, 20, 10), Steps(2, 2, 10, 5)
    assert one + two == Steps(12, 3, 30, 15)
    assert (one + two).ratio == pytest.approx(2)
    assert np.isnan(Steps(0, 0, 20, 10).ratio)
