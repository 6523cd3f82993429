"""The step of inference: choose what answers, and let it answer every row."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.answers import AnswerStore, progress_bar
from luthier.candidates import Asking, Registered, base_answerer, fetch_version
from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.endpoint import EndpointAnswerer
from luthier.errors import UserError
from luthier.models import resolve_base
from luthier.pipelines.inference.parameters import InferenceParameters
from luthier.pipelines.inference.predict import Model, forget, predict
from luthier.pipelines.inference.rows import AskedRow, Reading
from luthier.reading import find_files, fingerprint, format_of
from luthier.shards import Shards
from luthier.text.prepare import PromptSettings

logger = logging.getLogger(__name__)


def answer_rows(
    inference: InferenceParameters,
    data: DataParameters,
    model: ModelParameters,
    max_new_tokens: int,
    folders: FolderParameters,
) -> tuple[Shards, dict[str, Any]]:
    """Let a model answer every row of a source.

    Args:
        inference: of the room.
        data: whose templates are for models that bring none.
        model: the base.
        max_new_tokens: where an answer is cut if neither the room nor the model says it.
        folders: of the project.

    Returns:
        a table of schema `predict.PREDICTION`, and a report: files with their hashes, what answered, what became of the rows.

    Raises:
        UserError: if there is no source, it cannot be read, or the model cannot answer.
    """
    if inference.source is None:
        raise UserError(
            "inference.source: there is nothing to answer. Name a file with rows, such as\n"
            "  kedro run --pipeline inference --params inference.source=data/my.jsonl"
        )
    files = find_files(inference.source, folders, "inference.source")
    for file in files:  # a wrong ending is told before any file is read
        format_of(file, inference.format, "inference.source")
    answers, settings = _choose(inference, data, model, max_new_tokens, folders)
    reading = Reading(settings, inference.id, inference.column, os.environ.get("LUTHIER_PII_KEY", ""))
    facts: list[dict[str, Any]] = []
    for file in files:
        sha256, size = fingerprint(file, "inference.source")
        facts.append({"file": _shown(file, folders), "sha256": sha256, "bytes": size, "rows": 0})
    folder = Path(folders.shards) / "predictions"
    forget(folder)
    store = AnswerStore.of(folders, inference.rows_per_chunk)
    with progress_bar(f"{answers.name} answers", None) as progress:
        predictions, counts = predict(_rows(files, facts, reading, inference), answers, store, folder, progress)
    logger.info(
        "%s answered %s of %s rows, %s of them in an earlier run; %s were cut at the limit.",
        answers.name,
        *(f"{count:,}" for count in (counts.answered, counts.rows, counts.kept, counts.cut)),
    )
    if counts.errors:
        first = "; ".join(f"{error['id']}: {error['error']}" for error in counts.errors)
        logger.warning("%s rows have no answer: see `error`. The first: %s", f"{counts.rows - counts.answered:,}", first)
    return predictions, {
        "files": facts,
        "model": answers.name,
        "manifest": answers.manifest,
        "identity": answers.answerer.identity,
        "rows": counts.rows,
        "answered": counts.answered,
        "cut": counts.cut,
        "tokens": counts.tokens,
        "first_errors": counts.errors,
    }


def _choose(
    inference: InferenceParameters,
    data: DataParameters,
    model: ModelParameters,
    max_new_tokens: int,
    folders: FolderParameters,
) -> tuple[Model, PromptSettings]:
    """Return what answers, and how rows become its prompts."""
    ours = PromptSettings(system=data.system, user=data.user, scrub=inference.scrub)
    length = inference.max_new_tokens or max_new_tokens
    if inference.endpoint is not None:
        endpoint = inference.endpoint
        asked = EndpointAnswerer(f"{endpoint.model}@{endpoint.host}", endpoint, length, "inference.endpoint")
        return Model(asked, asked.name, asked.identity), ours
    if inference.model == "base":
        base = resolve_base(model, folders)
        schema = _schema_of_data(data, folders) if inference.constrain else None
        asking = Asking(length, inference.batch_tokens, inference.precision, schema)
        return Model(base_answerer(model, folders, asking), base.name, base.identity), ours
    version = fetch_version(inference.model, folders, "inference.model")
    schema = _schema_of_version(version) if inference.constrain else None
    asking = Asking(inference.max_new_tokens or version.max_new_tokens, inference.batch_tokens, inference.precision, schema)
    return Model(version.answerer(model, folders, asking), version.name, version.version.manifest), version.settings


def _schema_of_data(data: DataParameters, folders: FolderParameters) -> dict[str, Any]:
    """Return the schema of `data`, if answers can be held to it."""
    name = "data.answer_schema"
    schema: Any = None
    if data.answer_schema is not None:
        try:
            schema = json.loads(Path(folders.locate(data.answer_schema)).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{name}: {data.answer_schema} cannot be read as JSON: {error}") from error
    return _followable(schema, name)


def _schema_of_version(version: Registered) -> dict[str, Any]:
    """Return the schema that a version was trained with, if answers can be held to it."""
    schema = json.loads((version.package / "answer_schema.json").read_text(encoding="utf-8"))
    return _followable(schema, f"answer_schema.json of {version.name}")


def _followable(schema: Any, named: str) -> dict[str, Any]:
    from luthier.constrained import check_schema

    check_schema(schema, "inference.constrain", named)
    return dict(schema)


def _rows(files: list[str], facts: list[dict[str, Any]], reading: Reading, inference: InferenceParameters) -> Iterator[AskedRow]:
    """Yield the rows of all files, and count them in the facts of their file."""
    for file, fact in zip(files, facts, strict=True):
        shown = str(fact["file"])
        prefix = f"{shown}:" if len(files) > 1 else ""
        for row in reading.rows(file, inference.format, shown, inference.max_rows, prefix):
            fact["rows"] += 1
            yield row


def _shown(file: str, folders: FolderParameters) -> str:
    return file.removeprefix(folders.root + "/")
