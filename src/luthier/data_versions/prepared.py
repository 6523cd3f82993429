"""The versions of the prepared data: what each holds, and which models stand on it."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from luthier.chain import DATA, MADE
from luthier.data_versions.store import DataSet
from luthier.errors import UserError, did_you_mean
from luthier.shards import Shards

ROWS = "split_records"
"""The data set that is meant by the rows of a version."""
_STANDS_ON = (ROWS, "examples")


@dataclass(frozen=True)
class Prepared:
    """One version of the prepared data."""

    version: str
    """When it was made; Kedro gives it to every data set of a run."""
    rows: dict[str, int]
    """Records by split."""
    sha256: str
    """Of the records."""
    sources: list[dict[str, Any]]
    """Files that were read: `file`, `sha256`, `rows`."""
    bytes: int
    missing: tuple[str, ...]
    """Data sets that a version has and this one has not: a run that was broken off, or ran in part."""
    models: tuple[int, ...]
    """Registered versions of the model that were trained on it."""


def prepared_versions(sets: Sequence[DataSet], models: Mapping[int, str]) -> list[Prepared]:
    """Return the versions of the prepared data, the newest first.

    Args:
        sets: the data sets that data processing makes.
        models: version of the model -> version of the data that it was trained on.
    """
    held = {dataset.name: set(dataset.versions()) for dataset in sets}
    named = {dataset.name: dataset for dataset in sets}
    found = []
    for version in sorted(held[ROWS], reverse=True):
        here = [dataset for dataset in sets if version in held[dataset.name]]
        manifest = _json_of(named[ROWS], version, "manifest.json")
        report = _json_of(named["data_report"], version) if version in held["data_report"] else {}
        found.append(
            Prepared(
                version=version,
                rows=report.get("splits", {"all": int(manifest["rows"])}),
                sha256=str(manifest["sha256"]),
                sources=_json_of(named["sources"], version) if version in held["sources"] else [],
                bytes=size_of(here, version),
                missing=tuple(dataset.name for dataset in sets if version not in held[dataset.name]),
                models=tuple(number for number, data in sorted(models.items()) if data == version),
            )
        )
    return found


def size_of(sets: Sequence[DataSet], version: str) -> int:
    """Return the bytes of a version of several data sets, each file once."""
    files = {file.inode or file.path: file for dataset in sets for file in dataset.files(version)}
    return sum(file.bytes for file in files.values())


def _json_of(dataset: DataSet, version: str, within: str = "") -> Any:
    path = dataset.data(version) + (f"/{within}" if within else "")
    return json.loads(dataset.storage.cat_file(path))


def data_of(tags: Mapping[str, str]) -> str | None:
    """Return the version of the prepared data that a run made or read, as MLflow has recorded it."""
    for prefix in (MADE, DATA):
        for name in _STANDS_ON:
            if value := tags.get(f"{prefix}{name}"):
                return value.split()[0]
    return None


def resolve(which: str, versions: Collection[str], models: Mapping[int, str], aliases: Mapping[str, int]) -> str:
    """Return the version of the data that is meant.

    Args:
        which: `newest`, a version or its beginning, or a version of the model (its number or alias): what it was trained on.
        versions: of the prepared data.
        models: version of the model -> version of the data.
        aliases: alias -> version of the model.

    Raises:
        UserError: with what there is, if it is none of them or several.
    """
    known = sorted(versions, reverse=True)
    if not known:
        raise UserError("There is no prepared data yet: `kedro run --pipeline data_processing` makes some.")
    if which == "newest":
        return known[0]
    number = aliases.get(which, int(which) if which.isdecimal() and len(which) < 4 else None)
    if number is not None:
        if number not in models:
            raise UserError(f"{which}: no version {number} of the model is registered whose data is known (`kedro models`).")
        if models[number] not in versions:
            raise UserError(f"{which}: version {number} of the model was trained on {models[number]}, which is gone.")
        return models[number]
    found = [version for version in known if which and version.startswith(which)]
    if len(found) != 1:
        hint = did_you_mean(which, [*known, *aliases, "newest"])
        raise UserError(
            f"{'More than one version' if found else 'No version'} of the data begins with {which!r}{hint}. "
            f"There are: {', '.join(known[:5])}{' and more' if len(known) > 5 else ''} (`kedro data versions`)."
        )
    return found[0]


@contextmanager
def opened_rows(sets: Sequence[DataSet], version: str) -> Iterator[Shards]:
    """Yield the records of a version."""
    (dataset,) = (dataset for dataset in sets if dataset.name == ROWS)
    with dataset.opened(version) as folder:
        yield Shards(folder)
