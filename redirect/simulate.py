"""Run a plan without an engine: the oracle of the tests, and the clock that predicts a run's steps.

`draw_plan` is the specification of redirection: lanes one after another, segments one after another, no wavefront, no
batching. `play` advances the wavefront on an ideal engine in which every runnable lane runs each step; `predict` adds
up its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from panoserve.redirect.plan import Codes, Copy, Feed, Lane, Plan, Turn
from panoserve.redirect.progress import LaneProgress, Progress


class LaneDrawer(Protocol):
    """One crop being drawn by some model; what it has grows in raster order, condition rows first."""

    def feed(self, codes: list[int]) -> int:
        """Run `codes` behind what the lane has (and its condition rows first, if it has nothing); the next code."""

    def copy_prefix(self, parent: Self) -> None:
        """Take the condition rows' keys and values from `parent`, as they are."""

    def copy(self, parent: Self, copy: Copy, shift: tuple[int, int]) -> None:
        """Take the keys and values of `copy` from `parent`, keys turned by `shift` (rows, columns)."""


def draw_plan(plan: Plan, new_lane: Callable[[Lane], LaneDrawer], given: Codes | None = None) -> Codes:
    """Draw every lane of `plan` in order, onto `given` if some codes are known beforehand."""
    canvas = [list(row) for row in given or plan.blank()]
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


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the ideal engine: where the panorama stands, which turns began with it, and which lanes ran."""

    progress: Progress
    began: list[tuple[LaneProgress, Turn, bool]]  # lane, its turn, and whether that is its first
    ran: list[LaneProgress]


def play(plan: Plan) -> Iterator[Step]:
    """Play the wavefront, step by step, with no limit on lanes or cache; every lane that can run does."""
    progress = Progress(plan)
    while not progress.done:
        able = [lane for lane in progress.lanes if progress.can_start(lane)]
        began = [(lane, lane.current, lane.turn == 0) for lane in able]
        for lane in able:
            progress.start(lane)
        ran = [lane for lane in progress.lanes if lane.running]
        for lane in ran:
            progress.sampled(lane, 0)
        yield Step(progress, began, ran)
        for lane in list(progress.releasable()):
            lane.released = True


def predict(plan: Plan, prefix_rows: int) -> Prediction:
    """What `play` costs, with condition rows of that number."""
    steps = drawn = forward = copied = most = 0
    for step in play(plan):
        for lane, turn, first in step.began:
            copies_prefix = first and lane.lane.prefix_parent is not None
            copied += sum(copy.length for copy in turn.copies) + prefix_rows * copies_prefix
            inputs = (turn.feed.length if turn.feed else 0) + turn.carry + prefix_rows * (first and not copies_prefix)
            forward += inputs - 1  # a first step has this many inputs; one of them is counted with all steps below
        steps += 1
        forward += len(step.ran)
        drawn = step.progress.drawn
        most = max(most, sum((lane.running or lane.turn > 0) and not lane.released for lane in step.progress.lanes))
    return Prediction(steps, drawn, forward, copied, len(plan.lanes), most)
