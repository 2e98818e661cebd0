"""The plan language: turns follow its two rules, and horizontal panoramas cost what they should."""

from __future__ import annotations

import pytest

from panoserve.configs.grid import Canvas, Grid
from panoserve.errors import InvalidRequestError
from panoserve.redirect.layout import canvas_plan
from panoserve.redirect.plan import CONTEXTS, Context, Copy, Draw, Feed, Plan, lane_seed, turns_of
from panoserve.redirect.simulate import play, predict


def plan_of(side: int, width: int, stride: int, context: str) -> Plan:
    return canvas_plan(Canvas(side, width), Grid(side, 16), stride, context)  # type: ignore[arg-type]


def test_a_small_plan_written_out() -> None:
    """side 4, stride 3: one given column; stride 1: three given columns, of which two are copied."""
    assert plan_of(4, 7, 3, "reuse").lanes[1].segments[:2] == (Feed(0, 1), Draw(1, 3))
    reuse = plan_of(4, 5, 1, "reuse").lanes[1]
    assert reuse.prefix_parent == 0
    assert reuse.segments[:6] == (Copy(0, 2, 0, 1), Feed(2, 1), Draw(3, 1), Copy(4, 2, 0, 5), Feed(6, 1), Draw(7, 1))
    recompute = plan_of(4, 5, 1, "recompute").lanes[1]
    assert recompute.prefix_parent is None
    assert recompute.segments[:4] == (Feed(0, 3), Draw(3, 1), Feed(4, 3), Draw(7, 1))


def test_turns_of_both_contexts() -> None:
    """A Draw before a Copy settles its last code; a Draw before a Feed leaves it to be carried into the next turn."""
    reuse = list(turns_of(plan_of(4, 5, 1, "reuse").lanes[1]))
    assert [(turn.samples, turn.carry, turn.settle) for turn in reuse] == [(2, False, True)] * 3 + [(1, False, False)]
    fed = list(turns_of(plan_of(4, 5, 1, "recompute").lanes[1]))
    assert [(turn.samples, turn.carry, turn.settle) for turn in fed] == [(1, False, False)] + [(1, True, False)] * 3


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("side", "stride", "crops"), [(16, 12, 5), (16, 4, 4), (32, 24, 5), (8, 8, 3)])
def test_steps_of_the_wavefront(side: int, stride: int, crops: int, context: str) -> None:
    """design.md 4: g*g + (n-1)*c steps; independent crops (stride = side) all run at once."""
    plan = plan_of(side, side + (crops - 1) * stride, stride, context)
    expected = side * side + (crops - 1) * stride if stride < side else side * side
    assert predict(plan, prefix_rows=1).steps == expected


def test_forward_tokens() -> None:
    """recompute feeds every code of every crop but the last; reuse feeds c + 1 a row (c in the last row)."""
    side, stride, crops = 16, 12, 5
    width = side + (crops - 1) * stride
    first = 1 + side * side - 1
    recompute = predict(plan_of(side, width, stride, "recompute"), prefix_rows=1)
    assert recompute.forward_tokens == crops * first
    reuse = predict(plan_of(side, width, stride, "reuse"), prefix_rows=1)
    assert reuse.forward_tokens == first + (crops - 1) * (side * (stride + 1) - 1)
    assert reuse.copied_slots == (crops - 1) * (1 + side * (side - stride - 1))


def test_residency() -> None:
    assert plan_of(16, 76, 12, "reuse").min_resident == 2
    assert plan_of(16, 76, 12, "recompute").min_resident == 1
    assert plan_of(16, 64, 16, "reuse").min_resident == 1


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    ("rows", "columns", "stride"), [(8, 8, 6), (8, 20, 6), (8, 80, 6), (8, 40, 2), (26, 8, 6), (14, 38, 6)]
)
def test_mean_residency_is_about_that_of_a_run(context: Context, rows: int, columns: int, stride: int) -> None:
    plan = canvas_plan(Canvas(rows, columns), Grid(8, 16), stride, context)
    held = [
        sum((lane.running or lane.turn > 0) and not lane.released for lane in step.progress.lanes)
        for step in play(plan)
    ]
    mean = sum(held) / len(held)
    assert mean - 1 < plan.mean_resident < mean + 1.5 and plan.mean_resident <= len(plan.lanes)


def test_lane_seeds_differ_and_repeat() -> None:
    plan = plan_of(16, 76, 12, "reuse")
    seeds = [lane_seed(7, lane) for lane in plan.lanes]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [lane_seed(7, lane) for lane in plan.lanes]
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("stride", [0, 17, -1, 2.5, True])
def test_a_bad_stride_is_named(stride: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"stride is .* from 1 to 16"):
        plan_of(16, 32, stride, "reuse")  # type: ignore[arg-type]
