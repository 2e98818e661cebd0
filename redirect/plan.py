"""What to draw, as data: a panorama is a set of lanes, and a lane is a list of segments in raster order.

A lane walks one crop, a side x side window of the canvas. Grid index k of a lane is row k // side, column k % side of
its window; a window that leaves the canvas on the right comes back in on the left (loops only). Three kinds of segment
cover what a lane has to do:

    Copy   given codes whose keys and values are taken from another lane's cache, keys turned by the shift
    Feed   given codes that are run through the model
    Draw   codes that are sampled

A code gets its keys and values only when it is *fed* in the step that draws its successor. So a Draw must be preceded
by something fed (the condition rows at the very start, otherwise a Feed or a Draw), and a Draw or Feed that is followed
by a Copy needs one more step, whose sample is thrown away. `turns_of` derives both rules; nothing else needs to know.

Which lanes a panorama has is layout.py's business. Pure Python: no torch, no vLLM (design.md 4).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from panoserve.configs.grid import Canvas, Grid
from panoserve.configs.wire import UNKNOWN

Context = Literal["reuse", "recompute"]
Codes = list[list[int]]  # a canvas [rows][columns]
CONTEXTS: tuple[Context, ...] = ("reuse", "recompute")


@dataclass(frozen=True, slots=True)
class Copy:
    """Given codes start .. start + length - 1, whose KV is `parent`'s at grid indices source .. source + length - 1."""

    start: int
    length: int
    parent: int
    source: int


@dataclass(frozen=True, slots=True)
class Feed:
    """Given codes start .. start + length - 1, run through the model."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Codes start .. start + length - 1, sampled."""

    start: int
    length: int


Segment = Copy | Feed | Draw


@dataclass(frozen=True, slots=True)
class Lane:
    """One crop: its place on the canvas, its segments, and whose condition rows it copies (None: computes its own).

    A lane's last segment is a Draw: given codes behind it would serve nobody.
    """

    index: int
    row: int
    column: int
    segments: tuple[Segment, ...]
    prefix_parent: int | None = None
    prompt: int = 0  # which of the panorama's conditions it is drawn under


@dataclass(frozen=True, slots=True)
class Turn:
    """One uninterrupted run of a lane: copy, feed what is given, then draw step by step.

    `carry` says that the first step also feeds the last code of the turn before, which has no KV yet. `settle` asks
    for one more step at the end, whose sample is discarded, so that the last code of this turn gets its KV.
    """

    copies: tuple[Copy, ...]
    feed: Feed | None
    draw: Draw | None
    carry: bool
    settle: bool

    @property
    def samples(self) -> int:
        """Steps of this turn, which is also how many samples the engine returns."""
        return (self.draw.length if self.draw else 0) + self.settle

    @property
    def given(self) -> Iterator[int]:
        """Grid indices of the given codes, copied ones first, in the order of the lane's sequence."""
        for segment in (*self.copies, *([self.feed] if self.feed else ())):
            yield from range(segment.start, segment.start + segment.length)


