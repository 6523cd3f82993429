"""The order of data: a pure function of seed and epoch, so that a run resumes exactly, on any number of processes."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 32  # batches among which examples are sorted by length: little padding, still much chance


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch as lists of example numbers; each example stands in exactly one.

    Examples are shuffled, sorted by length inside windows of `WINDOW` batches, and the batches shuffled again.
    Inside a batch the longest example comes first.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = sorted(order[start : start + WINDOW * batch_size].tolist(), key=lambda i: -lengths[i])
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    random.shuffle(batches)
    return batches


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches of an epoch, the last, smaller one included."""
    return -(-examples // batch_size)


class Order:
    """What each optimiser step of a run takes, over all epochs.

    An example of weight 0.2 is taken in one epoch of five, one of weight 2.5 twice and three times in turn: after n epochs it
    was taken n times its weight, rounded up or down. In which epochs is chance, that of its id alone.
    """

    def __init__(
        self,
        ids: Iterable[str],
        weights: Sequence[float] | NDArray[np.float64],
        lengths: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        seed: int,
    ) -> None:
        """Take the training examples: their ids, weights and tokens."""
        self._weights = np.asarray(weights, dtype=np.float64)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size, self._seed = batch_size, seed
        # 32 bits: their sums with whole weights are exact, so that a weight of 1 is once in every epoch
        drawn = (int.from_bytes(hashlib.sha256(f"{seed}:{identity}".encode()).digest()[:4], "big") for identity in ids)
        self._phases = np.fromiter(drawn, np.float64) / 2**32
        # of the epoch that was last asked for: its first step, and its batches
        self._first, self._batches = 0, list[list[int]]()

    def times(self, epoch: int) -> NDArray[np.int64]:
        """Return how often each example is taken in an epoch."""
        before, after = (np.floor(self._weights * number + self._phases) for number in (epoch, epoch + 1))
        return (after - before).astype(np.int64)

    def steps(self, epoch: int) -> int:
        """Return the number of optimiser steps of an epoch."""
        return steps_per_epoch(int(self.times(epoch).sum()), self._batch_size)

    def batch(self, step: int) -> list[int]:
        """Return the examples of a step, counted from 0 over all epochs, as their numbers."""
        if not self._first <= step < self._first + len(self._batches):
            self._open(step)
        return self._batches[step - self._first]

    def _open(self, step: int) -> None:
        """Put the epoch of a step into order: a second for a million examples, so not anew for each of its steps."""
        epoch = first = 0
        while step - first >= (steps := self.steps(epoch)):
            epoch, first = epoch + 1, first + steps
        taken = np.repeat(np.arange(len(self._lengths)), self.times(epoch))
        batches = epoch_batches(self._lengths[taken].tolist(), self._batch_size, self._seed, epoch)
        self._first, self._batches = first, [taken[batch].tolist() for batch in batches]
