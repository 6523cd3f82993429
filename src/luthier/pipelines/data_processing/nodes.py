"""The steps of data processing as functions of tables and parameters. Tables are handles: no step holds all rows."""

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.artefacts import hash_of
from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.executors import Executor, Task
from luthier.models import resolve_base
from luthier.pipelines.data_processing import augment as augmenting
from luthier.pipelines.data_processing import clean, describe, ingest, quality, scrub, validate
from luthier.pipelines.data_processing import decontaminate as contamination
from luthier.pipelines.data_processing import deduplicate as duplicates
from luthier.pipelines.data_processing import split as splits
from luthier.pipelines.data_processing import tokenise as tokens
from luthier.pipelines.data_processing.beforehand import check_needs
from luthier.pipelines.data_processing.messages import turns
from luthier.pipelines.data_processing.parameters import DataProcessingParameters
from luthier.pipelines.data_processing.previous import PreviousSplits
from luthier.records import SPLIT_RECORD
from luthier.shards import Shards, write_table
from luthier.text.prepare import PromptSettings
from luthier.text.presidio import pipeline_version
from luthier.text.profile import Profile, plot

logger = logging.getLogger(__name__)
SHOWN, LONGEST = 20, 100  # reasons of a step, and characters of each, in reports
KEY_VARIABLE = "LUTHIER_PII_KEY"


def _executor(parameters: DataProcessingParameters, folders: FolderParameters) -> Executor:
    return Executor(Path(folders.shards), parameters.executor.backend, parameters.executor.workers)


