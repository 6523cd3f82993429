"""Records that break a rule are refused when they are saved, with the rule and the count."""

import pytest
from tables import record, records, split_records

from luthier.datasets import RecordContract
from luthier.records import SPLIT_RECORD

GOOD = [record(f"message {n}", "ok", f"id-{n}") for n in range(5)]


def test_good_records_pass():
    table = split_records(GOOD, rows_per_shard=2)
    assert RecordContract("SPLIT_RECORD").validate(table) is table
    assert RecordContract("RECORD").validate(records(GOOD))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"key": "short"}, "1 records: a key is null or not 32 digits"),
        ({"id": ""}, "an id is null or empty"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "a role is unknown"),
        ({"messages": [{"role": "user", "content": None}]}, "a turn has no text"),
        ({"weight": 0.0}, "a weight is not above 0"),
    ],
)
def test_a_broken_rule_is_named(change, told):
    with pytest.raises(ValueError, match=told):
        RecordContract("RECORD").validate(records([*GOOD[1:], GOOD[0] | change]))


def test_other_columns_and_unknown_splits_are_told():
    with pytest.raises(ValueError, match="has the columns"):
        RecordContract("SPLIT_RECORD").validate(records(GOOD))
    with pytest.raises(ValueError, match="5 records: a split is unknown"):
        RecordContract("SPLIT_RECORD").validate(split_records(GOOD, ("dev",)))
    with pytest.raises(ValueError, match="no table in shards"):
        RecordContract("RECORD").validate(SPLIT_RECORD)
