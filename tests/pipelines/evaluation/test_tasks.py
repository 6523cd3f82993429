"""Answers are judged by what fits the data; figures equal those of the libraries, and lie between 0 and 1 for any text."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.likelihood import IGNORED
from luthier.models import load_model, load_tokenizer, resolve_base
from luthier.pipelines.evaluation.likelihoods import negative_log_likelihoods, passage_examples
from luthier.pipelines.evaluation.score import compare
from luthier.pipelines.evaluation.tasks import (
    TEXT_METRICS,
    Tasks,
    choose_tasks,
    compare_retention,
    confusion,
    is_refusal,
    read_passages,
    score_by_tasks,
    text_scores,
    token_f1,
)

ROOT = Path(__file__).resolve().parents[3]
GENERAL = ROOT / "data/01_raw/general_text.jsonl"
OBJECTS = ['{"kind":"a","order":null}', '{"kind":"b","order":"1"}'] * 3
TEXTS = [f"the parcel number {n} will be with you soon" for n in range(6)]
LABELS = ["refund", "order", "fault"] * 4
NASTY = st.text(st.characters(), max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "a",
        "?!",
        "\ud800",
        "İstanbul",
        "Straße",
        "日本語のテキスト",
        "ไทย",
        "🏳️‍🌈",
        "a\u0301",
        "é",
        "NaN",
        "{}",
        "[" * 2_000,
        "\u202e\x00",
    ]
)
ASCII = st.lists(
    st.sampled_from(["the", "a", "an", "kettle", "leaks,", "grinder's", "3.5", "no.", "it", "is-not", "_x_", "The"]), max_size=12
).map(" ".join)


def answers(expected, said, model="tuned", **more):
    """Return answers of one model."""
    rows = [
        {"model": model, "id": f"{n:03}", "expected": right, "answer": text}
        for n, (right, text) in enumerate(zip(expected, said, strict=True))
    ]
    return pd.DataFrame(rows).assign(**more)


def scored(expected, said, *tasks, schema=None, parameters=None, **more):
    """Judge the answers of one model."""
    return score_by_tasks(answers(expected, said, **more), schema or {}, tasks, parameters or Tasks(), 8)


@pytest.mark.parametrize(
    ("expected", "schema", "parameters", "tasks", "reason"),
    [
        (OBJECTS, {}, {}, ("structured",), "every answer is a JSON object"),
        (TEXTS, {"type": "string"}, {}, ("structured",), "there is a schema"),
        (LABELS, {}, {}, ("classification",), "12 answers are of 3 kinds"),
        (TEXTS, {}, {}, ("free_text",), "6 answers are of 6 kinds"),
        (LABELS, {}, {"most_labels": 2}, ("free_text",), "12 answers are of 3 kinds"),
        ([*OBJECTS, "no object"], {}, {}, ("classification",), "7 answers"),
        (
            LABELS,
            {},
            {"kinds": ("free_text", "classification")},
            ("free_text", "classification"),
            "evaluation.tasks.kinds says so",
        ),
        (OBJECTS, {}, {"label": "kind"}, ("structured", "classification"), "kind is the label"),
        (["{}"] * 4, {}, {}, ("structured",), "every answer is a JSON object"),
        ([], {}, {}, ("free_text",), "0 answers"),
    ],
)
def test_tasks_are_chosen_by_the_answers_and_the_log_says_why(expected, schema, parameters, tasks, reason, caplog):
    with caplog.at_level(logging.INFO):
        assert choose_tasks(expected, schema, Tasks(**parameters)) == tasks
    assert reason in caplog.text
    assert " and ".join(tasks) in caplog.text


@pytest.mark.parametrize(("expected", "told"), [(OBJECTS, "did you mean 'kind'"), (LABELS, "have no fields: leave it null")])
def test_a_label_that_is_no_field_is_told(expected, told):
    with pytest.raises(UserError, match=told):
        choose_tasks(expected, {}, Tasks(label="kinds"))


@given(NASTY, NASTY)
@settings(deadline=None, max_examples=150)
@example("a", "a b")
def test_any_two_texts_can_be_compared(expected, answer):
    found = text_scores(expected, answer)
    assert set(found) == set(TEXT_METRICS)
    assert all(0 <= value <= 1 for value in found.values())
    assert text_scores(expected, expected) == pytest.approx(dict.fromkeys(TEXT_METRICS, 1.0))


TOLD = NASTY.filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))  # pandas has no others


@given(TOLD, TOLD)
@settings(deadline=None, max_examples=60)
@example('{"kind":"\\ud800"}', '{"kind":"\\ud800"}')
@example('{"kind":' * 2_000, '{"kind":' * 300 + "1" + "}" * 300)
def test_any_answer_can_be_judged_by_every_task_and_stored(expected, answer):
    found = scored([expected], [answer], "structured", "classification", "free_text", parameters=Tasks(label="kind"))
    assert found["label_right"][0] == (found["label_expected"][0] == found["label_answer"][0])
    for value in found.drop(columns=["expected", "answer"]).iloc[0]:
        str(value).encode()
    assert scored([expected], [expected], "classification")["label_right"][0]


@given(ASCII, ASCII)
@settings(deadline=None, max_examples=150)
def test_rouge_and_chrf_are_those_of_the_libraries(expected, answer):
    found = text_scores(expected, answer)
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(expected, answer)
    if not (theirs["rouge1"].fmeasure == 1 or expected.strip() == answer.strip()):
        assert {name: found[name] for name in theirs} == pytest.approx({name: score.fmeasure for name, score in theirs.items()})
    if expected.strip():
        assert found["chrf"] == pytest.approx(CHRF().sentence_score(answer, [expected]).score / 100)


def test_texts_with_nothing_to_count_are_equal_or_not():
    assert text_scores("Kettle", "kettle")["rouge2"] == 1
    assert text_scores("kettle", "kettles")["rouge2"] == 0
    assert [text_scores("?!", said)["rouge1"] for said in ("?!", "!")] == [1, 0]


def test_rouge_sees_words_of_every_script():
    assert text_scores("Grüße aus München", "Grüße aus Köln")["rouge1"] == pytest.approx(2 / 3)
    assert text_scores("где мой заказ", "где твой заказ")["rouge1"] == pytest.approx(2 / 3)
    assert text_scores("東京都", "京都")["token_f1"] == pytest.approx(0.8)
    assert RougeScorer(["rouge1"]).score("где мой заказ", "где мой заказ")["rouge1"].fmeasure == 0  # why it is not the default


@pytest.mark.parametrize(
    ("expected", "answer", "f1"),
    [
        ("The kettle", "a KETTLE!", 1.0),
        ("kettle leaks", "kettle kettle", 0.5),
        ("the", "a", 1.0),
        ("the", "kettle", 0.0),
        ("", "kettle", 0.0),
        ("don't", "dont", 1.0),
        ("$3.50", "350", 1.0),
        ("a b c d", "b c", 0.8),
    ],
)
def test_token_f1_is_that_of_squad(expected, answer, f1):
    assert token_f1(expected, answer) == pytest.approx(f1)
    assert token_f1(answer, expected) == pytest.approx(f1)


PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", " c", "never", ""])), min_size=1, max_size=20)


@given(PAIRS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_figures_of_labels_are_those_of_scikit_learn_in_any_order_of_rows(pairs, order):
    expected, said = map(list, zip(*pairs, strict=True))
    table = scored(expected, said, "classification")
    shuffled = table.sample(frac=1, random_state=order.randint(0, 99))
    found, again = (compare(one, seed=0)["models"]["tuned"] for one in (table, shuffled))
    assert found == again
    stripped = [text.strip() for text in said]
    assert found["label_right"]["value"] == pytest.approx(accuracy_score(expected, stripped))
    theirs = f1_score(expected, stripped, average="macro", labels=sorted(set(expected)), zero_division=0)
    assert found["label_macro_f1"]["value"] == pytest.approx(theirs)
    counts = confusion(table, "tuned")
    assert counts.equals(confusion(shuffled, "tuned"))
    labels = list(counts.index)
    theirs = confusion_matrix([*expected, *labels], [*stripped, *labels], labels=[*labels, "?"])[:-1, :-1] - np.eye(
        len(labels), dtype=int
    )
    assert (counts[labels].to_numpy() == theirs).all()
    assert counts.to_numpy().sum() == len(pairs)


def test_a_field_may_be_the_label():
    table = scored(OBJECTS[:2], ['{"order":"9","kind":"a"}', "no JSON"], "classification", parameters=Tasks(label="kind"))
    assert table["label_expected"].tolist() == ['"a"', '"b"']
    assert table["label_answer"].tolist() == ['"a"', ""]
    assert table["label_right"].tolist() == [True, False]


def test_only_the_most_frequent_labels_are_shown_and_the_others_counted():
    table = scored(["a", "a", "b", "c"], ["a", "b", "z", "c"], "classification")
    counts = confusion(table, "tuned", most=2)
    assert list(counts.index) == ["a", "b"]
    assert counts.to_numpy().tolist() == [[1, 1, 0], [0, 0, 1]]


def test_the_columns_are_those_of_the_chosen_tasks():
    plain = set(scored(TEXTS, TEXTS))
    assert set(scored(TEXTS, TEXTS, "free_text")) - plain == set(TEXT_METRICS)
    assert set(scored(TEXTS, TEXTS, "classification")) - plain == {"label_right", "label_expected", "label_answer"}
    assert {"output_characters", "output_empty", "output_refused", "exact_match"} <= plain
    assert not {"output_tokens", "output_cut", "output_confidence"} & plain


def test_length_and_cut_answers_are_told_where_known():
    table = scored(
        ["x"] * 3, ["abc", "", "  "], answer_tokens=[3, 0, 8], seconds=[0.5, 0.1, 2.0], mean_log_probability=np.log([0.9, 1, 0.2])
    )
    assert table["output_characters"].tolist() == [3, 0, 2]
    assert table["output_empty"].tolist() == [False, True, True]
    assert table["output_cut"].tolist() == [False, False, True]
    assert table["output_tokens"].tolist() == [3, 0, 8]
    assert table["output_confidence"].tolist() == pytest.approx([0.9, 1, 0.2])
    assert not {"answer_tokens", "seconds", "mean_log_probability"} & set(table)
    figures = compare(table, seed=0)["models"]["tuned"]
    assert figures["output_cut"]["value"] == pytest.approx(1 / 3)


def test_what_one_model_has_no_value_of_gives_it_no_figure_and_no_difference():
    one = answers(LABELS, LABELS, "tuned", answer_tokens=1.0)
    table = score_by_tasks(pd.concat([one, one.assign(model="tfidf", answer_tokens=None)]), {}, ("classification",), Tasks())
    found = compare(table, seed=0)
    assert "output_tokens" in found["models"]["tuned"]
    assert "output_tokens" not in found["models"]["tfidf"]
    assert "output_tokens" not in found["differences"]["tuned_minus_tfidf"]
    assert found["differences"]["tuned_minus_tfidf"]["label_right"] == {"value": 0, "low": 0, "high": 0}
    json.dumps(found, allow_nan=False)


def test_models_that_answered_other_messages_cannot_be_compared():
    table = pd.concat([scored(LABELS, LABELS), scored(LABELS[:5], LABELS[:5], model="champion")])
    with pytest.raises(UserError, match="champion answered other messages than tuned"):
        compare(table, seed=0)


def test_other_models_are_compared_too():
    table = pd.concat([scored(LABELS, LABELS), scored(LABELS, LABELS[::-1], model="champion")])
    found = compare(table, seed=0)
    assert list(found["models"]) == ["tuned", "champion"]
    assert found["differences"]["tuned_minus_champion"]["exact_match"]["value"] > 0


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot assist with that request.",
    "I am afraid I can't do that.",
    "Sorry, I can't provide that information.",
    "Unfortunately, I am unable to answer.",
    "I cannot help you with this.",
    "As an AI language model, I don't have access to that.",
    "I'm not able to do that for you.",
    "Thank you for your message. I am not allowed to share this.",
    "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
    "Leider kann ich diese Frage nicht beantworten.",
    "Tut mir leid, das darf ich nicht.",
    "Ich kann dir dabei leider nicht helfen.",
    "Das kann ich leider nicht tun.",
    "Als KI kann ich dazu nichts sagen, und ich darf es nicht.",
    "  **I cannot comply** with this.",
]
ANSWERED = [
    '{"intent":"refund_status","urgency":"high","product":"none","order":null}',
    '{"note":"I cannot help myself, this machine is great"}',
    "Sorry for the delay! Your parcel ships tomorrow.",
    "I am sorry to hear that. Please send us a photo.",
    "Unfortunately your parcel was damaged; we send a new one.",
    "You can't descale it with vinegar, but citric acid works.",
    "The grinder cannot be opened without a key.",
    "I can help you with that.",
    "Leider ist das Paket beschädigt; wir schicken ein neues.",
    "Das kann man leicht selbst machen.",
    "Ich kann Ihnen gern helfen.",
    "refund_status",
    "",
    "We checked the order. " * 20 + "I cannot help you with this.",
]


@pytest.mark.parametrize("answer", REFUSED)
def test_refusals_are_found(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ANSWERED)
def test_answers_are_no_refusals(answer):
    assert not is_refusal(answer)


def test_refusals_are_what_the_parameters_say():
    table = scored(["x"] * 2, ["Nope.", REFUSED[0]], parameters=Tasks(refusals=("nope",)))
    assert table["output_refused"].tolist() == [True, False]
    with pytest.raises(ValidationError, match="is not a regular expression"):
        Tasks(refusals=("(",))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the tiny model and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("models"))
    base = resolve_base(
        ModelParameters(base="tiny:llama"), FolderParameters(root=folder, base_models=folder, shards="", work=folder)
    )
    return load_model(base, torch.float32).eval(), load_tokenizer(base)


def test_the_shipped_passages_are_as_they_were_promised():
    passages = read_passages(GENERAL)
    assert len(passages) == 120
    kinds = set(passages["kind"])
    assert {"knowledge", "dialogue", "instructions", "code", "german", "french", "spanish"} <= kinds
    words = passages["text"].str.split().str.len()
    assert words[passages["kind"] != "code"].between(60, 120).all()
    assert words.between(40, 120).all()
    # varied: no run of eight words stands in two passages
    runs = [{tuple(words[at : at + 8]) for at in range(len(words) - 7)} for words in passages["text"].str.lower().str.split()]
    assert len(set().union(*runs)) == sum(map(len, runs))
    # none of it is what the desk's models are trained on
    assert not passages["text"].str.contains("Quillfern").any()


def test_every_token_of_a_passage_but_the_first_is_predicted(tiny):
    model, tokenizer = tiny
    passages = read_passages(GENERAL).head(3)
    for text, one in zip(passages["text"], passage_examples(tokenizer, [], passages["text"]), strict=True):
        assert tokenizer.decode(one.input_ids) == text
        assert one.labels[:-1].tolist() == one.input_ids[1:].tolist()
        assert one.labels[-1] == IGNORED
        with torch.inference_mode():
            logs = model(one.input_ids[None]).logits[0].log_softmax(-1)
        by_hand = -sum(logs[at, token].item() for at, token in enumerate(one.input_ids[1:].tolist()))
        assert negative_log_likelihoods(model, [one], 4096) == pytest.approx([by_hand], rel=1e-4)


def test_forgetting_is_seen(tiny):
    model, tokenizer = tiny
    passages = read_passages(GENERAL).head(12)
    examples = passage_examples(tokenizer, [], passages["text"])
    before = negative_log_likelihoods(model, examples, 8192)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):  # learn to say "aaaa" and nothing else
            ids = tokenizer("a" * 64, return_tensors="pt")["input_ids"]
            model(ids, labels=ids).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        after = negative_log_likelihoods(model, examples, 8192)
    finally:
        model.load_state_dict(weights)
    tokens = [len(one.input_ids) - 1 for one in examples]
    losses = {"base": before, "tuned": after, "same": before}
    table = pd.concat(
        pd.DataFrame({"model": name, "id": passages["id"], "nll": nll, "supervised_tokens": tokens})
        for name, nll in losses.items()
    )
    found = compare_retention(table.sample(frac=1, random_state=0), seed=0)
    assert found["differences"]["tuned_minus_base"]["nll_per_token"]["low"] > 0
    assert found["differences"]["same_minus_base"]["nll_per_token"] == {"value": 0, "low": 0, "high": 0}
    assert found["models"]["base"]["perplexity"]["value"] == pytest.approx(np.exp(sum(before) / found["tokens"]))
    assert found["tokens"] == sum(len(one.input_ids) - 1 for one in examples)
    json.dumps(found, allow_nan=False)


def test_mistakes_of_a_retention_file_are_told_at_once(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(
        '{"id":"a","kind":"x","text":"good"}\nno JSON\n{"id":"a","kind":"x","text":"twice"}\n{"id":"b","text":"no kind"}\n'
    )
    with pytest.raises(UserError) as told:
        read_passages(file)
    assert [part in str(told.value) for part in ("line 2 must", "line 3 has the id 'a' of line 1", "line 4 must")] == [True] * 3
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no text"):
        read_passages(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_passages(tmp_path / "none.jsonl")
