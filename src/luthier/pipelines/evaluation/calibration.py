"""Does the model know what it knows? Calibration of label probabilities, and of the confidence in a whole answer.

Expected calibration error with bins of equal mass (Guo et al. 2017, arXiv:1706.04599; bins of equal mass: Nixon et al. 2019,
arXiv:1904.01685). The error of n answers is above 0 by chance alone, even of a perfectly calibrated model, so beside it stands
what such a model would show: answers drawn right with the very confidence that was given (consistency resampling, Bröcker and
Smith 2007, Weather and Forecasting 22). Brier score as Brier (1950) defined it, over all labels.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from luthier.stats import DRAWS, Estimate, Floats, mean_of, wilson

BINS = 15  # as Guo et al.


@dataclass(frozen=True)
class Calibration:
    """How far confidence and rightness lie apart."""

    of: Literal["label", "answer"]
    """Whether the confidence is the probability of the likeliest label, or that of the whole answer."""
    examples: int
    accuracy: float
    confidence: float
    """Mean confidence; above `accuracy` means overconfident."""
    error: float
    """Expected calibration error, from 0 to 1."""
    error_by_chance: float
    """The mean of that error for a perfectly calibrated model with these confidences."""
    error_at_most: float
    """What a perfectly calibrated model stays under 95 times of 100; a larger error is miscalibration."""
    brier: Estimate
    """Brier score with its 95 % bootstrap interval: 0 is best; at most 2 over labels, 1 where only confidences are known."""
    reliability: pd.DataFrame
    """A row a bin, what a reliability diagram draws: `examples`, `lowest`, `highest`, `confidence`, `accuracy`, `low`, `high`
    (95 % Wilson interval of the accuracy)."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        figures = {name: value for name, value in vars(self).items() if name not in ("brier", "reliability")}
        return {**figures, "brier": self.brier.as_dict(), "reliability": self.reliability.to_dict("records")}


def label_probabilities(log_likelihoods: ArrayLike) -> Floats:
    """Normalise the log-likelihoods of candidate labels, shape (examples, labels), so that each row sums to 1."""
    return np.asarray(softmax(np.asarray(log_likelihoods, dtype=np.float64), axis=1))


def calibrate_labels(probabilities: ArrayLike, right: ArrayLike, seed: int, bins: int = BINS) -> Calibration:
    """Compare the probability of the likeliest label with how often it is the right one.

    Args:
        probabilities: shape (examples, labels), each row summing to 1.
        right: number of the right label of each example; -1 if it is no candidate.
        seed: of resampling.
        bins: of equal mass; equal confidences share one.

    Raises:
        ValueError: if a row is no distribution or a number is no label.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    at = np.asarray(right, dtype=np.int64)
    if table.ndim != 2 or len(table) != len(at) or not table.size:
        raise ValueError(f"probabilities of shape (examples, labels) and a label each are needed, not {table.shape}, {at.shape}")
    if not (np.isfinite(table).all() and (table >= 0).all() and np.allclose(table.sum(1), 1)):
        raise ValueError("each row of probabilities must sum to 1")
    if ((at < -1) | (at >= table.shape[1])).any():
        raise ValueError(f"right labels must be numbers below {table.shape[1]}, or -1")
    truth = np.zeros_like(table)
    known = np.flatnonzero(at >= 0)
    truth[known, at[known]] = 1
    # the squares of the labels, plus that of a right answer which is no candidate and has probability 0
    brier = ((table - truth) ** 2).sum(1) + (at < 0)
    return _calibration("label", table.max(1), table.argmax(1) == at, brier, seed, bins)


def confidence_of(mean_log_probabilities: ArrayLike) -> Floats:
    """Turn the mean log-probability of an answer's tokens (nats) into a confidence: their geometric mean probability.

    All that is known of an answer when no candidates were scored. It does not add up to 1 over answers; what makes it useful,
    or not, is what `calibrate_confidence` finds.
    """
    return np.exp(np.minimum(np.asarray(mean_log_probabilities, dtype=np.float64), 0.0))


def calibrate_confidence(confidence: ArrayLike, right: ArrayLike, seed: int, bins: int = BINS) -> Calibration:
    """Compare confidences with how often the answers are right.

    Args:
        confidence: of each answer, from 0 to 1.
        right: whether it is right.
        seed: of resampling.
        bins: of equal mass; equal confidences share one.

    Raises:
        ValueError: if a confidence is outside 0 to 1 or there are none.
    """
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if sure.ndim != 1 or sure.shape != hit.shape or not sure.size:
        raise ValueError(f"a confidence and a verdict for each answer are needed, not {sure.shape}, {hit.shape}")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("confidences must lie between 0 and 1")
    return _calibration("answer", sure, hit, (sure - hit) ** 2, seed, bins)


def calibrate_answers(scores: pd.DataFrame, seed: int) -> dict[str, Calibration]:
    """Return the calibration of each model of which a confidence is known.

    Args:
        scores: of one set of questions: `model`, `id`, `exact_match`; where known `label_scores` (JSON, label ->
            log-likelihood; empty where there is none) with `label_expected`, and `output_confidence`.
        seed: of resampling.

    Returns:
        by model, that of its label probabilities where they were measured, else that of its confidence in whole answers.
    """
    found = {}
    for model, table in scores.groupby("model", sort=False):
        measured = table[table["label_scores"].fillna("") != ""] if "label_scores" in table else table[:0]
        if len(measured):
            told = [json.loads(text) for text in measured["label_scores"]]
            labels = list(told[0])
            probabilities = label_probabilities([[one[label] for label in labels] for one in told])
            number = {label: at for at, label in enumerate(labels)}
            right = [number.get(label, -1) for label in measured["label_expected"]]
            found[str(model)] = calibrate_labels(probabilities, right, seed)
        elif "output_confidence" in table and table["output_confidence"].notna().all():
            found[str(model)] = calibrate_confidence(table["output_confidence"], table["exact_match"], seed)
    return found


def _calibration(
    of: Literal["label", "answer"], sure: Floats, hit: NDArray[np.bool_], brier: Floats, seed: int, bins: int
) -> Calibration:
    # nothing may depend on the order of the rows, the bootstrap included
    order = np.lexsort((brier, hit, sure))
    sure, right, brier = sure[order], hit[order].astype(np.float64), brier[order]
    edges = np.quantile(sure, np.linspace(0, 1, bins + 1)[1:-1])
    bin_of = np.unique(np.searchsorted(edges, sure), return_inverse=True)[1]
    counts = np.bincount(bin_of)
    confidence = np.bincount(bin_of, sure) / counts
    accuracy = np.bincount(bin_of, right) / counts

    def error(hits: Floats) -> float:
        return float(np.abs(np.bincount(bin_of, hits) / counts - confidence) @ counts / len(sure))

    draw = np.random.default_rng(seed)
    chance = np.array([error((draw.random(len(sure)) < sure).astype(np.float64)) for _ in range(DRAWS)])
    intervals = [wilson(round(rate * count), int(count)) for rate, count in zip(accuracy, counts, strict=True)]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    reliability = pd.DataFrame(
        {
            "examples": counts,
            "lowest": sure[starts],
            "highest": sure[starts + counts - 1],
            "confidence": confidence,
            "accuracy": accuracy,
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
        }
    )
    return Calibration(
        of=of,
        examples=len(sure),
        accuracy=float(right.mean()),
        confidence=float(sure.mean()),
        error=error(right),
        error_by_chance=float(chance.mean()),
        error_at_most=float(np.quantile(chance, 0.95)),
        brier=mean_of(brier, seed),
        reliability=reliability,
    )
