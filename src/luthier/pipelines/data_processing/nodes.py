"""The steps of data processing as functions of tables and parameters."""

from collections import Counter
from typing import Any

import pandas as pd
import pyarrow as pa

from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.models import load_tokenizer, resolve_base
from luthier.pipelines.data_processing import deduplicate as duplicates
from luthier.pipelines.data_processing import ingest, validate
from luthier.pipelines.data_processing import split as splits
from luthier.pipelines.data_processing import tokenise as tokens
from luthier.pipelines.data_processing.parameters import DataProcessingParameters
from luthier.shards import Shards
from luthier.text.prepare import PromptSettings


def ingest_rows(data: DataParameters, folders: FolderParameters) -> pa.Table:
    """Read the user's file into rows with their line numbers."""
    return ingest.read_rows(data, folders.locate(data.path))


def fix_prompt_settings(data: DataParameters) -> dict[str, Any]:
    """Freeze what turns a row into a prompt; it travels with the model."""
    return PromptSettings(system=data.system, user=data.user, assistant=data.assistant).model_dump()


def load_answer_schema(data: DataParameters, folders: FolderParameters) -> dict[str, Any]:
    """Read the schema that answers must satisfy; an empty one allows everything."""
    return validate.load_answer_schema(folders.locate(data.answer_schema)) if data.answer_schema else {}


def validate_rows(
    rows: Shards,
    prompt_settings: dict[str, Any],
    answer_schema: dict[str, Any],
    data: DataParameters,
    parameters: DataProcessingParameters,
) -> tuple[pa.Table, pd.DataFrame]:
    """Turn good rows into records; put bad ones into quarantine with file, line and reason."""
    settings = PromptSettings.model_validate(prompt_settings)
    good, bad = validate.validate_rows(rows.to_table(), data, settings, parameters.validate_rows, answer_schema or None)
    return good, bad.to_pandas()


def deduplicate_records(records: Shards, parameters: DataProcessingParameters) -> tuple[pa.Table, pd.DataFrame]:
    """Keep one record of each group of exact or near duplicates."""
    kept, dropped = duplicates.deduplicate(records.to_table(), parameters.deduplicate)
    return kept, dropped.to_pandas()


def split_records(records: Shards, parameters: DataProcessingParameters, seed: int) -> pa.Table:
    """Divide the records into train, validation and test by content."""
    return splits.split(records.to_table(), parameters.split, seed)


def tokenise_records(
    records: Shards, model: ModelParameters, parameters: DataProcessingParameters, folders: FolderParameters
) -> tuple[pa.Table, pd.DataFrame]:
    """Render the conversations through the chat template and mark the answers."""
    tokenizer = load_tokenizer(resolve_base(model, folders))
    examples, too_long = tokens.tokenise(records.to_table(), tokenizer, parameters.tokenise)
    reason = f"longer than {parameters.tokenise.max_tokens} tokens"
    return examples, pd.DataFrame({"id": pd.Series(too_long, dtype="str"), "reason": reason})


def report_data(
    rows: Shards,
    quarantine: pd.DataFrame,
    duplicates: pd.DataFrame,
    too_long: pd.DataFrame,
    records: Shards,
    examples: Shards,
) -> dict[str, Any]:
    """Count what each step kept and dropped; every row is accounted for."""
    table = examples.to_pandas()
    lengths, answers = table["input_ids"].map(len), table["supervised"].map(sum)
    return {
        "rows_read": len(rows),
        "quarantined": len(quarantine),
        "quarantine_reasons": dict(Counter(reason[:60] for reason in quarantine["reason"]).most_common()),
        "exact_duplicates": int((duplicates["kind"] == "exact").sum()),
        "near_duplicates": int((duplicates["kind"] == "near").sum()),
        "records": len(records),
        "too_long": len(too_long),
        "examples": {name: int((table["split"] == name).sum()) for name in splits.SPLITS},
        "tokens": {
            "total": int(lengths.sum()),
            "supervised": int(answers.sum()),
            "median": float(lengths.median()),
            "longest": int(lengths.max()),
        },
    }
