"""Tables and executors for the tests of data processing."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa

from luthier.executors import Executor, key_of
from luthier.records import CLUSTERED, INGESTED, RECORD, SPLIT_RECORD
from luthier.shards import Shards, write_shards


def folder() -> Path:
    """Return a new folder of this test run."""
    return Path(tempfile.mkdtemp(prefix="luthier-test-"))


def serial(at: Path | None = None) -> Executor:
    """Return an executor of this process with a folder of its own."""
    return Executor(at or folder(), "serial")


def shards(rows, schema, rows_per_shard=50_000) -> Shards:
    """Return rows as a table on disk."""
    return write_shards(pa.Table.from_pylist(rows, schema=schema), folder() / "table", rows_per_shard)


def ingested(rows, errors=None, source="x", file="x.jsonl", rows_per_shard=50_000) -> Shards:
    """Return rows as ingest makes them."""
    told = errors or [None] * len(rows)
    entries = [
        {"source": source, "file": file, "line": line, "row": json.dumps(row), "error": error}
        for line, (row, error) in enumerate(zip(rows, told, strict=True), 1)
    ]
    return shards(entries, INGESTED, rows_per_shard)


def record(user, answer="ok", name=None, **more):
    """Return one record of a user's message and an answer."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    identity = name or key_of(user, answer)
    made = {"key": key_of(identity, user, answer), "id": identity, "messages": messages, "rejected": None, "label": None}
    return made | {"meta": "{}", "source": "x", "weight": 1.0} | more


def records(rows, schema=RECORD, rows_per_shard=50_000) -> Shards:
    """Return records as a table, sorted as every table of records is."""
    return shards(sorted(rows, key=lambda row: row["key"]), schema, rows_per_shard)


def clustered(row):
    """Return a record with the hash and the cluster that de-duplication gives it."""
    from luthier.pipelines.data_processing.deduplicate import content_hash

    digest = content_hash(row["messages"])
    return row | {"content_hash": digest, "cluster": digest}


def split_records(rows, sides=("train", "test"), rows_per_shard=50_000) -> Shards:
    """Return records with a split each, in turn."""
    made = [clustered(row) | {"split": sides[n % len(sides)], "provenance": None} for n, row in enumerate(rows)]
    return records(made, SPLIT_RECORD, rows_per_shard)


__all__ = ["CLUSTERED", "RECORD", "clustered", "folder", "ingested", "record", "records", "serial", "shards", "split_records"]
