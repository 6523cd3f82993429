"""Describe a finished data set to machines: Croissant 1.1 (MLCommons). `croissant_check` makes sure that it is true.

Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html and, for `rai:`, croissant-rai-spec.html.
"""

import base64
import copy
from pathlib import PurePosixPath
from typing import Any

from luthier.artefacts import canonical_json, hash_of
from luthier.pipelines.data_processing.dataset_facts import NOT_STATED, Facts, File, Source, measured, told_counts

Json = dict[str, Any]

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


def exactly(path: str) -> str:
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
        "includes": [exactly(file.path) for file in files],
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
        "rai:personalSensitiveInformation": words.personal_sensitive_information or NOT_STATED,
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
