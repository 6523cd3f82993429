"""Calibration error is near what chance alone gives where confidences are true, and above it where they are not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from luthier.pipelines.evaluation.calibration import (
    calibrate_confidence,
    calibrate_labels,
    confidence_of,
    label_probabilities,
)

RUNS = 40


def drawn(size, seed, sharpen=1.0, labels=5):
    """Return probabilities and labels drawn with them; `sharpen` above 1 makes the stated ones too sure."""
    random = np.random.default_rng(seed)
    true = random.dirichlet(np.full(labels, 0.4), size)
    right = np.array([random.choice(labels, p=row) for row in true])
    stated = true**sharpen
    return stated / stated.sum(1, keepdims=True), right


def test_a_perfectly_calibrated_model_shows_no_more_error_than_chance():
    found = [calibrate_labels(*drawn(600, seed), seed=seed) for seed in range(RUNS)]
    # the error is above the 95 % bound in 5 % of runs: 40 runs have 0 to 7 of them, but for one time in a thousand
    assert sum(one.error > one.error_at_most for one in found) <= 7
    assert np.mean([one.error for one in found]) == pytest.approx(np.mean([one.error_by_chance for one in found]), abs=0.004)
    assert abs(np.mean([one.confidence - one.accuracy for one in found])) < 0.01


def test_the_error_of_a_perfectly_calibrated_model_goes_to_nothing():
    errors = [calibrate_labels(*drawn(size, 1), seed=0).error for size in (100, 1_600, 25_600)]
    assert errors[2] < errors[0] / 4
    assert errors[2] < 0.015


@pytest.mark.parametrize("sharpen", [3.0, 0.3])
def test_a_model_that_is_too_sure_or_not_sure_enough_is_found(sharpen):
    found = calibrate_labels(*drawn(600, 2, sharpen), seed=0)
    assert found.error > 2 * found.error_at_most
    assert (found.confidence > found.accuracy) == (sharpen > 1)
    assert found.brier.value > calibrate_labels(*drawn(600, 2), seed=0).brier.value


CONFIDENCES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]) | st.floats(0, 1), st.booleans()), min_size=1, max_size=40
)


@given(CONFIDENCES, st.integers(1, 20), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_figures_lie_in_their_bounds_in_any_order_of_rows(pairs, bins, order):
    found = calibrate_confidence(*zip(*pairs, strict=True), seed=0, bins=bins)
    assert 0 <= found.error <= 1
    assert 0 <= found.brier.low <= found.brier.value <= found.brier.high <= 1
    assert found.error_by_chance <= 1
    table = found.reliability
    assert table["examples"].sum() == len(pairs)
    assert len(table) <= bins
    assert (table["lowest"] - 1e-12 <= table["confidence"]).all()
    assert (table["confidence"] <= table["highest"] + 1e-12).all()
    assert (table["lowest"].to_numpy()[1:] > table["highest"].to_numpy()[:-1]).all()
    assert (table["low"] <= table["accuracy"] + 1e-9).all()
    assert (table["accuracy"] <= table["high"] + 1e-9).all()
    by_hand = (table["examples"] * (table["accuracy"] - table["confidence"]).abs()).sum() / len(pairs)
    assert found.error == pytest.approx(by_hand)
    shuffled = list(pairs)
    order.shuffle(shuffled)
    again = calibrate_confidence(*zip(*shuffled, strict=True), seed=0, bins=bins)
    assert again.as_dict() == found.as_dict()
    json.dumps(found.as_dict(), allow_nan=False)


def test_figures_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    sure = random.random(400)
    right = random.random(400) < sure**2
    found = calibrate_confidence(sure, right, seed=0, bins=10)
    accuracy, confidence = calibration_curve(right, sure, n_bins=10, strategy="quantile")
    assert found.reliability["accuracy"].to_numpy() == pytest.approx(accuracy)
    assert found.reliability["confidence"].to_numpy() == pytest.approx(confidence)
    assert found.brier.value == pytest.approx(brier_score_loss(right, sure))
    probabilities, labels = drawn(300, 3)
    theirs = brier_score_loss(labels, probabilities, labels=range(5), scale_by_half=False)
    assert calibrate_labels(probabilities, labels, seed=0).brier.value == pytest.approx(theirs)


def test_bins_have_equal_mass_where_confidences_differ():
    random = np.random.default_rng(0)
    found = calibrate_confidence(random.beta(8, 1, 300), random.random(300) < 0.8, seed=0, bins=15)
    assert found.reliability["examples"].tolist() == [20] * 15


def test_the_best_and_the_worst():
    sure = np.eye(3)[[0, 1, 2, 0]]
    best = calibrate_labels(sure, [0, 1, 2, 0], seed=0)
    assert (best.accuracy, best.error, best.brier.value) == (1, 0, 0)
    worst = calibrate_labels(sure, [1, 2, 0, 1], seed=0)
    assert (worst.accuracy, worst.error, worst.brier.value) == (0, 1, 2)
    # a right label that is no candidate cannot be found, and counts as one of probability 0
    outside = calibrate_labels(sure, [-1] * 4, seed=0)
    assert (outside.accuracy, outside.error, outside.brier.value) == (0, 1, 2)


@given(st.lists(st.lists(st.floats(-1e4, 50), min_size=3, max_size=3), min_size=1, max_size=9), st.floats(-100, 100))
@settings(deadline=None, max_examples=50)
def test_likelihoods_become_probabilities_that_keep_their_order(logs, shift):
    found = label_probabilities(logs)
    assert found.sum(1) == pytest.approx(np.ones(len(logs)))
    assert found == pytest.approx(label_probabilities(np.array(logs) + shift), abs=1e-9)
    assert (found[np.arange(len(logs)), np.argmax(logs, 1)] == found.max(1)).all()


def test_the_confidence_of_an_answer_is_the_mean_probability_of_its_tokens():
    logs = np.log([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.9, 0.4, 0.1]])
    assert confidence_of(logs.mean(1)) == pytest.approx([0.5, 1.0, (0.9 * 0.4 * 0.1) ** (1 / 3)])
    assert confidence_of([1e-9]) <= 1  # rounding of a sure answer


@pytest.mark.parametrize(
    ("probabilities", "right", "told"),
    [
        ([[0.5, 0.6]], [0], "must sum to 1"),
        ([[1.5, -0.5]], [0], "must sum to 1"),
        ([[np.nan, 1.0]], [0], "must sum to 1"),
        ([[0.5, 0.5]], [2], "numbers below 2"),
        ([[0.5, 0.5]], [0, 1], "a label each"),
        ([], [], "a label each"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, right, told):
    with pytest.raises(ValueError, match=told):
        calibrate_labels(probabilities, right, seed=0)


@pytest.mark.parametrize(
    ("confidence", "told"),
    [([1.1], "between 0 and 1"), ([np.nan], "between 0 and 1"), ([], "for each answer"), ([[0.5]], "for each answer")],
)
def test_what_is_no_confidence_is_refused(confidence, told):
    with pytest.raises(ValueError, match=told):
        calibrate_confidence(confidence, [True] * len(confidence), seed=0)
