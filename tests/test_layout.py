"""Every kind of panorama as a plan: each code given or drawn exactly once, nothing used before it is there."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoserve.configs.grid import Canvas, Grid
from panoserve.errors import InvalidRequestError
from panoserve.redirect.layout import canvas_plan, count_windows, crop_starts, crop_windows, loop_starts
from panoserve.redirect.plan import CONTEXTS, UNKNOWN, Context, Copy, Draw, Feed, Lane, Plan, copy_parents
from panoserve.redirect.progress import Progress
from panoserve.redirect.simulate import draw_plan, predict


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, list[list[int]] | None]:
    """A random plan, and what is given beforehand: a rectangle of codes 0 .. somewhere, or nothing."""
    side = draw(st.integers(2, 5))
    loop = draw(st.booleans())
    canvas = Canvas(side + draw(st.integers(0, 9)), side + draw(st.integers(1 if loop else 0, 14)))
    stride, row_stride = draw(st.integers(1, side)), draw(st.integers(1, side))
    context: Context = draw(st.sampled_from(CONTEXTS))
    codes = None
    if draw(st.booleans()):
        top, left = draw(st.integers(0, canvas.rows - 1)), draw(st.integers(0, canvas.columns - 1))
        bottom, right = draw(st.integers(top + 1, canvas.rows)), draw(st.integers(left + 1, canvas.columns))
        codes = [[UNKNOWN] * canvas.columns for _ in range(canvas.rows)]
        for row in codes[top:bottom]:
            row[left:right] = [0] * (right - left)
        if not any(UNKNOWN in row for row in codes):
            codes[0][0] = UNKNOWN
    known = [[code != UNKNOWN for code in row] for row in codes] if codes else None
    plan = canvas_plan(canvas, Grid(side, 16), stride, context, row_stride=row_stride, loop=loop, known=known)
    return plan, codes


class Witness:
    """A lane that draws 1, 2, 3, ... and remembers which canvas cell each of its keys and values belongs to."""

    drawn = 0

    def __init__(self, plan: Plan, lane: Lane) -> None:
        self.plan, self.lane = plan, lane
        self.cells: list[tuple[int, int]] = []
        self.prefix = False

    def feed(self, codes: list[int]) -> int:
        assert all(code >= 0 for code in codes), "fed a code that nobody has drawn"
        self.prefix = True
        for _ in codes:
            self.cells.append(self.plan.cell(self.lane, len(self.cells)))
        assert len(self.cells) < self.plan.grid.codes, "the last code of a crop must never be fed"
        Witness.drawn += 1
        return Witness.drawn

    def copy_prefix(self, parent: Witness) -> None:
        assert parent.prefix and not self.prefix
        self.prefix = True

    def copy(self, parent: Witness, copy: Copy, shift: tuple[int, int]) -> None:
        assert self.prefix and copy.start == len(self.cells)
        side = self.plan.grid.side
        for offset in range(copy.length):
            (row, column), source = divmod(copy.start + offset, side), divmod(copy.source + offset, side)
            assert (row - source[0], column - source[1]) == shift, "one copy, one shift"
            cell = self.plan.cell(self.lane, copy.start + offset)
            assert parent.cells[copy.source + offset] == cell, "copied from another place of the canvas"
            self.cells.append(cell)


@settings(deadline=None, max_examples=150)
@given(plans())
def test_every_code_is_given_or_drawn_exactly_once(case: tuple[Plan, list[list[int]] | None]) -> None:
    plan, codes = case
    canvas = draw_plan(plan, lambda lane: Witness(plan, lane), codes)
    cells = [cell for lane in plan.lanes for cell in plan.drawn(lane)]
    assert len(set(cells)) == len(cells), "a code is drawn twice"
    known = {(r, c) for r, row in enumerate(codes or []) for c, code in enumerate(row) if code != UNKNOWN}
    assert known.isdisjoint(cells)
    assert len(known) + len(cells) == plan.canvas.codes
    assert all(code >= 0 for row in canvas for code in row)
    for lane in plan.lanes:
        assert isinstance(lane.segments[-1], Draw), "a lane ends with a code it draws"
        assert all(parent < lane.index for parent in copy_parents(lane)), "dependencies go one way"
        assert [s.start for s in lane.segments] == [0, *(s.start + s.length for s in lane.segments[:-1])], "no gap"
        assert plan.context == "reuse" or not copy_parents(lane)


@settings(deadline=None, max_examples=80)
@given(plans())
def test_the_wavefront_draws_what_one_lane_after_another_draws(case: tuple[Plan, list[list[int]] | None]) -> None:
    """`predict` ends, draws all, and no faster than the longest chain of draws allows; rows come out in order."""
    plan, codes = case
    prediction = predict(plan, prefix_rows=1)
    progress = Progress(plan, codes)
    assert prediction.drawn == progress.to_draw == sum(1 for lane in plan.lanes for _ in plan.drawn(lane))
    assert prediction.steps <= prediction.drawn + sum(len(lane.segments) for lane in plan.lanes)
    assert plan.min_resident <= len(plan.lanes)
    assert prediction.lanes == len(plan.lanes)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_windows_are_counted_as_they_are_listed(
    more_rows: int, more_columns: int, stride: int, row_stride: int, loop: bool
) -> None:
    options = (Canvas(8 + more_rows, 8 + more_columns), Grid(8, 16), stride, row_stride, loop)
    assert count_windows(*options) == len(crop_windows(*options))


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 200))
def test_loop_crops_cover_the_circle(side: int, stride: int, extra: int) -> None:
    """Crops start at 0, move by 1 .. stride, leave no gap, and the last one reaches the first one's columns."""
    stride = min(stride, side)
    starts = loop_starts(side + extra, side, stride)
    assert starts[0] == 0
    assert all(0 < later - earlier <= stride for earlier, later in pairwise(starts))
    closing = starts[-1] + side - (side + extra)  # columns of crop 0 that the last crop is given
    assert closing >= min(side - stride, stride // 2)
    assert starts[-2] + side < side + extra, "the last crop has something to draw"
    if len(starts) > 2:
        assert starts[-2] + side <= side + extra, "only the last crop leaves the canvas"


def test_the_last_stride_shrinks_to_fit() -> None:
    assert crop_starts(16, 16, 12) == [0]
    assert crop_starts(40, 16, 12) == [0, 12, 24]
    assert crop_starts(41, 16, 12) == [0, 12, 24, 25]


def test_a_vertical_plan_written_out() -> None:
    """side 4, 3 rows a crop: the last row of crop 0 is given to crop 1; its last code has no KV and is fed."""
    reuse = canvas_plan(Canvas(7, 4), Grid(4, 16), 4, "reuse", row_stride=3)
    assert reuse.lanes[1].segments == (Copy(0, 3, 0, 12), Feed(3, 1), Draw(4, 12))
    assert reuse.shift(reuse.lanes[1], reuse.lanes[1].segments[0]) == (-3, 0)
    assert reuse.lanes[1].prefix_parent == 0
    recompute = canvas_plan(Canvas(7, 4), Grid(4, 16), 4, "recompute", row_stride=3)
    assert recompute.lanes[1].segments == (Feed(0, 4), Draw(4, 12))


def test_both_directions_written_out() -> None:
    """Crop (1, 1) is given a row from above and a column from the left; its draws interleave with both."""
    plan = canvas_plan(Canvas(7, 7), Grid(4, 16), 3, "reuse")
    assert [(lane.row, lane.column) for lane in plan.lanes] == [(0, 0), (3, 0), (0, 3), (3, 3)]
    corner = plan.lanes[3]
    assert corner.segments == (
        Copy(0, 3, 2, 12),
        Feed(3, 2),
        Draw(5, 3),
        Feed(8, 1),
        Draw(9, 3),
        Feed(12, 1),
        Draw(13, 3),
    )


def test_a_loop_written_out() -> None:
    """The last crop of 12 columns stands at 9 and is given column 0 on its right, behind every row's draws."""
    plan = canvas_plan(Canvas(4, 12), Grid(4, 16), 2, "reuse", loop=True)
    assert [lane.column for lane in plan.lanes] == [0, 2, 4, 6, 7, 9]
    last = plan.lanes[-1]
    assert last.segments[:6] == (
        Copy(0, 1, 4, 2),
        Feed(1, 1),
        Draw(2, 1),
        Copy(3, 1, 0, 0),
        Copy(4, 1, 4, 6),
        Feed(5, 1),
    )
    assert plan.shift(last, last.segments[3]) == (0, 3)
    assert last.segments[-1] == Draw(14, 1), "what is given behind the last draw is left out"


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("side", "rows", "crops"), [(16, 12, 5), (16, 4, 3), (8, 8, 3)])
def test_steps_of_a_vertical_panorama(side: int, rows: int, crops: int, context: Context) -> None:
    """A crop below needs all of the crop above: g*g + (n-1)*r*g steps, as many as codes; no overlap, no waiting."""
    plan = canvas_plan(Canvas(side + (crops - 1) * rows, side), Grid(side, 16), side, context, row_stride=rows)
    expected = side * side + (crops - 1) * rows * side if rows < side else side * side
    assert predict(plan, prefix_rows=1).steps == expected


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("bands", "crops"), [(2, 25), (4, 3)])
def test_a_canvas_of_two_directions_is_a_wavefront_of_both(bands: int, crops: int, context: Context) -> None:
    """g*g + (n-1)*c + (m-1)*r*g steps: a band starts when the first crop above it is done, not when all of them are."""
    side, stride, rows = 16, 12, 8
    canvas = Canvas(side + (bands - 1) * rows, side + (crops - 1) * stride)
    steps = predict(canvas_plan(canvas, Grid(side, 16), stride, context, row_stride=rows), prefix_rows=1).steps
    assert steps == side * side + (crops - 1) * stride + (bands - 1) * rows * side


