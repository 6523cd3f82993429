"""The baselines are fair: they learn what can be learnt without a language model, for any form of answer."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.pipelines.evaluation.baselines import as_fields, majority_answer, tfidf_answers
from luthier.pipelines.evaluation.score import score_answers
from luthier.text.prepare import compact_json

LABELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12)
TEXTS = [
    "where is my parcel",
    "parcel not here yet",
    "refund my money please",
    "money back, refund",
    "kettle is broken",
    "broken kettle leaks",
]
KINDS = ["order", "order", "refund", "refund", "fault", "fault"]


@given(st.one_of(st.text(), st.dictionaries(st.text(), st.integers()).map(compact_json)))
@settings(deadline=None, max_examples=100)
def test_fields_are_those_of_an_object_or_the_whole_answer(answer):
    fields = as_fields(answer)
    try:
        expected = json.loads(answer)
    except ValueError:
        expected = None
    assert fields == (expected if isinstance(expected, dict) else {"answer": answer})


def test_deep_answers_are_text():
    assert as_fields("[" * 100_000) == {"answer": "[" * 100_000}


@given(LABELS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_the_majority_is_the_most_frequent_answer_in_any_order_of_rows(labels, order):
    found = majority_answer(labels)
    assert labels.count(found) == max(Counter(labels).values())
    shuffled = list(labels)
    order.shuffle(shuffled)
    assert majority_answer(shuffled) == found
    # the same for a field of an object, and for other fields beside it
    objects = [compact_json({"kind": label, "fixed": None}) for label in shuffled]
    assert json.loads(majority_answer(objects)) == {"kind": found, "fixed": None}


def right(expected, answer):
    """Tell whether an answer counts as exactly right."""
    import pandas as pd

    return bool(
        score_answers(pd.DataFrame([{"model": "m", "id": "1", "expected": expected, "answer": answer}]), {})["exact_match"][0]
    )


@pytest.mark.parametrize(
    "expected", ["plain", '{"kind":"a"}', '{"answer":"a"}', '{"answer":{"a":1}}', "[1,2]", '"a"', "3", "{}", "null", ""]
)
def test_the_majority_of_one_answer_is_that_answer(expected):
    assert right(expected, majority_answer([expected]))
    assert right(expected, tfidf_answers(["some text", "more text"], [expected, expected], ["text"])[0])


def test_a_field_that_most_answers_leave_out_is_left_out():
    answers = ['{"kind":"a"}', '{"kind":"a"}', '{"kind":"a","order":"1"}']
    assert majority_answer(answers) == '{"kind":"a"}'
    assert majority_answer(answers[2:] + answers[2:] + answers) == '{"kind":"a","order":"1"}'


def test_a_field_that_the_first_answer_leaves_out_is_learnt():
    answers = ['{"kind":"a"}', '{"kind":"a","order":"1"}', '{"kind":"a","order":"1"}']
    assert json.loads(majority_answer(answers)) == {"kind": "a", "order": "1"}
    assert json.loads(tfidf_answers(TEXTS[:3], answers, ["parcel"])[0])["kind"] == "a"


def test_tfidf_learns_words_for_plain_labels_and_for_fields():
    asked = ["my parcel please", "money refund", "the kettle leaks"]
    assert tfidf_answers(TEXTS, KINDS, asked) == ["order", "refund", "fault"]
    answers = [compact_json({"kind": kind, "number": n, "same": True}) for n, kind in enumerate(KINDS)]
    found = [json.loads(answer) for answer in tfidf_answers(TEXTS, answers, asked)]
    assert [fields["kind"] for fields in found] == ["order", "refund", "fault"]
    # numbers occur once and cannot be learnt: the first in order stands for all, and the types stay
    assert [(fields["number"], fields["same"]) for fields in found] == [(0, True)] * 3


def test_an_answer_does_not_depend_on_what_else_is_asked():
    asked = ["my parcel please", "money refund", "the kettle leaks", "??"]
    together = tfidf_answers(TEXTS, KINDS, asked)
    assert [tfidf_answers(TEXTS, KINDS, [text])[0] for text in asked] == together
    assert tfidf_answers(TEXTS, KINDS, []) == []


def test_a_classifier_of_many_kinds_of_answers_gets_fewer_words(monkeypatch):
    monkeypatch.setattr("luthier.pipelines.evaluation.baselines.MOST_WEIGHTS", 3 * 60)
    assert tfidf_answers(TEXTS, KINDS, ["my parcel", "the kettle", "money"]) == ["order", "fault", "refund"]
