"""Texts as sets of character 5-grams: their hashes, MinHash signatures (Broder 1997; rensa), bands, and Jaccard similarity.

All texts of a shard are hashed at once, as arrays.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

GRAM = 5
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def fold(text: str) -> str:
    """Return the text with letter case and white space folded; no digit and no word is lost."""
    return " ".join(text.casefold().split())


def shingle_hashes(folded: Sequence[str]) -> tuple[Hashes, Numbers]:
    """Hash the character 5-grams of folded texts, all at once; a shorter text is its own gram.

    Returns:
        64-bit hashes, repeats included, and where those of each text begin, with the end of the last one (length n + 1).
    """
    lengths = np.fromiter((len(text) for text in folded), np.int64, len(folded))
    # zeros after each text, so that no gram goes from one into the next, and a short one has something to stand on
    room = "\0" * GRAM
    codes = np.frombuffer((room.join(folded) + 2 * room).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    counts = np.maximum(1, lengths - GRAM + 1)
    ends = np.cumsum(lengths + GRAM)
    codes += np.uint64(1)
    codes[np.add.outer(ends, np.arange(-GRAM, 0)).ravel()] = 0
    size = int(ends[-1]) if len(ends) else 0
    hashes = codes[:size] * _MULTIPLIERS[0]
    for step in range(1, GRAM):
        hashes += codes[step : size + step] * _MULTIPLIERS[step]
    wanted = np.stack([counts, lengths + GRAM - counts], 1).ravel()
    grams = np.repeat(np.tile([True, False], len(folded)), wanted)
    return mix(hashes[grams]), np.concatenate([[0], np.cumsum(counts)])


def mix(values: Hashes) -> Hashes:
    """Spread the bits of each value over all 64 (the finaliser of MurmurHash3, Appleby 2011)."""
    values = values ^ (values >> np.uint64(33))
    for multiplier in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        values *= multiplier
        values ^= values >> np.uint64(33)
    return values


def signatures(folded: Sequence[str], permutations: int) -> NDArray[np.uint32]:
    """Return the MinHash signature of each folded text: shape (texts, permutations)."""
    if not folded:
        return np.zeros((0, permutations), np.uint32)
    hashes, offsets = shingle_hashes(folded)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), permutations, 42)
    rows = chain.from_iterable(matrix.to_rows())
    return np.fromiter(rows, np.uint32, len(folded) * permutations).reshape(len(folded), permutations)


def band_hashes(signed: NDArray[np.uint32], bands: int) -> Hashes:
    """Hash each band of each signature: shape (bands, texts)."""
    rows = signed.shape[1] // bands
    found = np.zeros((bands, signed.shape[0]), np.uint64)
    for place in range(rows):
        found = mix(found + signed[:, place::rows].T.astype(np.uint64) + np.uint64(1))
    return found


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Return the share of common elements of two sorted sets, in [0, 1]."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
