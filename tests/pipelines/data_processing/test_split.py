"""A record's side depends on its content and the seed, on nothing else."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import clustered, record, records, serial, shards

from luthier.configuration import DataParameters
from luthier.errors import UserError
from luthier.executors import key_of, stored
from luthier.pipelines.data_processing.croissant import COLUMNS
from luthier.pipelines.data_processing.describe import label_deviation
from luthier.pipelines.data_processing.parameters import Split
from luthier.pipelines.data_processing.previous import SPLITS, PreviousSplits, as_numbers
from luthier.pipelines.data_processing.split import position, split
from luthier.records import CLUSTERED, SPLIT_RECORD, SPLIT_TABLE

SHARES = Split(validation=0.1, test=0.2)


def rows_of(count, prefix=""):
    """Return that many contents."""
    return [clustered(record(f"{prefix}{n}")) for n in range(count)]


def divide(rows, seed=0, shares=SHARES, rows_per_shard=50_000):
    """Split rows into the table and the split table."""
    table = records(rows, CLUSTERED, rows_per_shard)
    facts = [{"content_hash": row["content_hash"], "cluster": row["cluster"], "kept": True} for row in table.iter_rows()]
    schema = SPLIT_TABLE.remove(SPLIT_TABLE.get_field_index("split"))
    return split(table, shards(facts, schema, rows_per_shard), shares, seed, serial())


def sides(rows, seed=0, shares=SHARES):
    """Return the side of each content."""
    divided, table = divide(rows, seed, shares)
    assert (divided.schema, table.schema) == (SPLIT_RECORD, SPLIT_TABLE)
    found = {row["content_hash"]: row["split"] for row in divided.iter_rows()}
    assert found == {row["content_hash"]: row["split"] for row in table.iter_rows()}
    return found


@given(st.integers(0, 100), st.randoms(use_true_random=False), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_a_record_keeps_its_side_whatever_rows_come_or_go(more, order, seed):
    rows = rows_of(150)
    before = sides(rows, seed)
    order.shuffle(rows)
    after = sides(rows_of(more, "other") + rows[:100], seed)
    assert all(after[key] == before[key] for key in after.keys() & before.keys())
    assert len(after.keys() & before.keys()) == 100


def test_rows_and_their_order_stay_however_they_are_cut():
    rows = rows_of(100)
    whole, cut = (divide(rows, rows_per_shard=size)[0] for size in (1000, 7))
    assert list(whole.iter_rows()) == list(cut.iter_rows())
    assert [row["key"] for row in whole.iter_rows()] == sorted(row["key"] for row in rows)


def test_near_duplicates_that_are_kept_stand_on_one_side():
    rows = rows_of(300)
    for row in rows[::2]:
        row["cluster"] = rows[0]["cluster"]
    divided, _ = divide(rows)
    assert len({row["split"] for row in divided.iter_rows() if row["cluster"] == rows[0]["cluster"]}) == 1


def test_the_deviation_of_labels_is_the_largest_difference_of_shares():
    labels = {"train": {"a": 30, "b": 10}, "test": {"a": 5, "b": 5}}
    found = label_deviation(labels)
    assert found["train"] == pytest.approx(30 / 40 - 35 / 50)
    assert found["test"] == pytest.approx(35 / 50 - 5 / 10)
    assert label_deviation({"train": {"a": 3}, "test": {"a": 1}}) == {"train": 0, "test": 0}


def test_shares_come_out_as_asked():
    found = list(sides(rows_of(20_000)).values())
    assert set(found) == set(SPLITS)
    assert found.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)
    assert found.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_a_larger_test_share_only_adds_to_the_test_side():
    small, large = (sides(rows_of(500), shares=Split(validation=0, test=share)) for share in (0.1, 0.3))
    assert {key for key, side in small.items() if side == "test"} < {key for key, side in large.items() if side == "test"}
    assert "validation" not in small.values()


def test_another_seed_gives_another_split():
    one, other = sides(rows_of(500), 0), sides(rows_of(500), 1)
    assert one != other
    agree = sum(one[key] == other[key] for key in one) / 500
    assert agree == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.1)


@given(st.lists(st.sampled_from(["a", "b", None]), min_size=100, max_size=100))
@settings(deadline=None, max_examples=10)
def test_the_label_decides_no_side(labels):
    assert sides([row | {"label": label} for row, label in zip(rows_of(100), labels, strict=True)]) == sides(rows_of(100))


def test_nothing_says_that_splits_look_at_the_label():
    for told in (COLUMNS["label"], DataParameters.model_fields["label"].description):
        assert told
        assert not re.search("stratified|balanced", told)


@given(st.text(), st.integers())
@settings(deadline=None, max_examples=100)
def test_positions_are_shares(key, seed):
    assert 0 <= position(key, seed) < 1


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_records_are_told(count):
    with pytest.raises(UserError, match=f"{count} records are too few"):
        divide(rows_of(count))


def test_records_that_stay_together_are_told_when_a_split_is_empty():
    rows = [row | {"cluster": "0" * 32} for row in rows_of(50)]
    with pytest.raises(UserError, match=r"none of them fell on .*\. 50 of them have messages so alike .*near_threshold"):
        divide(rows)


HASHES = st.integers(0, 999).map(lambda number: key_of(str(number)))
KNOWN = st.lists(
    st.tuples(HASHES, HASHES, st.sampled_from([*SPLITS, None]), st.booleans()), max_size=20, unique_by=lambda row: row[0]
)


@given(st.lists(st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_hashes_become_the_numbers_that_python_reads(hashes, size):
    chunks = [pa.array(hashes[start : start + size], pa.string()) for start in range(0, len(hashes), size)]
    cut = [chunk.slice(1) for chunk in chunks]
    for chunked in (chunks, cut):
        column = pa.chunked_array(chunked, pa.string())
        expected = [[int(text[:16], 16), int(text[16:], 16)] for text in column.to_pylist()]
        assert as_numbers(column).tolist() == expected


@given(known=KNOWN, more=st.lists(st.tuples(HASHES, HASHES), max_size=5), rows_per_shard=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_what_an_earlier_version_says_is_what_its_rows_say(known, more, rows_per_shard):
    rows = [dict(zip(SPLIT_TABLE.names, row, strict=True)) for row in known]
    earlier = PreviousSplits.read(str(shards(rows, SPLIT_TABLE, rows_per_shard).folder))
    (folder,) = serial().store("previous_splits", [vars(earlier)])
    mapped = PreviousSplits(**stored(folder))
    asked = [(content, cluster) for content, cluster, _, _ in known] + more
    content, cluster = (as_numbers(pa.chunked_array([[row[at] for row in asked]], pa.string())) for at in (0, 1))
    own = {row["content_hash"]: row["split"] for row in rows if row["kept"]}
    of_cluster = {}
    for row in sorted(rows, key=lambda row: row["content_hash"]):
        if row["kept"]:
            of_cluster.setdefault(row["cluster"], row["split"])
    expected = [own.get(one) or of_cluster.get(other) for one, other in asked]
    for found in (earlier, mapped):
        assert found.split(content, cluster) == expected
        assert found.kept(content).tolist() == [one in own for one, _ in asked]
        assert found.cluster(content[: len(known)]).tolist() == cluster[: len(known)].tolist()


def test_the_earlier_version_is_read_once_whatever_the_shards(monkeypatch):
    _, table = divide(rows_of(40))
    read, original = [], PreviousSplits.read
    monkeypatch.setattr(PreviousSplits, "read", lambda path: read.append(path) or original(path))
    divided, again = divide(rows_of(60), 1, Split(validation=0.1, test=0.2, previous=str(table.folder)), rows_per_shard=7)
    assert len(divided.files) > 5
    assert read == [str(table.folder)]
    before = {row["content_hash"]: row["split"] for row in table.iter_rows()}
    assert before.items() <= {row["content_hash"]: row["split"] for row in again.iter_rows()}.items()


@pytest.mark.parametrize("wrong", ["0" * 31, "g" * 32, None])
def test_a_split_table_with_a_hash_that_is_none_is_told(wrong):
    table = shards([{"content_hash": wrong, "cluster": "0" * 32, "split": "train", "kept": True}], SPLIT_TABLE)
    with pytest.raises(UserError, match=r"data_processing\.split\.previous: .* is no split table"):
        PreviousSplits.read(str(table.folder))
