"""Permutation tests of many features at once: do the rows of a window come from where the reference's come from?

Each feature maps a row to a vector, and what is compared are the mean vectors of window and reference: then every statistic is a
function of sums over the window's rows, and thousands of permutations are one sparse product. With words as vectors this is the
maximum mean discrepancy (Gretton et al. 2012, linear kernel), with indicators of bins it compares distribution functions, with
indicators of names it compares their shares.

If both come from one source, every choice of as many rows is as likely as the window: the p-value holds for any number of rows
(Phipson and Smyth 2010: the window itself counts as one of the choices).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
_BINS = 64
_FEWEST_OF_A_NAME = 5
_NUMBERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Embedding:
    """A feature as vectors, and how two mean vectors are told apart."""

    rows: sparse.csr_matrix
    """Shape (rows, dimensions); the window's rows come first."""
    statistic: Callable[[Floats], Floats]
    """What the test compares: from differences of means, shape (draws, dimensions), to shape (draws,)."""
    effect: Callable[[Floats], Floats]
    """How large the change is, of the same shapes."""
    scale: Callable[[float], float] = lambda value: value
    """From the effect beyond chance, at least 0, to the scale that people read."""


@dataclass(frozen=True)
class Tested:
    """What a test found."""

    p: float
    effect: float
    """On the feature's scale, less what permutations show on average."""


def of_words(weights: sparse.csr_matrix) -> Embedding:
    """Compare weights of words, shape (rows, words), each row of length 1 or 0.

    The effect is the distance of the means in standard deviations of a single row, from its mean in all directions together.
    """
    spread = float(weights.multiply(weights).sum() / weights.shape[0] - np.square(weights.mean(axis=0)).sum())

    def distance(apart: Floats) -> Floats:
        return np.square(apart).sum(axis=1)

    return Embedding(weights, distance, distance, lambda value: float(np.sqrt(value / spread)) if spread > 0 else 0.0)


def of_numbers(values: Floats, one_sided: bool = False) -> Embedding:
    """Compare the distribution functions of numbers, in at most 64 bins of about as many rows; NaN lies below all.

    The test is that of Anderson and Darling (1952): squared differences, each weighted by how well it is known. One-sided, it
    asks whether the window's ranks are higher (Wilcoxon 1945). The effect is the share of rows by which window and reference
    differ on one side of some value: the largest difference of the two functions (Kolmogorov and Smirnov).

    Args:
        values: shape (rows,).
        one_sided: take only larger numbers for a change.
    """
    known = np.nan_to_num(values, nan=-np.inf)
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1], method="inverted_cdf"))
    edges = edges[edges < known.max()]
    bins = np.searchsorted(edges, known, side="left")
    rows, shares = _indicators(bins, len(edges) + 1)
    below = np.cumsum(shares)[:-1]
    spread = np.maximum(below * (1 - below), 1e-12)

    def functions(apart: Floats) -> Floats:
        return np.cumsum(apart, axis=1)[:, :-1]

    if one_sided:
        middles = np.cumsum(shares) - shares / 2
        return Embedding(rows, lambda apart: apart @ middles, lambda apart: np.max(-functions(apart), axis=1, initial=0.0))
    return Embedding(
        rows,
        lambda apart: (shares[:-1] * functions(apart) ** 2 / spread).sum(axis=1),
        lambda apart: np.abs(functions(apart)).max(axis=1, initial=0.0),
    )


def of_names(names: Sequence[str]) -> Embedding:
    """Compare the shares of names by the statistic of the chi-square test; those of fewer than 5 rows count as one.

    The effect is the share of the window's rows that would need another name (total variation distance).
    """
    _, numbers, counts = np.unique(np.asarray(names, object), return_inverse=True, return_counts=True)
    few = counts < _FEWEST_OF_A_NAME
    places = np.where(few, (~few).sum(), np.cumsum(~few) - 1)[numbers]
    rows, shares = _indicators(places, int((~few).sum() + few.any()))
    return Embedding(rows, lambda apart: (apart**2 / shares).sum(axis=1), lambda apart: np.abs(apart).sum(axis=1) / 2)


def _indicators(places: NDArray[np.int64], size: int) -> tuple[sparse.csr_matrix, Floats]:
    """Return a 1 in each row's place, and the share of rows with each place."""
    count = len(places)
    rows = sparse.csr_matrix((np.ones(count), places, np.arange(count + 1)), shape=(count, size))
    return rows, np.bincount(places, minlength=size) / count


def permutation_tests(features: Mapping[str, Embedding], window: int, draws: int, seed: int) -> dict[str, Tested]:
    """Test each feature with the same permutations.

    Args:
        features: all of the same rows.
        window: how many of them, from the first on, are the window's; at least one is left for the reference.
        draws: number of permutations; the smallest p-value is 1 / (draws + 1).
        seed: of the permutations.
    """
    if not features:
        return {}
    found: dict[str, tuple[list[Floats], list[Floats]]] = {name: ([], []) for name in features}
    total = next(iter(features.values())).rows.shape[0]
    widest = max(feature.rows.shape[1] for feature in features.values())
    for chosen, sign in _choices(total, window, draws, seed, _NUMBERS_AT_ONCE // widest + 1):
        for name, feature in features.items():
            apart = sign * _differences(feature.rows, chosen)
            found[name][0].append(feature.statistic(apart))
            found[name][1].append(feature.effect(apart))
    return {name: _tested(features[name], *map(np.concatenate, both)) for name, both in found.items()}


def _choices(total: int, window: int, draws: int, seed: int, at_once: int) -> Iterator[tuple[sparse.csr_matrix, float]]:
    """Yield choices of rows, shape (choices, rows), the window first; -1 beside them if they stand for the reference.

    The smaller side is chosen, which is the less work.
    """
    random = np.random.default_rng(seed)
    is_window = 2 * window <= total
    side = window if is_window else total - window
    first = np.arange(window) if is_window else np.arange(window, total)
    for start in range(0, draws + 1, at_once):
        number = min(at_once, draws + 1 - start)
        places = np.stack([random.choice(total, side, replace=False, shuffle=False) for _ in range(number)])
        if start == 0:
            places[0] = first
        ones = np.ones(places.size)
        chosen = sparse.csr_matrix((ones, places.ravel(), np.arange(0, places.size + 1, side)), shape=(number, total))
        yield chosen, 1.0 if is_window else -1.0


def _differences(rows: sparse.csr_matrix, chosen: sparse.csr_matrix) -> Floats:
    """Return the mean of the chosen rows minus that of the others, shape (choices, dimensions)."""
    side, total = chosen.indptr[1], rows.shape[0]
    sums = (chosen @ rows).toarray()
    all_rows = np.asarray(rows.sum(axis=0)).ravel()
    return sums * (1 / side + 1 / (total - side)) - all_rows / (total - side)


def _tested(feature: Embedding, statistics: Floats, effects: Floats) -> Tested:
    seen, drawn = statistics[0], statistics[1:]
    extreme = int((drawn >= seen - 1e-9 * abs(seen)).sum())  # equal but for rounding is as extreme
    beyond = max(0.0, float(effects[0] - effects[1:].mean()))
    return Tested((1 + extreme) / (1 + len(drawn)), feature.scale(beyond))
