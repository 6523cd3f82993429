"""Small versioned data sets, as Kedro lays them out."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.data_versions.store import DataSet, data_sets
from luthier.records import SPLIT_RECORD
from luthier.shards import write_shards

OLD, NEW, NEXT = (f"2026-01-0{day}T00.00.00.000Z" for day in (1, 2, 3))
SHARDS = "luthier.datasets.ShardsDataset"


def catalog(root: str, *tables: str, documents: Iterable[str] = ()) -> list[DataSet]:
    """Return the data sets of a catalog with tables and JSON documents below a root."""
    entries: dict[str, Any] = {name: {"type": SHARDS, "filepath": f"{root}/{name}", "versioned": True} for name in tables}
    entries |= {name: {"type": "json.JSONDataset", "filepath": f"{root}/{name}.json", "versioned": True} for name in documents}
    return data_sets(entries)


def save_table(dataset: DataSet, version: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    """Write a version of a local table."""
    write_shards(pa.Table.from_pylist(rows, schema), Path(dataset.data(version)))


def save_document(dataset: DataSet, version: str, value: Any) -> None:
    """Write a version of a local document."""
    path = Path(dataset.data(version))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))


def record(name: str, said: str = "hello", split: str = "train", label: str | None = None) -> dict[str, Any]:
    """Return a record with its split."""
    return {
        "key": f"{hash(name) % 2**64:032x}",
        "id": name,
        "messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "{}"}],
        "label": label,
        "meta": "{}",
        "source": "mine",
        "weight": 1.0,
        "split": split,
    }


def records(dataset: DataSet, version: str, rows: list[dict[str, Any]]) -> None:
    """Write a version of the records."""
    save_table(dataset, version, rows, SPLIT_RECORD)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
