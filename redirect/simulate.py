"""Run a plan without an engine: the oracle of the tests, and the clock that predicts a run's steps.

`draw_plan` is the specification of redirection: lanes one after another, segments one after another, no wavefront, no
batching. `predict` plays the wavefront on an ideal engine in which every runnable lane advances each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from panoserve.redirect.plan import Copy, Feed, Lane, Plan
from panoserve.redirect.progress import UNKNOWN, Progress


class LaneDrawer(Protocol):
    """One crop being drawn by some model; what it has grows in raster order, condition rows first."""

    def feed(self, codes: list[int]) -> int:
        """Run `codes` behind what the lane has (and its condition rows first, if it has nothing); the next code."""

    def copy_prefix(self, parent: Self) -> None:
        """Take the condition rows' keys and values from `parent`, as they are."""

    def copy(self, parent: Self, copy: Copy, shift: tuple[int, int]) -> None:
        """Take the keys and values of `copy` from `parent`, keys turned by `shift` (rows, columns)."""


def draw_plan(plan: Plan, new_lane: Callable[[Lane], LaneDrawer]) -> list[list[int]]:
    """Draw every lane of `plan` in order; the canvas as rows of codes."""
    canvas = [[UNKNOWN] * plan.canvas.columns for _ in range(plan.canvas.rows)]
    drawers: list[LaneDrawer] = []
    for lane in plan.lanes:
        drawer = new_lane(lane)
        if lane.prefix_parent is not None:
            drawer.copy_prefix(drawers[lane.prefix_parent])
        choice: int | None = None  # the model's choice for the next index, known once the one before was fed
        for segment in lane.segments:
            cells = [plan.cell(lane, segment.start + offset) for offset in range(segment.length)]
            if isinstance(segment, Copy):
                drawer.copy(drawers[segment.parent], segment, plan.shift(lane, segment))
            elif isinstance(segment, Feed):
                choice = drawer.feed([canvas[row][column] for row, column in cells])
            else:
                for offset, (row, column) in enumerate(cells, start=segment.start):
                    code = drawer.feed([]) if choice is None else choice
                    canvas[row][column] = code
                    if offset < plan.grid.codes - 1:  # the last code of a crop is never fed (facts.md 1.3)
                        choice = drawer.feed([code])
        drawers.append(drawer)
    return canvas


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan costs on an ideal engine. `forward_tokens` counts model inputs, condition rows included."""

    steps: int
    drawn: int
    forward_tokens: int
    copied_slots: int
    lanes: int
    most_lanes: int  # that hold KV at the same time


def predict(plan: Plan, prefix_rows: int) -> Prediction:
    """Play the wavefront with no limit on lanes or cache."""
    progress = Progress(plan)
    steps = forward = copied = most = 0
    while not progress.done:
        for lane in progress.lanes:
            if not progress.can_start(lane):
                continue
            first = lane.turn == 0
            turn = progress.start(lane)
            copies_prefix = first and lane.lane.prefix_parent is not None
            copied += sum(copy.length for copy in turn.copies) + prefix_rows * copies_prefix
            inputs = (turn.feed.length if turn.feed else 0) + turn.carry + prefix_rows * (first and not copies_prefix)
            forward += inputs - 1  # a first step has this many inputs; one of them is counted with all steps below
        running = [lane for lane in progress.lanes if lane.running]
        most = max(most, sum((lane.running or lane.turn > 0) and not lane.released for lane in progress.lanes))
        steps += 1
        forward += len(running)
        for lane in running:
            progress.sampled(lane, 0)
        for lane in list(progress.releasable()):
            lane.released = True
    return Prediction(steps, progress.drawn, forward, copied, len(plan.lanes), most)
