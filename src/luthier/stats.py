"""Intervals for reports, tests for decisions.

Reports put percentile intervals of the bootstrap on figures (Efron and Tibshirani 1993): quick, for any statistic, and
about right from some hundred rows on. Decisions need more: the chance of being wrong must stay below its level with 30 rows
and with differences that are mostly zero, where percentile, BCa, studentised and t intervals all fail (docs/gate.md has the
figures). So a mean or a ratio is tested with `evidence_on_mean`, the pairs of two yes/no answers with `evidence_on_pairs`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, expit, ndtr, ndtri

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


def resamples(size: int, seed: int, draws: int = DRAWS) -> Iterator[NDArray[np.int64]]:
    """Yield `draws` samples with replacement of the numbers below `size`, as many at once as take 32 MB: shape (some, size)."""
    random = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // max(size, 1))
    for done in range(0, draws, at_once):
        yield random.integers(0, size, (min(at_once, draws - done), size))


def mean_of(values: Floats, seed: int) -> Estimate:
    """Bootstrap the mean of one value a row.

    Pass the same `seed` for two models and their difference is paired: every draw takes the same rows for both.
    """
    draws = np.concatenate([values[rows].mean(axis=1) for rows in resamples(len(values), seed)])
    return estimate(float(values.mean()), draws)


def ratio_of(numerators: Floats, denominators: Floats, seed: int) -> Estimate:
    """Bootstrap sum(numerators) / sum(denominators), such as a loss per token, over rows."""
    sums = [(numerators[rows].sum(axis=1), denominators[rows].sum(axis=1)) for rows in resamples(len(numerators), seed)]
    draws = np.concatenate([above / below for above, below in sums])
    return estimate(float(numerators.sum() / denominators.sum()), draws)


def estimate(value: float, draws: Floats) -> Estimate:
    """Return a value with the percentile interval of its bootstrap draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class Evidence:
    """What rows say about a truth and a limit: two one-sided tests, and bounds at the same level each.

    A bound that so few rows cannot give is infinite.
    """

    value: float
    low: float
    high: float
    p_above: float
    """Chance of rows at least this good if the truth were the limit: small when it is above."""
    p_below: float
    """Chance of rows at least this bad if the truth were the limit: small when it is below."""


FEWEST_UNBOUNDED = 20  # with fewer rows nothing is said about a quantity without bounds: its worst row may well be missing
_NODES = np.arange(1, 145) / 12


