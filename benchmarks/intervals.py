"""Confidence intervals of figures that are taken over prompts, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
NORMAL_95 = 1.959964  # of a normal distribution, LEVEL lies within so many standard deviations


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


Statistic = Callable[[NDArray[np.int64]], float]  # of the prompts of these numbers, some perhaps several times


def bootstrap(statistic: Statistic, prompts: int, resamples: int = 1000, *, normal: bool = False) -> Estimate:
    """The statistic of all prompts, and its interval over prompts drawn with replacement.

    The interval is the middle 95 % of the resamples. `normal` takes their standard deviation around the value instead:
    for figures that are larger for fewer distinct prompts, as a Frechet distance, every resample is shifted.
    """
    value = statistic(np.arange(prompts))
    rng = np.random.default_rng(0)
    drawn = np.array([statistic(rng.integers(prompts, size=prompts)) for _ in range(resamples)])
    if normal:
        reach = NORMAL_95 * float(drawn.std(ddof=1))
        return Estimate(value, value - reach, value + reach)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def bootstrap_mean(values: NDArray[np.float64], resamples: int = 1000) -> Estimate:
    """The mean of one value a prompt."""
    return bootstrap(lambda chosen: float(values[chosen].mean()), len(values), resamples)
