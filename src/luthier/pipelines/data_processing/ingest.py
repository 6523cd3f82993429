"""Keep the rows of all source files in shards, each row with its file and line, or with the reason why it cannot be read."""

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.configuration import DataParameters, FolderParameters
from luthier.errors import UserError
from luthier.executors import Executor, Task
from luthier.reading import as_json, find_files, fingerprint, format_of, read
from luthier.records import INGESTED
from luthier.shards import Shards, write_table


def ingest_file(out: Path, name: str, location: str, asked: str, shown: str, limit: int | None, rows_per_shard: int) -> None:
    """Write a file's rows as shards of schema `records.INGESTED`, in its order; memory holds one shard."""
    found = islice(read(location, asked, shown), limit)
    number = 0
    while rows := list(islice(found, rows_per_shard)):
        table = pa.Table.from_pylist([_ingested(name, shown, *row) for row in rows], schema=INGESTED)
        write_table(table, out / f"part-{number:05d}.parquet")
        number += 1


def _ingested(name: str, shown: str, line: int, row: Any, error: str | None) -> dict[str, Any]:
    text, why = as_json(row, error)
    return {"source": name, "file": shown, "line": line, "row": text, "error": why}


def ingest(
    data: DataParameters, folders: FolderParameters, executor: Executor, rows_per_shard: int
) -> tuple[Shards, list[dict[str, Any]]]:
    """Read all sources into rows.

    Returns:
        shards of schema `records.INGESTED`, in the order of sources, files and lines; and a fact sheet of each file: source,
        file, format, sha256, bytes, rows.

    Raises:
        UserError: if a file is missing, not of its format, or all of them hold no row.
    """
    tasks: list[Task] = []
    facts: list[dict[str, Any]] = []
    for name, source in data.all_sources().items():
        for location in find_files(source.path, folders, optional=source.optional):
            shown = location.removeprefix(folders.root + "/")
            format_of(location, source.format)  # a wrong ending is told before any file is read
            sha256, size = fingerprint(location)
            decides = {"name": name, "sha256": sha256, "format": source.format, "shown": shown, "limit": data.max_rows}
            arguments = {"name": name, "location": location, "asked": source.format, "shown": shown, "limit": data.max_rows}
            tasks.append(Task(decides | {"rows_per_shard": rows_per_shard}, arguments | {"rows_per_shard": rows_per_shard}))
            kind = format_of(location, source.format)
            facts.append({"source": name, "file": shown, "format": kind, "sha256": sha256, "bytes": size})
    folders_out = executor.map("ingest_rows", ingest_file, tasks)
    parts = []
    for fact, folder in zip(facts, folders_out, strict=True):
        files = sorted(folder.glob("part-*.parquet"))
        fact["rows"] = sum(pq.read_metadata(file).num_rows for file in files)
        parts += files
    if not parts:
        looked_at = [fact["file"] for fact in facts] or [source.path for source in data.all_sources().values()]
        raise UserError(f"data.path: {', '.join(looked_at)}: no rows in it.")
    return executor.table("ingest_rows", parts), facts
