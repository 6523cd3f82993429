"""Comparing two means as often as one likes while data come in: confidence sequences and p-values that are always valid.

A p-value of a fixed number of subjects holds for one look. Who looks after each vote, and stops when it is small, is wrong far
more often than it says. Here the chance that a true hypothesis is *ever* rejected, at any look, is at most the level.

The difference of two means, divided by its variance, moves like Brownian motion with a drift: the clock is the information, one
over the variance, and the drift is the true difference (Scharfstein, Tsiatis and Robins 1997). A mixture of likelihood ratios
over the differences that lie in the direction that is asked for is a martingale if the limit is the truth (Robbins 1970; Howard,
Ramdas, McAuliffe and Sekhon 2021; as mSPRT: Johari, Pekelis and Walsh 2015), and the smaller, the further the truth lies on the
other side. By Ville's inequality it ever passes 1 / alpha with chance alpha at most. With estimated variances this holds for many
subjects (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024), so looks at fewer than `FEWEST` of an arm say nothing.

The mixture is a normal distribution around the smallest difference that matters, half of that wide and cut off at the limit:
such a difference is found soonest, and any other a little later.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaln, log_ndtr, xlog1py, xlogy

Floats = NDArray[np.float64]
FEWEST = 100
"""Subjects of each arm from which anything is said."""
_PRIOR = 4.0  # inverse variance of the mixture where the scale is 1: measured, it is soonest for differences around 1


@dataclass(frozen=True)
class Arm:
    """What is known of the subjects of a variant, or of many such variants at once (then each is an array)."""

    subjects: Any
    mean: Any
    variance: Any
    """Of one subject."""

    @classmethod
    def of(cls, values: Floats, span: float = 0.0) -> "Arm":
        """Summarise one value a subject.

        Args:
            values: shape (subjects,).
            span: from the smallest possible value to the largest, if there is one: what has never failed is taken to vary as if
                one more subject had.
        """
        size = len(values)
        least = span**2 / (size + 2)
        return cls(size, float(values.mean()) if size else 0.0, max(float(values.var(ddof=1)) if size > 1 else 0.0, least))


def _difference(ours: Arm, other: Arm) -> tuple[Floats, Floats]:
    """Return the difference of means, and the information about it: 0 where there are too few subjects or nothing varies.

    An arm's variance counts as at least that of both together: one in which nothing has failed yet is not without fault.
    """
    sizes = [np.asarray(arm.subjects, np.float64) for arm in (ours, other)]
    variances = [np.asarray(arm.variance, np.float64) for arm in (ours, other)]
    together = (sizes[0] * variances[0] + sizes[1] * variances[1]) / np.maximum(sizes[0] + sizes[1], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.maximum(own, together) / size for size, own in zip(sizes, variances, strict=True)]
        information = 1 / (terms[0] + terms[1])
    enough = (np.minimum(*sizes) >= FEWEST) & (together > 0)
    return np.asarray(ours.mean, np.float64) - np.asarray(other.mean, np.float64), np.where(enough, information, 0.0)


def p_below(good: int, of: int, limit: float) -> float:
    """Return the always-valid p-value of "the true share is at least `limit`".

    Each smaller share has a likelihood ratio against the limit that is a supermartingale wherever the truth is at least that; the
    mixture is over all of them alike, and has a closed form, the incomplete beta function (Robbins 1970).

    Args:
        good: how many are.
        of: of how many.
        limit: between 0 and 1.
    """
    bad = of - good
    mixture = betaln(good + 1, bad + 1) + np.log(betainc(good + 1, bad + 1, limit)) - np.log(limit)
    return float(min(1.0, np.exp(xlogy(good, limit) + xlog1py(bad, -limit) - mixture)))


def p_above(ours: Arm, other: Arm, limit: ArrayLike, scale: float) -> Floats:
    """Return the always-valid p-value of "our mean minus the other's is at most `limit`".

    Args:
        ours: one arm.
        other: the other one.
        limit: what the difference is compared with.
        scale: the smallest distance from the limit that matters, above 0.
    """
    apart, information = _difference(ours, other)
    prior, start = _PRIOR / scale**2, _PRIOR / scale
    reached = (information * (apart - np.asarray(limit, np.float64)) + start) / np.sqrt(information + prior)
    mixture = _evidence(reached) - _needed(information, prior, scale)
    return np.exp(-np.maximum(mixture, 0.0))


def lower_bound(ours: Arm, other: Arm, scale: float, alpha: float) -> Floats:
    """Return the bound that our mean minus the other's stays above at every look, with chance 1 - alpha.

    It is the limit of which `p_above` is alpha; minus infinity where nothing can be said yet.

    Args:
        ours: one arm.
        other: the other one.
        scale: the smallest difference that matters, above 0.
        alpha: chance of ever being wrong.
    """
    apart, information = _difference(ours, other)
    prior, start = _PRIOR / scale**2, _PRIOR / scale
    needed = _needed(information, prior, scale) - np.log(alpha)
    reached = np.sqrt(2 * np.maximum(needed, 0.0))  # without the term for the side that is not asked for
    for _ in range(30):  # Newton's method on a convex function
        density = np.exp(-(reached**2) / 2 - log_ndtr(reached)) / np.sqrt(2 * np.pi)
        reached = reached - (_evidence(reached) - needed) / (reached + density)
    with np.errstate(divide="ignore", invalid="ignore"):
        far = (reached * np.sqrt(information + prior) - start) / information
    return np.where(information > 0, apart - far, -np.inf)


def _evidence(reached: Floats) -> Floats:
    return np.asarray(reached**2 / 2 + log_ndtr(reached))


def _needed(information: Floats, prior: float, scale: float) -> Floats:
    """Return the evidence at which the mixture of likelihood ratios is 1."""
    return 0.5 * np.log((information + prior) / prior) + _evidence(np.asarray(np.sqrt(prior) * scale))
