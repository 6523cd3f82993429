"""Every row ends once, among the records or in quarantine, whatever it holds."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.configuration import DataParameters
from luthier.errors import UserError
from luthier.pipelines.data_processing.parameters import Validate
from luthier.pipelines.data_processing.validate import content_hash, load_answer_schema, validate_rows
from luthier.records import INGESTED, QUARANTINED, RECORD
from luthier.text.prepare import PromptSettings

DATA = DataParameters(path="x.jsonl", id="id", user="{{ body }}", assistant="{{ answer | json }}")
PROMPT = PromptSettings(system=None, user=DATA.user, assistant=DATA.assistant)
ANY = Validate(max_bad_fraction=1)
SCHEMA = {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["a", "b"]}}}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=6), st.just({"label": "a"}), st.just([])
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["id", "body", "answer", "other", "self"]), VALUES), max_size=12)
GOOD = {"id": "good", "body": "hello", "answer": {"label": "a"}}


def table(rows, errors=None):
    """Return rows as ingest makes them."""
    told = errors or [None] * len(rows)
    entries = [
        {"file": "x.jsonl", "line": line, "row": json.dumps(row), "error": error}
        for line, (row, error) in enumerate(zip(rows, told, strict=True), 1)
    ]
    return pa.Table.from_pylist(entries, schema=INGESTED)


def check(rows, data=DATA, prompt=PROMPT, rules=ANY, schema=SCHEMA, errors=None):
    """Validate rows, and return records and quarantine as lists."""
    good, bad = validate_rows(table(rows, errors), data, prompt, rules, schema)
    assert good.schema == RECORD
    assert bad.schema == QUARANTINED
    return good.to_pylist(), bad.to_pylist()


@given(rows=ROWS)
@settings(deadline=None, max_examples=100)
def test_every_row_is_accounted_for_once(rows):
    good, bad = check([*rows, GOOD])
    lines = [int(record["source"].split(":")[1]) for record in good] + [row["line"] for row in bad]
    assert sorted(lines) == list(range(1, len(rows) + 2))
    assert all(row["reason"] for row in bad)
    for record in good:
        row = json.loads(record["row"])
        assert record["id"] == str(row["id"])
        assert row["answer"] == {"label": "a"} == json.loads(record["messages"][-1]["content"])
    assert len({record["id"] for record in good}) == len(good)


@given(rows=ROWS, order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_a_row_is_judged_by_itself(rows, order):
    # without an id column no row depends on another one: any order gives the same verdicts
    data = DATA.model_copy(update={"id": None})
    shuffled = [*rows, GOOD]
    order.shuffle(shuffled)

    def verdicts(found):
        good, bad = found
        return sorted(record["content_hash"] for record in good), sorted((row["reason"], row["row"]) for row in bad)

    assert verdicts(check([*rows, GOOD], data)) == verdicts(check(shuffled, data))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "1", "answer": {"label": "a"}}, "has no column 'body'"),
        ({"id": "1", "body": "x"}, "has no column 'answer'"),
        ({"id": "1", "body": " \u200b", "answer": {"label": "a"}}, "the user's message is empty"),
        ({"id": "1", "body": ["x"], "answer": {"label": "a"}}, "body must be text, not a list"),
        ({"id": "1", "body": "x", "answer": {"label": "c"}}, "answer.label: 'c' is not one of"),
        ({"id": "1", "body": "x", "answer": {}}, "'label' is a required property"),
        ({"id": "1", "body": "x", "answer": "a"}, "is not of type 'object'"),
        ({"body": "x", "answer": {"label": "a"}}, "has no id"),
        ({"id": None, "body": "x", "answer": {"label": "a"}}, "id must be text or a number"),
        ({"id": "good", "body": "x", "answer": {"label": "a"}}, "'good' stands already in x.jsonl:1"),
        ({"id": "1", "body": "x" * 101, "answer": {"label": "a"}}, "101 characters, more than 100"),
    ],
)
def test_the_reason_says_what_is_wrong(row, reason):
    (record,), (bad,) = check([GOOD, row], rules=Validate(max_bad_fraction=1, max_characters=100))
    assert record["id"] == "good"
    assert reason in bad["reason"]
    assert (bad["file"], bad["line"]) == ("x.jsonl", 2)
    assert json.loads(bad["row"]) == row


def test_a_row_that_could_not_be_read_goes_to_quarantine_with_that_reason():
    _, (bad,) = check([GOOD, "{..."], errors=[None, "is not JSON: ..."])
    assert bad["reason"] == "is not JSON: ..."


def test_a_message_of_the_longest_allowed_length_stays():
    rules = Validate(max_bad_fraction=1, max_characters=100)
    good, bad = check([GOOD | {"id": str(n), "body": "x" * n} for n in (99, 100, 101)], rules=rules)
    assert [record["id"] for record in good] == ["99", "100"]
    assert len(bad) == 1


def test_answers_that_are_plain_text_need_no_schema_and_deep_ones_do_not_crash():
    prompt = PromptSettings(system=None, user="{{ body }}", assistant="{{ answer }}")
    deep = "[" * 100_000
    good, bad = check(
        [GOOD | {"answer": "a"}, GOOD | {"id": "2", "answer": deep}],
        prompt=prompt,
        schema=None,
        rules=Validate(max_characters=200_000),
    )
    assert (len(good), len(bad)) == (2, 0)
    good, bad = check(
        [GOOD | {"answer": '{"label":"a"}'}, GOOD | {"id": "2", "answer": deep}],
        prompt=prompt,
        rules=Validate(max_characters=200_000, max_bad_fraction=1),
    )
    assert (len(good), len(bad)) == (1, 1)
    assert "is not JSON" in bad[0]["reason"]


@pytest.mark.parametrize(
    ("bad", "fraction", "stops"), [(1, 0.1, False), (2, 0.1, True), (0, 0.0, False), (1, 0.0, True), (10, 1.0, True)]
)
def test_too_many_bad_rows_stop_the_run_and_are_told(bad, fraction, stops):
    rows = [{"id": str(n)} if n < bad else GOOD | {"id": str(n)} for n in range(10)]
    if stops:
        with pytest.raises(UserError, match=rf"{bad} of 10 rows are bad.*\n  x.jsonl:1: has no column"):
            check(rows, rules=Validate(max_bad_fraction=fraction))
    else:
        assert len(check(rows, rules=Validate(max_bad_fraction=fraction))[1]) == bad


WORDS = st.lists(st.text("abcXYZ019äß", min_size=1, max_size=4), min_size=1, max_size=5)


@given(words=WORDS, others=WORDS)
@settings(deadline=None, max_examples=100)
def test_the_content_hash_sees_words_and_digits_but_not_case_and_white_space(words, others):
    def digest(text):
        return content_hash([{"role": "user", "content": text}])

    assert digest(" ".join(words)) == digest("  " + "\n ".join(words).upper().replace("SS", "ß") + "\t")
    same = " ".join(words).casefold() == " ".join(others).casefold()
    assert (digest(" ".join(words)) == digest(" ".join(others))) == same


def test_the_content_hash_sees_who_said_what():
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    other = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]
    assert (
        len(
            {
                content_hash(one),
                content_hash(other),
                content_hash([*one, *other]),
                content_hash([{"role": "user", "content": "a b"}]),
            }
        )
        == 4
    )


def test_rows_without_ids_get_one_from_their_content():
    data = DATA.model_copy(update={"id": None})
    rows = [GOOD, GOOD | {"body": "HELLO "}, GOOD | {"body": "other"}]
    (one, two, three), _ = check(rows, data)
    assert one["id"] == two["id"] != three["id"]
    assert check(rows[::-1], data)[0][0]["id"] == three["id"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"type": "strin"}', '{"required": 3}', '"x"', "[" * 100_000])
def test_a_schema_that_is_none_is_told(tmp_path, text):
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.answer_schema: .* is not a JSON Schema"):
        load_answer_schema(str(tmp_path / "schema.json"))


def test_a_missing_schema_is_told_and_a_good_one_read(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_answer_schema(str(tmp_path / "nothing.json"))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert load_answer_schema(str(tmp_path / "schema.json")) == SCHEMA
