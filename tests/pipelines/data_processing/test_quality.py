"""Garbage goes with its reason, real messages stay however short, and each record is judged by itself."""

import json
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.pipelines.data_processing.quality import Quality, Rules, assess, judge
from luthier.records import RECORD
from luthier.text.language import LANGUAGES


def assessed(records, parameters):
    """Assess records that are Python's."""
    kept, dropped = assess(pa.Table.from_pylist(records, RECORD), parameters)
    return kept.to_pylist(), dropped.to_pylist()


OFF = Rules(**dict.fromkeys(Rules.model_fields))
SPANISH = "hola, donde esta mi pedido? lo necesito para el lunes"
ENGLISH = "hello, where is my order? I need it for Monday"
MESSAGES = [
    "steam wand tip 4 hole pls",
    "QF-863149",
    "84213",
    "?",
    "k",
    "👍👍🏽",
    "❤️" * 40,
    "退款",
    "请问我的订单在哪里？已经三个星期了，一直没有收到，请尽快处理。",
    "मेरा ऑर्डर कहाँ है? मुझे अभी तक नहीं मिला है।",
    "HELP!!!!!!!!!!!!!!!!!!!!",
    "+49 30 123456, +49 30 123457, +49 30 123458, 0012-4432-8841-8871",
    "```python\nfor i in range(3):\n    print(i)\n```\nraises IndentationError",
    "Dear team,\n\n" + "-" * 80 + "\nmy grinder is broken.\n" + "=" * 120,
    "1. on\n2. off\n" + "error 14: pump\n" * 6,
    "Readings of one morning:\n"
    + "\n".join(f"shot {n:04}: set 8.0 s, ran {8 + n % 7 / 10} s, {18 + n % 9 / 10} g" for n in range(200)),
    "why why why why why does it not work",
    "| part | price |\n|------|-------|\n| burr | 12.50 |",
    "┌────────┐\n│ E14    │\n└────────┘" * 3,
]
GARBAGE = [
    ("x" * 129, "'x' stands 129 times in a row, more than 128 (max_run)"),
    ("ok " + "😀" * 200, "'😀' stands 200 times in a row"),
    ("#$%^&*(!@#$%^&*()_+{}|:<>?", "100.0% of the text are symbols, more than 80.0% (max_symbols)"),
    ("\ufffd\ufffd?" * 10, "are symbols"),
    ("unsubscribe\n" * 12, "91.7% of 12 lines repeat earlier ones, more than 90.0% (max_repeated_lines)"),
    ("buy cheap watches now online " * 40, "of 200 words repeat earlier runs of 10"),
    ("立即退款否则投诉" * 30, "of 240 words repeat earlier runs of 10"),
    ("word " * 25_000, "the text has 124,999 characters, more than 100,000 (max_characters)"),
]
LINES = st.text(st.sampled_from("ab1 !?é退👍\n\ufe0f"), max_size=40)


def record(*turns, key="k", meta=None, source="support"):
    messages = [
        {"role": role, "content": content, "name": None, "tool_calls": None, "tool_call_id": None} for role, content in turns
    ]
    return {"key": key, "id": f"id-{key}", "messages": messages, "meta": json.dumps(meta or {}), "source": source, "weight": 1.0}


@pytest.mark.parametrize("text", MESSAGES)
def test_a_real_message_stays(text):
    assert judge(text, Rules()) is None


@pytest.mark.parametrize(("text", "reason"), GARBAGE)
def test_garbage_goes_with_its_figure(text, reason):
    assert reason in judge(text, Rules())
    assert judge(text, OFF) is None


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (" ab ", {"min_characters": 3}, "the text has 2 characters, fewer than 3 (min_characters)"),
        ("a", {"min_characters": 2}, "the text has 1 character, fewer than 2"),
        ("abc", {"min_characters": 3}, None),
        ("abcd", {"max_characters": 3}, "the text has 4 characters, more than 3 (max_characters)"),
        ("1234567890" * 2, {"min_letters": 0.1}, "0.0% of the text are letters, fewer than 10.0% (min_letters)"),
        ("1234567890", {"min_letters": 0.1}, None),
        ("मेरा ऑर्डर कहाँ है? मुझे अभी तक नहीं मिला", {"min_letters": 0.9}, None),
        (" " * 50 + "a", {"max_run": 3}, None),
        ("aabbbcccc dddd", {"max_run": 3}, "'c' stands 4 times in a row"),
    ],
)
def test_each_rule_alone(text, rules, reason):
    found = judge(text, OFF.model_copy(update=rules))
    assert (found is None) if reason is None else reason in found


