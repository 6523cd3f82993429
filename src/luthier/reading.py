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
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.configuration import FolderParameters
from luthier.errors import UserError
from luthier.text.prepare import strict_json

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "json"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
FORMAT_OF = {"data.path": "data.format", "inference.source": "inference.format"}
"""Parameters that name files whose format can be told."""
QUOTES = "within quotes, a quote is written twice"
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
        say = f"say {FORMAT_OF[key]} (jsonl, csv, parquet or json)" if key in FORMAT_OF else "rename it"
        raise UserError(
            f"{key}: {path} ends in {ending or 'nothing'}: {say}. "
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


class CsvRow(NamedTuple):
    """A row of a CSV file, good or bad."""

    line: int
    """The one that it begins in, counted from 1."""
    text: list[str]
    """Its lines, with their ends."""
    cells: list[str]
    error: str | None
    """Why it is no row."""

    @property
    def swallows(self) -> bool:
        """Tell whether it is bad over several lines: then nothing tells which of them are rows of their own."""
        return self.error is not None and len(self.text) > 1


# A cell and the comma behind it. One that begins without a quote may hold some.
_CELL = re.compile(r'(?:"(?:[^"]++|"")*+"|[^",\r\n][^,\r\n]*+)?,')


def csv_rows(lines: Iterable[str]) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file, the header and empty ones included; each line is part of one.

    Strictly: without that, a stray quote makes one cell of all lines up to the next one, or to the end.
    """
    csv.field_size_limit(1 << 30)
    seen: list[str] = []
    at = 1

    def read_on() -> Iterator[str]:
        for line in lines:
            seen.append(line)
            yield line

    reader = csv.reader(read_on(), strict=True)
    while True:
        cells, error = list[str](), None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as broken:
            begin = at + _place_of_cell(seen)
            error = f"{broken} in the cell that begins in line {begin}"
        yield CsvRow(at, seen.copy(), cells, error)
        at += len(seen)
        seen.clear()


def _place_of_cell(lines: list[str]) -> int:
    """Return the number, from 0, of the line in which the first cell begins that is none."""
    text, place = "".join(lines), 0
    while match := _CELL.match(text, place):
        place = match.end()
    return sum(end <= place for end in accumulate(map(len, lines)))


def _read_csv(file: BinaryIO) -> Iterator[Row]:
    rows = csv_rows(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    header = next(rows, None)
    if header is None:
        return
    if header.error:
        raise ValueError(f"its header is not CSV: {header.error}; {QUOTES}")
    names = header.cells
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"its header names {', '.join(map(repr, repeated))} more than once")
    for row in rows:
        if row.swallows:
            raise ValueError(_swallowed(row, rows))
        if row.error:
            yield row.line, row.text[0].rstrip("\r\n"), f"is not CSV: {row.error}; {QUOTES}"
        elif len(row.cells) != len(names) and row.cells:
            yield row.line, row.cells, f"has {len(row.cells)} cells where the header has {len(names)}"
        elif row.cells:
            yield row.line, dict(zip(names, row.cells, strict=True)), None


def _swallowed(first: CsvRow, others: Iterable[CsvRow]) -> str:
    places = [
        f"\n  lines {row.line:,} to {row.line + len(row.text) - 1:,}: {row.error}"
        for row in chain([first], others)
        if row.swallows
    ]
    more = f"\n  and {len(places) - 5:,} more" if len(places) > 5 else ""
    return f"one quote too many or too few, and nothing tells which lines are rows; {QUOTES}:{''.join(places[:5])}{more}"


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
