"""How visible the borders between crops are, as a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoserve.redirect.plan import Plan


@dataclass(slots=True)
class Steps:
    """Sums of absolute differences of neighbouring pixels, across borders between crops and elsewhere."""

    border: float = 0.0
    borders: int = 0
    other: float = 0.0
    others: int = 0

    def __add__(self, more: Steps) -> Steps:
        return Steps(
            self.border + more.border,
            self.borders + more.borders,
            self.other + more.other,
            self.others + more.others,
        )

    @property
    def ratio(self) -> float:
        """Mean step across borders divided by the mean step elsewhere; 1 is invisible, NaN if there is no border."""
        if not self.borders or not self.other:
            return float("nan")
        return self.border / self.borders / (self.other / self.others)


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
    owner = drawn_by(plan)
    scale = image.shape[0] // owner.shape[0]
    owner = owner.repeat(scale, axis=0).repeat(scale, axis=1)
    pixels = image.astype(np.int64)
    step = np.abs(np.roll(pixels, -1, axis) - pixels).mean(-1)
    crosses = np.roll(owner, -1, axis) != owner
    if not (loop and axis == 1):
        step, crosses = step.take(range(step.shape[axis] - 1), axis), crosses.take(range(step.shape[axis] - 1), axis)
    return Steps(float(step[crosses].sum()), int(crosses.sum()), float(step[~crosses].sum()), int((~crosses).sum()))
