"""How visible the borders between crops are, as a number."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from panoserve.redirect.plan import Plan

NEAR = 4  # codes to either side of a border between crops


@dataclass(frozen=True, slots=True)
class Tally:
    """Absolute differences of neighbouring pixels, summed and counted."""

    total: float = 0.0
    count: int = 0

    def __add__(self, more: Tally) -> Tally:
        return Tally(self.total + more.total, self.count + more.count)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps from pixel to pixel: across borders of crops, across other borders of codes, and inside codes.

    Borders of crops are borders of codes, and those are rougher than the inside of a code in any picture that a VQ
    tokenizer decodes. So a ratio to everything else says how visible borders of crops are, and the ratio to other
    borders of codes says what part of that the crops themselves answer for. `near` are those of `codes` that lie at
    most NEAR codes from a border of crops: like it in what they show, where skies are smooth and foregrounds are not.

    Decoders smooth what does not fit over a code or two, where pixels next to each other hardly tell it. So the mean
    colours of neighbouring codes are compared, too: `colours` across borders of crops, `edge` those of them where a
    loop comes round, `even` where no crop ends.
    """

    crops: Tally = field(default_factory=Tally)
    codes: Tally = field(default_factory=Tally)
    inside: Tally = field(default_factory=Tally)
    near: Tally = field(default_factory=Tally)
    colours: Tally = field(default_factory=Tally)
    edge: Tally = field(default_factory=Tally)
    even: Tally = field(default_factory=Tally)

    def __add__(self, more: Steps) -> Steps:
        return Steps(*(getattr(self, part.name) + getattr(more, part.name) for part in fields(self)))

    @property
    def ratio(self) -> float:
        """Mean step across borders of crops over the mean step elsewhere; 1 is invisible, NaN if there is no border."""
        return _ratio(self.crops, self.codes + self.inside)

    @property
    def ratio_to_codes(self) -> float:
        """The same over the mean step across other borders of codes."""
        return _ratio(self.crops, self.codes)

    @property
    def ratio_to_near(self) -> float:
        """The same over the mean step across other borders of codes nearby."""
        return _ratio(self.crops, self.near)

    @property
    def ratio_of_colours(self) -> float:
        """Mean step of codes' colours across borders of crops over that elsewhere; NaN if there is no border."""
        return _ratio(self.colours, self.even)

    @property
    def ratio_at_edge(self) -> float:
        """The same across the edge where a loop comes round; NaN if the picture is none."""
        return _ratio(self.edge, self.even)


def _ratio(part: Tally, rest: Tally) -> float:
    return part.mean / rest.mean if part.count and rest.total else float("nan")


def drawn_by(plan: Plan) -> NDArray[np.int64]:
    """Which lane drew each code of the canvas [H, W]; -1 where codes were given beforehand."""
    owner = np.full((plan.canvas.rows, plan.canvas.columns), -1)
    for lane in plan.lanes:
        for row, column in plan.drawn(lane):
            owner[row, column] = lane.index
    return owner


def seam_steps(image: NDArray[np.uint8], plan: Plan, axis: int, loop: bool = False) -> Steps:
    """Steps of a picture [H, W, 3] of the plan's canvas, from row to row (axis 0) or from column to column (axis 1).

    The axes are counted apart, because landscapes change far more from row to row than from column to column. A loop's
    edges are neighbours on axis 1.
    """
    around = loop and axis == 1
    owner = drawn_by(plan)
    rows, columns = owner.shape
    scale = image.shape[0] // rows
    step, crosses = _neighbours(image.astype(np.int64), owner.repeat(scale, axis=0).repeat(scale, axis=1), axis, around)
    ends = np.arange(step.shape[axis]) % scale == scale - 1  # the last pixel of a code
    ends = np.broadcast_to(ends if axis == 1 else ends[:, None], step.shape)
    beside = _dilated(crosses, scale, axis, around)
    kinds = (crosses, ends & ~crosses, ~ends, ends & ~crosses & beside)
    means = image.reshape(rows, scale, columns, scale, -1).mean((1, 3))
    colour, between = _neighbours(means, owner, axis, around)
    last = np.zeros_like(between)
    last[:, -1] = around
    coarse = (between, between & last, ~between)
    return Steps(*(_tally(step, at) for at in kinds), *(_tally(colour, at) for at in coarse))


def _neighbours(
    values: NDArray, owner: NDArray[np.int64], axis: int, around: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How far every place's values ([H, W, C]) are from the next one's, and whether another crop drew that one."""
    step = np.abs(np.roll(values, -1, axis) - values).mean(-1)
    crosses = np.roll(owner, -1, axis) != owner
    inner = range(step.shape[axis] - (not around))
    return step.take(inner, axis), crosses.take(inner, axis)


def _tally(step: NDArray[np.float64], at: NDArray[np.bool_]) -> Tally:
    return Tally(float(step[at].sum()), int(at.sum()))


def _dilated(mask: NDArray[np.bool_], scale: int, axis: int, around: bool) -> NDArray[np.bool_]:
    """What lies 1 .. NEAR codes to either side of a mask along an axis, or is in it; `around`: the axis is a circle."""
    wide = mask.copy()
    for pixels in range(scale, NEAR * scale + 1, scale):
        for shift in (pixels, -pixels):
            moved = np.roll(mask, shift, axis)
            if not around:  # nothing comes in from the other side
                size = mask.shape[axis]
                lost = range(min(shift, size)) if shift > 0 else range(max(size + shift, 0), size)
                np.moveaxis(moved, axis, 0)[list(lost)] = False
            wide |= moved
    return wide
