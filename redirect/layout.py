"""Which lanes a panorama has: windows on the canvas in a drawing order, and what each is given or draws.

One rule makes every kind of panorama: **a code is drawn by the first window that covers it, and given to every later
one**. The kinds differ in where windows stand and in which lanes a window may copy keys and values from:

    horizontal   windows side by side; columns on the left are given by the window before
    vertical     windows one below another; rows at the top are given by the window above (facts.md 6.1)
    both         a lattice of windows; rows from above, columns from the left
    loop         the last window of a band leaves the canvas on the right and comes back in on the left, where the
                 columns of the first window are given
    extension    some codes are known beforehand; windows that have nothing left to draw are left out

Pure Python: no torch, no vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from panoserve.configs.grid import Canvas, Grid
from panoserve.configs.wire import UNKNOWN, PanoramaArgs
from panoserve.errors import InvalidRequestError
from panoserve.redirect.plan import Context, Copy, Draw, Feed, Lane, Plan, Segment

MAX_WINDOWS = 1_000_000  # a plan holds some 40 KiB for each
Known = Sequence[Sequence[bool]]  # [rows][columns] of the canvas: True where a code is known before anything is drawn


@dataclass(frozen=True, slots=True)
class Source:
    """A lane to copy from: its grid place (row + rows, column + columns) shows what the child's (row, column) does."""

    parent: int
    rows: int
    columns: int


def crop_starts(length: int, side: int, stride: int) -> list[int]:
    """First rows or columns of the crops that cover `length` of them; the last crop's stride shrinks to fit."""
    return [*range(0, length - side, stride), length - side]


def loop_starts(length: int, side: int, stride: int) -> list[int]:
    """First columns of the crops that cover a circle of `length` columns, the first of them at 0.

    The last crop overlaps the first one by as much as its neighbours overlap each other, or by half a stride if that is
    less (with strides below two thirds of the side there is no room for two whole overlaps); the stride before it
    shrinks to fit.
    """
    closing = closing_columns(length, side, stride)
    return [*crop_starts(length - closing, side, stride), length - closing - (side - stride)]


