"""However often one looks, the level holds; and who looks often ends sooner."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from luthier.pipelines.monitoring.sequential import FEWEST, Arm, lower_bound, p_above, p_below

ALPHA, SCALE, STEP = 0.025, 0.05, 50


def test_a_share_at_its_limit_is_seldom_ever_said_to_be_below():
    random, below = np.random.default_rng(3), 0
    for _ in range(300):
        good = np.cumsum(random.random(1_000) < 0.8)
        below += any(p_below(int(good[n - 1]), n, 0.8) <= ALPHA for n in range(1, 1_001, 7))
    assert binomtest(below, 300, ALPHA, alternative="greater").pvalue > 0.001
    assert p_below(50, 100, 0.8) < 1e-6
    assert p_below(0, 0, 0.8) == pytest.approx(1)


def votes(shares, runs, horizon, seed, ours=0.5):
    """Return both arms at each look: a share `ours` of the votes is about the first."""
    random = np.random.default_rng(seed)
    looks = np.arange(STEP, horizon + 1, STEP)
    sizes = np.cumsum(random.binomial(STEP, ours, (runs, len(looks))), axis=1)
    both = []
    for size, share in zip((sizes, looks - sizes), shares, strict=True):
        ups = np.cumsum(random.binomial(np.diff(size, axis=1, prepend=0), share), axis=1)
        mean = ups / np.maximum(size, 1)
        both.append(Arm(size, mean, mean * (1 - mean) * size / np.maximum(size - 1, 1)))
    return looks, *both


@pytest.mark.parametrize(("share", "ours"), [(0.6, 0.5), (0.6, 0.1), (0.95, 0.1), (0.05, 0.5), (0.05, 0.1)])
def test_false_winners_of_2000_experiments_stay_within_the_level(share, ours):
    _, challenger, control = votes((share, share), 2_000, 5_000, 1, ours)
    won = (p_above(challenger, control, 0, SCALE) <= ALPHA).any(axis=1).sum()
    assert binomtest(int(won), 2_000, ALPHA, alternative="greater").pvalue > 0.001
    if (share, ours) != (0.6, 0.5):
        return
    # the same data with a test for one look
    spread = np.sqrt(
        challenger.variance / np.maximum(challenger.subjects, 1) + control.variance / np.maximum(control.subjects, 1)
    )
    late = np.minimum(challenger.subjects, control.subjects) >= FEWEST
    peeked = (((challenger.mean - control.mean) > norm.isf(ALPHA) * spread) & late).any(axis=1).mean()
    assert peeked > 5 * ALPHA


def test_the_bounds_hold_the_truth_at_every_look():
    _, challenger, control = votes((0.9, 0.6), 1_000, 5_000, 2)
    low, high = lower_bound(challenger, control, SCALE, ALPHA), -lower_bound(control, challenger, SCALE, ALPHA)
    missed = ((low > 0.3) | (high < 0.3)).any(axis=1).sum()
    assert binomtest(int(missed), 1_000, 2 * ALPHA, alternative="greater").pvalue > 0.001
    assert (low < high).all()


@pytest.mark.parametrize("power", [0.8, 0.9])
def test_five_points_on_sixty_percent_are_found_with_fewer_subjects_than_a_test_of_fixed_size(power):
    looks, challenger, control = votes((0.65, 0.6), 2_000, 12_000, 3)
    found = p_above(challenger, control, 0, SCALE) <= ALPHA
    ends = np.where(found.any(axis=1), looks[found.argmax(axis=1)], 12_000)
    horizon = np.quantile(ends, power)  # of an experiment that then gives up: its power is this
    fixed = 2 * (0.65 * 0.35 + 0.6 * 0.4) * ((norm.isf(ALPHA) + norm.ppf(power)) / 0.05) ** 2
    assert np.minimum(ends, horizon).mean() < fixed


@given(st.integers(100, 9_000), st.integers(100, 9_000), st.floats(-1, 1), st.floats(0.001, 4), st.floats(0.001, 0.2))
def test_the_bound_is_the_limit_at_which_the_p_value_is_the_level(one, two, apart, variance, alpha):
    ours, other = Arm(one, apart, variance), Arm(two, 0.0, variance)
    bound = lower_bound(ours, other, SCALE, alpha)
    assert bound < apart
    assert p_above(ours, other, bound, SCALE) == pytest.approx(alpha, rel=1e-6)
    assert p_above(ours, other, bound - 0.1, SCALE) <= p_above(ours, other, bound, SCALE)


def test_few_subjects_and_what_never_varies_say_nothing():
    assert p_above(Arm(FEWEST - 1, 1.0, 0.1), Arm(5_000, 0.0, 0.1), 0, SCALE) == 1
    assert lower_bound(Arm(FEWEST - 1, 1.0, 0.1), Arm(5_000, 0.0, 0.1), SCALE, ALPHA) == -np.inf
    assert p_above(Arm(500, 1.0, 0.0), Arm(500, 0.0, 0.0), 0, SCALE) == 1


def test_what_has_never_failed_varies_a_little():
    arm = Arm.of(np.zeros(998), span=1.0)
    assert arm.variance == pytest.approx(0.001)
    assert p_above(arm, arm, -0.01, 0.01) < 0.05  # shown not to be worse by 0.01, though no failure was seen
    assert Arm.of(np.array([])).subjects == 0
