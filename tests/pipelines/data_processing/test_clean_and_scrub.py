"""Cleaning and scrubbing leave nothing of what they look for, change nothing else, and tell what they did."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import record, records, serial

from luthier.executors import Task
from luthier.pipelines.data_processing.clean import clean_shard
from luthier.pipelines.data_processing.scrub import scrub_shard
from luthier.text.clean import clean, need_cleaning
from luthier.text.prepare import PromptSettings, ScrubSettings, clean_message

SETTINGS = PromptSettings(system="Be  kind.", scrub=ScrubSettings(extraction_fields=("mail",), keep=(r"help@shop\.example",)))


def run(function, rows, **arguments) -> dict[str, list[dict]]:
    """Run a step over one shard; return its tables."""
    table = records(rows)
    (out,) = serial().map("step", function, [Task({"input": table.sha256}, {"file": table.files[0], **arguments})])
    names = [file.stem for file in out.glob("*.parquet")]
    return {name: _read(out / f"{name}.parquet") for name in names}


def _read(file):
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["caf\u00c3\u00a9", " x", "<b>y</b>", 'a"b', "\n"]
)
VALUES = st.recursive(
    STRINGS | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3)
)


@given(VALUES.filter(lambda value: isinstance(value, dict | list)), st.booleans())
@settings(deadline=None, max_examples=150)
def test_the_strings_of_a_json_answer_are_cleaned_and_it_stays_json(value, compact):
    def cleaned(value):
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, list):
            return [cleaned(item) for item in value]
        return {name: cleaned(item) for name, item in value.items()} if isinstance(value, dict) else value

    answer = json.dumps(value, ensure_ascii=False, separators=(",", ":") if compact else None)
    message, changes = clean_message({"role": "assistant", "content": answer}, SETTINGS)
    assert json.loads(message["content"]) == cleaned(value)
    assert clean_message(message, SETTINGS) == (message, [])
    assert not changes or need_cleaning(pa.array([answer])).to_pylist() == [True]


def test_turns_are_cleaned_and_each_change_is_told():
    rows = [record("itâ€™s  <p>late</p>", "ok", "dirty"), record("all fine", "ok", "fine"), record("<br><p></p>", "ok", "empty")]
    found = run(clean_shard, rows, settings=SETTINGS)
    kept = {row["id"]: row["messages"][0]["content"] for row in found["records"]}
    assert kept == {"dirty": "it’s\nlate", "fine": "all fine"}
    (dropped,) = found["dropped"]
    assert (dropped["id"], dropped["reason"]) == ("empty", "the user's turn is empty once cleaned")
    (change,) = [row for row in found["changed"] if row["id"] == "dirty"]
    assert change["what"] == "encoding, html, white space"
    assert "â€™" in change["before"]
    assert "’" in change["after"]


def test_the_configured_system_prompt_stays_and_others_do_not():
    rows = [record("x", "y", name) | {"messages": _with_system(text)} for name, text in (("own", "Be  kind."), ("other", "a  b"))]
    found = run(clean_shard, rows, settings=SETTINGS)
    assert {row["id"]: row["messages"][0]["content"] for row in found["records"]} == {"own": "Be  kind.", "other": "a b"}


def _with_system(text):
    return [{"role": "system", "content": text}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def test_tool_calls_without_text_are_no_empty_turn():
    calls = json.dumps([{"type": "function", "function": {"name": "f", "arguments": "{}"}}])
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    found = run(clean_shard, [record("u", "a") | {"messages": messages}], settings=SETTINGS)
    assert found["records"][0]["messages"][1]["tool_calls"] == calls
    assert found["dropped"] == []


def test_prompts_and_answers_lose_the_same_person_alike_but_never_the_extraction_fields():
    answer = json.dumps({"mail": "ann@shop.example", "note": "wrote from ann@shop.example"})
    rows = [record("I am ann@shop.example, not help@shop.example", answer, "one"), record("Ann@Shop.example again", "ok", "two")]
    rows[0]["meta"] = json.dumps({"channel": "mail to ann@shop.example"})
    found = run(scrub_shard, rows, settings=SETTINGS, key="secret")
    one, two = sorted(found["records"], key=lambda row: row["id"])
    name = two["messages"][0]["content"].removesuffix(" again")
    assert name.startswith("<EMAIL_")
    assert one["messages"][0]["content"] == f"I am {name}, not help@shop.example"
    assert json.loads(one["messages"][1]["content"]) == {"mail": "ann@shop.example", "note": f"wrote from {name}"}
    assert json.loads(one["meta"]) == {"channel": f"mail to {name}"}
    assert {row["what"] for row in found["changed"]} == {"email"}
    assert all(row["before"] is None and "ann@" not in row["after"] for row in found["changed"])


def test_tool_calls_are_scrubbed_and_stay_json():
    calls = json.dumps([{"function": {"name": "send", "arguments": '{"to":"ann@shop.example"}'}}])
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    found = run(scrub_shard, [record("u", "a") | {"messages": messages}], settings=SETTINGS, key="k")
    (call,) = json.loads(found["records"][0]["messages"][1]["tool_calls"])
    assert json.loads(call["function"]["arguments"])["to"].startswith("<EMAIL_")


CARD = 4111111111111111


@pytest.mark.parametrize("nested", [False, True])
def test_names_of_fields_and_numbers_of_json_are_scrubbed_and_it_stays_json(nested):
    said = {
        "card": CARD,
        "ann@shop.example": 1,
        "mail": CARD,
        "total": 12,
        "share": 0.12345678,
        "ok": True,
        "deep": [{"c": CARD}],
    }
    answer = json.dumps({"arguments": json.dumps(said)} if nested else said)
    found = run(scrub_shard, [record("u", answer)], settings=SETTINGS, key="k")
    scrubbed = json.loads(found["records"][0]["messages"][1]["content"])
    scrubbed = json.loads(scrubbed["arguments"]) if nested else scrubbed
    card = scrubbed["card"]
    assert card.startswith("<CARD_")
    (mail,) = (name for name in scrubbed if name not in said)
    assert mail.startswith("<EMAIL_")
    rest = {"mail": CARD, "total": 12, "share": 0.12345678, "ok": True}  # `mail` is to be extracted
    assert scrubbed == {"card": card, mail: 1, "deep": [{"c": card}]} | rest
    assert {row["what"] for row in found["changed"]} == {"card, email"}


def test_the_name_of_who_speaks_is_scrubbed():
    row = record("hi", "ok")
    row["messages"][0]["name"] = "ann@shop.example"
    found = run(scrub_shard, [row], settings=SETTINGS, key="k")
    assert found["records"][0]["messages"][0]["name"].startswith("<EMAIL_")


def test_without_settings_nothing_is_scrubbed_and_the_key_decides_the_names():
    rows = [record("ann@shop.example", "ok")]
    plain = run(scrub_shard, rows, settings=PromptSettings(), key="k")
    assert plain["records"][0]["messages"][0]["content"] == "ann@shop.example"
    names = {run(scrub_shard, rows, settings=SETTINGS, key=key)["records"][0]["messages"][0]["content"] for key in "ab"}
    assert len(names) == 2
