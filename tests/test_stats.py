"""Intervals and tests hold what they promise: by enumeration where that can be, in seeded simulations elsewhere."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, binomtest, multinomial, ttest_1samp

from luthier.stats import (
    FEWEST_UNBOUNDED,
    Estimate,
    chance_at_most_zero,
    estimate,
    evidence_on_mean,
    evidence_on_pairs,
    holm,
    mean_of,
    needed_examples,
    p_mean_above,
    p_pairs_above,
    power_of_mean,
    power_of_pairs,
    ratio_of,
    resamples,
    wilson,
)

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
    drawn = np.concatenate(list(resamples(len(values), seed)))
    same(mean_of(values, seed), estimate(values.mean(), np.array([values[rows].mean() for rows in drawn])))
    ratios = np.array([values[rows].sum() / weights[rows].sum() for rows in drawn])
    same(ratio_of(values, weights, seed), estimate(values.sum() / weights.sum(), ratios))
    same(ratio_of(values, np.ones_like(values), seed), mean_of(values, seed))


def test_a_constant_has_no_spread_and_more_messages_narrow_an_interval():
    assert mean_of(np.full(9, 0.25), seed=0) == Estimate(0.25, 0.25, 0.25)
    random = np.random.default_rng(4).random(4000)
    widths = [mean_of(random[:size], seed=0) for size in (40, 400, 4000)]
    assert widths[0].high - widths[0].low > 2 * (widths[1].high - widths[1].low) > 4 * (widths[2].high - widths[2].low)


def test_resamples_draw_every_row_equally_often():
    rows = np.concatenate(list(resamples(7, seed=0, draws=3000)))
    assert rows.shape == (3000, 7)
    assert np.bincount(rows.ravel(), minlength=7) == pytest.approx(3000, rel=0.1)
    assert not np.array_equal(rows, np.concatenate(list(resamples(7, seed=1, draws=3000))))


def test_samples_of_many_rows_come_a_few_at_a_time_and_are_the_same_samples():
    chunks = list(resamples(1_000_000, seed=0, draws=9))
    assert [len(rows) for rows in chunks] == [4, 4, 1]
    assert np.array_equal(np.concatenate(chunks), np.random.default_rng(0).integers(0, 1_000_000, (9, 1_000_000)))


def test_no_rows_give_no_figure():
    with pytest.warns(RuntimeWarning):
        assert np.isnan(list(mean_of(np.array([]), seed=0).as_dict().values())).all()


def test_nan_is_not_hidden():
    found = mean_of(np.array([1.0, np.nan, 2.0]), seed=0)
    assert np.isnan(found.value)


def test_an_estimate_prints_value_and_interval():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"


# --- tests for decisions ------------------------------------------------------------------------------------------------

ALPHA = 0.05
EVALUATIONS = 1000
SIZES = [30, 200, 1000]
COUNTS = st.integers(1, 60).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda gains: st.tuples(st.just(gains), st.integers(0, n - gains), st.just(n)))
)
SHARES = arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0, 0.25, 0.5, 0.75, 1]))


def contradicted(count, promised, side, of=EVALUATIONS):
    """Tell whether an exact binomial test rejects at p = 0.001 that the chance is at most, or at least, the promised one."""
    return binomtest(int(count), of, promised, alternative=side).pvalue < 0.001


def graded_pair(random, size, gain=0.0, rare=1.0):
    """Return the field accuracies, of four fields, of two models that find the same messages hard; shape (1000, size).

    The second is better by `gain` in expectation; in all but a share `rare` of the messages both answer alike.
    """
    ease = random.beta(2, 1, (EVALUATIONS, size))  # two thirds on average
    gain = gain / rare
    eased = ease + (1 - ease) * 3 * gain if gain > 0 else ease * (1 + 1.5 * gain)
    one = random.binomial(4, ease) / 4
    return one, np.where(random.random(one.shape) < rare, random.binomial(4, eased) / 4, one)


def rejections_of_pairs(gains, losses, size, limit):
    """Count the evaluations in which the exact test finds the gain above the limit."""
    pairs, counts = np.unique(np.stack([gains, losses]), axis=1, return_counts=True)
    return sum(
        count for (gain, loss), count in zip(pairs.T, counts, strict=True) if p_pairs_above(gain, loss, size, limit) <= ALPHA
    )


@given(st.integers(1, 300), st.data())
@settings(deadline=None, max_examples=60)
def test_for_yes_or_no_the_test_of_a_mean_is_the_exact_binomial_one(size, data):
    right = data.draw(st.integers(0, size))
    limit = data.draw(st.floats(0.01, 0.99))
    values = np.repeat([1.0, 0.0], [right, size - right])
    assert p_mean_above(values, np.ones(size), limit, 0.0) == pytest.approx(binom.sf(right - 1, size, limit), abs=1e-7)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_the_chance_of_weights_is_that_of_drawn_weights(size):
    random = np.random.default_rng(size)
    rows = random.normal(0.2, 1, (20, size))
    drawn = (random.dirichlet(np.ones(size), 100_000) @ rows.T <= 0).mean(axis=0)
    assert chance_at_most_zero(rows) == pytest.approx(drawn, abs=0.008)


@given(SHARES, st.randoms(use_true_random=False), st.floats(0.1, 1000))
@settings(deadline=None, max_examples=60)
def test_neither_order_nor_unit_matters(values, random, unit):
    rows = values - 0.4
    shuffled = random.sample(list(rows), len(rows))
    assert chance_at_most_zero(np.array(shuffled) * unit) == pytest.approx(chance_at_most_zero(rows), abs=1e-9)


@given(SHARES, st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=30)
def test_bounds_of_a_mean_belong_to_its_tests(values, limit):
    found = evidence_on_mean(values, limit, ALPHA, span=(0, 1))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert (found.p_above <= ALPHA) == (found.low > limit) or abs(found.p_above - ALPHA) < 1e-6
    assert (found.p_below <= ALPHA) == (found.high < limit) or abs(found.p_below - ALPHA) < 1e-6
    mirrored = evidence_on_mean(-values, -limit, ALPHA, span=(-1, 0))
    assert [-mirrored.value, -mirrored.high, -mirrored.low] == pytest.approx([found.value, found.low, found.high], abs=1e-9)
    assert (mirrored.p_below, mirrored.p_above) == pytest.approx((found.p_above, found.p_below), abs=1e-9)


@given(COUNTS, st.sampled_from([-0.1, -0.02, 0, 0.1]))
@settings(deadline=None, max_examples=30)
def test_bounds_of_pairs_belong_to_their_tests_and_swapping_the_models_turns_them_over(counts, limit):
    gains, losses, size = counts
    found = evidence_on_pairs(gains, losses, size, limit, ALPHA)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.p_above <= ALPHA) == (found.low >= limit and found.value > limit)
    assert (found.p_below <= ALPHA) == (found.high <= limit and found.value < limit)
    swapped = evidence_on_pairs(losses, gains, size, -limit, ALPHA)
    assert (-swapped.value, -swapped.high, -swapped.low) == (found.value, found.low, found.high)
    assert (swapped.p_below, swapped.p_above) == (found.p_above, found.p_below)


@given(COUNTS, st.sampled_from([-0.1, 0, 0.1]))
@settings(deadline=None, max_examples=30)
def test_a_gain_in_place_of_a_tie_is_never_evidence_against(counts, limit):
    gains, losses, size = counts
    before = evidence_on_pairs(gains, losses, size + 1, limit, ALPHA)
    after = evidence_on_pairs(gains + 1, losses, size + 1, limit, ALPHA)
    assert after.value > before.value
    assert after.low >= before.low - 0.002


@pytest.mark.parametrize("limit", [0, -0.02, -0.1, 0.1])
@pytest.mark.parametrize("size", [10, 40])
def test_the_test_of_pairs_keeps_its_level_in_every_world(size, limit):
    """No simulation: all outcomes are enumerated, for a fine grid of shares in which the models differ."""
    outcomes = np.array([(g, n - g, size - n) for n in range(size + 1) for g in range(n + 1)])
    rejected = outcomes[[p_pairs_above(gains, losses, size, limit) <= ALPHA for gains, losses, _ in outcomes]]
    levels = []
    for differ in np.linspace(abs(limit), 1, 201)[1:-1]:
        shares = [(differ + limit) / 2, (differ - limit) / 2, 1 - differ]
        levels.append(multinomial.pmf(rejected, size, shares).sum())
    assert max(levels) <= ALPHA
    assert max(levels) > (0.02 if size == 10 else 0.04)  # and does not throw it away


def test_the_unconditional_test_decides_where_mcnemars_conditional_one_hesitates():
    tables = [(gains, losses) for gains in range(31) for losses in range(gains) if gains + losses <= 30]
    exact = {pair for pair in tables if p_pairs_above(*pair, 60, 0) <= ALPHA}
    conditional = {(g, n) for g, n in tables if binom.sf(g - 1, g + n, 0.5) <= ALPHA}
    assert len(exact) > len(conditional)
    assert len(conditional - exact) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_equal_models_are_seldom_called_better_yes_or_no(size):
    random = np.random.default_rng(size)
    ease = random.beta(2, 1, (EVALUATIONS, size))
    one, other = random.random(ease.shape) < ease, random.random(ease.shape) < ease
    count = rejections_of_pairs((other & ~one).sum(1), (one & ~other).sum(1), size, 0)
    assert not contradicted(count, ALPHA, "greater")
    assert not contradicted(count, 0.02, "less")


@pytest.mark.parametrize("rare", [1.0, 0.1])
@pytest.mark.parametrize("size", SIZES)
def test_equal_models_are_seldom_called_better_graded(size, rare):
    one, other = graded_pair(np.random.default_rng(size), size, rare=rare)
    count = (p_mean_above(other - one, np.ones_like(one), 0, -1.0) <= ALPHA).sum()
    assert not contradicted(count, ALPHA, "greater")
    if size == 1000:
        assert not contradicted(count, 0.02, "less")


@pytest.mark.parametrize("size", SIZES)
def test_equal_models_are_seldom_called_better_by_a_loss_with_heavy_tails(size):
    random = np.random.default_rng(size)
    tokens = random.integers(10, 60, (EVALUATIONS, size)).astype(float)
    gain = random.standard_t(2.5, tokens.shape) * tokens * 0.1
    count = (p_mean_above(gain, tokens, 0, None) <= ALPHA).sum()
    assert not contradicted(count, ALPHA, "greater")
    assert not contradicted(count, 0.01, "less")


@pytest.mark.parametrize("margin", [0.02, 0.1])
@pytest.mark.parametrize("size", [30, 200, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_model_worse_by_exactly_the_margin_seldom_passes(size, margin):
    random = np.random.default_rng(size)
    # yes/no, all harm and no gain: the world in which a test that trusts its sample is wrong most often
    losses = random.binomial(size, margin, EVALUATIONS)
    assert not contradicted(rejections_of_pairs(np.zeros_like(losses), losses, size, -margin), ALPHA, "greater")
    # graded, with the harm all over, and in few messages that go wholly wrong
    one, other = graded_pair(random, size, gain=-margin)
    assert (other - one).mean() == pytest.approx(-margin, abs=4 * (other - one).std() / one.size**0.5)
    assert not contradicted((p_mean_above(other - one, np.ones_like(one), -margin, -1.0) <= ALPHA).sum(), ALPHA, "greater")
    harm = -(random.random(one.shape) < margin).astype(float)
    assert not contradicted((p_mean_above(harm, np.ones_like(harm), -margin, -1.0) <= ALPHA).sum(), ALPHA, "greater")
    # a loss
    tokens = random.integers(10, 60, (EVALUATIONS, size)).astype(float)
    gain = (random.standard_t(3, tokens.shape) * 0.1 - margin) * tokens
    assert not contradicted((p_mean_above(gain, tokens, -margin, None) <= ALPHA).sum(), ALPHA, "greater")


def test_the_t_test_would_let_rare_harm_pass():
    """Why a mean is not simply given to the t test: 30 examples seldom show what happens to one in fifty."""
    harm = -(np.random.default_rng(0).random((EVALUATIONS, 30)) < 0.02).astype(float)
    varied = harm[harm.std(axis=1) > 0]
    unseen = EVALUATIONS - len(varied)  # all zero: no spread at all, and above the limit for sure
    passed = unseen + (ttest_1samp(varied, -0.02, axis=1, alternative="greater").pvalue <= ALPHA).sum()
    assert passed > 0.5 * EVALUATIONS
    assert (p_mean_above(harm, np.ones_like(harm), -0.02, -1.0) <= ALPHA).sum() == 0


@pytest.mark.parametrize(
    ("gain", "limit", "differ"),
    [
        (0.05, 0, 0.1),
        pytest.param(0.05, 0, 0.3, marks=pytest.mark.slow),
        (0, -0.05, 0.1),
        pytest.param(0.02, -0.03, 0.2, marks=pytest.mark.slow),
    ],
)
def test_pairs_have_the_power_that_is_stated(gain, limit, differ):
    power_at = partial(power_of_pairs, gain=gain, differ=differ, limit=limit, alpha=ALPHA)
    size = needed_examples(power_at)
    assert size <= 2000
    assert power_at(size) >= 0.8 > power_at(size - 1)
    for examples in (size // 2, size):
        shares = [(differ + gain) / 2, (differ - gain) / 2, 1 - differ]
        drawn = np.random.default_rng(0).multinomial(examples, shares, EVALUATIONS)
        count = rejections_of_pairs(drawn[:, 0], drawn[:, 1], examples, limit)
        assert not contradicted(count, power_at(examples), "two-sided")


@pytest.mark.parametrize(("gain", "limit", "rare"), [(0.05, 0, 1.0), (0.05, 0, 0.3), (0, -0.05, 1.0), (0, -0.03, 0.3)])
def test_means_have_the_power_that_is_stated(gain, limit, rare):
    sample = np.subtract(*graded_pair(np.random.default_rng(1), 500, gain, rare)[::-1])
    power_at = partial(power_of_mean, distance=gain - limit, spread=sample.std(), reach=gain + 1, alpha=ALPHA)
    size = needed_examples(power_at)
    assert size <= 2000
    for examples in (size // 2, size):
        one, other = graded_pair(np.random.default_rng(2), examples, gain, rare)
        count = (p_mean_above(other - one, np.ones_like(one), limit, -1.0) <= ALPHA).sum()
        assert not contradicted(count, power_at(examples), "less")
        # where few messages differ, and those for the better, the power is higher than the normal approximation says
        assert not contradicted(count, power_at(examples) + (0 if rare == 1 else 0.1), "greater")


def test_too_many_examples_are_not_asked_for():
    assert needed_examples(lambda examples: 0.7) is None
    assert needed_examples(lambda examples: 1.0) == 2
    assert needed_examples(lambda examples: float(examples >= 777)) == 777


def test_holm_is_that_of_its_paper_and_never_below_the_p_values():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert holm(np.array([])).shape == (0,)


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)))
def test_holm_lies_between_no_correction_and_bonferroni(values):
    adjusted = holm(values)
    assert (adjusted >= values).all()
    assert (adjusted <= np.minimum(1, values * len(values)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(values, kind="stable")]) >= 0).all()


def test_what_cannot_be_known_has_no_bounds():
    few = evidence_on_mean(np.ones(FEWEST_UNBOUNDED - 1), 0, ALPHA)
    assert (few.low, few.high, few.p_above, few.p_below) == (-np.inf, np.inf, 1, 1)
    same = evidence_on_mean(np.zeros(FEWEST_UNBOUNDED), 0, ALPHA)
    assert (same.low, same.high, same.p_above, same.p_below) == (0, 0, 1, 1)
    assert evidence_on_mean(np.zeros(FEWEST_UNBOUNDED), -0.1, ALPHA).p_above == 0
    one = evidence_on_mean(np.array([1.0]), 0.5, ALPHA, span=(0, 1))
    assert (one.low, one.high, one.p_above) == pytest.approx((0.05, 1, 0.5))


def test_agreement_on_every_example_shows_no_gain_but_soon_that_little_is_lost():
    # the rule of three: nothing in n examples bounds the share by about 3 / n
    assert evidence_on_pairs(0, 0, 160, 0, ALPHA).p_above == 1
    assert evidence_on_pairs(0, 0, 160, -0.02, ALPHA).p_above <= ALPHA
    assert evidence_on_pairs(0, 0, 100, -0.02, ALPHA).p_above > ALPHA
    zero = evidence_on_mean(np.zeros(160), -0.02, ALPHA, span=(-1, 1))
    assert zero.low == pytest.approx(-(1 - ALPHA ** (1 / 160)), abs=1e-4)


@given(of=st.integers(1, 500), share=st.floats(0, 1))
def test_the_interval_of_a_share_is_wilsons(of, share):
    good = round(share * of)
    peer = binomtest(good, of).proportion_ci(method="wilson")
    assert wilson(good, of) == pytest.approx((peer.low, peer.high), abs=1e-12)
