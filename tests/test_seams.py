"""The seam ratio: 1 for pictures without seams, more where crops do not meet."""

from __future__ import annotations

import numpy as np
import pytest

from panoserve.benchmarks.seams import NEAR, Steps, Tally, drawn_by, seam_steps
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
        steps = seam_steps(noise(rows, columns), plan(rows, columns), axis)
        assert steps.ratio == pytest.approx(1, abs=0.05)
        assert steps.ratio_to_codes == pytest.approx(1, abs=0.08)
        assert steps.ratio_to_near == pytest.approx(1, abs=0.08)


def test_the_axes_are_counted_apart() -> None:
    image = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (32, 80, 3))  # changes downwards only
    down = seam_steps(image, plan(), 0)
    assert down.crops.count == 0 and down.codes.mean == down.inside.mean == 8 and np.isnan(down.ratio)
    across = seam_steps(image, plan(), 1)
    assert across.crops == Tally(0, 2 * 32) and across.codes.total == across.inside.total == 0


def test_a_crop_of_another_brightness_is_found() -> None:
    image = noise(4, 10) // 16
    image[:, 32:56] += 100  # the second crop, whose two borders are the picture's only ones
    steps = seam_steps(image, plan(), 1)
    assert steps.crops.count == 2 * 32 and steps.crops.mean > 90
    assert steps.ratio > 10 and steps.ratio_to_codes > 10
    shifted = noise(4, 10) // 16
    shifted[:, 36:60] += 100  # the same elsewhere is not a seam
    assert seam_steps(shifted, plan(), 1).ratio < 1


@pytest.mark.parametrize("loop", [False, True])
def test_what_is_near_a_border(loop: bool) -> None:
    """The slow twin: borders of codes one by one, and how far each is from the nearest one between crops."""
    columns, image = 60, noise(16, 60).astype(int)
    plan = canvas_plan(Canvas(16, columns), Grid(side=16, downsample=8), 12, "recompute", loop=loop)
    owner = drawn_by(plan)[0]
    borders = range(columns if loop else columns - 1)  # border c is between columns c and c + 1
    seams = [c for c in borders if owner[c] != owner[(c + 1) % columns]]
    tally = Tally()
    for c in borders:
        away = [min(abs(c - seam), columns - abs(c - seam)) if loop else abs(c - seam) for seam in seams]
        if 0 < min(away) <= NEAR:
            steps = np.abs(image[:, (8 * c + 8) % (8 * columns)] - image[:, 8 * c + 7]).mean(-1)
            tally += Tally(float(steps.sum()), len(steps))
    near = seam_steps(noise(16, 60), plan, 1, loop).near
    assert len(seams) > 2 and near.count == tally.count and near.total == pytest.approx(tally.total)


def test_a_loop_has_a_border_more() -> None:
    image = noise(4, 12) // 16
    image[:, :4] += 100  # right at the left edge
    open_steps, closed = (seam_steps(image, plan(columns=12, loop=loop), 1, loop) for loop in (False, True))
    assert closed.ratio > 3 > open_steps.ratio


def test_colours_of_codes_tell_what_a_decoder_has_smoothed() -> None:
    """Two crops of unlike colours, passed over within a code to either side of their border."""
    ramp = np.interp(np.arange(8 * 12), [24, 40], [40, 140])
    image = (ramp[None, :, None] + np.random.default_rng(0).normal(0, 9, (32, 96, 3))).astype(np.uint8)
    steps = seam_steps(image, plan(columns=12), 1)
    assert steps.ratio < 1.2 < 2 < steps.ratio_of_colours
    assert steps.colours.count == 4 * 3 and steps.even.count == 4 * 8
    assert steps.edge.count == 0 and np.isnan(steps.ratio_at_edge)


def test_a_loop_s_edge_is_seen_by_itself() -> None:
    image = noise(4, 12) // 16
    image[:, :8] += 100  # a code
    steps = seam_steps(image, plan(columns=12, loop=True), 1, loop=True)
    assert steps.edge.count == 4 and 95 < steps.edge.mean < 105
    assert steps.ratio_at_edge > 3 * steps.ratio_of_colours > 3


def test_rough_borders_of_codes_are_told_from_borders_of_crops() -> None:
    """Codes of noise: every border of codes is rough, those of crops no more than others."""
    image = noise(4, 40)[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)
    steps = seam_steps(image, plan(4, 40), 1)
    assert steps.inside == Tally(0, 32 * 40 * 7)
    assert steps.crops.count + steps.codes.count == 32 * 39
    assert steps.ratio > 5 and steps.ratio_to_codes == pytest.approx(1, abs=0.2)
    dim = image // 16
    dim[:, 32:56] += 100  # the second crop is brighter, which its two borders of twelve show
    steps = seam_steps(dim, plan(4, 40), 1)
    assert steps.ratio_to_codes > 3 and steps.ratio > 3 * steps.ratio_to_codes


def test_pictures_are_counted_together() -> None:
    one = Steps(Tally(10, 1), Tally(8, 2), Tally(12, 8))
    two = Steps(Tally(2, 2), Tally(7, 1), Tally(3, 4))
    assert one + two == Steps(Tally(12, 3), Tally(15, 3), Tally(15, 12))
    assert (one + two).ratio == pytest.approx(2)
    assert (one + two).ratio_to_codes == pytest.approx(4 / 5)
    assert np.isnan(Steps(codes=Tally(20, 10)).ratio) and np.isnan(Steps().ratio_to_codes)