def closing_columns(length: int, side: int, stride: int) -> int:
    """What the last crop of a loop draws."""
    return min(length - side, stride - min(side - stride, stride // 2))


def crop_windows(
    canvas: Canvas, grid: Grid, stride: int, row_stride: int, loop: bool
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Every window in drawing order: (band, crop of the band) and its first (row, column).

    Along the canvas's shorter side first, which keeps the fewest lanes resident.
    """
    side = grid.side
    rows = crop_starts(canvas.rows, side, row_stride)
    columns = loop_starts(canvas.columns, side, stride) if loop else crop_starts(canvas.columns, side, stride)
    across, down = range(len(columns)), range(len(rows))
    wide = len(rows) <= len(columns)
    order = [(a, b) for b in across for a in down] if wide else [(a, b) for a in down for b in across]
    return [((a, b), (rows[a], columns[b])) for a, b in order]


def count_windows(canvas: Canvas, grid: Grid, stride: int, row_stride: int, loop: bool) -> int:
    """How many `crop_windows` has, without a list of them."""
    side = grid.side

    def starts(length: int, step: int) -> int:
        return len(range(0, length - side, step)) + 1

    columns = canvas.columns
    across = starts(columns - closing_columns(columns, side, stride), stride) + 1 if loop else starts(columns, stride)
    return starts(canvas.rows, row_stride) * across


def check_windows(canvas: Canvas, grid: Grid, stride: int, row_stride: int, loop: bool) -> None:
    """Raise InvalidRequestError for more crops than can be planned."""
    crops = count_windows(canvas, grid, stride, row_stride, loop)
    if crops > MAX_WINDOWS:
        raise InvalidRequestError(
            f"the panorama would have {crops} crops, but at most {MAX_WINDOWS} can be planned; use larger strides, or "
            "`panoserve endless`, which plans as it goes",
            "stride",
        )


def canvas_plan(
    canvas: Canvas,
    grid: Grid,
    stride: int,
    context: Context,
    *,
    row_stride: int | None = None,
    loop: bool = False,
    known: Known | None = None,
    prompts: Sequence[int] | None = None,
) -> Plan:
    """The lanes that draw a canvas of at least one crop, whatever its size.

    stride, row_stride: columns and rows that a crop adds (row_stride: as many as stride, by default). loop: the right
    edge meets the left one. known: codes that are there beforehand. prompts: the condition of every window, in the
    order of `crop_windows`; keys and values are copied only between lanes of the same one, because they depend on it.
    Raises InvalidRequestError for a canvas, stride or `known` that cannot be.
    """
    row_stride = stride if row_stride is None else row_stride
    _check(canvas, grid, stride, row_stride, loop, known)
    side = grid.side
    windows = crop_windows(canvas, grid, stride, row_stride, loop)
    there = [bytearray(row) for row in known] if known else [bytearray(canvas.columns) for _ in range(canvas.rows)]
    lanes: list[Lane] = []
    at: dict[tuple[int, int], Lane] = {}  # by place in the lattice; windows with nothing to draw are absent
    for ((a, b), (row, column)), prompt in zip(windows, prompts or [0] * len(windows), strict=True):
        window = _take_window(there, row, column, side)
        near = [(a - 1, b), (a, b - 1), *([(a, 0)] if loop and b > 1 else [])]
        parents = [at[place] for place in near if place in at and at[place].prompt == prompt]
        sources = [s for p in parents for s in _sources(p, row, column, canvas, side)] if context == "reuse" else []
        segments = tuple(_segments(window, sources, lanes, side))
        if segments:
            copies_prefix = bool(sources) and not isinstance(segments[0], Draw)
            prefix_parent = sources[0].parent if copies_prefix else None
            lane = Lane(len(lanes), row, column, segments, prefix_parent, prompt)
            lanes.append(lane)
            at[a, b] = lane
    return Plan(canvas, grid, context, tuple(lanes))


def plan_of(args: PanoramaArgs, grid: Grid) -> Plan:
    """The plan of a client's request."""
    return canvas_plan(
        Canvas(args.rows, args.columns),
        grid,
        args.stride,
        "reuse" if args.context == "reuse" else "recompute",
        row_stride=args.row_stride,
        loop=args.loop,
        prompts=args.prompts,
        known=None if args.given is None else [[code != UNKNOWN for code in row] for row in args.given],
    )


def check_loop(canvas: Canvas, grid: Grid) -> None:
    """Raise InvalidRequestError if a canvas is too narrow to be closed."""
    if canvas.columns <= grid.side:
        raise InvalidRequestError(
            f"a loop must be wider than one crop: at least {grid.crop_pixels + grid.downsample} pixels",
            "width",
        )


def _check(canvas: Canvas, grid: Grid, stride: int, row_stride: int, loop: bool, known: Known | None) -> None:
    grid.check_stride(stride)
    grid.check_stride(row_stride, "row_stride")
    for name, codes in (("height", canvas.rows), ("width", canvas.columns)):
        if codes < grid.side:
            raise InvalidRequestError(
                f"{name} is {codes * grid.downsample} pixels, less than one crop ({grid.crop_pixels})", name
            )
    if loop:
        check_loop(canvas, grid)
    check_windows(canvas, grid, stride, row_stride, loop)
    if known is None:
        return
    if len(known) != canvas.rows or any(len(row) != canvas.columns for row in known):
        raise InvalidRequestError(f"known codes must be [{canvas.rows}, {canvas.columns}], as the canvas is", "given")
    if all(all(row) for row in known):
        raise InvalidRequestError("every code of the canvas is given, so there is nothing to draw", "given")


def _take_window(there: list[bytearray], row: int, column: int, side: int) -> bytes:
    """Which codes of a window are there already (1) or not (0), in raster order; all of them are afterwards."""
    parts = []
    inside = min(side, len(there[0]) - column)  # columns before the window leaves the canvas
    for line in there[row : row + side]:
        parts += [bytes(line[column : column + inside]), bytes(line[: side - inside])]
        line[column : column + inside] = b"\1" * inside
        line[: side - inside] = b"\1" * (side - inside)
    return b"".join(parts)


def _sources(parent: Lane, row: int, column: int, canvas: Canvas, side: int) -> Iterator[Source]:
    """How a window at (row, column) sees `parent`'s: not at all, once, or on both sides of a small loop."""
    rows, columns = row - parent.row, column - parent.column
    for shift in (columns, columns - canvas.columns):
        if abs(rows) < side and abs(shift) < side:
            yield Source(parent.index, rows, shift)


def _segments(window: bytes, sources: list[Source], lanes: list[Lane], side: int) -> Iterator[Segment]:
    """A lane's segments, up to its last Draw; none if everything is there."""
    end = window.rfind(0) + 1
    start = 0
    while start < end:
        given = window[start] == 1
        stop = window.find(1 - window[start], start, end)
        stop = end if stop < 0 else stop
        if given:
            yield from _given(start, stop, sources, lanes, side)
        else:
            yield Draw(start, stop - start)
        start = stop


def _given(start: int, stop: int, sources: list[Source], lanes: list[Lane], side: int) -> Iterator[Segment]:
    """Given codes start .. stop - 1 before a Draw: copied while a parent has them, then fed.

    The last one is always fed, because it asks for the first draw. So is everything behind the first code that no
    parent has keys and values of: a Copy behind a Feed would cost a step (see plan.py), a few codes more in the Feed
    cost next to nothing.
    """
    copy: Copy | None = None
    index = start
    while index < stop - 1:
        piece = next((p for p in (_piece(index, stop - 1, s, lanes, side) for s in sources) if p), None)
        if piece is None:
            break
        if copy and copy.parent == piece.parent and _shift(copy) == _shift(piece) and _shift(piece) % side == 0:
            copy = Copy(copy.start, copy.length + piece.length, copy.parent, copy.source)
        else:
            if copy:
                yield copy
            copy = piece
        index += piece.length
    if copy:
        yield copy
    yield Feed(index, stop - index)


def _shift(copy: Copy) -> int:
    return copy.start - copy.source


def _piece(index: int, stop: int, source: Source, lanes: list[Lane], side: int) -> Copy | None:
    """What `source` can give of the codes index .. stop - 1: within one row, and as far as it has been fed itself."""
    row, column = divmod(index, side)
    row, column = row + source.rows, column + source.columns
    if not (0 <= row < side and 0 <= column < side):
        return None
    last = lanes[source.parent].segments[-1]
    fed = last.start + last.length - 1  # a lane's last code is never fed
    here = row * side + column
    length = min(side - column, side - index % side, stop - index, fed - here)
    return Copy(index, length, source.parent, here) if length > 0 else None
