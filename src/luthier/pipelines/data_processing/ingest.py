"""Read files into rows, each with its line. A row that cannot be read is kept with the reason."""

import csv
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.configuration import DataParameters, FolderParameters, SourceParameters
from luthier.errors import UserError
from luthier.executors import Executor, Task
from luthier.records import INGESTED
from luthier.shards import Shards, write_table
from luthier.text.prepare import strict_json

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "json"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
Row = tuple[int, Any, str | None]


def format_of(path: str, asked: str) -> str:
    """Return the format that was asked for, or the one of the file's ending, that of a compression aside.

    Raises:
        UserError: if the ending tells nothing.
    """
    if asked != "auto":
        return asked
    endings = [ending.lower() for ending in PurePosixPath(path).suffixes]
    if endings and endings[-1] in COMPRESSED:
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending not in FORMATS:
        raise UserError(
            f"data.path: {path} ends in {ending or 'nothing'}: say data.format (jsonl, csv, parquet or json). "
            f"Known endings: {', '.join(FORMATS)}, each also with {', '.join(COMPRESSED)}."
        )
    return FORMATS[ending]


def _read_jsonl(file: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = strict_json(text)
        except UnicodeDecodeError as error:
            shown = line.decode("utf-8", errors="replace").rstrip("\n")
            yield number, shown, f"is not UTF-8: {error.reason} at byte {error.start}"
        except ValueError as error:
            yield number, text.rstrip("\n"), f"is not JSON: {error}"
        else:
            yield _object(number, row)


def _object(number: int, row: Any) -> Row:
    return number, row, None if isinstance(row, dict) else f"is not a JSON object but {type(row).__name__}"


def _read_json(file: BinaryIO) -> Iterator[Row]:
    """Read one JSON array, whose elements are counted from 1 as its lines would be."""
    rows = strict_json(file.read().decode("utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("it is not a JSON array of objects")
    for number, row in enumerate(rows, 1):
        yield _object(number, row)


def _read_csv(file: BinaryIO) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    header = next(reader, [])
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"its header names {', '.join(map(repr, repeated))} more than once")
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, None, f"is not CSV: {error}"
            continue
        if not values:
            continue
        if len(values) != len(header):
            yield line, values, f"has {len(values)} cells where the header has {len(header)}"
        else:
            yield line, dict(zip(header, values, strict=True)), None


def _read_parquet(file: BinaryIO) -> Iterator[Row]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield number, row, None


READERS: dict[str, Callable[[BinaryIO], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "json": _read_json,
}


def _readable(text: str) -> str | None:
    """Say why a row's text cannot be stored: a byte that is not UTF-8 (csv), or half a character (`\\ud83d` in JSON)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        return (
            f"is not UTF-8: byte {ord(half) & 0xFF:#x}" if "\udc80" <= half <= "\udcff" else "is not text: half a surrogate pair"
        )
    return None


def find_files(source: SourceParameters, folders: FolderParameters) -> list[str]:
    """Return the locations of a source's files, sorted: one file, all files of a folder, or what a glob matches.

    Raises:
        UserError: if there is none, or the storage cannot be reached.
    """
    location = folders.locate(source.path)
    try:
        files, root = fsspec.url_to_fs(location)
        if any(mark in root for mark in "*?["):
            found = [name for name in files.glob(root) if files.isfile(name)]
        elif files.isdir(root):
            found = [name for name in files.find(root) if not PurePosixPath(name).name.startswith((".", "_"))]
        else:
            found = [root] if files.exists(root) else []
        if not found:
            raise UserError(f"data.path: there is no file {source.path} (relative paths begin at the project's root).")
        return sorted(files.unstrip_protocol(name) if "://" in location else name for name in found)
    except ImportError as error:
        raise UserError(f"data.path: {source.path} needs a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"data.path: {source.path} cannot be reached: {error}") from error


def read(location: str, asked: str, shown: str) -> Iterator[Row]:
    """Read a file into (line, row, why it is bad).

    Raises:
        UserError: if the file as a whole cannot be read.
    """
    kind = format_of(location, asked)
    try:
        with fsspec.open(location, "rb", compression="infer").open() as file:
            # zstandard's reader knows no lines
            yield from READERS[kind](io.BufferedReader(file) if location.lower().endswith(".zst") else file)
    except FileNotFoundError as error:
        raise UserError(f"data.path: there is no file {shown} (relative paths begin at the project's root).") from error
    except ImportError as error:
        raise UserError(f"data.path: {shown} needs a package that is not installed: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, ValueError) as error:
        raise UserError(f"data.path: {shown} cannot be read as {kind}: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith(("zstandard", "zstd", "compression")):
            raise UserError(f"data.path: {shown} cannot be read as {kind}: {error}") from error
        raise


def ingest_file(out: Path, name: str, location: str, asked: str, shown: str, limit: int | None, rows_per_shard: int) -> None:
    """Write a file's rows as shards of schema `records.INGESTED`, in its order; memory holds one shard."""
    found = islice(read(location, asked, shown), limit)
    number = 0
    while rows := list(islice(found, rows_per_shard)):
        table = pa.Table.from_pylist([_ingested(name, shown, *row) for row in rows], schema=INGESTED)
        write_table(table, out / f"part-{number:05d}.parquet")
        number += 1


def _ingested(name: str, shown: str, line: int, row: Any, error: str | None) -> dict[str, Any]:
    text = json.dumps(row, ensure_ascii=False, default=str)
    why = error or _readable(text)
    return {"source": name, "file": shown, "line": line, "row": text.encode(errors="replace").decode(), "error": why}


def fingerprint(location: str) -> tuple[str, int]:
    """Return the sha256 and the size in bytes of a file as it is stored.

    Raises:
        UserError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with fsspec.open(location, "rb").open() as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(f"data.path: {location} cannot be read: {error}") from error
    return digest.hexdigest(), size


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
        for location in find_files(source, folders):
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
        raise UserError(f"data.path: {', '.join(fact['file'] for fact in facts)}: no rows in it.")
    return executor.table("ingest_rows", parts), facts
