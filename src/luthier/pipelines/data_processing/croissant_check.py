"""Check that a Croissant description is true.

mlcroissant only reads it back: its validator looks at the structure alone, and its loader logs a wrong sha256 and goes on. So
every statement about files is compared with their bytes here.
"""

import copy
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.artefacts import hash_of_file
from luthier.pipelines.data_processing.croissant import CONFORMS_TO, CONTEXT, REQUIRED, Json, exactly
from luthier.pipelines.data_processing.dataset_facts import columns_of

SAMPLE = 20
"""Records of a shard that are read back."""


def check(croissant: Json, folder: Path) -> list[str]:
    """Return all that is wrong with a description, in words; nothing if it is true. Uses no network.

    Compared are: the keys that schema.org and Croissant require; path, size and sha256 of every shard with its bytes; the
    columns and the number of rows with the shards; the structure, by mlcroissant; and a sample of records as mlcroissant
    reads them (the first ones of the first and of the last shard that has any) with what Arrow reads.

    Args:
        croissant: the description, as `croissant` returns it or as it was read from its file.
        folder: what its paths are relative to.
    """
    objects = [entry for entry in croissant.get("distribution") or [] if "cr:FileObject" in _types(entry)]
    problems = _missing_keys(croissant)
    wrong_files = [problem for entry in objects for problem in _wrong_file(entry, folder)]
    wrong_content = [] if wrong_files else _wrong_content(croissant, [folder / entry["contentUrl"] for entry in objects])
    problems += wrong_files + wrong_content
    with _beside_shards(croissant, folder, [] if wrong_files else [entry["contentUrl"] for entry in objects]) as place:
        refused = _refused(croissant, place)
        if not (refused or wrong_files or wrong_content):
            refused = _read_back(croissant, place, [entry["contentUrl"] for entry in objects])
    return problems + refused


def _types(entry: Json) -> list[str]:
    types = entry.get("@type") or []
    return [types] if isinstance(types, str) else types


def _missing_keys(croissant: Json) -> list[str]:
    problems = [f"{key} is missing or empty" for key in REQUIRED if not croissant.get(key)]
    creators = croissant.get("creator") or []
    for creator in creators if isinstance(creators, list) else [creators]:
        if not (isinstance(creator, dict) and creator.get("name")):
            problems.append("creator has no name")
    if croissant.get("@context") and not isinstance(croissant["@context"], dict):
        problems.append("@context must be an object: mlcroissant follows no address")
    elif croissant.get("@context") and croissant["@context"].get("@vocab") != CONTEXT["@vocab"]:
        problems.append(f"@context.@vocab must be {CONTEXT['@vocab']}: with any other one mlcroissant finds nothing")
    if croissant.get("conformsTo") and CONFORMS_TO[0] not in croissant["conformsTo"]:
        problems.append(f"conformsTo does not name {CONFORMS_TO[0]}")
    if croissant.get("isLiveDataset") is not False:
        problems.append("isLiveDataset must be false: of a live data set no hash is checked")
    return problems


def _wrong_file(entry: Json, folder: Path) -> list[str]:
    """Compare what is stated about a file with its bytes."""
    name = entry.get("@id")
    missing = [key for key in ("@id", "contentUrl", "contentSize", "sha256", "encodingFormat") if not entry.get(key)]
    if missing:
        return [f"{name}: {key} is missing" for key in missing]
    where = PurePosixPath(entry["contentUrl"])
    if where.is_absolute() or ".." in where.parts or "://" in entry["contentUrl"]:
        return [f"{name}: contentUrl {entry['contentUrl']} must be a path below the folder of the description"]
    path = folder / where
    if not path.is_file():
        return [f"{name}: there is no file {path}"]
    problems = []
    size = f"{path.stat().st_size} B"
    if entry["contentSize"] != size:
        problems.append(f"{name}: contentSize is {entry['contentSize']}, but the file has {size}")
    if entry["sha256"] != hash_of_file(path):
        problems.append(f"{name}: sha256 differs: the file has changed")
    return problems


def _records(croissant: Json) -> Json:
    """Return the record set of the rows; an empty one if it is missing."""
    return next((found for found in croissant.get("recordSet") or [] if found.get("@id") == "records"), {})


def _columns(croissant: Json) -> dict[str, list[str]]:
    """Return the columns that the fields are read from, with the members that are stated of each."""
    columns: dict[str, list[str]] = {}
    for field in _records(croissant).get("field") or []:
        for leaf in field.get("subField") or [field]:
            source = leaf.get("source") or {}
            members = columns.setdefault((source.get("extract") or {}).get("column") or field.get("@id"), [])
            if "transform" in source:
                members.append(source["transform"]["jsonPath"].removeprefix("$."))
    return columns