@given(texts=st.lists(LINES, min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_a_text_is_judged_alike_alone_and_among_others(texts):
    rules = Rules(min_characters=2, max_run=2, max_symbols=0.2, min_letters=0.5)
    kept, dropped = assessed([record(("user", text), key=str(n)) for n, text in enumerate(texts)], Quality(rules=rules))
    alone = {str(n): judge(text, rules) for n, text in enumerate(texts)}
    assert {row["key"]: row["reason"] for row in dropped} == {key: reason for key, reason in alone.items() if reason}
    assert [row["key"] for row in kept] == [key for key, reason in alone.items() if not reason]


@given(text=LINES)
@settings(deadline=None, max_examples=200)
def test_the_run_is_what_a_loop_over_the_characters_finds(text):
    longest = run = 0
    for before, character in zip("\n" + text, text, strict=False):
        run = 0 if character in " \n\ufe0f" else run + 1 if character == before else 1
        longest = max(longest, run)
    reason = judge(text, OFF.model_copy(update={"max_run": 1}))
    assert (reason is None) if longest <= 1 else f" stands {longest} times in a row" in reason


def test_the_language_of_the_user_goes_to_meta_and_others_are_dropped():
    records = [
        record(("system", SPANISH), ("user", ENGLISH), ("assistant", SPANISH), key="en", meta={"z": 1, "a": "ü"}),
        record(("user", SPANISH), key="es"),
        record(("user", "refund"), key="short"),
        record(("assistant", SPANISH), key="no-user"),
        record(("system", SPANISH), ("assistant", ENGLISH), key="no-user-en"),
    ]
    kept, dropped = assessed(records, Quality(languages=["en", "de"]))
    assert {row["key"]: json.loads(row["meta"])["language"] for row in kept} == {"en": "en", "short": None, "no-user-en": "en"}
    assert kept[0]["meta"] == '{"a":"ü","language":"en","z":1}'
    assert [(row["key"], row["id"], row["source"]) for row in dropped] == [(k, f"id-{k}", "support") for k in ("es", "no-user")]
    assert all("its language is 'es' (confidence " in row["reason"] and "not one of en, de" in row["reason"] for row in dropped)


def test_a_language_that_the_source_gave_stays_and_nothing_but_meta_changes():
    whole = pa.Table.from_pylist([record(("user", ENGLISH), meta={"language": "en-GB"})], RECORD)
    (before,), (after,) = whole.to_pylist(), assess(whole, Quality())[0].to_pylist()
    assert json.loads(after["meta"]) == {"language": "en-GB"}
    assert {**after, "meta": before["meta"]} == before
    assert assessed([after], Quality())[0] == [after]


def test_a_doubtful_language_counts_as_unknown():
    kept, dropped = assessed([record(("user", ENGLISH))], Quality(languages=["de"], min_language_confidence=1.0))
    assert json.loads(kept[0]["meta"])["language"] is None
    assert not dropped


def test_a_profile_overrides_what_it_names_for_its_source_only():
    parameters = Quality(rules=Rules(min_characters=3, max_run=4), profiles={"chat": Rules(min_characters=None)})
    texts = ["ok", "aaaaa"]
    reasons = {
        source: [row["reason"] for row in assessed([record(("user", t), source=source) for t in texts], parameters)[1]]
        for source in ("chat", "mail")
    }
    assert [reason.split("(")[-1] for reason in reasons["chat"]] == ["max_run)"]
    assert [reason.split("(")[-1] for reason in reasons["mail"]] == ["min_characters)", "max_run)"]


@pytest.mark.parametrize(("code", "hint"), [("eng", "did you mean 'en'"), ("jp", ""), ("EN", "")])
def test_an_unknown_language_is_told(code, hint):
    with pytest.raises(ValidationError, match=f"'{code}' is no code of ISO 639-1.*{hint}"):
        Quality(languages=[code])
    assert "ja" in LANGUAGES


def test_nothing_gives_nothing():
    assert assessed([], Quality()) == ([], [])


@pytest.mark.parametrize("text", ["a" * 90_000, "`" * 90_000, "a1" * 45_000, "a.-" * 30_000, "退" * 90_000, "<EMAIL_" * 10_000])
def test_no_text_takes_long(text):
    start = time.process_time()
    judge(text, Rules())
    assert time.process_time() - start < 2
