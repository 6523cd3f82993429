"""The order of data: a pure function of seed and epoch, so that a run resumes exactly, on any number of processes."""

import hashlib
from collections.abc import Sequence

import numpy as np

WINDOW = 32  # batches among which examples are sorted by length: little padding, still much chance


def repeats(identity: str, weight: float, seed: int) -> int:
    """Return how often an example stands in an epoch: its weight, rounded up or down by chance, that of its id alone."""
    whole = int(weight)
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return whole + (int.from_bytes(digest[:8], "big") / 2**64 < weight - whole)


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


def batch_of_step(step: int, lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """Return the examples of an optimiser step, counted from 0 over all epochs."""
    epoch, position = divmod(step, steps_per_epoch(len(lengths), batch_size))
    return epoch_batches(lengths, batch_size, seed, epoch)[position]
