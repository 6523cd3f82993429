"""Does what people ask now differ from what the model was made for? A window of requests against a reference.

Three decisions keep alarms rare enough to be read:

    each feature      a permutation test, whose p-value holds for windows of any size
    features together Holm's correction: the chance of a false alarm of a window is at most `alpha`, however many there are
    what matters      a change counts from a minimum on, as with enough requests every difference is significant

and an alarm is raised when two of the last three windows have drifted (`alarm`).

Two features are learnt: how unlike the known messages one is, and how many of its words are unknown. For these the reference
is dealt into two parts, once: three quarters are the known messages, with the last quarter the window is compared. So both
sides are new to what was learnt, and a permutation of them is fair. All other features are compared with the whole reference.
Nothing depends on the order of rows, and chance is seeded by their content.

What a test cannot know: rows of one person are alike, and windows of an hour differ by the time of the day. Give one row a
subject (`observe`), and windows as long as what comes and goes by itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from luthier.pipelines.monitoring.permutation import (
    Embedding,
    Floats,
    Tested,
    of_names,
    of_numbers,
    of_words,
    permutation_tests,
)
from luthier.pipelines.monitoring.words import KnownTexts, folded, hashed
from luthier.stats import holm

NUMBERS = ("characters", "pii")
NAMES = ("language", "label")
SCALES = {
    "words": "distance of the mean messages, in standard deviations of one message",
    "novelty": "share of messages that are less like known ones",
    "unknown_words": "share of messages with more words that are not known",
    "characters": "share of messages on another side of some length",
    "pii": "share of messages on another side of some number of findings",
    "language": "share of messages in another language",
    "label": "share of messages with another label",
}
"""Each feature, and what its effect says: beyond what chance shows on average."""
MINIMUM = dict.fromkeys(SCALES, 0.05) | {"words": 0.02}
"""The smallest effect that counts. A window wholly about other topics of the same trade has 0.05 to 0.1 in `words`."""
_KNOWN_SHARE = 0.75
_FEWEST_OF_REFERENCE = 8


@dataclass(frozen=True)
class Rule:
    """When a window has drifted."""

    alpha: float = 0.01
    """Chance that a window is said to have drifted though it has not, over all features."""
    minimum: Mapping[str, float] = field(default_factory=lambda: MINIMUM)
    """The smallest effect that counts, of each feature."""
    fewest: int = 200
    """Rows that a window must have."""
    draws: int = 1_999
    """Permutations."""


@dataclass(frozen=True)
class Reference:
    """What windows are compared with."""

    rows: pd.DataFrame
    found: sparse.csr_matrix | None
    """The words of each row; None if there are no texts."""
    known: KnownTexts | None
    """Three quarters of them."""
    others: NDArray[np.int64]
    """The rows of the last quarter."""
    novelty: Floats
    """Of these."""
    digest: str

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "Reference":
        """Prepare a reference: some thousand rows find more than some hundred.

        Args:
            rows: at least 8, with any of `text` (scrubbed; null if it is not kept), `characters`, `language`, `label` (of an
                answer), `pii` (number of findings). A window is compared in the columns that both have.

        Raises:
            ValueError: if there are fewer rows.
        """
        if len(rows) < _FEWEST_OF_REFERENCE:
            raise ValueError(f"a reference needs {_FEWEST_OF_REFERENCE} rows, not {len(rows)}")
        ordered, digest = _ordered(rows)
        dealt = np.random.default_rng(int(digest[:16], 16)).permutation(len(ordered))
        size = round(_KNOWN_SHARE * len(ordered))
        learnt, others = np.sort(dealt[:size]), np.sort(dealt[size:])
        if not _has(ordered, "text"):
            return cls(ordered, None, None, others, np.zeros(len(others)), digest)
        found = hashed(_texts(ordered))
        known = KnownTexts.of(found[learnt])
        return cls(ordered, found, known, others, known.novelty(found[others]), digest)


@dataclass(frozen=True)
class Change:
    """What the test of one feature says."""

    feature: str
    p: float
    """Chance of a difference at least this large if there were no change."""
    adjusted: float
    """The same for the largest of all features' differences: what is compared with `alpha`."""
    effect: float
    minimum: float
    drifted: bool

    @property
    def scale(self) -> str:
        """What the effect says."""
        return SCALES[self.feature]


