"""Loops are decoded with their edges joined, and abrupt changes of colour across them are made gradual."""

from __future__ import annotations

import torch
from vq_weights import TINY_VQ, filled_vq

from panoserve.vq.loops import REACH, decode_loop, spread_abrupt
from panoserve.vq.tiled import decode_tiled

STEP, COLUMNS, HEIGHT = 8, 40, 24
WIDTH = COLUMNS * STEP


def loops(row: torch.Tensor) -> torch.Tensor:
    """A picture [1, 3, HEIGHT, W] whose rows are all alike, of three different colours."""
    return (row * torch.tensor([1.0, -0.5, 0.25])[:, None, None]).expand(3, HEIGHT, len(row)).clone()[None]


def steepest(picture: torch.Tensor) -> float:
    """The largest step between neighbouring columns within REACH codes of the edge, the edge among them."""
    middle = picture.roll(WIDTH // 2, 3)[..., WIDTH // 2 - REACH * STEP : WIDTH // 2 + REACH * STEP]
    return float(middle.diff(dim=3).abs().max())


def abrupt_edge() -> torch.Tensor:
    """Rows that fall by 1 across the edge, within a code to either side, and rise by it everywhere else."""
    places = torch.arange(WIDTH) + 0.5
    from_edge = torch.minimum(places, WIDTH - places)
    fall = 0.5 * torch.cos(from_edge.clamp(max=STEP) * (torch.pi / (2 * STEP)) + torch.pi / 2)
    return places / WIDTH - 0.5 + torch.where(places < WIDTH / 2, 0.5 + fall, -0.5 - fall)


def test_an_abrupt_change_becomes_gradual() -> None:
    before = loops(abrupt_edge())
    after = before.clone()
    spread_abrupt(after, STEP)
    assert steepest(after) < 0.45 * steepest(before)
    reach = REACH * STEP
    assert torch.equal(after[..., reach : WIDTH - reach], before[..., reach : WIDTH - reach])
    torch.testing.assert_close(after.mean(3), before.mean(3))
    falling = after.roll(WIDTH // 2, 3)[0, 0, 0, WIDTH // 2 - 5 * STEP : WIDTH // 2 + 5 * STEP]
    assert (falling - falling.cummin(0).values).max() < 0.05, "it falls all the way"


def test_a_gradual_change_stays() -> None:
    turns = torch.arange(WIDTH) * (2 * torch.pi / WIDTH)
    before = loops(torch.sin(turns))
    after = before.clone()
    spread_abrupt(after, STEP)
    assert (after - before).abs().max() < 0.02 * before.abs().max()


def test_every_row_has_its_own_change() -> None:
    before = loops(abrupt_edge())
    before[..., HEIGHT // 2 :, :] = 0.25  # the lower half has none
    after = before.clone()
    spread_abrupt(after, STEP)
    assert torch.equal(after[..., HEIGHT // 2 + STEP // 2 :, :], before[..., HEIGHT // 2 + STEP // 2 :, :])
    assert steepest(after[..., : HEIGHT // 2 - STEP // 2, :]) < 0.45 * steepest(before)


def test_loops_are_spread_each_for_itself_and_small_ones_left_alone() -> None:
    torch.manual_seed(0)
    both = torch.rand(2, 3, HEIGHT, 7 * STEP)
    apart = [both[i : i + 1].clone() for i in range(2)]
    for pictures in (both, *apart):
        spread_abrupt(pictures, STEP)
    assert torch.equal(both, torch.cat(apart))
    small = torch.rand(1, 3, HEIGHT, 4 * STEP)
    before = small.clone()
    spread_abrupt(small, STEP)
    assert torch.equal(small, before)


def test_a_loop_is_decoded_with_joined_edges_and_then_spread() -> None:
    torch.manual_seed(0)
    codes = torch.randint(TINY_VQ.codebook_size, (1, 4, 12))
    vq = filled_vq(TINY_VQ)
    expected = decode_tiled(vq, codes, around=True).clone()
    assert not torch.equal(decode_loop(vq, codes), expected)
    with torch.inference_mode():
        spread_abrupt(expected, TINY_VQ.downsample)
    assert torch.equal(decode_loop(vq, codes), expected)
