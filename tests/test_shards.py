"""What is written as shards reads back as it was, however it is read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.artefacts import is_complete, verify
from luthier.shards import ROWS_PER_SHARD, write_shards

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string()), ("items", pa.list_(pa.int32()))])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "text": st.none() | st.text(st.characters(codec="utf-8")),
            "items": st.none() | st.lists(st.integers(-5, 5)),
        }
    ),
    max_size=20,
)


@given(rows=ROWS, limit=st.integers(1, 25))
@settings(deadline=None, max_examples=40)
def test_rows_read_back_by_every_way_of_reading(tmp_path_factory, rows, limit):
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    shards = write_shards(table, tmp_path_factory.mktemp("shards") / "table")
    assert len(shards) == len(rows)
    assert list(shards.iter_rows()) == rows
    assert shards.to_table().equals(table)
    assert list(shards.iter_rows(["n"])) == [{"n": row["n"]} for row in rows]
    assert len(shards.to_pandas(limit=limit)) == min(limit, len(rows))
    assert list(shards.to_pandas(limit=limit)["text"].isna()) == [row["text"] is None for row in rows[:limit]]


@pytest.mark.parametrize("size", [0, 1, ROWS_PER_SHARD, ROWS_PER_SHARD + 1, 2 * ROWS_PER_SHARD + 7])
def test_rows_keep_their_order_over_the_borders_of_shards(tmp_path, size):
    table = pa.table({"n": pa.array(range(size), pa.int64())})
    shards = write_shards(table, tmp_path / "table")
    assert len(shards.files) == max(1, -(-size // ROWS_PER_SHARD))
    assert max(pq.read_metadata(file).num_rows for file in shards.files) <= ROWS_PER_SHARD
    assert shards.to_table().column("n").to_pylist() == list(range(size))
    batches = list(shards.iter_batches(size=1000))
    assert all(batch.num_rows <= 1000 for batch in batches)
    assert sum(batch.num_rows for batch in batches) == size
    for limit in (1, ROWS_PER_SHARD + 1):
        assert shards.to_pandas(limit=limit)["n"].tolist() == list(range(min(limit, size)))


@given(rows=ROWS, rows_per_shard=st.integers(1, 7), random=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_rows_that_a_mask_takes_are_those_of_the_whole_table(tmp_path_factory, rows, rows_per_shard, random):
    folder = tmp_path_factory.mktemp("shards") / "table"
    shards = write_shards(pa.Table.from_pylist(rows, schema=SCHEMA), folder, rows_per_shard)
    mask = np.array([random.random() < 0.4 for _ in rows], bool)
    taken = shards.take(mask, ["n", "items"])
    expected = [{"n": row["n"], "items": row["items"]} for row, yes in zip(rows, mask, strict=True) if yes]
    assert taken.schema == pa.schema([SCHEMA.field("n"), SCHEMA.field("items")])
    assert taken.to_pylist() == expected
    assert shards.take(mask).schema == SCHEMA


def test_a_shard_of_which_nothing_is_taken_is_not_read(tmp_path):
    shards = write_shards(pa.table({"n": range(2000)}), tmp_path / "table", 1000)
    first = shards.files[0]
    first.write_bytes(first.read_bytes()[:4] + bytes(500) + first.read_bytes()[504:])  # its data, not its metadata
    last = np.arange(2000) == 1999
    assert shards.take(last).to_pylist() == [{"n": 1999}]
    with pytest.raises(OSError, match="page"):
        shards.take(~last)


def test_the_head_of_an_empty_table_has_its_columns(tmp_path):
    shards = write_shards(SCHEMA.empty_table(), tmp_path / "table")
    assert list(shards.head().columns) == SCHEMA.names
    assert list(shards.to_pandas(["n"], limit=3).columns) == ["n"]
    assert len(shards.head()) == len(shards) == 0


def test_equal_tables_have_equal_hashes_and_others_do_not(tmp_path):
    table = pa.table({"n": [1, 2, 3]})
    one, two = write_shards(table, tmp_path / "one"), write_shards(pa.concat_tables([table[:1], table[1:]]), tmp_path / "two")
    assert one.sha256 == two.sha256 == verify(one.folder)["sha256"]
    assert write_shards(table.slice(1), tmp_path / "three").sha256 != one.sha256


def test_a_table_is_written_whole_and_once(tmp_path):
    table = pa.table({"n": [1]})
    shards = write_shards(table, tmp_path / "table")
    assert is_complete(shards.folder)
    with pytest.raises(FileExistsError):
        write_shards(pa.table({"n": [2]}), tmp_path / "table")
    assert list(shards.iter_rows()) == [{"n": 1}]
    assert len(list(tmp_path.iterdir())) == 1