@dataclass(frozen=True)
class Drift:
    """What a window is found to be."""

    rows: int
    reference: int
    changes: tuple[Change, ...]
    """Of the features that both have and that vary; the strongest evidence first."""
    enough: bool
    """If not, there are fewer rows than the rule asks for, and nothing is decided."""

    @property
    def drifted(self) -> bool:
        """Whether some feature has changed."""
        return any(change.drifted for change in self.changes)

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        changes = [vars(change) | {"scale": change.scale} for change in self.changes]
        return {**vars(self), "drifted": self.drifted, "changes": changes}


def compare(reference: Reference, window: pd.DataFrame, rule: Rule | None = None) -> Drift:
    """Tell whether a window of requests differs from the reference.

    Args:
        reference: from `Reference.of`.
        window: rows with the same columns, in any order.
        rule: when a change counts.
    """
    rule = rule or Rule()
    size, expected = len(window), len(reference.rows)
    if size < rule.fewest:
        return Drift(size, expected, (), enough=False)
    ordered, digest = _ordered(window)
    seed = int(hashlib.sha256(f"{reference.digest} {digest}".encode()).hexdigest()[:16], 16)
    found = hashed(_texts(ordered)) if reference.found is not None and _has(ordered, "text") else None
    tested: dict[str, Tested] = {}
    for features in (_learnt_features(reference, found), _features(reference, ordered, found)):
        varying = {name: made for name, made in features.items() if made.rows.shape[1] > 1}
        tested |= permutation_tests(varying, size, rule.draws, seed)
    adjusted = holm(np.array([one.p for one in tested.values()]))
    changes = [_change(name, one, float(p), rule) for (name, one), p in zip(tested.items(), adjusted, strict=True)]
    return Drift(size, expected, tuple(sorted(changes, key=lambda one: (one.p, -one.effect))), enough=True)


def _change(name: str, found: Tested, adjusted: float, rule: Rule) -> Change:
    minimum = rule.minimum[name]
    return Change(name, found.p, adjusted, found.effect, minimum, adjusted <= rule.alpha and found.effect >= minimum)


def alarm(drifted: Sequence[bool]) -> bool:
    """Tell whether at least two of the last three windows have drifted.

    Args:
        drifted: of each window that was decided on, the oldest first.
    """
    return sum(drifted[-3:]) >= 2


def _learnt_features(reference: Reference, found: sparse.csr_matrix | None) -> dict[str, Embedding]:
    """Return the features that compare with known messages, the window's rows first, then the reference's last quarter.

    Args:
        reference: from `Reference.of`.
        found: the words of the window's rows; None if one of both has no texts.
    """
    known = reference.known
    if found is None or known is None or reference.found is None:
        return {}
    unknown = np.concatenate([known.unknown(found), known.unknown(reference.found[reference.others])])
    novelty = np.concatenate([known.novelty(found), reference.novelty])
    return {"novelty": of_numbers(novelty, one_sided=True), "unknown_words": of_numbers(unknown, one_sided=True)}


def _features(reference: Reference, window: pd.DataFrame, found: sparse.csr_matrix | None) -> dict[str, Embedding]:
    """Return all other features that both have, the window's rows first, then the reference's.

    A feature that does not vary has one dimension.
    """
    made: dict[str, Embedding] = {}
    if found is not None:
        made["words"] = of_words(folded(sparse.vstack([found, reference.found], format="csr")))
    for name in (*NUMBERS, *NAMES):
        if _has(window, name) and _has(reference.rows, name):
            column = pd.concat([window[name], reference.rows[name]], ignore_index=True)
            if name in NUMBERS:
                made[name] = of_numbers(column.to_numpy(dtype=np.float64, na_value=np.nan))
            else:
                made[name] = of_names([name if isinstance(name, str) else "" for name in column])
    return made


def _has(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and bool(rows[name].notna().any())


def _texts(rows: pd.DataFrame) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in rows["text"]]


def _ordered(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows in an order that is a function of their content, and the digest of that."""
    names = [name for name in ("text", *NUMBERS, *NAMES) if name in rows]
    columns = [[None if pd.isna(value) else value for value in rows[name].tolist()] for name in names]
    lines = [json.dumps(values, default=str) for values in zip(*columns, strict=True)]
    order = sorted(range(len(lines)), key=lines.__getitem__)
    digest = hashlib.sha256("\n".join(lines[place] for place in order).encode()).hexdigest()
    return rows.iloc[order].reset_index(drop=True), digest
