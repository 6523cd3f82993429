"""Divide records into train, validation and test by their cluster alone: no order, no random state, no row count."""

import hashlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.errors import UserError
from luthier.executors import Executor, Task, stored
from luthier.pipelines.data_processing.parameters import Split
from luthier.pipelines.data_processing.previous import SPLITS, PreviousSplits, as_numbers
from luthier.records import SPLIT_RECORD, SPLIT_TABLE
from luthier.shards import Shards, write_table


def position(cluster: str, seed: int) -> float:
    """Map a cluster to a number in [0, 1), evenly: the same cluster always falls on the same number."""
    digest = hashlib.sha256(f"{seed}:{cluster}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(cluster: str, parameters: Split, seed: int) -> str:
    """Return the split of a cluster that no earlier version knows."""
    place = position(cluster, seed)
    if place < parameters.test:
        return "test"
    return "validation" if place < parameters.test + parameters.validation else "train"


def split_shard(out: Path, file: Path, clusters: Path, earlier: Path | None, parameters: Split, seed: int) -> None:
    """Write the records with their split, and the part of the split table that belongs to this shard.

    Args:
        out: an empty folder.
        file: the records.
        clusters: content hash, cluster and `kept` of the shard's records, dropped ones included.
        earlier: the stored `PreviousSplits`, if there is an earlier version of the data.
        parameters: shares.
        seed: of the draw.
    """
    previous = PreviousSplits(**stored(earlier)) if earlier else None

    def splits(table: pa.Table) -> list[str]:
        content, cluster = table.column("content_hash"), table.column("cluster")
        known = previous.split(as_numbers(content), as_numbers(cluster)) if previous else [None] * len(table)
        return [old or split_of(name, parameters, seed) for old, name in zip(known, cluster.to_pylist(), strict=True)]

    records = pq.read_table(file)
    records = records.append_column("split", pa.array(splits(records), pa.string()))
    records = records.append_column("provenance", pa.nulls(len(records), pa.string()))
    write_table(records.cast(SPLIT_RECORD), out / "records.parquet")

    everyone = pq.read_table(clusters)
    kept = everyone.column("kept").to_pylist()
    sides = [side if stayed else None for side, stayed in zip(splits(everyone), kept, strict=True)]
    table = everyone.append_column("split", pa.array(sides, pa.string())).select(SPLIT_TABLE.names)
    write_table(table.cast(SPLIT_TABLE), out / "split_table.parquet")


def split(records: Shards, clusters: Shards, parameters: Split, seed: int, executor: Executor) -> tuple[Shards, Shards]:
    """Add the column `split`. The records of a cluster stand on one side.

    Returns:
        the records, and the split table (schema `records.SPLIT_TABLE`) for the next version of the data.

    Raises:
        UserError: if no record falls on train or on test, or the earlier version's split table cannot be read.
    """
    earlier = _earlier(parameters, executor)
    decides = {
        "parameters": parameters.model_dump(exclude={"previous"}),
        "previous": earlier.name if earlier else None,
        "seed": seed,
    }
    shared = {"earlier": earlier, "parameters": parameters, "seed": seed}
    tasks = [
        Task(decides | {"input": [a, b]}, shared | {"file": file, "clusters": other})
        for file, a, other, b in zip(records.files, records.hashes, clusters.files, clusters.hashes, strict=True)
    ]
    parts = executor.map("split_records", split_shard, tasks)
    divided = executor.table("split_records", [part / "records.parquet" for part in parts])
    counts = dict.fromkeys(SPLITS, 0)
    for batch in divided.iter_batches(["split"]):
        for name in batch.column("split").to_pylist():
            counts[name] += 1
    for name in ("train", "test"):
        if not counts[name]:
            raise UserError(
                f"{len(divided)} records are too few: none of them fell on {name}. Add rows or change data_processing.split."
                f"{_together(divided)}"
            )
    return divided, executor.table("split_records", [part / "split_table.parquet" for part in parts])


def _earlier(parameters: Split, executor: Executor) -> Path | None:
    """Keep what the earlier version's split table says: that each shard's task reads it would cost the square of the rows."""
    if not parameters.previous:
        return None
    (folder,) = executor.store("previous_splits", [vars(PreviousSplits.read(parameters.previous))])
    return folder


def _together(records: Shards) -> str:
    """Say how many records cannot be divided, if that may be why a split is empty."""
    clusters = Counter(name for batch in records.iter_batches(["cluster"]) for name in batch.column("cluster").to_pylist())
    largest = max(clusters.values(), default=0)
    if largest < 2:
        return ""
    return (
        f" {largest} of them have messages so alike that they stay together, with different answers: "
        "raise data_processing.deduplicate.near_threshold if they are not alike."
    )
