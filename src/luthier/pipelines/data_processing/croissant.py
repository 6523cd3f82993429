"""Describe a finished data set to machines: Croissant 1.1 (MLCommons), and a check that the description is true.

The description is a dictionary of our own: mlcroissant only reads it back. Its validator looks at the structure alone, and
its loader logs a wrong sha256 and goes on, so `check` compares every statement about files with their bytes itself.
Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html and, for `rai:`, croissant-rai-spec.html.
"""

import base64
import copy
import datetime
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from luthier.artefacts import canonical_json, hash_of, hash_of_file
from luthier.configuration import Parameters

NOT_STATED = "not stated"
SAMPLE = 20
"""Records of a shard that are read back by `check`."""

Json = dict[str, Any]


class Describe(Parameters):
    """What only its owner can say about a data set. It stands in the Croissant file and in the data card."""

    name: str = Field(default="luthier-data", min_length=1)
    """Short name of the data set."""
    description: str = Field(default="Conversations for fine-tuning a language model, prepared by Luthier.", min_length=1)
    """What the data set holds, in a sentence or two."""
    version: str = Field(default="1.0.0", pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([-+][0-9A-Za-z.+-]+)?$")
    """MAJOR.MINOR.PATCH: MAJOR when rows changed, MINOR when rows were added, PATCH when only the files did."""
    license: str = Field(default=NOT_STATED, min_length=1)
    """Licence of the data set, best as an address such as `https://spdx.org/licenses/CC-BY-4.0.html`."""
    url: str | None = None
    """Page of the data set; null writes a name made of its hash (RFC 6920) instead."""
    creator: str = Field(default=NOT_STATED, min_length=1)
    """Who made the data set."""
    creator_type: Literal["Organization", "Person"] = "Organization"
    """What the creator is."""
    date_published: datetime.date | None = None
    """Day of publication, YYYY-MM-DD; null takes the day of the git commit."""
    data_collection: str = NOT_STATED
    """How and from whom the data was collected."""
    limitations: str = NOT_STATED
    """What the data set is not good for."""
    biases: str = NOT_STATED
    """Who or what it shows too often, too rarely or in a slanted way."""
    personal_sensitive_information: str = "Known patterns of personal data were searched for; names and addresses were not."
    """Which personal data may be left in it."""
    use_cases: str = NOT_STATED
    """What it was made for."""


class File(Parameters):
    """One Parquet shard."""

    path: str = Field(pattern=r"^\S+$")
    """Where it lies, relative to the folder of the description, with forward slashes; mlcroissant takes no white space."""
    bytes: int = Field(ge=0)
    """Size."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the bytes, hexadecimal."""
    rows: int = Field(ge=0)
    """Rows in it."""
    split: str | None = None
    """The split that all of its rows belong to; null if they are mixed."""


class Source(Parameters):
    """One source that the data set was made from."""

    name: str
    """Its name, as in the column `source`."""
    uri: str
    """Where it was read from."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of what was read."""
    rows: int = Field(ge=0)
    """Rows read."""
    format: str
    """jsonl, csv, parquet ..."""
    shape: str
    """How its rows are written: messages, instruction and answer, ..."""
    license: str | None = None
    """Its licence, if it has one of its own."""


class Commit(Parameters):
    """The code that made the data set."""

    sha: str
    """Git commit."""
    dirty: bool
    """Whether the working tree differed from it."""
    date: datetime.date
    """Day of the commit."""


class Facts(Parameters):
    """All that is known about a finished data set: the Croissant file and the data card say nothing else."""

    describe: Describe
    """The user's words."""
    files: tuple[File, ...]
    """The shards, in order."""
    splits: dict[str, int]
    """Rows of each split."""
    columns: dict[str, str | dict[str, str]]
    """Arrow type of each column as text; for a list of structs, the types of its members. See `columns_of`."""
    sources: tuple[Source, ...]
    """What it was made from."""
    commit: Commit | None
    """The code; null outside of a git repository."""
    parameters: dict[str, Any]
    """Resolved parameters of the steps: JSON."""
    counts: dict[str, dict[str, int]]
    """For each step, in the order of the run, any of in, out, dropped, changed."""
    dropped: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Dropped rows by step and reason."""
    labels: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Rows by split and label."""
    label_deviation: dict[str, float] = Field(default_factory=dict)
    """For each split, the largest difference between a label's share in it and in the whole, from 0 to 1."""
    profile: dict[str, Any] = Field(default_factory=dict)
    """What was measured: finite numbers, and dictionaries of them, nested at will."""

    @field_validator("profile")
    @classmethod
    def _numbers_only(cls, profile: dict[str, Any]) -> dict[str, Any]:
        for name, value in measured(profile):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is neither a finite number nor a dictionary of numbers: {value!r}")
        return profile

    @property
    def published(self) -> str | None:
        """The day of publication as text, if there is one."""
        day = self.describe.date_published or (self.commit.date if self.commit else None)
        return day.isoformat() if day else None

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(file.rows for file in self.files)


def measured(profile: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested dictionary with their paths.

    >>> list(measured({"tokens": {"mean": 7.5}, "rows": 2}))
    [('tokens/mean', 7.5), ('rows', 2)]
    """
    for key, value in profile.items():
        if isinstance(value, dict):
            yield from measured(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def columns_of(schema: pa.Schema) -> dict[str, str | dict[str, str]]:
    """Return the columns of an Arrow schema as `Facts.columns` wants them."""
    columns: dict[str, str | dict[str, str]] = {}
    for field in schema:
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            members = field.type.value_type
            columns[field.name] = {member.name: str(member.type) for member in members}
        else:
            columns[field.name] = str(field.type)
    return columns


# Appendix 1 of the specification, and PROV-O. The loader warns of every key of the standard that is not here.
CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
PARQUET = "application/x-parquet"  # the registered application/vnd.apache.parquet is not understood by mlcroissant 1.1.1
DATA_TYPES = {"string": "sc:Text", "large_string": "sc:Text", "bool": "sc:Boolean", "float": "sc:Float", "double": "sc:Float"} | {
    f"{sign}int{bits}": "sc:Integer" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
SPLIT_TYPES = {"train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit"}
COLUMNS = {
    "key": "Hash of the source row; unique, and the rows are sorted by it.",
    "id": "The user's identifier of the row, behind its source if there are several; the key of a row without one.",
    "messages": "The conversation; of a preference pair, with the preferred answer.",
    "rejected": "Of a preference pair, the conversation with the answer that was not preferred.",
    "label": "The class of the row, if it has one; the splits were made without looking at it.",
    "meta": "Whatever else is known of the row, as a JSON object.",
    "source": "Name of the source that the row comes from.",
    "weight": "How often the row is taken in an epoch of training; a fraction is made up for over the epochs.",
    "content_hash": "Hash of the normalised conversation.",
    "cluster": "The group of near duplicates that the row belongs to; no group is in two splits.",
    "split": "train, validation or test.",
    "provenance": "For an augmented row, what made it from which row, as JSON.",
}
REQUIRED = (
    *("@context", "@type", "conformsTo", "name", "description", "license", "url", "creator", "datePublished"),
    *("distribution", "recordSet", "version", "citeAs", "prov:wasDerivedFrom", "prov:wasGeneratedBy", "variableMeasured"),
)


def _named_by_content(sha256: str) -> str:
    """Return the name of bytes by their hash (RFC 6920)."""
    return "ni:///sha-256;" + base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode().rstrip("=")


def _without_braces(text: str) -> str:
    return " ".join(text.replace("{", "(").replace("}", ")").replace("\\", "/").split())


def _citation(facts: Facts, url: str) -> str:
    """Return a BibTeX entry."""
    words = facts.describe
    key = "".join(character for character in words.name.lower() if character.isascii() and character.isalnum()) or "data"
    entries = {
        "title": words.name,
        "author": words.creator,
        "year": (facts.published or "")[:4],
        "version": words.version,
        "url": url,
    }
    told = ", ".join(f"{name} = {{{_without_braces(value)}}}" for name, value in entries.items() if value)
    return f"@misc{{{key}, {told}}}"


def _exactly(path: str) -> str:
    """Return the glob pattern that matches one path alone: brackets, stars and question marks mean themselves."""
    return "".join(f"[{character}]" if character in "[*?" else character for character in path)


def _distribution(files: tuple[File, ...]) -> list[Json]:
    """State every shard with its hash, and the set of them that the records are read from.

    The set names each file: mlcroissant's `*` crosses folders and would read whatever else lies there. It is contained in
    nothing, because its container would have to be an archive; mlcroissant then reads from the folder of the description.
    """
    objects = [
        {
            # in this order: mlcroissant looks at the first type alone; the second one is what search engines know
            "@type": ["cr:FileObject", "sc:DataDownload"],
            "@id": file.path,
            "name": PurePosixPath(file.path).name,
            "description": f"{file.rows} rows" + (f" of the split {file.split}" if file.split else ""),
            "contentUrl": file.path,
            "contentSize": f"{file.bytes} B",
            "encodingFormat": PARQUET,
            "sha256": file.sha256,
        }
        for file in files
    ]
    shards = {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "All shards, in order.",
        "encodingFormat": PARQUET,
        "includes": [_exactly(file.path) for file in files],
    }
    return [*objects, shards]


def _data_type(name: str, kind: str) -> str:
    if kind not in DATA_TYPES:
        raise ValueError(
            f"the column {name} is of type {kind}, for which Croissant has no word here; known: {', '.join(DATA_TYPES)}"
        )
    return DATA_TYPES[kind]


def _field(name: str, kind: str | dict[str, str], has_splits: bool) -> Json:
    """Describe a column; the members of a list of structs are found by a JSONPath in each element."""
    identity = f"records/{name}"
    field: Json = {"@type": "cr:Field", "@id": identity, "name": name}
    if name in COLUMNS:
        field["description"] = COLUMNS[name]
    source = {"fileSet": {"@id": "shards"}, "extract": {"column": name}}
    if isinstance(kind, dict):
        field["repeated"] = True
        field["subField"] = [
            {
                "@type": "cr:Field",
                "@id": f"{identity}/{member}",
                "name": member,
                "dataType": _data_type(f"{name}.{member}", member_kind),
                "source": source | {"transform": {"jsonPath": f"$.{member}"}},
            }
            for member, member_kind in kind.items()
        ]
        return field
    field["dataType"] = ["sc:Text", "cr:Label"] if name == "label" else _data_type(name, kind)
    field["source"] = source
    if name == "split" and has_splits:
        # the short form of the specification, {"@id": ...}, ends in an AttributeError in mlcroissant 1.1.1
        field["references"] = {"field": {"@id": "splits/name"}}
    return field


def _splits(splits: dict[str, int]) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits that rows belong to.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": ["sc:URL", "cr:Split"]},
        ],
        "data": [{"splits/name": name, "splits/url": SPLIT_TYPES.get(name, "cr:Split")} for name in splits],
    }


def _record_sets(facts: Facts) -> list[Json]:
    records = {
        "@type": "cr:RecordSet",
        "@id": "records",
        "name": "records",
        "description": "One conversation a record.",
        "key": {"@id": "records/key" if "key" in facts.columns else "records/id"},
        "field": [_field(name, kind, bool(facts.splits)) for name, kind in facts.columns.items()],
    }
    return [_splits(facts.splits), records] if facts.splits else [records]


def _property(name: str, value: float | str) -> Json:
    return {"@type": "sc:PropertyValue", "name": name, "value": value}


def _derived_from(sources: tuple[Source, ...]) -> list[Json]:
    return [
        {
            "@type": "prov:Entity",
            "@id": _named_by_content(source.sha256),
            "name": source.name,
            "url": source.uri,
            "sha256": source.sha256,
            "description": f"{source.rows} rows, {source.format}, {source.shape}",
            **({"license": source.license} if source.license else {}),
        }
        for source in sources
    ]


def _generated_by(facts: Facts) -> Json:
    version = f"{facts.commit.sha}{' with uncommitted changes' if facts.commit.dirty else ''}" if facts.commit else NOT_STATED
    return {
        "@type": "prov:Activity",
        "prov:label": "Luthier, data_processing",
        "prov:wasAssociatedWith": {"@type": "prov:SoftwareAgent", "prov:label": "Luthier", "softwareVersion": version},
        # as text: nested keys of ours would be taken for words of schema.org
        "additionalProperty": [_property("parameters", canonical_json(facts.parameters))],
    }


def told_counts(counts: dict[str, int]) -> str:
    """Return the counts of a step in words.

    >>> told_counts({"in": 5, "out": 4, "dropped": 1})
    'in 5, out 4, dropped 1'
    """
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def croissant(facts: Facts) -> Json:
    """Return the description of a data set as Croissant 1.1 JSON-LD with the RAI extension; equal facts give an equal dictionary.

    The paths of the shards are relative: write it as JSON into the folder that they are relative to. A list of structs
    becomes a repeated field whose members are read by `transform.jsonPath`; mlcroissant yields texts as bytes, the members
    under their full names (`records/messages/content`), and a null list as one element without anything.

    Raises:
        ValueError: if a column has a type that is neither text, number, truth value nor a list of structs of those.
    """
    words = facts.describe
    url = words.url or _named_by_content(hash_of([[file.path, file.sha256] for file in facts.files]))
    rows = {"rows": facts.rows, **{f"rows/{name}": count for name, count in facts.splits.items()}}
    document: Json = {
        "@context": copy.deepcopy(CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": words.name,
        "description": words.description,
        "version": words.version,
        "license": words.license,
        "url": url,
        "creator": {"@type": f"sc:{words.creator_type}", "name": words.creator},
        "isLiveDataset": False,
        "citeAs": _citation(facts, url),
        "rai:dataCollection": words.data_collection,
        "rai:dataLimitations": words.limitations,
        "rai:dataBiases": words.biases,
        "rai:personalSensitiveInformation": words.personal_sensitive_information,
        "rai:dataUseCases": words.use_cases,
        "rai:dataPreprocessingProtocol": [f"{step}: {told_counts(counts)}" for step, counts in facts.counts.items()],
        "prov:wasDerivedFrom": _derived_from(facts.sources),
        "prov:wasGeneratedBy": _generated_by(facts),
        "variableMeasured": [_property(name, value) for name, value in [*rows.items(), *measured(facts.profile)]],
        "distribution": _distribution(facts.files),
        "recordSet": _record_sets(facts),
    }
    if facts.published:
        document["datePublished"] = facts.published
    return document


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
    problems = [f"{url} is in no file set: its records are not read" for url in urls if _exactly(url) not in included]
    problems += [
        f"a file set includes {pattern}, whose hash is stated nowhere" for pattern in included - set(map(_exactly, urls))
    ]
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
            entry["includes"] = [pattern for pattern in entry["includes"] if pattern == _exactly(path)]
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
