"""Texts as hashed words: how unusual a message is, measured against messages that are known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from luthier.text.pii import PLACEHOLDER
from luthier.text.profile import WORD

Floats = NDArray[np.float64]
DIMENSIONS = 4096
"""Of the words' weights whose means are compared."""
_PLACES = 1 << 18  # so many that two words of a vocabulary seldom share one
_NEIGHBOURS = 3
_ROWS_AT_ONCE = 2_000


def words_of(text: str | None) -> list[str]:
    """Return the words of a text in lower case, without placeholders of personal data."""
    return WORD.findall(PLACEHOLDER.sub(" ", text).casefold()) if text else []


def hashed(texts: Iterable[str | None]) -> sparse.csr_matrix:
    """Return which words are in each text, shape (texts, 262144): ones and zeros."""
    from sklearn.feature_extraction.text import HashingVectorizer  # here, as every command would wait for it

    return HashingVectorizer(analyzer=words_of, n_features=_PLACES, binary=True, norm=None, alternate_sign=False).transform(texts)


@dataclass(frozen=True)
class KnownTexts:
    """Messages that are known, and what is usual in them."""

    rarity: Floats
    """Of each word, shape (262144,)."""
    seen: NDArray[np.bool_]
    """The words that they have, shape (262144,)."""
    weights: sparse.csr_matrix
    """Of each text, shape (texts, 262144), of length 1."""

    @classmethod
    def of(cls, found: sparse.csr_matrix) -> Self:
        """Remember texts.

        Args:
            found: from `hashed`; at least one text.
        """
        rarity = _rarity(found)
        return cls(rarity, np.bincount(found.indices, minlength=_PLACES) > 0, _weighted(found, rarity))

    def unknown(self, found: sparse.csr_matrix) -> Floats:
        """Return the share of each text's words that no known text has; 0 of a text without words.

        Args:
            found: from `hashed`.
        """
        new = np.asarray(found @ (~self.seen).astype(np.float64), np.float64)
        return new / np.maximum(found.getnnz(axis=1), 1)

    def novelty(self, found: sparse.csr_matrix) -> Floats:
        """Return how far each text is from the three known ones that are most like it: 0 if they have the same words, 1 if none.

        A message about something new may use words that are all known, but seldom together.

        Args:
            found: from `hashed`.
        """
        weights, known = _weighted(found, self.rarity).astype(np.float32), self.weights.T.astype(np.float32).tocsr()
        near = min(_NEIGHBOURS, known.shape[1])
        parts = [
            np.partition((weights[start : start + _ROWS_AT_ONCE] @ known).toarray(), -near, axis=1)[:, -near:].mean(axis=1)
            for start in range(0, weights.shape[0], _ROWS_AT_ONCE)
        ]
        # neighbours that are equally near should tie, whatever the order in which a machine adds up
        return np.asarray(1 - np.round(np.concatenate(parts), 5), np.float64)


def folded(found: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the weights of each text's words in fewer dimensions, shape (texts, `DIMENSIONS`), of length 1 or 0.

    A word weighs more, the fewer of these texts have it.

    Args:
        found: from `hashed`, of all texts that are compared: then the weights do not know which is whose.
    """
    shape = (found.shape[0], DIMENSIONS)
    weights = sparse.csr_matrix((_rarity(found)[found.indices], found.indices % DIMENSIONS, found.indptr), shape, copy=True)
    weights.sum_duplicates()
    return _of_length_1(weights)


def _rarity(found: sparse.csr_matrix) -> Floats:
    """Return the logarithm of how few texts have each word (inverse document frequency), shape (262144,)."""
    return np.log((1 + found.shape[0]) / (1 + np.bincount(found.indices, minlength=_PLACES))) + 1


def _weighted(found: sparse.csr_matrix, rarity: Floats) -> sparse.csr_matrix:
    return _of_length_1(found.multiply(rarity).tocsr())


def _of_length_1(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    from sklearn.preprocessing import normalize

    return normalize(rows)