def chance_at_most_zero(rows: Floats) -> Floats:
    """Return the chance that the mean of rows is at most zero when their weights are those of the Bayesian bootstrap.

    The weights are uniform on the simplex (Rubin 1981), that is exponential numbers divided by their sum, so the chance is
    that of S = sum(E_i row_i) <= 0, and E exp(-t S) = 1 / prod(1 + t row_i). Instead of drawing weights we invert this
    transform along a vertical line through the saddle point, where the trapezoid rule is exact to eight digits (Rice 1980):
    the order of rows does not matter, and no seed decides on a release.

    Args:
        rows: shape (..., rows); every leading index is a sample of its own.

    Returns:
        the chances, shape (...).
    """
    sign = np.where(rows.mean(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    least = -(sign * rows).min(axis=-1, keepdims=True)
    rows = sign * rows / np.where(least > 0, least, 1.0)  # now zero is in the lower tail and the transform's pole at t = 1
    low, high = np.full(least.shape, -40.0), np.full(least.shape, 40.0)
    for _ in range(17):  # the saddle, on the scale of log(t / (1 - t)): the minimum of -log(t) - sum(log(1 + t row)), convex
        middle = (low + high) / 2
        at = expit(middle)
        falls = (rows / np.maximum(1 + at * rows, 1e-300)).sum(axis=-1, keepdims=True) + 1 / at > 0
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    saddle = expit(low)
    slopes = rows / (1 + saddle * rows)
    step = 1 / np.sqrt((slopes**2).sum(axis=-1, keepdims=True) + 1 / saddle**2)
    height = -np.log(saddle) - np.log1p(saddle * rows).sum(axis=-1, keepdims=True)
    total = 0.5 * step[..., 0]
    # t = saddle + i y with y = step * sinh(node); as many nodes at once as fit into a cache
    for nodes in np.array_split(_NODES, min(len(_NODES), 1 + rows.size * len(_NODES) // 100_000)):
        y = step[..., None] * np.sinh(nodes)[:, None]
        turns = np.concatenate([y * slopes[..., None, :], y / saddle[..., None]], axis=-1)
        weight = step * np.cosh(nodes) * np.exp(-0.5 * np.log1p(turns**2).sum(axis=-1))
        total = total + (weight * np.cos(np.arctan(turns).sum(axis=-1))).sum(axis=-1)
        if (weight[..., -1] < 1e-12 * step[..., 0]).all():
            break
    tail = np.clip(np.exp(height[..., 0]) * total * _NODES[0] / np.pi, 0, 1)
    tail = np.where(least[..., 0] > 0, tail, 0.0)
    chance = np.where(sign[..., 0] > 0, tail, 1 - tail)
    return np.where((rows == 0).all(axis=-1), 1.0, chance)


def p_mean_above(numerators: Floats, denominators: Floats, limit: float, least: float | None) -> Floats:
    """Return the p-value of "sum(numerators) / sum(denominators) is at most `limit`", over the last axis.

    Gaffke's test (2005; Learned-Miller and Thomas 2020): a Bayesian bootstrap of the rows and of one more, the worst that
    could be. For yes/no values it is the exact binomial test, for many rows the t test. Because of the one more row it also
    holds where harm is rare, when a sample may show none of it.

    Args:
        numerators: shape (..., rows), higher is better.
        denominators: shape (..., rows), above 0: ones for a mean, tokens for a loss per token.
        limit: what the truth is compared with.
        least: smallest possible numerator; None if there is no such bound: then the worst row that was seen counts twice,
            and the level holds about as well as for the t test or better, not exactly.
    """
    rows = numerators - limit * denominators
    if least is None:
        if rows.shape[-1] < FEWEST_UNBOUNDED:
            return np.ones(rows.shape[:-1])
        worst = rows.min(axis=-1, keepdims=True)
    else:
        worst = np.full((*rows.shape[:-1], 1), min(least - limit, 0.0))
    return chance_at_most_zero(np.concatenate([rows, worst], axis=-1))


def wilson(good: int, of: int) -> tuple[float, float]:
    """Return the bounds of a share's 95 % interval (Wilson 1927).

    Args:
        good: how many are.
        of: all, above 0.
    """
    z = float(ndtri(0.975))
    share, shrunk = good / of, 1 + z**2 / of
    centre = (share + z**2 / (2 * of)) / shrunk
    half = z / shrunk * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _low_mean(numerators: Floats, denominators: Floats, least: float | None, alpha: float) -> float:
    """Return the limit at which the p-value is `alpha`: the lower bound of a mean or a ratio."""
    from scipy.optimize import brentq

    value = float(numerators.sum() / denominators.sum())
    ratios = numerators / denominators
    if least is None and len(ratios) < FEWEST_UNBOUNDED:
        return -np.inf
    start = float(ratios.min()) if least is None else least
    if ratios.max() <= start:
        return start
    return float(
        brentq(lambda limit: float(p_mean_above(numerators, denominators, limit, least)) - alpha, start, value, xtol=1e-9)
    )


def evidence_on_mean(
    numerators: Floats,
    limit: float,
    alpha: float,
    *,
    denominators: Floats | None = None,
    span: tuple[float, float] | None = None,
) -> Evidence:
    """Test a mean, or a ratio of sums, against a limit from both sides.

    Args:
        numerators: shape (rows,), at least one; for two models the difference of each example (paired).
        limit: what the truth is compared with.
        alpha: level of each side; the bounds leave out this much each.
        denominators: shape (rows,), above 0; None for a mean.
        span: smallest and largest possible numerator of a mean; None for a quantity without bounds.
    """
    weights = np.ones_like(numerators) if denominators is None else denominators
    least, most = span if span else (None, None)
    mirrored = None if most is None else -most
    return Evidence(
        value=float(numerators.sum() / weights.sum()),
        low=_low_mean(numerators, weights, least, alpha),
        high=-_low_mean(-numerators, weights, mirrored, alpha),
        p_above=float(p_mean_above(numerators, weights, limit, least)),
        p_below=float(p_mean_above(-numerators, weights, -limit, mirrored)),
    )


def _score(gains: ArrayLike, losses: ArrayLike, examples: int, limit: float) -> Floats:
    """Return Tango's score statistic (1998) of "the gain is `limit`": 0 on the limit, McNemar's statistic for limit 0."""
    gains, losses = np.asarray(gains, np.float64), np.asarray(losses, np.float64)
    middle = gains + losses - (2 * examples - gains + losses) * limit
    root = np.sqrt(np.maximum(middle**2 + 8 * examples * losses * limit * (1 - limit), 0))
    loss_rate = (root + middle) / (4 * examples)  # most likely share of losses if the limit were the truth
    variance = examples * (2 * loss_rate + limit * (1 - limit))
    apart = gains - losses - examples * limit
    return np.asarray(np.sign(apart) * np.abs(apart) / np.sqrt(np.maximum(variance, 1e-12)))


NUISANCE = 1e-4  # error spent on the range of the share of examples in which two models differ


def p_pairs_above(gains: int, losses: int, examples: int, limit: float) -> float:
    """Return the p-value of "the share of gains minus that of losses is at most `limit`".

    The exact unconditional test: the chance, under the limit, of a score statistic at least this large, at its largest over
    the share of examples in which the two models differ. Limit 0 asks McNemar's question (Suissa and Shuster 1991), a
    negative one that of non-inferiority (Sidik 2003). That share is searched within its own confidence interval, whose
    error is added to the p-value (Berger and Boos 1994): the level holds for any number of examples. McNemar's
    conditional test holds as well, but decides less often (Fagerland, Lydersen and Laake 2013).

    Args:
        gains: examples that only the candidate has right.
        losses: examples that only the other has right.
        examples: all examples, with those on which both agree.
        limit: between -1 and 1.
    """
    from scipy.stats import binom  # here, as every command would wait for it

    if gains - losses <= examples * limit:
        return 1.0  # by the point estimate the limit is not passed: no need to be exact about how clearly not
    differ = gains + losses
    low = 0.0 if differ == 0 else float(betaincinv(differ, examples - differ + 1, NUISANCE / 2))
    high = 1.0 if differ == examples else float(betaincinv(differ + 1, examples - differ, 1 - NUISANCE / 2))
    low, high = max(low, abs(limit)), max(high, abs(limit))
    # steps of a third of a standard deviation: on the arcsine's scale that is the same everywhere
    start, end = np.arcsin(np.sqrt(low)), np.arcsin(np.sqrt(high))
    shares = np.sin(np.linspace(start, end, 2 + int(6 * np.sqrt(examples) * (end - start)))) ** 2
    first, last = int(binom.ppf(1e-9, examples, shares[0])), int(binom.ppf(1 - 1e-9, examples, shares[-1]))
    counts = np.arange(first, last + 1)
    few, many = np.full(counts.shape, -1), counts + 1  # the fewest gains among `counts` differing that are as extreme
    reached = float(_score(gains, losses, examples, limit)) - 1e-9
    while (many - few > 1).any():
        middle = (few + many) // 2
        extreme = _score(middle, counts - middle, examples, limit) >= reached
        few, many = np.where(extreme, few, middle), np.where(extreme, middle, many)
    shares = shares[:, None]
    among = np.where(shares > 0, (1 + limit / np.maximum(shares, 1e-300)) / 2, 0.5)  # share of gains among the differing
    chances = binom.pmf(counts, examples, shares) * binom.sf(many - 1, counts, np.clip(among, 0, 1))
    return float(min(1.0, chances.sum(axis=1).max() + NUISANCE))


def _low_pairs(gains: int, losses: int, examples: int, alpha: float) -> float:
    from scipy.optimize import brentq

    value = (gains - losses) / examples
    if value == -1:
        return -1.0
    return float(brentq(lambda at: p_pairs_above(gains, losses, examples, at) - alpha, -1, value, xtol=1e-5))


def evidence_on_pairs(gains: int, losses: int, examples: int, limit: float, alpha: float) -> Evidence:
    """Test the gain of one yes/no answer over another on the same examples, exactly, against a limit from both sides.

    Args:
        gains: examples that only the candidate has right.
        losses: examples that only the other has right.
        examples: all examples, at least one.
        limit: what the difference of the two shares is compared with, between -1 and 1.
        alpha: level of each side; the bounds leave out this much each.
    """
    p_above = p_pairs_above(gains, losses, examples, limit)
    p_below = p_pairs_above(losses, gains, examples, -limit)
    low, high = _low_pairs(gains, losses, examples, alpha), -_low_pairs(losses, gains, examples, alpha)
    # an exact p-value is not quite monotone in the limit: where bound and test differ by a hair, the test is right
    return Evidence(
        value=(gains - losses) / examples,
        low=max(low, limit) if p_above <= alpha else min(low, limit),
        high=min(high, limit) if p_below <= alpha else max(high, limit),
        p_above=p_above,
        p_below=p_below,
    )


def holm(p_values: Floats) -> Floats:
    """Adjust p-values so that any of them may be compared with the level of the whole family (Holm 1979)."""
    order = np.argsort(p_values)
    stepped = np.minimum(1, np.sort(p_values) * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def power_of_mean(examples: int, distance: float, spread: float, reach: float, alpha: float) -> float:
    """Return the chance that `evidence_on_mean` finds a truth to be above the limit.

    The normal approximation of the test, with its one more row: that draws the mean towards the worst and adds to the
    spread.

    Args:
        examples: number of rows.
        distance: truth minus limit, above 0.
        spread: standard deviation of the rows.
        reach: truth minus the smallest possible row.
        alpha: level of the test.
    """
    centre = distance - reach / (examples + 1)
    seen = np.sqrt(spread**2 + reach**2 / (examples + 1))
    return float(ndtr((centre * np.sqrt(examples) - ndtri(1 - alpha) * seen) / max(spread, 1e-9)))


def power_of_pairs(examples: int, gain: float, differ: float, limit: float, alpha: float) -> float:
    """Return the chance that `evidence_on_pairs` finds a gain to be above the limit.

    The normal approximation of the score test: its variance under the limit for the level, under the truth for the chance
    (Connor 1987 for limit 0; Lu and Bean 1995 for non-inferiority).

    Args:
        examples: number of examples.
        gain: true difference of the two shares, above the limit.
        differ: true share of examples in which the models differ, at least the size of `gain`.
        limit: what the gain is compared with.
        alpha: level of the test.
    """
    gains, losses = (differ + gain) / 2, (differ - gain) / 2
    reached = float(_score(gains * examples, losses * examples, examples, limit))
    under_limit = (gain - limit) * np.sqrt(examples) / reached  # the score's standard deviation of one example
    under_truth = max(np.sqrt(max(differ - gain**2, 0)), 1e-9)
    return float(ndtr((reached - ndtri(1 - alpha)) * under_limit / under_truth))


def needed_examples(power_at: Callable[[int], float], power: float = 0.8) -> int | None:
    """Return the smallest number of examples with this power; None if ten million are not enough.

    Args:
        power_at: the power for a number of examples; must not fall.
        power: what is asked for.
    """
    enough = 2
    while power_at(enough) < power:
        enough *= 2
        if enough > 10_000_000:
            return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power_at(middle) >= power else (middle, enough)
    return enough
