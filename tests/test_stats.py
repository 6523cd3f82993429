"""The bootstrap's intervals hold what they promise, in seeded simulations of known truths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from luthier.stats import Estimate, estimate, mean_of, ratio_of, resamples

VALUES = arrays(np.float64, st.integers(1, 30), elements=st.floats(-100, 100, width=32))
RUNS = 500


def covered(intervals, truth):
    """Return the share of intervals that hold the truth."""
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


def test_the_interval_of_a_paired_difference_covers_the_truth_at_95_percent():
    # two models answer the same messages: what is hard for one is hard for the other
    random = np.random.default_rng(1)
    intervals = []
    for run in range(RUNS):
        difficulty = random.uniform(0, 0.6, 150)
        tuned = random.random(150) < 1 - difficulty / 2
        base = random.random(150) < 1 - difficulty
        intervals.append(mean_of(tuned.astype(float) - base.astype(float), seed=run))
    assert 0.92 <= covered(intervals, 0.15) <= 0.98
    assert covered(intervals, 0.30) < 0.5


def test_the_interval_of_a_loss_per_token_covers_the_truth_at_95_percent():
    random = np.random.default_rng(2)
    intervals = []
    for run in range(RUNS):
        tokens = random.integers(5, 40, 150).astype(float)
        intervals.append(ratio_of(random.gamma(tokens / 2, 1.0), tokens, seed=run))
    assert 0.92 <= covered(intervals, 0.5) <= 0.98


def test_pairing_narrows_the_interval_of_models_that_err_on_the_same_messages():
    random = np.random.default_rng(3)
    one = random.random(300)
    other = one + random.normal(0.02, 0.02, 300)
    paired = mean_of(other - one, seed=0)
    apart = mean_of(other - random.permutation(one), seed=0)
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)
    assert paired.low > 0 > apart.low


@given(VALUES, st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_an_interval_lies_between_the_extremes_and_repeats_with_its_seed(values, seed):
    found = mean_of(values, seed)
    assert values.min() - 1e-9 <= found.low <= found.high <= values.max() + 1e-9
    assert found.value == pytest.approx(values.mean())
    assert found == mean_of(values, seed)


@given(VALUES, st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_the_fast_ways_equal_the_general_one(values, seed):
    def same(one: Estimate, other: Estimate) -> None:
        assert list(one.as_dict().values()) == pytest.approx(list(other.as_dict().values()), abs=1e-9)

    weights = np.abs(values) + 1
    same(mean_of(values, seed), estimate(lambda rows: values[rows].mean(), len(values), seed))
    same(ratio_of(values, weights, seed), estimate(lambda rows: values[rows].sum() / weights[rows].sum(), len(values), seed))
    same(ratio_of(values, np.ones_like(values), seed), mean_of(values, seed))


def test_a_constant_has_no_spread_and_more_messages_narrow_an_interval():
    assert mean_of(np.full(9, 0.25), seed=0) == Estimate(0.25, 0.25, 0.25)
    random = np.random.default_rng(4).random(4000)
    widths = [mean_of(random[:size], seed=0) for size in (40, 400, 4000)]
    assert widths[0].high - widths[0].low > 2 * (widths[1].high - widths[1].low) > 4 * (widths[2].high - widths[2].low)


def test_resamples_draw_every_row_equally_often():
    rows = resamples(7, seed=0, draws=3000)
    assert rows.shape == (3000, 7)
    assert np.bincount(rows.ravel(), minlength=7) == pytest.approx(3000, rel=0.1)
    assert not np.array_equal(rows, resamples(7, seed=1, draws=3000))


def test_no_rows_give_no_figure():
    with pytest.warns(RuntimeWarning):
        assert np.isnan(list(mean_of(np.array([]), seed=0).as_dict().values())).all()


def test_nan_is_not_hidden():
    found = mean_of(np.array([1.0, np.nan, 2.0]), seed=0)
    assert np.isnan(found.value)


def test_an_estimate_prints_value_and_interval():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
