"""How visible the borders between crops are, as a number."""

from __future__ import annotations

from collections.abc import Iterator
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


def seam_steps(image: NDArray[np.uint8], plan: Plan, loop: bool = False) -> Steps:
    """Steps of a picture [H, W, 3] of the plan's canvas, in both directions; a loop's edges are neighbours."""
    owner, total = drawn_by(plan), Steps()
    scale = image.shape[0] // owner.shape[0]
    owner = owner.repeat(scale, axis=0).repeat(scale, axis=1)
    for step, crosses in _neighbours(image.astype(np.int64), owner, loop):
        total += Steps(
            float(step[crosses].sum()), int(crosses.sum()), float(step[~crosses].sum()), int((~crosses).sum())
        )
    return total


def _neighbours(
    pixels: NDArray[np.int64], owner: NDArray[np.int64], loop: bool
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """For each axis: the step to the next pixel, mean over colours, and whether another lane drew it."""
    for axis in (0, 1):
        there, far = np.roll(pixels, -1, axis), np.roll(owner, -1, axis)
        kept = slice(None) if loop and axis == 1 else slice(0, -1)
        where = (slice(None), kept) if axis else (kept,)
        yield np.abs(there - pixels).mean(-1)[where], (far != owner)[where]
