"""An answer is judged for what it says; figures equal those of scikit-learn, and differences are paired."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sharp import THINKS, sharp_tiny
from sklearn.metrics import f1_score

from luthier.pipelines.evaluation.score import MODELS, _macro_f1, compare, fields_of, score_answers, worst_errors
from luthier.text.chat import encode
from luthier.text.prepare import compact_json

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "order": {"type": ["string", "null"]}},
    "required": ["kind", "order"],
    "additionalProperties": False,
}
EXPECTED = '{"kind":"a","order":null}'
ANSWERS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "null", "{}", "[]", "NaN", '{"kind":NaN}', '{"kind":1e999}', '{"kind":"\\ud800"}', '{"kind":"a"', EXPECTED]
    ),
    st.dictionaries(
        st.sampled_from(["kind", "order", "x"]), st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from("ab")
    ).map(compact_json),
)


def judge(answer, expected=EXPECTED, schema=SCHEMA):
    """Score one answer."""
    row = {"model": "tuned", "id": "1", "expected": expected, "answer": answer, "nll": 1.0, "supervised_tokens": 2}
    return score_answers(pd.DataFrame([row]), schema).iloc[0]


@given(ANSWERS)
@settings(deadline=None, max_examples=100)
def test_any_answer_can_be_judged_and_stored(answer):
    found = judge(answer)
    assert found["exact_match"] == (found["field_accuracy"] == 1 and found["valid"])
    assert found["field_accuracy"] == np.mean([found["right_kind"], found["right_order"]])
    for value in found:
        if isinstance(value, str) and value is not found["answer"]:
            value.encode()


@given(ANSWERS)
@settings(deadline=None, max_examples=100)
def test_the_right_answer_is_right(expected):
    found = judge(expected, expected, {})
    assert found["exact_match"]
    assert found["valid"]
    assert found["field_accuracy"] == 1


def test_who_writes_what_was_learnt_is_right_also_where_a_template_thinks_before_it_answers(tmp_path):
    tokenizer = sharp_tiny(tmp_path)[1]
    tokenizer.chat_template = THINKS
    encoded = encode(tokenizer, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": EXPECTED}])
    begin, end = encoded.answers[-1]
    found = judge(tokenizer.decode(encoded.input_ids[begin:end], skip_special_tokens=True))
    assert found["valid"]
    assert found["exact_match"]


def test_the_order_of_keys_and_spaces_do_not_matter():
    assert judge(' {\n "order": null,  "kind": "a" } ')["exact_match"]


@pytest.mark.parametrize("depth", range(200, 1100, 50))
def test_json_of_any_depth_can_be_judged(depth):
    deep = '{"kind":' * depth + "1" + "}" * depth
    assert not judge(deep)["exact_match"]
    assert not judge(deep, '{"kind":{"kind":2}}', {})["exact_match"]


@pytest.mark.parametrize(
    "answer",
    [
        "NaN",
        '{"kind":NaN,"order":null}',
        '{"kind":"a","order":null} and more',
        '{"kind":"a"',
        "[" * 100_000,
        '{"kind":' * 100_000,
        "",
    ],
)
def test_what_is_not_json_is_not_valid(answer):
    found = judge(answer)
    assert not found["valid"]
    assert not found["exact_match"]
    assert found["field_accuracy"] == 0
    assert found["said_kind"] == ""


def test_validity_and_rightness_are_two_things():
    assert list(judge('{"kind":"b","order":null}')[["valid", "exact_match", "field_accuracy"]]) == [True, False, 0.5]
    assert list(judge('{"kind":"a","order":null,"more":1}')[["valid", "exact_match", "field_accuracy"]]) == [False, False, 1.0]
    assert not judge('{"kind":"c","order":null}')["valid"]
    assert not judge("[]")["valid"]
    # a field that is missing is not one that is null
    assert not judge('{"kind":"a"}')["right_order"]


@pytest.mark.parametrize(
    ("expected", "answer"), [("true", "1"), ("0", "false"), ("[1]", "[true]"), ('"1"', "1"), ('{"x":0}', '{"x":false}')]
)
def test_true_is_not_one(expected, answer):
    found = judge(f'{{"kind":{answer}}}', f'{{"kind":{expected}}}', {})
    assert not found["right_kind"]
    assert not found["exact_match"]


def test_plain_text_is_compared_as_it_is():
    assert judge("3", "3", {})["exact_match"]
    assert not judge("3.0", "3", {})["exact_match"]
    assert judge("anything", "label", {})["valid"]
    assert fields_of(score_answers(pd.DataFrame([{"expected": "x", "answer": "y"}]), {})) == ["answer"]


def test_a_schema_counts_for_answers_that_are_no_objects_too():
    schema = {"enum": ["a", "b"]}
    assert list(judge('"b"', '"a"', schema)[["valid", "exact_match"]]) == [True, False]
    assert not judge('"c"', '"a"', schema)["valid"]
    assert not judge("b", '"a"', schema)["valid"]


def test_an_object_whose_one_field_is_called_answer_is_an_object():
    assert judge('{ "answer": "x" }', '{"answer":"x"}', {})["exact_match"]
    assert not judge("x", '{"answer":"x"}', {})["valid"]


def table(expected, answers, nll=1.0):
    """Return the answers of all models."""
    rows = []
    for model in MODELS:
        loss = nll if model in ("base", "tuned") else float("nan")
        for n, (right, said) in enumerate(zip(expected, answers[model], strict=True)):
            row = {"model": model, "id": f"{n:03}", "expected": right, "answer": said, "prompt": f"message {n}"}
            rows.append(row | {"nll": loss * (n + 1), "supervised_tokens": 2 + n % 3})
    return pd.DataFrame(rows)


def made(count, seed=0):
    """Return made-up answers of all models: `tuned` is right more often than the others."""
    random = np.random.default_rng(seed)
    expected = [compact_json({"kind": str(random.choice(list("abc"))), "order": None}) for _ in range(count)]
    answers = {}
    for model, share in zip(MODELS, (0.2, 0.4, 0.3, 0.9), strict=True):
        answers[model] = [right if random.random() < share else '{"kind":"z","order":null}' for right in expected]
    return score_answers(table(expected, answers), {})


CLASSES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "never", ""])), min_size=1, max_size=30
)


@given(CLASSES)
@settings(deadline=None, max_examples=60)
def test_macro_f1_is_that_of_scikit_learn(pairs):
    expected, said = map(list, zip(*pairs, strict=True))
    found, draws = _macro_f1(pd.Series(expected), pd.Series(said), seed=0)
    theirs = f1_score(expected, said, average="macro", labels=sorted(set(expected)), zero_division=0)
    assert found.value == pytest.approx(theirs)
    assert not np.isnan(draws).any()
    assert 0 <= found.low <= found.high <= 1


def test_figures_do_not_depend_on_the_order_of_rows():
    scores = made(40)
    assert compare(scores.sample(frac=1, random_state=1), seed=0) == compare(scores, seed=0)


def test_differences_are_those_of_the_same_messages():
    scores = made(80)
    found = compare(scores, seed=0)
    assert found["examples"] == 80
    assert found["fields"] == ["kind", "order"]
    for other in MODELS[:-1]:
        for metric, difference in found["differences"][f"tuned_minus_{other}"].items():
            gain = found["models"]["tuned"][metric]["value"] - found["models"][other][metric]["value"]
            assert difference["value"] == pytest.approx(gain)
            assert difference["low"] <= difference["value"] <= difference["high"]
    assert found["differences"]["tuned_minus_base"]["exact_match"]["low"] > 0
    json.dumps(found, allow_nan=False)


def test_a_model_against_itself_differs_by_nothing():
    scores = made(30)
    same = scores[scores["model"] == "tuned"]
    found = compare(pd.concat([same.assign(model=model) for model in MODELS]), seed=0)
    for difference in found["differences"].values():
        assert {value for figure in difference.values() for value in figure.values()} == {0.0}


def test_baselines_have_no_loss():
    found = compare(made(10), seed=0)
    assert ["nll_per_token" in found["models"][model] for model in MODELS] == [False, False, True, True]
    assert "nll_per_token" not in found["differences"]["tuned_minus_tfidf"]


def test_fields_that_only_some_answers_have_are_judged_for_all():
    expected = ['{"kind":"a"}', '{"kind":"a","order":"1"}', '{"kind":"b"}', '{"kind":"b","order":"2"}']
    answers = dict.fromkeys(MODELS, expected)
    answers["base"] = ['{"kind":"a","order":"9"}'] * 4
    scores = score_answers(table(expected, answers), {})
    assert fields_of(scores) == ["kind", "order"]
    found = compare(scores, seed=0)["models"]
    assert found["tuned"]["accuracy_order"]["value"] == found["tuned"]["exact_match"]["value"] == 1
    assert found["base"]["accuracy_order"]["value"] == 0
    assert found["base"]["accuracy_kind"]["value"] == 0.5
    json.dumps(found, allow_nan=False)


def test_one_message_is_enough_for_a_figure():
    found = compare(made(1), seed=0)
    assert found["models"]["tuned"]["exact_match"]["low"] == found["models"]["tuned"]["exact_match"]["high"]


def test_the_worst_errors_are_the_tuned_models_own_with_the_fewest_right_first():
    scores = made(60)
    errors = worst_errors(scores, 5)
    tuned = scores[(scores["model"] == "tuned") & ~scores["exact_match"]]
    assert set(errors["id"]) <= set(tuned["id"])
    assert len(errors) == min(5, len(tuned))
    assert errors["field_accuracy"].is_monotonic_increasing
    assert errors.groupby("field_accuracy")["nll"].apply(lambda losses: losses.is_monotonic_decreasing).all()
    assert worst_errors(scores[scores["model"] != "tuned"]).empty
