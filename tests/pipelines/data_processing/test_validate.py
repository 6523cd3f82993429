"""Every row ends once, among the records or in quarantine, whatever it holds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ingested, serial, shards

from luthier.configuration import DataParameters, SourceParameters
from luthier.errors import UserError
from luthier.pipelines.data_processing.parameters import Validate
from luthier.pipelines.data_processing.validate import Contract, load_answer_schema, numbered_by_content, validate_rows
from luthier.records import INGESTED, ORIGIN, QUARANTINED, RECORD
from luthier.text.prepare import PromptSettings, RowError

DATA = DataParameters(path="x.jsonl", id="id", user="{{ body }}", assistant="{{ answer | json }}")
PROMPT = PromptSettings(system=None, user=DATA.user, assistant=DATA.assistant)
ANY = Validate(max_bad_fraction=1)
SCHEMA = {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["a", "b"]}}}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=6), st.just({"label": "a"}), st.just([])
)
TEXTS = st.text("xy:1", min_size=1, max_size=3)
ROWS = st.lists(st.dictionaries(st.sampled_from(["id", "body", "answer", "other", "self"]), VALUES), max_size=12)
GOOD = {"id": "good", "body": "hello", "answer": {"label": "a"}}


def check(rows, data=DATA, prompt=PROMPT, rules=ANY, schema=SCHEMA, errors=None, rows_per_shard=50_000):
    """Validate rows; return records with their lines, in the order of the lines, and the quarantine."""
    table = ingested(rows, errors, rows_per_shard=rows_per_shard)
    shapes = {"x": "template"}
    good, origins, bad = validate_rows(table, data, prompt, rules, schema or {}, shapes, serial(), rows_per_shard)
    assert (good.schema, origins.schema, bad.schema) == (RECORD, ORIGIN, QUARANTINED)
    assert [row["key"] for row in good.iter_rows()] == sorted(row["key"] for row in good.iter_rows())
    found = {row["key"]: row | {"lines": []} for row in good.iter_rows()}
    for origin in origins.iter_rows():
        found[origin["key"]]["lines"].append(origin["line"])
    return sorted(found.values(), key=lambda row: row["lines"]), sorted(bad.iter_rows(), key=lambda row: row["line"])


@given(rows=ROWS)
@settings(deadline=None, max_examples=40)
def test_every_row_is_accounted_for_once(rows):
    good, bad = check([*rows, GOOD])
    lines = [line for record in good for line in record["lines"]] + [row["line"] for row in bad]
    assert sorted(lines) == list(range(1, len(rows) + 2))
    assert all(row["reason"] for row in bad)
    for record in good:
        row = [*rows, GOOD][record["lines"][0] - 1]
        assert record["id"] == str(row["id"])
        assert row["answer"] == {"label": "a"} == json.loads(record["messages"][-1]["content"])
    assert len({record["id"] for record in good}) == len(good)


@given(rows=ROWS, order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25)
def test_a_row_is_judged_by_itself(rows, order):
    # without an id column no row depends on another one: any order gives the same verdicts
    data = DATA.model_copy(update={"id": None})
    shuffled = [*rows, GOOD]
    order.shuffle(shuffled)

    def verdicts(found):
        good, bad = found
        return sorted(record["key"] for record in good), sorted((row["reason"], row["row"]) for row in bad)

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
        ({"id": None, "body": "x", "answer": {"label": "a"}}, "has no id"),
        ({"id": "", "body": "x", "answer": {"label": "a"}}, "has no id"),
        ({"id": True, "body": "x", "answer": {"label": "a"}}, "id must be text or a whole number"),
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


def test_of_rows_with_one_id_one_stays_whatever_their_order():
    rows = [GOOD | {"body": f"text {n}"} for n in range(6)] + [GOOD | {"id": "other"}]
    good, bad = check(rows, rows_per_shard=2)
    assert sorted(record["id"] for record in good) == ["good", "other"]
    assert len(bad) == 5
    assert {row["reason"] for row in bad} == {"its id 'good' stands in another row too (`data.id: null` numbers rows by content)"}
    again, _ = check(rows[::-1], rows_per_shard=2)
    assert {record["key"] for record in again} == {record["key"] for record in good}


SECRET = "anna@example.com"
LEAKS = [
    GOOD | {"answer": {"label": SECRET}},
    GOOD | {"answer": SECRET},
    GOOD | {"answer": {SECRET: SECRET}},
    GOOD | {"body": 491701234567},
    GOOD | {"id": SECRET},
    GOOD | {"id": SECRET, "body": "again"},
    GOOD | {"id": [SECRET]},
]


def test_what_is_counted_and_told_of_bad_rows_holds_nothing_of_them():
    _, bad = check([GOOD, *LEAKS])
    assert len(bad) == len(LEAKS) - 1  # of those with one id
    assert any(SECRET in row["reason"] for row in bad)
    kinds = {row["kind"] for row in bad}
    assert not any(SECRET in kind or "4917" in kind for kind in kinds)
    assert {"the answer breaks properties.label.enum of its schema", "its id stands in another row too"} <= kinds
    with pytest.raises(UserError) as told:
        check([GOOD, *LEAKS], rules=Validate(max_bad_fraction=0.1))
    assert SECRET not in str(told.value)


def test_a_row_that_comes_twice_is_one_record_with_two_origins():
    (record,), bad = check([GOOD, GOOD])
    assert record["lines"] == [1, 2]
    assert bad == []


def test_rows_without_ids_get_one_from_their_content():
    data = DATA.model_copy(update={"id": None})
    rows = [GOOD, GOOD | {"body": "HELLO "}, GOOD | {"body": "other"}]
    found, _ = check(rows, data)
    assert len({record["id"] for record in found}) == 3
    assert all(record["id"] == record["key"] for record in found)
    assert {record["id"] for record in check(rows[::-1], data)[0]} == {record["id"] for record in found}


# Rows that say the same thing in the shapes that rows have; of each the columns beside it are its own.
SAID = {
    "template": {"body": "hello", "answer": {"label": "a"}},
    "messages": {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a"}]},
    "prompt_completion": {"prompt": "hello", "completion": "a"},
    "labelled_text": {"text": "hello", "label": "a"},
}


def judge(source, row, shape, **changes):
    """Return the record of a row."""
    data = DataParameters(**DATA.model_dump(exclude={"path", "sources", "id"}) | {"path": "x.jsonl"} | changes)
    return Contract(data, PROMPT, ANY, {}, dict.fromkeys(data.all_sources(), shape)).record(source, json.dumps(row))


@pytest.mark.parametrize("shape", SAID)
def test_one_column_identifies_rows_of_every_shape(shape):
    row = SAID[shape] | {"id": 1, "ticket": "T-9"}
    assert judge("x", row, shape, id="ticket")["id"] == "T-9"
    assert judge("x", row, shape, id="id")["id"] == "1"
    numbered = judge("x", row, shape, id=None)
    assert numbered["id"] == numbered["key"]
    for wrong in (["T-9"], {"of": 9}, True, 1.5):
        with pytest.raises(RowError, match="ticket must be text or a whole number"):
            judge("x", row | {"ticket": wrong}, shape, id="ticket")


@pytest.mark.parametrize("shape", [shape for shape in SAID if shape != "template"])
def test_rows_of_a_recognised_shape_need_no_id(shape):
    for row in (SAID[shape], SAID[shape] | {"ticket": None}, SAID[shape] | {"ticket": ""}):
        record = judge("x", row | {"id": 1}, shape, id="ticket")
        assert record["id"] == record["key"]


@given(
    ids=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 6) | TEXTS, unique_by=str, min_size=1), min_size=1),
    shape=st.sampled_from(list(SAID)),
    rows_per_shard=st.integers(1, 30),
)
@settings(deadline=None, max_examples=25)
def test_an_id_is_its_sources_own(ids, shape, rows_per_shard):
    rows = {name: [SAID[shape] | {"id": one} for one in own] for name, own in ids.items()}
    entries = [
        {"source": name, "file": name, "line": line, "row": json.dumps(row), "error": None}
        for name, own in rows.items()
        for line, row in enumerate(own, 1)
    ]
    data = DATA.model_copy(update={"path": None, "sources": {name: SourceParameters(path=name) for name in ids}})
    shapes, table = dict.fromkeys(ids, shape), shards(entries, INGESTED, rows_per_shard)
    records, _, bad = validate_rows(table, data, PROMPT, ANY, {}, shapes, serial(), rows_per_shard)
    assert len(bad) == 0
    named = sorted(row["id"] for row in records.iter_rows())
    behind = {name: f"{name}:" if len(ids) > 1 else "" for name in ids}
    assert named == sorted(f"{behind[name]}{one}" for name, own in ids.items() for one in own)
    assert numbered_by_content(records) == 0


def test_records_without_an_id_of_their_own_are_counted():
    entries = [SAID["messages"] | more for more in ({"id": 1}, {"id": 2}, {})]
    records, _, _ = validate_rows(ingested(entries), DATA, PROMPT, ANY, {}, {"x": "messages"}, serial(), 2)
    assert numbered_by_content(records) == 1


def test_labels_and_columns_to_keep_are_read_from_the_row():
    data = DATA.model_copy(update={"label": "{{ answer.label }}", "meta": ("channel",)})
    (record,), _ = check([GOOD | {"channel": "chat", "other": 1}], data)
    assert record["label"] == "a"
    assert json.loads(record["meta"]) == {"shape": "template", "channel": "chat"}


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
