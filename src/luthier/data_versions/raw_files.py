"""Rows in raw files: which hold somebody's text, and a file without them. All other rows keep their bytes."""

import bz2
import gzip
import io
import json
import lzma
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from luthier.artefacts import canonical_json, write_atomically
from luthier.configuration import DataParameters, FolderParameters
from luthier.data_versions.needles import Needles
from luthier.errors import UserError
from luthier.executors import key_of
from luthier.reading import COMPRESSED, FORMATS, as_json, csv_rows, find_files, format_of, read
from luthier.text.pii import KINDS, scrub_all

RAW = "data/01_raw"
BY_HAND = (".json", ".md", ".txt", ".yml", ".yaml")


@dataclass(frozen=True)
class RawFile:
    """A file that rows are read from."""

    location: str
    """A path or a URI."""
    shown: str
    format: str
    source: str | None
    """Name of the source; None for a file that merely lies there."""
    prefix: str = ""
    """What an id of its rows stands behind in prepared data."""


@dataclass(frozen=True)
class RawRows:
    """Rows of a file that hold what is looked for."""

    file: RawFile
    lines: tuple[int, ...]
    names: frozenset[str]
    """Their ids, as they stand there and as records are called. In another version of the data they may have been others'."""
    keys: frozenset[str]
    """Those of the records that they become: a hash of source and row, so no other row's in any version."""


def raw_files(data: DataParameters, folders: FolderParameters, also: Collection[str]) -> list[RawFile]:
    """Return the files of all sources, and what else lies among the raw data.

    Args:
        data: where the sources are.
        folders: where the project stands.
        also: further files, if they are there.
    """
    found: dict[str, RawFile] = {}
    for name, source in data.all_sources().items():
        for location in find_files(source.path, folders, optional=True):
            kind = format_of(location, source.format)
            found[location] = RawFile(location, location.removeprefix(folders.root + "/"), kind, name, data.called(name, ""))
    beside = [str(path) for path in sorted(Path(folders.root, RAW).rglob("*")) if path.is_file()]
    for location in [*beside, *(path for path in also if Path(path).is_file())]:
        suffixes = [suffix for suffix in PurePosixPath(location).suffixes if suffix not in COMPRESSED]
        if location not in found and suffixes and suffixes[-1] in FORMATS:
            found[location] = RawFile(location, location.removeprefix(folders.root + "/"), FORMATS[suffixes[-1]], None)
    return list(found.values())


def search(file: RawFile, needles: Needles, id_column: str | None, key: str) -> RawRows | None:
    """Return the rows of a file that hold what is looked for; None if there is none.

    Args:
        file: which.
        needles: what.
        id_column: the column of a row's id.
        key: of the placeholders, by which a value is found however it is spaced.
    """
    lines, names, keys, texts_alone = [], set[str](), set[str](), Needles(needles.texts)
    try:
        for line, row, error in read(file.location, file.format, file.shown, "data.path" if file.source else RAW):
            text, _ = as_json(row, error)
            value = json.loads(text)
            called, known_by = ids_of(value, id_column, file.prefix), keys_of(value, file.source)
            if (called | known_by) & needles.names or _holds(value, texts_alone, key):
                lines.append(line)
                names |= called
                keys |= known_by
    except UserError:
        if file.source is None and file.format == "json":  # such as a schema: no table, but `mentions` reads it
            return None
        raise
    return RawRows(file, tuple(lines), frozenset(names), frozenset(keys)) if lines else None


def ids_of(row: Any, id_column: str | None, prefix: str = "") -> set[str]:
    """Return what a row is called by its own columns: its id, also as records have it, and that of its request."""
    columns = {"id", "request", id_column or "id"} if isinstance(row, dict) else set()
    ids = {str(row[column]) for column in columns if isinstance(row.get(column), str | int)}
    return ids | {f"{prefix}{name}" for name in ids}


def keys_of(row: Any, source: str | None) -> set[str]:
    """Return the key of the record that a row of a source becomes."""
    return {key_of(source, canonical_json(row))} if isinstance(row, dict) and source is not None else set()


