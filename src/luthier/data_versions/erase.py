"""Find and erase what a person wrote: raw files, prepared data, answers and reports, and the request log.

    requests and votes -> work of data processing -> answers and reports -> prepared data -> raw files

What leads to the rest goes last, so an erasure that was broken off is given again and finds what is left. Weights are not
changed: it is told which models were trained on the rows. The record of erasures says what was removed, never what it was.
"""

import getpass
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.data_versions.needles import Needles
from luthier.data_versions.prepared import ROWS
from luthier.data_versions.raw_files import RawFile, RawRows, ids_of, keys_of, mentions, search, take_out
from luthier.data_versions.store import HIDDEN, REMOVED, DataSet, age_in_seconds, remove_tree
from luthier.executors import SECONDS_KEPT
from luthier.records import user_text
from luthier.serving.records.erasure import empty_texts, prompts_of, requests_holding
from luthier.shards import Shards

ROWS_AS_READ = "ingested_rows"


@dataclass(frozen=True)
class Where:
    """Where to look."""

    root: str
    """The project."""
    raw: Sequence[RawFile]
    id_column: str | None
    prepared: Sequence[DataSet]
    """What data processing makes."""
    others: Sequence[DataSet]
    """Answers, reports: whatever else holds text."""
    log_uri: str
    work: Sequence[Path]
    """What holds texts too and is made again when it is asked for: results of the steps of data processing, kept answers."""
    key: str
    """Of the placeholders."""


@dataclass(frozen=True)
class Model:
    """A registered version of the model whose data holds the rows."""

    number: int
    data: str
    """Version of the data."""
    rows: dict[str, int] | None
    """Rows by split; none if they were dropped before. Null if the data is gone: then it cannot be told."""