def test_known_codes_are_fed_once_and_copied_after() -> None:
    """An extension to the right: the first crop is fed the picture's codes, later ones copy; whole crops drop out."""
    canvas, known = Canvas(4, 13), [[column < 7 for column in range(13)] for _ in range(4)]
    plan = canvas_plan(canvas, Grid(4, 16), 3, "reuse", known=known)
    assert [lane.column for lane in plan.lanes] == [6, 9]
    assert plan.lanes[0].segments[:2] == (Feed(0, 1), Draw(1, 3))
    assert plan.lanes[0].prefix_parent is None and plan.lanes[1].prefix_parent == 0


def test_wide_and_tall_canvases_keep_few_lanes_resident() -> None:
    grid = Grid(16, 16)
    wide = canvas_plan(Canvas(28, 16 + 20 * 12), grid, 12, "reuse")
    tall = canvas_plan(Canvas(16 + 20 * 12, 28), grid, 12, "reuse")
    assert wide.min_resident == tall.min_resident == 3
    assert canvas_plan(Canvas(16, 16 + 20 * 12), grid, 12, "reuse", loop=True).min_resident == 3


@pytest.mark.parametrize(
    ("canvas", "options", "message"),
    [
        (Canvas(15, 32), {}, "height is 240 pixels, less than one crop"),
        (Canvas(16, 15), {}, "width is 240 pixels, less than one crop"),
        (Canvas(16, 16), {"loop": True}, "a loop must be wider than one crop: at least 272"),
        (Canvas(16, 17), {"row_stride": 17}, "row_stride is 17"),
        (Canvas(16, 17), {"known": [[True] * 17] * 16}, "nothing to draw"),
        (Canvas(16, 17), {"known": [[True] * 16] * 16}, r"must be \[16, 17\]"),
    ],
)
def test_what_cannot_be_is_named(canvas: Canvas, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        canvas_plan(canvas, Grid(16, 16), 12, "reuse", **options)  # type: ignore[arg-type]