def _holds(value: Any, needles: Needles, key: str) -> bool:
    if needles.in_value(value):
        return True
    if not needles.placeholders:
        return False
    texts = list(_texts(value))
    _, found = scrub_all(texts, key, KINDS)
    return any(name in needles.placeholders for values in found.values() for name in values)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def mentions(root: str, rows: Sequence[RawRows], needles: Needles) -> list[tuple[str, int]]:
    """Return file and line of what stands among the raw data and is no row of a table: notes, schemas, lists of defects."""
    known = {found.file.location for found in rows}
    found = []
    for path in sorted(Path(root, RAW).rglob("*")):
        if path.is_file() and path.suffix in BY_HAND and str(path) not in known:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [
                (path.relative_to(root).as_posix(), number) for number, line in enumerate(lines, 1) if needles.in_page(line)
            ]
    return found


# --- a file without some of its rows


def take_out(found: RawRows) -> None:
    """Write the file again without the rows; a reader finds the old file or the new one.

    Raises:
        UserError: if it cannot be written.
    """
    location = found.file.location
    ending = PurePosixPath(location).suffix.lower()
    try:
        with fsspec.open(location, "rb", compression="infer").open() as file:
            content = file.read()
        kept = _WITHOUT[found.file.format](content, set(found.lines))
        packed = _COMPRESS[ending](kept) if ending in COMPRESSED else kept
        if "://" not in location:
            place, mode = Path(location), Path(location).stat().st_mode
            # a link stays one; but what nobody may write belongs to a store, such as DVC's, which knows it by its hash
            target = place.resolve() if mode & stat.S_IWUSR else place
            write_atomically(target, packed, mode)
            return
        storage, path = fsspec.url_to_fs(location)
        storage.pipe_file(path, packed)
    except OSError as error:
        raise UserError(f"{found.file.shown} cannot be written: {error}") from error


def _without_lines(content: bytes, lines: set[int]) -> bytes:
    return b"".join(line for number, line in enumerate(io.BytesIO(content), 1) if number not in lines)


def _without_csv_rows(content: bytes, lines: set[int]) -> bytes:
    """Leave rows out by the line that they begin in; a row may go over several."""
    mark = b"\xef\xbb\xbf" if content.startswith(b"\xef\xbb\xbf") else b""
    text = io.TextIOWrapper(io.BytesIO(content[len(mark) :]), "utf-8", errors="surrogateescape", newline="")
    kept = "".join(line for row in csv_rows(text) if row.line not in lines for line in row.text)
    return mark + kept.encode("utf-8", "surrogateescape")


def _without_elements(content: bytes, numbers: set[int]) -> bytes:
    text = content.decode("utf-8-sig")
    rows = [row for number, row in enumerate(json.loads(text), 1) if number not in numbers]
    inner = [line for line in text.splitlines()[1:] if line.strip()]
    indent = len(inner[0]) - len(inner[0].lstrip()) if inner else None
    return (json.dumps(rows, ensure_ascii=text.isascii(), indent=indent or None) + "\n").encode()


def _without_parquet_rows(content: bytes, numbers: set[int]) -> bytes:
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()
        compression = file.metadata.row_group(0).column(0).compression
    kept = table.filter(pa.array([number not in numbers for number in range(1, len(table) + 1)]))
    sink = io.BytesIO()
    pq.write_table(kept, sink, compression="none" if compression == "UNCOMPRESSED" else compression)
    return sink.getvalue()


_WITHOUT: dict[str, Callable[[bytes, set[int]], bytes]] = {
    "jsonl": _without_lines,
    "csv": _without_csv_rows,
    "json": _without_elements,
    "parquet": _without_parquet_rows,
}
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def in_git(root: Path, found: Sequence[RawRows]) -> list[str]:
    """Return which of the files git keeps, whose history still holds what is taken out."""
    from luthier.lineage import tracked

    return [rows.file.shown for rows in found if "://" not in rows.file.location and tracked(root, rows.file.location)]