@dataclass(frozen=True)
class Found:
    """Where it stands."""

    raw: list[RawRows]
    prepared: dict[str, list[str]]
    """Version -> data sets that hold it."""
    others: list[tuple[DataSet, str]]
    requests: list[str]
    models: list[Model]
    broken_off: list[Path]
    """What is left of a removal that was broken off, whatever it holds."""
    by_hand: list[tuple[str, int]]
    """File and line among the raw data that no program can mend."""

    @property
    def is_nothing(self) -> bool:
        """Tell whether it stands nowhere that can be erased."""
        return not (self.raw or self.prepared or self.others or self.requests or self.broken_off)

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON; it names places, never what stands there."""
        return {
            "raw": [{"file": rows.file.shown, "lines": list(rows.lines)} for rows in self.raw],
            "prepared": self.prepared,
            "others": [{"data_set": dataset.name, "version": version} for dataset, version in self.others],
            "requests": len(self.requests),
            "models": [vars(model) for model in self.models],
            "broken_off": list(map(str, self.broken_off)),
            "by_hand": [f"{file}:{line}" for file, line in self.by_hand],
        }


def find(wanted: Needles, where: Where, models: Mapping[int, str]) -> Found:
    """Look everywhere.

    Args:
        wanted: a text, or the id of a row.
        where: to look.
        models: registered version of the model -> version of the data that it was trained on.
    """
    raw = [rows for file in where.raw if (rows := search(file, wanted, where.id_column, where.key)) is not None]
    by_key = wanted.with_names(key for rows in raw for key in rows.keys)
    everywhere = by_key.with_names(name for rows in raw for name in rows.names)
    prepared: dict[str, list[str]] = {}
    splits: dict[str, dict[str, int]] = {}
    held = {dataset.name: set(dataset.versions()) for dataset in where.prepared}
    for version in sorted({version for versions in held.values() for version in versions}, reverse=True):
        sets = [dataset for dataset in where.prepared if version in held[dataset.name]]
        needles = _of_version(by_key, sets, version, where)  # an id may have been somebody else's in another one
        everywhere |= needles
        if holding := [dataset.name for dataset in sets if _holds(dataset, version, needles)]:
            prepared[version] = holding
            splits[version] = _splits(sets, version, needles)
    requests = requests_holding(where.log_uri, wanted.names, wanted.in_value)
    everywhere = everywhere.with_heads(map(user_text, prompts_of(where.log_uri, requests)))  # reports quote them without an id
    others = [
        (dataset, version) for dataset in where.others for version in dataset.versions() if _holds(dataset, version, everywhere)
    ]
    known = held.get(ROWS, set())
    told = [
        Model(number, data, splits.get(data, {}) if data in known else None)
        for number, data in sorted(models.items())
        if data in prepared or data not in known
    ]
    return Found(raw, prepared, others, requests, told, _broken_off(where), mentions(where.root, raw, everywhere))


def _broken_off(where: Where) -> list[Path]:
    """Return what was left of removals, and of what was written a day ago and more: a run under way may still write the rest."""
    places = {folder.parent for folder in where.work}
    beside = [path for place in places for path in place.glob(".*") if path.name.startswith(HIDDEN)]
    left = [*(path for dataset in (*where.prepared, *where.others) for path in dataset.leftovers()), *beside]
    return [path for path in left if path.name.startswith(REMOVED) or age_in_seconds(path, time.time()) > SECONDS_KEPT]


def _of_version(wanted: Needles, sets: Sequence[DataSet], version: str, where: Where) -> Needles:
    """Return what else to look for in a version: the keys and ids of the rows that hold it, and how reports quote them."""
    names, heads = set[str](), list[str]()
    for dataset in sets:
        if dataset.name == ROWS_AS_READ:
            for row in _rows(dataset, version, wanted):
                value = json.loads(row["row"]) if row["row"] and not row["error"] else None
                names |= ids_of(value, where.id_column) | keys_of(value, row["source"])
    needles = wanted.with_names(names)
    for dataset in sets:
        if dataset.name in ("records", "scrubbed_records", ROWS):
            for row in _rows(dataset, version, needles):
                names |= {row["key"], row["id"]}
                heads.append(user_text(row["messages"]))
    return needles.with_names(names).with_heads(heads)


def _rows(dataset: DataSet, version: str, needles: Needles) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with dataset.opened(version) as folder:
        for batch in Shards(folder).iter_batches(size=4096):
            table = pa.Table.from_batches([batch])
            if (mask := needles.rows(table)).any():
                found += table.filter(pa.array(mask)).to_pylist()
    return found


def _splits(sets: Sequence[DataSet], version: str, needles: Needles) -> dict[str, int]:
    found = Counter[str]()
    for dataset in sets:
        if dataset.name == ROWS:
            found.update(row["split"] for row in _rows(dataset, version, needles))
    return dict(sorted(found.items()))


def _holds(dataset: DataSet, version: str, needles: Needles) -> bool:
    with dataset.opened(version) as place:
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        return any(needles.in_file(file) for file in files)


def erase(found: Found, where: Where, record: "Record", reason: str) -> None:
    """Remove what was found; broken off, it is given again and finds what is left.

    Args:
        found: from `find`.
        where: as there.
        record: of erasures.
        reason: why, for the record.
    """
    number = record.begin(found, reason)
    if found.requests:
        empty_texts(where.log_uri, found.requests)
    for path in found.broken_off:
        remove_tree(path)
    if found.raw or found.prepared or found.others:
        for folder in filter(Path.is_dir, where.work):
            remove_tree(folder)
    for dataset, version in found.others:
        dataset.remove(version)
    for version, holding in found.prepared.items():
        # first those in which only a key or an id leads to the row
        ordered = sorted(where.prepared, key=lambda dataset: (dataset.name in holding, dataset.name == ROWS_AS_READ))
        for dataset in ordered:
            if version in dataset.versions():
                dataset.remove(version)
    for rows in found.raw:
        take_out(rows)
    record.end(number)


@dataclass(frozen=True)
class Record:
    """The record of erasures: JSON lines, one when an erasure begins and one when it has ended."""

    storage: Any
    path: str

    def lines(self) -> list[dict[str, Any]]:
        """Return what was recorded."""
        if not self.storage.exists(self.path):
            return []
        return [json.loads(line) for line in self.storage.cat_file(self.path).decode().splitlines()]

    def begin(self, found: Found, reason: str) -> int:
        """Write down what is about to be removed, and return the number of the erasure."""
        number = max((line["erasure"] for line in self.lines()), default=0) + 1
        self._add({"erasure": number, "state": "begun", "who": getpass.getuser(), "reason": reason, **found.as_dict()})
        return number

    def end(self, number: int) -> None:
        """Write down that it is removed."""
        self._add({"erasure": number, "state": "done"})

    def _add(self, line: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"at": at, **line}, ensure_ascii=False) + "\n"
        before = self.storage.cat_file(self.path) if self.storage.exists(self.path) else b""
        self.storage.makedirs(self.path.rpartition("/")[0], exist_ok=True)
        self.storage.pipe_file(self.path, before + text.encode())
