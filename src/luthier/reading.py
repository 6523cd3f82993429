"""Read files into rows, each with its line. A row that cannot be read comes out with the reason.

Files are jsonl, csv, Parquet or JSON arrays, compressed or not, here or wherever fsspec reaches. Errors begin with the parameter
that named the file.
"""

import csv
import hashlib
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.configuration import FolderParameters
from luthier.errors import UserError
from luthier.text.prepare import strict_json

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "json"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
Row = tuple[int, Any, str | None]


def format_of(path: str, asked: str, key: str = "data.path") -> str:
    """Return the format that was asked for, or the one of the file's ending, that of a compression aside.

    Args:
        path: the file.
        asked: a format, or `auto`.
        key: the parameter that named the file, for errors.

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
            f"{key}: {path} ends in {ending or 'nothing'}: say {key.rpartition('.')[0]}.format (jsonl, csv, parquet or json). "
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


def as_json(row: Any, error: str | None) -> tuple[str, str | None]:
    """Return a row as JSON that can be stored, and why it is bad: what `read` said, or that its text is none.

    Text is none that holds a byte that is not UTF-8 (csv, binary columns of Parquet), or half a character (`\\ud83d` in JSON). A
    number that JSON does not know, such as the NaN that Parquet files have for what is missing, becomes null.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, default=_as_text, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, default=_as_text)
    return text.encode(errors="replace").decode(), error or _why_unreadable(row, text)


def _as_text(value: Any) -> str:
    """Spell what JSON has not: bytes as the UTF-8 that they are, dates, times and decimals as Python prints them."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _why_unreadable(row: Any, text: str) -> str | None:
    half = _half(text)
    if half is None:
        return None
    items = row.items() if isinstance(row, dict) else ()
    column = next((f"{name} " for name, value in items if _half(json.dumps(value, ensure_ascii=False, default=_as_text))), "")
    if "\udc80" <= half <= "\udcff":
        return f"{column}is not UTF-8: byte {ord(half) & 0xFF:#x}; write it as UTF-8 text, or leave the column out"
    return f"{column}is not text: half a surrogate pair"


def _half(text: str) -> str | None:
    """Return the first half of a surrogate pair: what stands for a byte that is no text, or came so."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def find_files(path: str, folders: FolderParameters, key: str = "data.path", optional: bool = False) -> list[str]:
    """Return the locations of files, sorted: one file, all files of a folder, or what a glob matches.

    Raises:
        UserError: if there is none though it is not optional, or the storage cannot be reached.
    """
    location = folders.locate(path)
    try:
        files, root = fsspec.url_to_fs(location)
        if any(mark in root for mark in "*?["):
            found = [name for name in files.glob(root) if files.isfile(name)]
        elif files.isdir(root):
            found = [name for name in files.find(root) if not PurePosixPath(name).name.startswith((".", "_"))]
        else:
            found = [root] if files.exists(root) else []
        if not found and not optional:
            raise UserError(f"{key}: there is no file {path} (relative paths begin at the project's root).")
        return sorted(files.unstrip_protocol(name) if "://" in location else name for name in found)
    except ImportError as error:
        raise UserError(f"{key}: {path} needs a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be reached: {error}") from error


def read(location: str, asked: str, shown: str, key: str = "data.path") -> Iterator[Row]:
    """Read a file into (line, row, why it is bad).

    Raises:
        UserError: if the file as a whole cannot be read.
    """
    kind = format_of(location, asked, key)
    try:
        with fsspec.open(location, "rb", compression="infer").open() as file:
            # zstandard's reader knows no lines
            yield from READERS[kind](io.BufferedReader(file) if location.lower().endswith(".zst") else file)
    except FileNotFoundError as error:
        raise UserError(f"{key}: there is no file {shown} (relative paths begin at the project's root).") from error
    except ImportError as error:
        raise UserError(f"{key}: {shown} needs a package that is not installed: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{key}: {shown} cannot be read as {kind}: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith(("zstandard", "zstd", "compression")):
            raise UserError(f"{key}: {shown} cannot be read as {kind}: {error}") from error
        raise


def fingerprint(location: str, key: str = "data.path") -> tuple[str, int]:
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
        raise UserError(f"{key}: {location} cannot be read: {error}") from error
    return digest.hexdigest(), size