@dataclass(frozen=True, slots=True)
class Plan:
    """The lanes of one panorama, each listed after the lanes it depends on."""

    canvas: Canvas
    grid: Grid
    context: Context
    lanes: tuple[Lane, ...]

    def cell(self, lane: Lane, index: int) -> tuple[int, int]:
        """(row, column) on the canvas of a lane's grid index."""
        row, column = divmod(index, self.grid.side)
        return lane.row + row, (lane.column + column) % self.canvas.columns

    def shift(self, lane: Lane, copy: Copy) -> tuple[int, int]:
        """(rows, columns) that a key moves by on the grid when `lane` makes this copy."""
        side = self.grid.side
        return copy.start // side - copy.source // side, copy.start % side - copy.source % side

    def drawn(self, lane: Lane) -> Iterator[tuple[int, int]]:
        """The canvas cells (row, column) that a lane draws, in order."""
        for segment in lane.segments:
            if isinstance(segment, Draw):
                for index in range(segment.start, segment.start + segment.length):
                    yield self.cell(lane, index)

    def ahead(self, turn: Turn, later: Iterable[Turn]) -> range:
        """Grid indices of the codes that are given right of a turn's draws, up to the end of their row.

        Empty if one of the `later` turns of the lane draws there: what is given between two holes is left alone.
        """
        side = self.grid.side
        end = turn.draw.start + turn.draw.length if turn.draw else 0
        row_end = -(-end // side) * side
        draws_next = next((other.draw.start for other in later if other.draw), row_end)
        return range(end if draws_next >= row_end else row_end, row_end)

    def blank(self) -> Codes:
        """A canvas on which what the lanes draw is UNKNOWN; what they are given beforehand stands as code 0."""
        codes = [[0] * self.canvas.columns for _ in range(self.canvas.rows)]
        for lane in self.lanes:
            for row, column in self.drawn(lane):
                codes[row][column] = UNKNOWN
        return codes

    @property
    def min_resident(self) -> int:
        """Most lanes whose KV must be held at once when lanes are drawn one after another, in order."""
        last_use = {lane.index: lane.index for lane in self.lanes}
        for lane in self.lanes:
            for parent in copy_parents(lane):
                last_use[parent] = lane.index
        freed = Counter(last_use.values())
        held = most = 0
        for lane in self.lanes:
            held += 1
            most = max(most, held)
            held -= freed[lane.index]
        return most

    @property
    def mean_resident(self) -> int:
        """About how many lanes hold KV at once, in the mean over a run that nothing holds up.

        A lane lives for a step a code of its window, and the next one in its band begins when it has drawn a row;
        bands follow each other, since a lane needs the last rows of the one above it.
        """
        if not self.lanes:
            return 0
        codes = self.grid.codes
        band = len({lane.column for lane in self.lanes})
        drawn = sum(s.length for lane in self.lanes for s in lane.segments if isinstance(s, Draw))
        row = drawn / (len(self.lanes) * self.grid.side)  # codes that a lane draws in a row
        return math.ceil(band * codes / (codes + (band - 1) * row))


def copy_parents(lane: Lane) -> set[int]:
    """The lanes whose cache this lane copies from."""
    parents = {segment.parent for segment in lane.segments if isinstance(segment, Copy)}
    if lane.prefix_parent is not None:
        parents.add(lane.prefix_parent)
    return parents


def turns_of(lane: Lane) -> Iterator[Turn]:
    """Group a lane's segments into turns; see the module's docstring for the two rules."""
    copies: list[Copy] = []
    feed: Feed | None = None
    draw: Draw | None = None
    carry = False
    for segment in lane.segments:
        starts_turn = (isinstance(segment, Copy) and (feed or draw)) or (isinstance(segment, Feed) and draw)
        if starts_turn:
            settle = isinstance(segment, Copy)
            yield Turn(tuple(copies), feed, draw, carry, settle)
            copies, feed, draw, carry = [], None, None, not settle
        if isinstance(segment, Copy):
            copies.append(segment)
        elif isinstance(segment, Feed):
            feed = Feed(feed.start, feed.length + segment.length) if feed else segment
        else:
            draw = Draw(draw.start, draw.length + segment.length) if draw else segment
    yield Turn(tuple(copies), feed, draw, carry, settle=False)


def lane_seed(seed: int, lane: Lane, origin: tuple[int, int] = (0, 0)) -> int:
    """A lane's own random seed, 63 bits, from the request's and the crop's place.

    Equal seeds in every lane would repeat the same noise in every crop. origin: (row, column) of the canvas on a larger
    one that it is a part of, so that parts have the seeds of the whole.
    """
    row, column = lane.row + origin[0], lane.column + origin[1]
    digest = hashlib.blake2b(f"{seed}:{row}:{column}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