def ingest_rows(
    data: DataParameters, model: ModelParameters, parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[Shards, list[dict[str, Any]]]:
    """Read the user's files into rows with their line numbers, and say what each source looks like."""
    check_needs(data, model, parameters, folders)
    executor = _executor(parameters, folders)
    rows, files = ingest.ingest(data, folders, executor, parameters.executor.rows_per_shard)
    shapes_of = validate.recognise_shapes(rows, data)
    sources = data.all_sources()
    for name, shape in shapes_of.items():
        count = sum(file["rows"] for file in files if file["source"] == name)
        logger.info("%s: %s rows of shape %s (data.shape)", name, f"{count:,}", shape)
    return rows, [file | {"shape": shapes_of[file["source"]], "license": sources[file["source"]].license} for file in files]


def _uses_templates(sources: list[dict[str, Any]]) -> bool:
    """Tell whether any source is read by the templates of `data`; what stands beside them is then for these rows too."""
    return any(source["shape"] == "template" for source in sources)


def fix_prompt_settings(
    sources: list[dict[str, Any]], data: DataParameters, parameters: DataProcessingParameters
) -> dict[str, Any]:
    """Freeze what turns a row, or a client's messages, into a prompt; it travels with the model."""
    if _uses_templates(sources):
        settings = PromptSettings(system=data.system, user=data.user, assistant=data.assistant, scrub=parameters.scrub)
    else:
        if data.user:
            logger.info("the templates, system prompt and answer schema of `data` are for other columns: they are not used")
        settings = PromptSettings(scrub=parameters.scrub)
    return settings.model_dump(mode="json")


def load_answer_schema(sources: list[dict[str, Any]], data: DataParameters, folders: FolderParameters) -> dict[str, Any]:
    """Read the schema that answers must satisfy; an empty one allows everything."""
    if not data.answer_schema or not _uses_templates(sources):
        return {}
    return validate.load_answer_schema(folders.locate(data.answer_schema))


def validate_rows(
    rows: Shards,
    sources: list[dict[str, Any]],
    prompt_settings: dict[str, Any],
    answer_schema: dict[str, Any],
    data: DataParameters,
    parameters: DataProcessingParameters,
    folders: FolderParameters,
) -> tuple[Shards, Shards, Shards]:
    """Turn good rows into records; put bad ones into quarantine with file, line and reason."""
    found = validate.validate_rows(
        rows,
        data,
        PromptSettings.model_validate(prompt_settings),
        parameters.validate_rows,
        answer_schema,
        {source["source"]: source["shape"] for source in sources},
        _executor(parameters, folders),
        parameters.executor.rows_per_shard,
    )
    _tell("validated", len(rows), len(found[0]), f"{len(found[2]):,} in quarantine")
    if data.id and (numbered := validate.numbered_by_content(found[0])):
        logger.info(
            "%s of %s records have no %r (data.id): they are numbered by content", f"{numbered:,}", f"{len(found[0]):,}", data.id
        )
    return found


def clean_records(
    records: Shards, prompt_settings: dict[str, Any], parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[Shards, Shards, Shards]:
    """Repair encoding, markup and white space."""
    executor, settings = _executor(parameters, folders), PromptSettings.model_validate(prompt_settings)
    tasks = _tasks(records, {"system": settings.system}, {"settings": settings})
    parts = executor.map("clean_records", clean.clean_shard, tasks)
    kept, changed, dropped = (_table(executor, "clean_records", parts, name) for name in ("records", "changed", "dropped"))
    _tell("cleaned", len(records), len(kept), f"{len(changed):,} turns changed")
    return kept, changed, dropped


def scrub_records(
    records: Shards, prompt_settings: dict[str, Any], parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[Shards, Shards]:
    """Put placeholders in the place of personal data."""
    executor, settings = _executor(parameters, folders), PromptSettings.model_validate(prompt_settings)
    key = os.environ.get(KEY_VARIABLE, "")
    if settings.scrub and not key:
        logger.info("placeholders of personal data are keyed with nothing: set %s before you share the data", KEY_VARIABLE)
    decides = {"settings": prompt_settings["scrub"], "system": settings.system, "key": hash_of([key])}
    if settings.scrub and settings.scrub.presidio:
        decides["pipeline"] = pipeline_version(settings.scrub.presidio.model)
    parts = executor.map("scrub_records", scrub.scrub_shard, _tasks(records, decides, {"settings": settings, "key": key}))
    kept, changed = (_table(executor, "scrub_records", parts, name) for name in ("records", "changed"))
    _tell("scrubbed", len(records), len(kept), f"{len(changed):,} turns changed")
    return kept, changed


def assess_quality(records: Shards, parameters: DataProcessingParameters, folders: FolderParameters) -> tuple[Shards, Shards]:
    """Drop what is not in the languages asked for, or is no text to learn from."""
    executor = _executor(parameters, folders)
    tasks = _tasks(records, {"quality": parameters.quality.model_dump()}, {"parameters": parameters.quality})
    parts = executor.map("assess_quality", quality.assess_shard, tasks)
    kept, dropped = (_table(executor, "assess_quality", parts, name) for name in ("records", "dropped"))
    _tell("assessed", len(records), len(kept), f"{len(dropped):,} dropped")
    return kept, dropped


def deduplicate_records(
    records: Shards, parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[Shards, Shards, Shards]:
    """Keep one record of each group of exact or near duplicates."""
    parameters = _located(parameters, folders)
    previous = PreviousSplits.read(parameters.split.previous) if parameters.split.previous else None
    found = duplicates.deduplicate(records, parameters.deduplicate, _executor(parameters, folders), previous)
    _tell("de-duplicated", len(records), len(found[0]), f"{len(found[1]):,} duplicates")
    return found


def split_records(
    records: Shards, clusters: Shards, parameters: DataProcessingParameters, seed: int, folders: FolderParameters
) -> tuple[Shards, Shards]:
    """Divide the records into train, validation and test by cluster."""
    parameters = _located(parameters, folders)
    divided, table = splits.split(records, clusters, parameters.split, seed, _executor(parameters, folders))
    _tell("split", len(records), len(divided), ", ".join(f"{n:,} {name}" for name, n in describe.splits_of(divided).items()))
    return divided, table


def _located(parameters: DataProcessingParameters, folders: FolderParameters) -> DataProcessingParameters:
    if not parameters.split.previous:
        return parameters
    split = parameters.split.model_copy(update={"previous": folders.locate(parameters.split.previous)})
    return parameters.model_copy(update={"split": split})


def decontaminate_records(
    records: Shards, prompt_settings: dict[str, Any], parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[Shards, Shards]:
    """Drop training records that give the tests away."""
    settings, key = PromptSettings.model_validate(prompt_settings), os.environ.get(KEY_VARIABLE, "")
    executor = _executor(parameters, folders)
    kept, findings = contamination.decontaminate(records, parameters.decontaminate, settings, key, folders, executor)
    _tell("decontaminated", len(records), len(kept), f"{len(findings):,} findings")
    return kept, findings


def _augment_shard(
    out: Path,
    file: Path,
    labels: dict[str, int],
    paraphrases: Any,
    seed: int,
    index: contamination.Index,
    share: float,
    **parameters: Any,
) -> None:
    table = pq.read_table(file)
    rows: list[dict[str, Any]] = table.to_pylist()
    for row, messages in zip(rows, turns(table, "messages"), strict=True):
        row["messages"] = messages
    references, refused = contamination.References(index), set[str]()

    def held_out(text: str) -> bool:
        if references.share(text) >= share:
            refused.add(text)
        return text in refused

    grown = augmenting.augment(rows, parameters["parameters"], seed, paraphrases, labels, duplicates.content_hash, held_out)
    write_table(pa.Table.from_pylist(grown, SPLIT_RECORD), out / "records.parquet")
    (out / "refused.json").write_text(json.dumps(len(refused)), encoding="utf-8")


def augment_records(
    records: Shards, prompt_settings: dict[str, Any], parameters: DataProcessingParameters, seed: int, folders: FolderParameters
) -> Shards:
    """Add altered copies of training records, if asked for; none of them gives away what is held out."""
    settings = parameters.augment
    if settings.is_off:
        return records
    executor, prompt = _executor(parameters, folders), PromptSettings.model_validate(prompt_settings)
    paraphrases = augmenting.load_paraphrases(folders.locate(settings.paraphrases)) if settings.paraphrases else {}
    key, against = os.environ.get(KEY_VARIABLE, ""), parameters.decontaminate
    index = contamination.reference_index(records, ("validation", "test"), against, prompt, key, folders, executor)
    labels = describe.labels_by_split(records).get("train", {})
    # above 1 findings are only listed, which is for what users wrote: a copy need not be made
    shared = {"labels": labels, "paraphrases": paraphrases, "seed": seed, "share": min(against.drop_from, 1.0)}
    decides = {"augment": settings.model_dump(), **shared, **index.decides()}
    tasks = _tasks(records, decides, {"parameters": settings, "index": index, **shared})
    parts = executor.map("augment_records", _augment_shard, tasks)
    grown = _table(executor, "augment_records", parts, "records")
    refused = sum(json.loads((part / "refused.json").read_text(encoding="utf-8")) for part in parts)
    also = f"; {refused:,} others say what is held out, and were not made" if refused else ""
    _tell("augmented", len(records), len(grown), f"{len(grown) - len(records):,} copies{also}")
    return grown


def tokenise_records(
    records: Shards, model: ModelParameters, parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[Shards, Shards]:
    """Render the conversations through the chat template and mark the answers."""
    found = tokens.tokenise(records, resolve_base(model, folders), parameters.tokenise, _executor(parameters, folders))
    _tell("tokenised", len(records), len(found[0]), f"{len(found[1]):,} dropped")
    return found


def report_data(
    sources: list[dict[str, Any]],
    origins: Shards,
    records: Shards,
    quarantine: Shards,
    cleaned: Shards,
    clean_changes: Shards,
    clean_dropped: Shards,
    scrub_changes: Shards,
    assessed: Shards,
    quality_dropped: Shards,
    unique: Shards,
    duplicates: Shards,
    divided: Shards,
    decontaminated: Shards,
    contaminated: Shards,
    final: Shards,
    examples: Shards,
    tokenise_dropped: Shards,
) -> dict[str, Any]:
    """Count what each step kept, changed and dropped, and why; every row is accounted for."""
    read = sum(source["rows"] for source in sources)
    kinds = _count(duplicates, "kind")
    given_away = Counter(row["against"] for row in contaminated.iter_rows(["against", "dropped"]) if row["dropped"])
    return {
        "rows_read": read,
        "repeated_rows": len(origins) - len(records),
        "steps": {
            "validate_rows": {"in": read, "out": len(records), "dropped": read - len(records)},
            "clean_records": _step(records, cleaned, clean_changes),
            "scrub_records": _step(cleaned, cleaned, scrub_changes),
            "assess_quality": _step(cleaned, assessed),
            "deduplicate_records": _step(assessed, unique),
            "split_records": _step(unique, divided),
            "decontaminate_records": _step(divided, decontaminated),
            "augment_records": _step(decontaminated, final),
            "tokenise_records": _step(final, examples),
        },
        "dropped": {
            "validate_rows": _count(quarantine, "kind")
            | ({"the same row again": len(origins) - len(records)} if len(origins) > len(records) else {}),
            "clean_records": _count(clean_dropped, "reason"),
            "assess_quality": _count(quality_dropped, "reason"),
            "deduplicate_records": kinds,
            "decontaminate_records": dict(given_away),
            "tokenise_records": _count(tokenise_dropped, "reason"),
        },
        "changed": {"clean_records": _count(clean_changes, "what"), "scrub_records": _count(scrub_changes, "what")},
        "splits": describe.splits_of(final),
        "label_deviation": describe.label_deviation(describe.labels_by_split(final)),
        "examples": describe.splits_of(examples),
        "tokens": _tokens(examples),
    }


def _step(before: Shards, after: Shards, changed: Shards | None = None) -> dict[str, int]:
    counts = {"in": len(before), "out": len(after), "dropped": max(0, len(before) - len(after))}
    return counts | ({"changed": len(set(_column(changed, "key")))} if changed is not None else {})


def _column(table: Shards, name: str) -> list[Any]:
    return [value for batch in table.iter_batches([name]) for value in batch.column(name).to_pylist()]


def _count(table: Shards, column: str) -> dict[str, int]:
    """Count the values of a column, the most frequent first; beyond `SHOWN` they are one."""
    counts = Counter[str]()
    for batch in table.iter_batches([column]):
        counts.update(value[:LONGEST] for value in batch.column(column).to_pylist())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[SHOWN:])
    return dict(ordered[:SHOWN]) | ({"other reasons": rest} if rest else {})


def _tokens(examples: Shards) -> dict[str, float]:
    lengths, supervised = Counter[int](), 0
    for batch in examples.iter_batches(["input_ids", "supervised"]):
        lengths.update(batch.column("input_ids").value_lengths().to_pylist())
        supervised += sum(batch.column("supervised").flatten().to_pylist())
    ordered = sorted(lengths.elements())
    return {
        "total": sum(ordered),
        "supervised": supervised,
        "median": float(ordered[len(ordered) // 2]),
        "longest": ordered[-1],
    }


def profile_data(
    records: Shards, examples: Shards, parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[dict[str, Any], Any]:
    """Measure the training data, so that live traffic can be compared with it."""
    profiles = describe.profile_data(records, examples, _executor(parameters, folders))
    training, held_out = (json.loads(profile.to_json()) for profile in profiles)
    return {"training": training, "held_out": held_out}, plot(profiles[0])


def describe_data(
    records: Shards,
    profile: dict[str, Any],
    sources: list[dict[str, Any]],
    report: dict[str, Any],
    parameters: DataProcessingParameters,
    folders: FolderParameters,
) -> tuple[Shards, str]:
    """Describe the data for machines (Croissant) and people (data card), and check that the description is true."""
    profiles = tuple(Profile.from_json(json.dumps(profile[name])) for name in ("training", "held_out"))
    dropped = {step: reasons for step, reasons in report["dropped"].items() if reasons}
    executor = _executor(parameters, folders)
    root = Path(folders.root)
    return describe.describe(records, profiles, sources, report["steps"], dropped, parameters, root, executor)  # type: ignore[arg-type]


def _tasks(records: Shards, decides: dict[str, Any], arguments: dict[str, Any]) -> list[Task]:
    """Make one task of each shard."""
    return [
        Task(decides | {"input": sha256}, arguments | {"file": file})
        for file, sha256 in zip(records.files, records.hashes, strict=True)
    ]


def _table(executor: Executor, step: str, parts: list[Path], name: str) -> Shards:
    return executor.table(step, [part / f"{name}.parquet" for part in parts])


def _tell(what: str, before: int, after: int, also: str) -> None:
    logger.info("%-15s %s -> %s   %s", what, f"{before:,}", f"{after:,}", also)
