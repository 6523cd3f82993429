"""P-values hold for any number of rows, and say what the tests of the literature say where those hold too."""

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import binomtest, chi2_contingency, ks_2samp, mannwhitneyu

from luthier.pipelines.monitoring.permutation import of_names, of_numbers, of_words, permutation_tests


def p_of(embedding, window, draws=999, seed=0):
    return permutation_tests({"it": embedding}, window, draws, seed)["it"]


@pytest.mark.parametrize("window", [5, 30])
def test_p_values_hold_in_small_samples(window):
    # 25 rows in all, with ties: where a chi-square or a KS distribution would be far off
    random = np.random.default_rng(1)
    found = {"numbers": 0, "larger": 0, "names": 0, "words": 0}
    runs = 250
    for run in range(runs):
        numbers = random.poisson(1, window + 20).astype(float)
        names = [f"{name}" for name in random.integers(0, 3, window + 20)]
        words = sparse.csr_matrix(np.eye(6)[random.integers(0, 6, window + 20)])
        features = {
            "numbers": of_numbers(numbers),
            "larger": of_numbers(numbers, one_sided=True),
            "names": of_names(names),
            "words": of_words(words),
        }
        for name, tested in permutation_tests(features, window, 99, run).items():
            found[name] += tested.p <= 0.05
    for name, count in found.items():
        assert binomtest(count, runs, 0.05, alternative="greater").pvalue > 0.001, (name, count)
        assert count > 0


def test_the_same_is_said_as_by_the_tests_of_large_samples():
    random = np.random.default_rng(2)
    numbers = np.concatenate([random.normal(0.2, 1, 300), random.normal(0, 1, 500)])
    larger = p_of(of_numbers(numbers, one_sided=True), 300, 4_999).p
    assert larger == pytest.approx(mannwhitneyu(numbers[:300], numbers[300:], alternative="greater").pvalue, abs=0.005)
    names = np.concatenate([random.choice(3, 300, p=[0.4, 0.4, 0.2]), random.choice(3, 500, p=[0.35, 0.4, 0.25])])
    counts = [np.bincount(names[:300]), np.bincount(names[300:])]
    assert p_of(of_names(names.astype(str).tolist()), 300, 4_999).p == pytest.approx(chi2_contingency(counts).pvalue, abs=0.02)


def test_the_larger_side_may_be_the_window():
    random = np.random.default_rng(3)
    window, reference = random.normal(0.5, 1, 400), random.normal(0, 1, 50)
    one = p_of(of_numbers(np.concatenate([window, reference]), one_sided=True), 400)
    other = p_of(of_numbers(np.concatenate([-reference, -window]), one_sided=True), 50)
    assert one.p < 0.02
    assert other.p < 0.02
    assert one.effect == pytest.approx(other.effect, abs=0.02)
    assert p_of(of_numbers(np.concatenate([-window, -reference]), one_sided=True), 400).p > 0.9


def test_effects_are_on_their_scales_and_chance_is_taken_off():
    random = np.random.default_rng(4)
    # a third of the window has another name, a third longer messages than all others
    names = ["new"] * 100 + ["old"] * 200 + ["old"] * 600
    numbers = np.concatenate([random.uniform(10, 11, 100), random.uniform(0, 1, 800)])
    assert p_of(of_names(names), 300).effect == pytest.approx(1 / 3, abs=0.03)
    assert p_of(of_numbers(numbers), 300).effect == pytest.approx(1 / 3, abs=0.06)
    assert p_of(of_numbers(numbers), 300).effect <= ks_2samp(numbers[:300], numbers[300:]).statistic
    same = random.normal(0, 1, 900)
    effects = [p_of(of_numbers(random.permutation(same)), 300, 199, seed).effect for seed in range(20)]
    assert np.mean(effects) < 0.03


def test_the_distance_of_words_is_in_standard_deviations_whatever_the_size_of_the_window():
    random = np.random.default_rng(5)
    # two directions at right angles: half of the window is in the one that the reference has not
    far = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = []
    for size in (200, 2_000):
        kinds = np.concatenate([random.integers(0, 2, size), np.zeros(2 * size, int)])
        found.append(p_of(of_words(sparse.csr_matrix(far[kinds])), size).effect)
    apart = np.sqrt(2) / 2
    spread = np.sqrt(1 - (5 / 6) ** 2 - (1 / 6) ** 2)
    assert found == pytest.approx([apart / spread] * 2, rel=0.1)


def test_missing_numbers_are_a_value_of_their_own():
    numbers = np.concatenate([np.full(100, np.nan), np.arange(100.0), np.arange(600.0) % 100])
    found = p_of(of_numbers(numbers), 200)
    assert found.p == pytest.approx(0.001)
    assert found.effect == pytest.approx(0.5, abs=0.08)


def test_rare_names_are_counted_together_and_what_does_not_vary_has_one_dimension():
    assert of_names(["a"] * 9).rows.shape == (9, 1)
    assert of_names([f"{n}" for n in range(9)]).rows.shape == (9, 1)
    assert of_names(["a"] * 9 + ["b", "c"]).rows.shape == (11, 2)
    assert of_numbers(np.zeros(9)).rows.shape == (9, 1)


def test_the_seed_decides_and_no_feature_is_no_test():
    rows = of_numbers(np.random.default_rng(6).random(200))
    assert p_of(rows, 50, seed=1) == p_of(rows, 50, seed=1)
    assert p_of(rows, 50, seed=1).p != p_of(rows, 50, seed=2).p
    assert permutation_tests({}, 5, 99, 0) == {}
