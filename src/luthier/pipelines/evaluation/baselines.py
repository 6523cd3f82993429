"""What a team gets without a language model: the majority answer, and TF-IDF with logistic regression."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from luthier.text.prepare import compact_json

Answer = dict[str, Any]


def as_fields(answer: str) -> Answer:
    """Return the fields of an answer: those of a JSON object, or the whole text as the one field `answer`."""
    try:
        value = json.loads(answer)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"answer": answer}


def as_text(fields: Answer) -> str:
    """Turn fields back into an answer."""
    return str(fields["answer"]) if list(fields) == ["answer"] else compact_json(fields)


def majority_answer(answers: Sequence[str]) -> str:
    """Return the answer made of each field's most frequent value in training; ties go to the value first in order."""
    rows = [as_fields(answer) for answer in answers]
    return as_text({field: _most_common([row.get(field) for row in rows]) for field in rows[0]})


def _most_common(values: Sequence[Any]) -> Any:
    counts = Counter(compact_json(value) for value in values)
    return json.loads(min(counts, key=lambda value: (-counts[value], value)))


def tfidf_answers(train_texts: Sequence[str], train_answers: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Predict each field by its own classifier over words and character n-grams.

    A value that occurs once cannot be learnt by a classifier and is left out: a field of such values, like an order
    number, falls back to its most frequent value. Extraction is what a classifier cannot do.
    """
    rows = [as_fields(answer) for answer in train_answers]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=50_000)
    features = make_union(words, characters).fit(train_texts)
    known, asked = features.transform(train_texts), features.transform(texts)
    predicted: dict[str, list[Any]] = {}
    for field in rows[0]:
        values = [compact_json(row.get(field)) for row in rows]
        counts = Counter(values)
        usable = [number for number, value in enumerate(values) if counts[value] > 1]
        labels = [values[number] for number in usable]
        if len(set(labels)) < 2:
            predicted[field] = [_most_common([row.get(field) for row in rows])] * len(texts)
        else:
            classifier = make_pipeline(LogisticRegression(C=20, max_iter=500))
            predicted[field] = [json.loads(value) for value in classifier.fit(known[usable], labels).predict(asked)]
    return [as_text({field: values[number] for field, values in predicted.items()}) for number in range(len(texts))]
