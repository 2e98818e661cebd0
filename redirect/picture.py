"""A plan as a picture: which crop draws which codes, and how far they are at some step of the wavefront.

`plan_svg` makes the figures of the documentation, `plan_text` the picture of `panoserve plan`. Pure Python.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from string import ascii_lowercase, ascii_uppercase

from panoserve.redirect.plan import UNKNOWN, Codes, Lane, Plan
from panoserve.redirect.simulate import play

COLOURS = ("#4477aa", "#66a5ad", "#88aa55", "#ddaa33", "#cc6655", "#aa7799", "#777777")
GIVEN = "#e8e4d8"  # codes that were there beforehand
CELL = 12  # pixels
SIGNS = "0123456789" + ascii_lowercase + ascii_uppercase


def owners(plan: Plan) -> Codes:
    """The lane that draws each cell of the canvas; UNKNOWN where none does, because it is given beforehand."""
    cells = [[UNKNOWN] * plan.canvas.columns for _ in range(plan.canvas.rows)]
    for lane in plan.lanes:
        for row, column in plan.drawn(lane):
            cells[row][column] = lane.index
    return cells


def codes_at(plan: Plan, steps: int) -> Codes:
    """The canvas after `steps` steps of an ideal engine: UNKNOWN where nothing is drawn yet."""
    codes = plan.blank()
    for step in islice(play(plan), steps):
        codes = step.progress.codes
    return codes


def plan_svg(plan: Plan, steps: int, legend: str, colour_of: Callable[[Lane], int] = lambda lane: lane.index) -> str:
    """Crops in colours, full where drawn after `steps` steps and pale where not; brackets show where crops stand.

    colour_of: the number of a lane's colour.
    """
    colours = [COLOURS[colour_of(lane) % len(COLOURS)] for lane in plan.lanes]
    side, cells, codes = plan.grid.side, owners(plan), codes_at(plan, steps)
    width, height = plan.canvas.columns * CELL, plan.canvas.rows * CELL
    box = f"-14 -14 {width + 28} {height + 50}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 28}" height="{height + 50}" viewBox="{box}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect x="-14" y="-14" width="{width + 28}" height="{height + 50}" fill="#ffffff"/>',
    ]
    for row, line in enumerate(cells):
        for column, owner in enumerate(line):
            colour = GIVEN if owner == UNKNOWN else colours[owner]
            opacity = 0.22 if codes[row][column] == UNKNOWN else 1
            parts.append(
                f'<rect x="{column * CELL}" y="{row * CELL}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}" '
                f'fill-opacity="{opacity}"/>'
            )
    columns = sorted({lane.column for lane in plan.lanes})
    rows = sorted({lane.row for lane in plan.lanes})
    for lane in plan.lanes:
        colour = colours[lane.index]
        if lane.row == 0:
            left, top = lane.column * CELL, -3 - 6 * (columns.index(lane.column) % 2)
            parts.append(_line(f"M{left} {top + 3}V{top}H{left + side * CELL - 1}V{top + 3}", colour))
        if lane.column == 0:
            top, left = lane.row * CELL, -3 - 6 * (rows.index(lane.row) % 2)
            parts.append(_line(f"M{left + 3} {top}H{left}V{top + side * CELL - 1}H{left + 3}", colour))
    parts += [f'<text x="0" y="{height + 22}" fill="#333333">{legend}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def _line(path: str, colour: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def plan_text(plan: Plan, width: int) -> str:
    """The canvas in at most `width` characters across: every place shows the number of the crop that draws it.

    A character stands for a rectangle of codes twice as high as wide; crop numbers are shown modulo 62 (0-9, a-z, A-Z),
    and a dot stands for codes that are given beforehand.
    """
    cells = owners(plan)
    across = -(-plan.canvas.columns // width)
    lines = [line[across // 2 :: across] for line in cells[across :: 2 * across] or cells[:1]]
    return "\n".join("".join("." if c == UNKNOWN else SIGNS[c % len(SIGNS)] for c in line) for line in lines)
