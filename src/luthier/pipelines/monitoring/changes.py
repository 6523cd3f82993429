"""What has changed in a window, for people: words, lengths, languages, labels, and the messages that show it best."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from luthier.pipelines.monitoring.words import folded, hashed, words_of

Floats = NDArray[np.float64]
QUANTILES = (0.1, 0.5, 0.9)
_MOST_READ = 10_000
"""Messages among which examples are looked for: a change that matters shows in as many."""
_LIKENESS = 0.8
"""Cosine from which a message shows nothing that another one has not shown."""


@dataclass(frozen=True)
class Word:
    """How much more often, or less, a word is used."""

    word: str
    z: float
    """Log odds ratio in its own standard errors: above 0 where the window has more of it."""
    window: int
    """Messages that have it."""
    reference: int


@dataclass(frozen=True)
class Share:
    """How much of the window, and of the reference, has a name."""

    name: str
    """Empty where it could not be told."""
    window: float
    reference: float


@dataclass(frozen=True)
class WhatChanged:
    """The evidence that goes with an alarm."""

    more: tuple[Word, ...]
    less: tuple[Word, ...]
    characters: dict[str, tuple[float, float]]
    """Quantile, such as `0.5` -> in the window, in the reference."""
    languages: tuple[Share, ...]
    labels: tuple[Share, ...]
    """The largest changes first."""
    examples: tuple[str, ...]
    """Messages of the window, unlike each other, that lie furthest in the direction of the change."""

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def what_changed(reference: pd.DataFrame, window: pd.DataFrame, most: int = 10) -> WhatChanged:
    """Describe the difference; whether it is more than chance is the business of `drift.compare`.

    Args:
        reference: rows with any of `text`, `characters`, `language`, `label`.
        window: rows of the same columns.
        most: words of each side, names and examples.
    """
    now, before = _texts(window), _texts(reference)
    shown = _some(now)
    words = changed_words(before, now) if now and before else []
    return WhatChanged(
        more=tuple(word for word in words[:most] if word.z > 0),
        less=tuple(word for word in words[: -most - 1 : -1] if word.z < 0),
        characters=_quantiles(reference, window),
        languages=_shares(reference, window, "language", most),
        labels=_shares(reference, window, "label", most),
        examples=tuple(shown[place] for place in _examples(_some(before), shown, most)) if now and before else (),
    )


def changed_words(before: Sequence[str], now: Sequence[str]) -> list[Word]:
    """Return all words, from those that have become more frequent to those that have become less so.

    The order is that of the log odds ratio with an informative Dirichlet prior, divided by its standard error (Monroe, Colaresi
    and Quinn 2008): neither rare words, of which one more is twice as many, nor frequent ones, of which chance alone brings some
    more, come first. The prior is what both have together, with the weight of 1 message in 10. A word counts once a message: one
    long message changes nothing.
    """
    ours, theirs = ((Counter(word for text in texts for word in set(words_of(text)))) for texts in (now, before))
    names = sorted(ours.keys() | theirs.keys())
    if not names:
        return []
    seen, usual = (np.array([counts[name] for name in names], np.float64) for counts in (ours, theirs))
    prior = (seen + usual) / 10
    z = _log_odds(seen, prior) - _log_odds(usual, prior)
    z /= np.sqrt(1 / (seen + prior) + 1 / (usual + prior))
    order = np.argsort(-z, kind="stable")
    return [Word(names[place], float(z[place]), ours[names[place]], theirs[names[place]]) for place in order]


def _log_odds(counts: Floats, prior: Floats) -> Floats:
    held = counts + prior
    return np.log(held) - np.log(np.maximum(held.sum() - held, prior.sum() * 1e-3))


def _examples(before: Sequence[str], now: Sequence[str], most: int) -> list[int]:
    """Return the messages of the window at which the two kernel densities differ most (the witness of Gretton et al. 2012)."""
    weights = folded(sparse.vstack([hashed(now), hashed(before)], format="csr"))
    ours, theirs = weights[: len(now)], weights[len(now) :]
    change = np.asarray(ours.mean(axis=0) - theirs.mean(axis=0)).ravel()
    reached = np.round(ours @ change, 9).tolist()
    order = sorted(range(len(now)), key=lambda place: (-reached[place], now[place]))
    chosen: list[int] = []
    for place in order[: 20 * most]:
        if reached[place] <= 0 or len(chosen) == most:
            break
        if not chosen or (ours[chosen] @ ours[place].T).max() < _LIKENESS:
            chosen.append(place)
    return chosen


def _some(texts: list[str]) -> list[str]:
    """Return at most `_MOST_READ` texts, of all kinds that there are: evenly spaced in their order."""
    return sorted(texts)[:: -(-len(texts) // _MOST_READ)] if texts else []


def _texts(rows: pd.DataFrame) -> list[str]:
    return [text for text in rows["text"] if isinstance(text, str)] if "text" in rows else []


def _quantiles(reference: pd.DataFrame, window: pd.DataFrame) -> dict[str, tuple[float, float]]:
    if "characters" not in window or "characters" not in reference:
        return {}
    both = [rows["characters"].dropna().to_numpy(np.float64) for rows in (window, reference)]
    if not all(map(len, both)):
        return {}
    now, before = (np.quantile(values, QUANTILES) for values in both)
    return {f"{share:g}": (float(one), float(other)) for share, one, other in zip(QUANTILES, now, before, strict=True)}


def _shares(reference: pd.DataFrame, window: pd.DataFrame, column: str, most: int) -> tuple[Share, ...]:
    if any(column not in rows or not rows[column].notna().any() for rows in (reference, window)):
        return ()
    now, before = (rows[column].fillna("").value_counts(normalize=True).to_dict() for rows in (window, reference))
    shares = [Share(str(name), now.get(name, 0.0), before.get(name, 0.0)) for name in now.keys() | before.keys()]
    return tuple(sorted(shares, key=lambda one: (-abs(one.window - one.reference), one.name))[:most])
