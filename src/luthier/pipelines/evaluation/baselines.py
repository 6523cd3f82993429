"""What a team gets without a language model: the majority answer, and TF-IDF with logistic regression."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from luthier.text.prepare import compact_json, strict_json

Answer = dict[str, Any]

MOST_ROWS = 100_000
"""Training records that the baselines learn from: features, memory and the time of a fit grow with them."""

MOST_WEIGHTS = 30_000_000
"""Features times values of a field that a classifier may have: fitting takes some 120 bytes of each, 3.5 GB."""


def as_fields(answer: str) -> Answer:
    """Return the fields of an answer: those of a JSON object, or the whole text as the one field `answer`."""
    try:
        value = strict_json(answer)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"answer": answer}


def _columns(answers: Sequence[str]) -> dict[str, list[str]]:
    """Return each field's values as JSON, an empty string where an answer leaves the field out."""
    rows = [as_fields(answer) for answer in answers]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [compact_json(row[name]) if name in row else "" for row in rows] for name in names}


def _as_answer(values: dict[str, str], known: Sequence[str]) -> str:
    """Turn the fields' values, as JSON, into an answer of the form that the known ones have."""
    fields = {name: json.loads(value) for name, value in values.items() if value}
    plain = as_fields(known[0]) == {"answer": known[0]}
    return str(fields.get("answer", "")) if plain else compact_json(fields)


def majority_answer(answers: Sequence[str]) -> str:
    """Return the answer made of each field's most frequent value in training; ties go to the value first in order."""
    return _as_answer({field: _most_common(values) for field, values in _columns(answers).items()}, answers)


def _most_common(values: Sequence[str]) -> str:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def tfidf_answers(train_texts: Sequence[str], train_answers: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Predict each field by its own classifier over words and character n-grams.

    A value that occurs once cannot be learnt by a classifier and is left out: a field of such values, like an order
    number, falls back to its most frequent value. Extraction is what a classifier cannot do.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    if not texts:
        return []
    columns = _columns(train_answers)
    kinds = max((sum(count > 1 for count in Counter(values).values()) for values in columns.values()), default=0)
    most = MOST_WEIGHTS // max(kinds, 2)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=min(100_000, 2 * most // 3))
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=min(50_000, most // 3))
    features = make_union(words, characters).fit(train_texts)
    known, asked = features.transform(train_texts), features.transform(texts)
    predicted: dict[str, list[str]] = {}
    for field, values in columns.items():
        counts = Counter(values)
        usable = [number for number, value in enumerate(values) if counts[value] > 1]
        labels = [values[number] for number in usable]
        if len(set(labels)) < 2:
            predicted[field] = [_most_common(values)] * len(texts)
        else:
            classifier = make_pipeline(LogisticRegression(C=20, max_iter=500))
            predicted[field] = [str(value) for value in classifier.fit(known[usable], labels).predict(asked)]
    rows = [{field: values[number] for field, values in predicted.items()} for number in range(len(texts))]
    return [_as_answer(row, train_answers) for row in rows]
