"""How far a panorama has come: which turns can start, which rows are complete, whose KV may go.

Pure Python, shared by the scheduler (which reports what vLLM drew) and by simulate.py (which plays a clock).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from panoserve.configs.wire import Bridge
from panoserve.redirect.plan import UNKNOWN, Codes, Lane, Plan, Turn, copy_parents, turns_of

BRIDGE_ROWS = 2  # twice as many changed nothing


@dataclass(slots=True)
class LaneProgress:
    """A lane's turns, and how many codes of its window have been drawn and have KV."""

    lane: Lane
    turns: list[Turn]
    given_cells: list[list[tuple[int, int]]]  # of every turn: the canvas cells of its given codes
    ahead: list[range]  # of every turn: Plan.ahead
    turn: int = 0  # the next turn, or the one under way
    running: bool = False
    samples: int = 0  # returned so far in the turn under way
    settled: int = 0  # grid indices below this have keys and values in the lane's cache
    released: bool = False
    children: set[int] = field(default_factory=set)  # lanes that still have something to copy from this one

    @property
    def done(self) -> bool:
        return self.turn == len(self.turns)

    @property
    def current(self) -> Turn:
        return self.turns[self.turn]

    @property
    def cells(self) -> list[tuple[int, int]]:
        return self.given_cells[self.turn]


class Progress:
    """The canvas of one panorama while it is drawn."""

    def __init__(self, plan: Plan, given: Codes | None = None) -> None:
        """given: the canvas with all that is known beforehand, and UNKNOWN elsewhere."""
        self.plan = plan
        self.codes = [list(row) for row in given or plan.blank()]
        self.lanes = []
        for lane in plan.lanes:
            turns = list(turns_of(lane))
            cells = [[plan.cell(lane, index) for index in turn.given] for turn in turns]
            ahead = [plan.ahead(turn, turns[number + 1 :]) for number, turn in enumerate(turns)]
            self.lanes.append(LaneProgress(lane, turns, cells, ahead))
        for lane in plan.lanes:
            for parent in copy_parents(lane):
                self.lanes[parent].children.add(lane.index)
        self._missing = [row.count(UNKNOWN) for row in self.codes]
        self.to_draw = sum(self._missing)
        self._next_row = 0
        self.drawn = 0

    @property
    def done(self) -> bool:
        return self.drawn == self.to_draw

    def given(self, lane: LaneProgress) -> list[int]:
        """The given codes of a lane's next turn, copied ones first, then fed ones."""
        return [self.codes[row][column] for row, column in lane.cells]

    def code(self, lane: Lane, index: int) -> int:
        """The canvas's code at a lane's grid index."""
        row, column = self.plan.cell(lane, index)
        return self.codes[row][column]

    def can_start(self, lane: LaneProgress) -> bool:
        """Whether a lane is idle and everything its next turn needs is there."""
        if lane.running or lane.done:
            return False
        for copy in lane.current.copies:
            if self.lanes[copy.parent].settled < copy.source + copy.length:
                return False
        first_turn_prefix = lane.lane.prefix_parent if lane.turn == 0 else None
        if first_turn_prefix is not None and self.lanes[first_turn_prefix].settled == 0:
            return False
        cells = lane.cells
        if cells and self.codes[cells[-1][0]][cells[-1][1]] == UNKNOWN:  # usually the last to become known
            return False
        if any(self.code(lane.lane, index) == UNKNOWN for index in lane.ahead[lane.turn]):
            return False
        return UNKNOWN not in self.given(lane)

    def bridge(self, lane: LaneProgress) -> Bridge | None:
        """Where the draws of a lane's next turn lead to, if codes are given right of them.

        Neighbours are those of BRIDGE_ROWS rows of the window above, and of what is given in the draws' own row: all
        known when a turn can start, so that a bridge does not depend on what else is drawn at the time.
        """
        ahead, draw = lane.ahead[lane.turn], lane.current.draw
        if draw is None or not ahead:
            return None
        side = self.plan.grid.side
        row = ahead[0] // side
        first = max(draw.start, row * side)  # of the draws in that row
        above = range(max(0, row - BRIDGE_ROWS), draw.start // side)  # not what the same turn draws
        runs = [range(line * side, (line + 1) * side) for line in above]
        runs += [range(row * side, first), ahead]
        neighbours = []
        for run in runs:
            codes = [self.code(lane.lane, index) for index in run]
            neighbours += [code for pair in pairwise(codes) for code in pair]
        if not neighbours:
            return None
        return Bridge(self.code(lane.lane, ahead[0]), ahead[0] - first, draw.length, neighbours)

    def start(self, lane: LaneProgress) -> Turn:
        """Mark a lane's next turn as under way."""
        lane.running = True
        lane.samples = 0
        return lane.current

    def sampled(self, lane: LaneProgress, code: int) -> None:
        """Record the next sample of a lane's running turn (a discarded one too)."""
        turn = lane.current
        if lane.samples == 0:
            self._copied(lane)
        draw = turn.draw
        if draw is not None and lane.samples < draw.length:
            index = draw.start + lane.samples
            lane.settled = index
            self._put(lane.lane, index, code)
        elif draw is not None:
            lane.settled = draw.start + draw.length
        elif turn.feed is not None:
            lane.settled = turn.feed.start + turn.feed.length
        lane.samples += 1
        if lane.samples == turn.samples:
            lane.running = False
            lane.turn += 1

    def _put(self, lane: Lane, index: int, code: int) -> None:
        row, column = self.plan.cell(lane, index)
        if self.codes[row][column] != UNKNOWN:
            raise AssertionError(f"canvas cell ({row}, {column}) was drawn twice, by lane {lane.index} last")
        self.codes[row][column] = code
        self._missing[row] -= 1
        self.drawn += 1

    def _copied(self, lane: LaneProgress) -> None:
        """The turn's first sample proves its copies were made: parents that gave their last are free of this child."""
        later = {copy.parent for turn in lane.turns[lane.turn + 1 :] for copy in turn.copies}
        for parent in copy_parents(lane.lane) - later:
            self.lanes[parent].children.discard(lane.lane.index)

    def releasable(self) -> Iterator[LaneProgress]:
        """Lanes that are done and that no lane will copy from any more."""
        return (lane for lane in self.lanes if lane.done and not lane.children and not lane.released)

    def complete_rows(self) -> Iterator[tuple[int, list[int]]]:
        """(index, codes) of canvas rows complete since the last call, in order."""
        while self._next_row < len(self._missing) and self._missing[self._next_row] == 0:
            yield self._next_row, self.codes[self._next_row]
            self._next_row += 1
