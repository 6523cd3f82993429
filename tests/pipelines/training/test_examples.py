"""Examples as columns: the tensors that a plain reading of the rows gives, in a quarter of their memory."""

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.likelihood import IGNORED
from luthier.pipelines.training.examples import Measures, read_examples, read_measures, sample_of
from luthier.records import EXAMPLE
from luthier.shards import Shards, write_shards

SPLITS = ("train", "validation", "test")


@st.composite
def rows_of_examples(draw):
    rows = []
    for number in range(draw(st.integers(0, 40))):
        length = draw(st.integers(1, 12))
        rows.append(
            {
                "id": f"id-{number}",
                "split": draw(st.sampled_from(SPLITS)),
                "weight": draw(st.sampled_from([0.2, 1.0, 2.5])),
                "input_ids": draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length)),
                "supervised": draw(st.lists(st.booleans(), min_size=length, max_size=length)),
            }
        )
    return rows


@given(rows=rows_of_examples(), rows_per_shard=st.integers(1, 15))
@settings(deadline=None, max_examples=60)
def test_each_example_is_that_of_its_row_and_its_measures_are_those_of_its_tensors(tmp_path_factory, rows, rows_per_shard):
    folder = tmp_path_factory.mktemp("examples") / "examples"
    shards = write_shards(pa.Table.from_pylist(rows, EXAMPLE), folder, rows_per_shard)
    chosen = ("train", "validation")
    for split, found, measures in zip(chosen, read_examples(shards, *chosen), read_measures(shards, *chosen), strict=True):
        own = [row for row in rows if row["split"] == split]
        assert len(found) == len(own)
        for number, row in enumerate(own):
            example = found[number]
            assert (example.id, example.input_ids.tolist()) == (row["id"], row["input_ids"])
            assert example.input_ids.dtype == example.labels.dtype == torch.int64
            # the token at position i + 1 is predicted at position i
            following = zip(row["input_ids"][1:], row["supervised"][1:], strict=True)
            assert example.labels.tolist() == [*(token if learnt else IGNORED for token, learnt in following), IGNORED]
        for known in (found.measures, measures):
            assert list(known.names()) == [row["id"] for row in own]
            assert known.weights.tolist() == [row["weight"] for row in own]
            assert known.lengths.tolist() == [len(row["input_ids"]) for row in own]
            assert known.supervised.tolist() == [int((found[n].labels != IGNORED).sum()) for n in range(len(own))]


def test_what_is_held_of_examples_is_what_the_plan_counts(tmp_path):
    rows = 4096
    row = {"split": "train", "weight": 1.0, "input_ids": list(range(300)), "supervised": [False] * 100 + [True] * 200}
    table = pa.Table.from_pylist([row | {"id": f"source:{number}"} for number in range(rows)], EXAMPLE)
    shards = write_shards(table, tmp_path / "examples")
    before = pa.total_allocated_bytes()
    (examples,) = read_examples(shards, "train")
    held = pa.total_allocated_bytes() - before
    assert held <= examples.measures.memory()
    assert held < rows * 300 * 5  # of the 16 bytes of two tensors
    assert len(examples) == rows


def test_a_sample_is_the_same_whatever_the_order_and_all_where_they_are_few():
    def measures(names):
        none = np.zeros(len(names), np.int64)
        return Measures(pa.chunked_array([names[:7], names[7:]]), none * 1.0, none, none)

    names = [f"id-{number}" for number in range(100)]
    drawn = sample_of(measures(names), 10)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    backwards = names[::-1]
    assert {names[n] for n in drawn} == {backwards[n] for n in sample_of(measures(backwards), 10)}
    assert sample_of(measures(names), 100) == sample_of(measures(names), None) == list(range(100))


def test_a_table_is_decoded_once_for_all_splits(tmp_path, monkeypatch):
    rows = [{"id": s, "split": s, "weight": 1.0, "input_ids": [1, 2], "supervised": [False, True]} for s in SPLITS]
    shards = write_shards(pa.Table.from_pylist(rows, EXAMPLE), tmp_path / "examples")
    read, original = [], Shards.iter_batches
    monkeypatch.setattr(Shards, "iter_batches", lambda self, *a: read.append(self) or original(self, *a))
    assert [one[0].id for one in read_examples(shards, "train", "validation")] == ["train", "validation"]
    assert len(read) == 1
