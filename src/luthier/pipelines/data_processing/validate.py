"""Decide, row by row, whether it becomes a record or goes to quarantine with its reason. Never a crash, never silence."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from luthier.artefacts import hash_of
from luthier.configuration import DataParameters
from luthier.errors import UserError
from luthier.pipelines.data_processing.parameters import Validate
from luthier.records import QUARANTINED, RECORD
from luthier.text.prepare import Message, PromptSettings, RowError, conversation, strict_json


def load_answer_schema(path: str) -> dict[str, Any]:
    """Read the JSON Schema of the answers.

    Raises:
        UserError: if the file is missing, not JSON, or not a JSON Schema.
    """
    try:
        schema: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
    except FileNotFoundError as error:
        raise UserError(f"data.answer_schema: there is no file {path}.") from error
    except (ValueError, RecursionError, SchemaError) as error:
        raise UserError(f"data.answer_schema: {path} is not a JSON Schema: {str(error).splitlines()[0]}") from error
    return schema


def content_hash(messages: list[Message]) -> str:
    """Return the hash of a conversation that ignores letter case and white space, but no digit and no word."""
    return hash_of([[m["role"], " ".join(m["content"].casefold().split())] for m in messages])


def _check_answer(answer: str, validator: Draft202012Validator | None) -> None:
    if validator is None:
        return
    try:
        value = strict_json(answer)
    except ValueError as error:
        raise RowError(f"the answer is not JSON: {error}") from error
    errors = sorted(validator.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        told = [f"answer{''.join(f'.{p}' for p in error.absolute_path)}: {error.message}" for error in errors]
        raise RowError("; ".join(told))


def _record(
    row: dict[str, Any],
    where: str,
    data: DataParameters,
    settings: PromptSettings,
    rules: Validate,
    validator: Draft202012Validator | None,
) -> dict[str, Any]:
    messages = conversation(row, settings)
    longest = max(len(message["content"]) for message in messages if message["role"] != "system")
    if longest > rules.max_characters:
        raise RowError(
            f"the message has {longest:,} characters, more than {rules.max_characters:,} (validate_rows.max_characters)"
        )
    _check_answer(messages[-1]["content"], validator)
    key = content_hash(messages)
    if data.id is not None and not isinstance(row.get(data.id), str | int):
        raise RowError(f"has no {data.id} (data.id)" if data.id not in row else f"{data.id} must be text or a number")
    identity = str(row[data.id]) if data.id is not None else key[:16]
    return {
        "id": identity,
        "messages": messages,
        "row": json.dumps(row, ensure_ascii=False),
        "source": where,
        "content_hash": key,
    }


def validate_rows(
    rows: pa.Table, data: DataParameters, settings: PromptSettings, rules: Validate, schema: dict[str, Any] | None
) -> tuple[pa.Table, pa.Table]:
    """Turn good rows into records and bad ones into quarantine.

    Returns:
        a table of schema `records.RECORD` and one of `records.QUARANTINED`; together they hold every row once.

    Raises:
        UserError: if more rows are bad than `rules.max_bad_fraction` allows, with the most frequent reasons.
    """
    validator = Draft202012Validator(schema) if schema is not None else None
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for entry in rows.to_pylist():
        where = f"{entry['file']}:{entry['line']}"
        try:
            if entry["error"]:
                raise RowError(entry["error"])
            record = _record(json.loads(entry["row"]), where, data, settings, rules, validator)
            if data.id is not None and record["id"] in seen:
                raise RowError(f"its {data.id} {record['id']!r} stands already in {seen[record['id']]}")
        except RowError as error:
            bad.append({"file": entry["file"], "line": entry["line"], "reason": str(error), "row": entry["row"]})
        else:
            seen[record["id"]] = where
            good.append(record)
    if len(bad) > rules.max_bad_fraction * rows.num_rows or not good:
        raise UserError(_too_many(bad, rows.num_rows, rules))
    return pa.Table.from_pylist(good, schema=RECORD), pa.Table.from_pylist(bad, schema=QUARANTINED)


def _too_many(bad: list[dict[str, Any]], total: int, rules: Validate) -> str:
    examples = "\n  ".join(f"{row['file']}:{row['line']}: {row['reason'][:160]}" for row in bad[:5])
    return (
        f"{len(bad)} of {total} rows are bad, more than data_processing.validate_rows.max_bad_fraction "
        f"({rules.max_bad_fraction:.0%}) allows: the file or the templates in `data` are wrong. The first ones:\n  {examples}"
    )
