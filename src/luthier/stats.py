"""Intervals and paired comparisons by the bootstrap (Efron and Tibshirani 1993, percentile intervals)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2_000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return `{value, low, high}`."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """Return `0.712 [0.650, 0.770]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resamples(size: int, seed: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Return `draws` samples with replacement of the numbers below `size`, shape (draws, size)."""
    return np.random.default_rng(seed).integers(0, size, (draws, size))


def estimate(statistic: Callable[[NDArray[np.int64]], float], size: int, seed: int) -> Estimate:
    """Bootstrap a statistic that is a function of chosen row numbers.

    Pass the same `seed` for two models and their difference is paired: every draw takes the same rows for both.
    """
    value = statistic(np.arange(size))
    draws = np.array([statistic(rows) for rows in resamples(size, seed)])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def mean_of(values: Floats, seed: int) -> Estimate:
    """Bootstrap the mean of one value a row."""
    draws = values[resamples(len(values), seed)].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def ratio_of(numerators: Floats, denominators: Floats, seed: int) -> Estimate:
    """Bootstrap sum(numerators) / sum(denominators), such as a loss per token, over rows."""
    rows = resamples(len(numerators), seed)
    draws = numerators[rows].sum(axis=1) / denominators[rows].sum(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high))