def _wrong_content(croissant: Json, paths: list[Path]) -> list[str]:
    """Compare the columns and the number of rows with the footers of the shards."""
    stated = _columns(croissant)
    sets = [entry for entry in croissant.get("distribution") or [] if "cr:FileSet" in _types(entry)]
    included = {pattern for entry in sets for pattern in entry.get("includes") or []}
    urls = [entry["contentUrl"] for entry in croissant.get("distribution") or [] if "cr:FileObject" in _types(entry)]
    problems = [f"{url} is in no file set: its records are not read" for url in urls if exactly(url) not in included]
    problems += [f"a file set includes {pattern}, whose hash is stated nowhere" for pattern in included - set(map(exactly, urls))]
    rows = 0
    for path in paths:
        try:
            footer = pq.ParquetFile(path)
            found = columns_of(footer.schema_arrow)
        except (pa.ArrowException, OSError) as error:
            problems.append(f"{path.name} is no Parquet file: {error}")
            continue
        rows += footer.metadata.num_rows
        problems += [f"{path.name} has no column {name}, which the description states" for name in stated.keys() - found]
        problems += [f"{path.name} has a column {name}, which the description leaves out" for name in found.keys() - stated]
        for name in sorted(stated.keys() & found.keys()):
            kind = found[name]
            members = set(kind) if isinstance(kind, dict) else set()
            if members != set(stated[name]):
                problems.append(f"{path.name}: {name} has the members {sorted(members)}, the description {sorted(stated[name])}")
    told = [entry["value"] for entry in croissant.get("variableMeasured") or [] if entry.get("name") == "rows"]
    if told and told != [rows]:
        problems.append(f"rows are stated as {told[0]}, but the shards have {rows}")
    return sorted(problems)


@contextmanager
def _beside_shards(croissant: Json, folder: Path, paths: list[str]) -> Iterator[Path]:
    """Yield a temporary folder with links to the shards: mlcroissant reads a description only from a file beside them."""
    with tempfile.TemporaryDirectory(prefix="luthier-croissant-") as name:
        for path in paths:
            link = Path(name, path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((folder / path).resolve())
        yield Path(name)


def _load(croissant: Json, place: Path) -> Any:
    """Return mlcroissant's data set, without the chatter of its logger."""
    import mlcroissant

    logging.getLogger("absl").setLevel(logging.ERROR)
    (place / "croissant.json").write_text(json.dumps(croissant), encoding="utf-8")
    return mlcroissant.Dataset(place / "croissant.json")


def _refused(croissant: Json, place: Path) -> list[str]:
    """Return what mlcroissant finds wrong with the structure, its warnings too."""
    try:
        issues = _load(croissant, place).metadata.ctx.issues
    except Exception as error:  # it raises whatever comes: KeyError, AttributeError, its own
        return [f"mlcroissant refuses it: {type(error).__name__}: {error}"]
    return [f"mlcroissant warns: {issue}" for issue in sorted(issues.warnings)]


def _read_back(croissant: Json, place: Path, paths: list[str]) -> list[str]:
    """Compare the first records of the first and the last shard with what Arrow reads."""
    full = [path for path in paths if pq.read_metadata(place / path).num_rows]
    return [problem for path in dict.fromkeys(full[:1] + full[-1:]) for problem in _read_back_shard(croissant, place, path)]


def _read_back_shard(croissant: Json, place: Path, path: str) -> list[str]:
    # one shard at a time: because of the reference to the splits, mlcroissant would hold all of them in memory
    narrowed = copy.deepcopy(croissant)
    for entry in narrowed["distribution"]:
        if "cr:FileSet" in _types(entry):
            entry["includes"] = [pattern for pattern in entry["includes"] if pattern == exactly(path)]
    expected = next(pq.ParquetFile(place / path).iter_batches(batch_size=SAMPLE)).to_pylist()
    try:
        found = [_plain(record) for record in islice(_load(narrowed, place).records("records"), len(expected))]
    except Exception as error:  # as above; the cause says more than the error
        return [f"{path} cannot be read through the description: {error.__cause__ or error}"]
    if len(found) != len(expected):
        return [f"{path}: {len(found)} records are read through the description, {len(expected)} are there"]
    problems = []
    for place_in_shard, (one, other) in enumerate(zip(found, expected, strict=True)):
        wrong = [name for name in other if one.get(name) != _something(other[name])]
        if wrong:
            problems.append(f"{path}: row {place_in_shard} reads differently through the description: {', '.join(wrong)}")
    return problems


def _something(value: Any) -> Any:
    """Return None for a list that holds nothing: to mlcroissant a null list is one element without anything."""
    if isinstance(value, list):
        return value if any(item is not None for element in value for item in element.values()) else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(record: Json) -> Json:
    """Return a record of mlcroissant as Arrow would give it: texts for bytes, short names for identities."""

    def leaf(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, list):
            return [{name.rsplit("/", 1)[1]: leaf(item) for name, item in element.items()} for element in value]
        return value

    return {name.rsplit("/", 1)[1]: _something(leaf(value)) for name, value in record.items()}
