"""Read a file of the user's into rows, each with its line. A row that cannot be read is kept with the reason."""

import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.configuration import DataParameters
from luthier.errors import UserError
from luthier.records import INGESTED
from luthier.text.prepare import strict_json

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def format_of(data: DataParameters) -> str:
    """Return the format that was asked for, or the one of the file's ending.

    Raises:
        UserError: if the ending tells nothing.
    """
    if data.format != "auto":
        return data.format
    ending = PurePosixPath(data.path).suffix.lower()
    if ending not in FORMATS:
        raise UserError(f"data.path: {data.path} ends in {ending or 'nothing'}: say data.format (jsonl, csv or parquet).")
    return FORMATS[ending]


def _read_jsonl(file: Any) -> Iterator[tuple[int, Any, str | None]]:
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = strict_json(text)
        except UnicodeDecodeError as error:
            yield (
                number,
                line.decode("utf-8", errors="replace").rstrip("\n"),
                f"is not UTF-8: {error.reason} at byte {error.start}",
            )
        except ValueError as error:
            yield number, text.rstrip("\n"), f"is not JSON: {error}"
        else:
            if isinstance(row, dict):
                yield number, row, None
            else:
                yield number, row, f"is not a JSON object but {type(row).__name__}"


def _read_csv(file: Any) -> Iterator[tuple[int, Any, str | None]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    header = next(reader, [])
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


def _read_parquet(file: Any) -> Iterator[tuple[int, Any, str | None]]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, row, None


READERS = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}


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


def read_rows(data: DataParameters, location: str) -> pa.Table:
    """Read the user's file at `location`, which is `data.path` made absolute.

    Returns:
        a table of schema `records.INGESTED`, one row a row of the file, in its order.

    Raises:
        UserError: if the file is missing, empty, or not of its format.
    """
    reader = READERS[format_of(data)]
    found: list[dict[str, Any]] = []
    try:
        with fsspec.open(location, "rb", compression="infer").open() as file:
            for line, row, error in reader(file):
                text = json.dumps(row, ensure_ascii=False, default=str)
                why = error or _readable(text)
                text = text.encode(errors="replace").decode()
                found.append({"file": data.path, "line": line, "row": text, "error": why})
                if data.max_rows is not None and len(found) >= data.max_rows:
                    break
    except FileNotFoundError as error:
        raise UserError(f"data.path: there is no file {data.path} (relative paths begin at the project's root).") from error
    except ImportError as error:
        raise UserError(f"data.path: {data.path} needs a package that is not installed: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, ValueError) as error:
        raise UserError(f"data.path: {data.path} cannot be read as {format_of(data)}: {error}") from error
    if not found:
        raise UserError(f"data.path: {data.path} holds no rows.")
    return pa.Table.from_pylist(found, schema=INGESTED)
