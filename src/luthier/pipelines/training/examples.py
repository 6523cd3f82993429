"""The examples of training as Arrow's columns, four bytes and a bit a token. Tensors, of 16 bytes, are made for a batch alone."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from luthier.likelihood import IGNORED, Example
from luthier.shards import Shards

BYTES_BESIDE_TOKENS = 200
"""Of an example: its id, weight and lengths, and its places in the order of an epoch while that is made (measured)."""


@dataclass(frozen=True)
class Measures:
    """What is known of some examples without their tokens: an entry an example, in the order of the shards."""

    ids: pa.ChunkedArray
    weights: NDArray[np.float64]
    lengths: NDArray[np.int64]
    """Tokens."""
    supervised: NDArray[np.int64]
    """How many of them are learnt."""

    def names(self) -> Iterator[str]:
        """Yield the ids one by one."""
        for chunk in self.ids.chunks:
            yield from chunk.to_pylist()

    def memory(self) -> int:
        """Return how many bytes a process takes that holds these examples and puts them into order."""
        return int(self.lengths.sum()) * 33 // 8 + len(self.lengths) * BYTES_BESIDE_TOKENS


class Examples:
    """The examples of a split, in the order of the shards; each is made when it is asked for."""

    def __init__(self, measures: Measures, columns: Sequence[tuple[pa.ListArray, pa.ListArray]]) -> None:
        """Take tokens and masks, some rows at a time."""
        self.measures = measures
        self._columns = columns
        self._starts = np.cumsum([0, *(len(tokens) for tokens, _ in columns)])

    def __len__(self) -> int:
        """Return the number of examples."""
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Example:
        """Return an example, with tensors of its own."""
        place = int(np.searchsorted(self._starts, number, "right")) - 1
        tokens, mask = (column[number - int(self._starts[place])].values for column in self._columns[place])
        ids = torch.from_numpy(tokens.to_numpy().astype(np.int64))
        supervised = torch.from_numpy(mask.to_numpy(zero_copy_only=False))
        labels = torch.full_like(ids, IGNORED)
        # the token at position i + 1 is predicted at position i
        labels[:-1] = torch.where(supervised[1:], ids[1:], IGNORED)
        return Example(self.measures.ids[number].as_py(), ids, labels)


def read_examples(shards: Shards, *splits: str) -> list[Examples]:
    """Read the examples of some splits, all in one pass."""
    measures: dict[str, list[Measures]] = {split: [] for split in splits}
    columns: dict[str, list[tuple[pa.ListArray, pa.ListArray]]] = {split: [] for split in splits}
    for split, rows in _rows(shards, splits):
        measures[split].append(_measure(rows))
        columns[split].append((rows.column("input_ids"), rows.column("supervised")))
    return [Examples(_joined(measures[split]), columns[split]) for split in splits]


def read_measures(shards: Shards, *splits: str) -> list[Measures]:
    """Read what is known of the examples of some splits without their tokens, which are forgotten at once."""
    measures: dict[str, list[Measures]] = {split: [] for split in splits}
    for split, rows in _rows(shards, splits):
        measures[split].append(_measure(rows))
    return [_joined(parts) for parts in measures.values()]


def sample_of(measures: Measures, most: int | None) -> list[int]:
    """Return the numbers of at most so many examples, in order: those of the lowest hashes of their ids; of all for None."""
    if most is None or most >= len(measures.lengths):
        return list(range(len(measures.lengths)))
    hashes = (hashlib.sha256(name.encode()).digest() for name in measures.names())
    return sorted(number for _, number in nsmallest(most, zip(hashes, count(), strict=False)))


def _rows(shards: Shards, splits: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    for batch in shards.iter_batches(["id", "split", "weight", "input_ids", "supervised"]):
        for split in splits:
            rows = batch.filter(pc.equal(batch.column("split"), split))
            if rows.num_rows:
                yield split, rows


def _measure(rows: pa.RecordBatch) -> Measures:
    return Measures(
        pa.chunked_array([rows.column("id")]),
        rows.column("weight").to_numpy(),
        rows.column("input_ids").value_lengths().to_numpy().astype(np.int64),
        _learnt(rows.column("supervised")),
    )


def _learnt(masks: pa.ListArray) -> NDArray[np.int64]:
    """Count the supervised tokens of each example but its first one, which nothing predicts."""
    offsets = masks.offsets.to_numpy()
    before = np.concatenate([[0], np.cumsum(masks.values.to_numpy(zero_copy_only=False))])
    return before[offsets[1:]] - before[np.minimum(offsets[:-1] + 1, offsets[1:])]


def _joined(parts: Sequence[Measures]) -> Measures:
    none = np.zeros(0, np.int64)
    return Measures(
        pa.chunked_array([chunk for part in parts for chunk in part.ids.chunks], pa.string()),
        np.concatenate([np.zeros(0), *(part.weights for part in parts)]),
        np.concatenate([none, *(part.lengths for part in parts)]),
        np.concatenate([none, *(part.supervised for part in parts)]),
    )
