"""Decide, row by row, whether it becomes a record or goes to quarantine with its reason. Never a crash, never silence.

Here the order of the input ends: records are sorted by a key made of source and row, in as many shards as their number
asks for. Where a record stood is in a table beside it, `origins`.
"""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from luthier.artefacts import canonical_json
from luthier.configuration import DataParameters
from luthier.errors import UserError
from luthier.executors import Executor, Task, key_of
from luthier.pipelines.data_processing import shapes
from luthier.pipelines.data_processing.parameters import Validate
from luthier.pipelines.data_processing.shapes import Shape
from luthier.records import ORIGIN, QUARANTINED, RECORD
from luthier.shards import Shards, write_table
from luthier.text.prepare import PromptSettings, RowError, columns_of_template, has_content, render, rendered, strict_json

ROWS_TO_RECOGNISE = 200
REPEATED_KIND = "its id stands in another row too"
REPEATED = "its id {!r} stands in another row too (`data.id: null` numbers rows by content)"


def load_answer_schema(path: str) -> dict[str, Any]:
    """Read the JSON Schema of the answers.

    Raises:
        UserError: if the file is missing, not JSON, or not a JSON Schema.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
    except FileNotFoundError as error:
        raise UserError(f"data.answer_schema: there is no file {path}.") from error
    except (ValueError, RecursionError, SchemaError) as error:
        raise UserError(f"data.answer_schema: {path} is not a JSON Schema: {str(error).splitlines()[0]}") from error
    return schema


def recognise_shapes(rows: Shards, data: DataParameters) -> dict[str, Shape]:
    """Return the shape of each source: the one that was asked for, or what its first readable rows look like.

    Raises:
        UserError: if the rows of a source look like nothing that is known.
    """
    asked = {name: source.shape for name, source in data.all_sources().items()}
    columns = columns_of_template(data.user) if data.user else frozenset()
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name, shape in asked.items() if shape == "auto"}
    full = 0
    for batch in rows.iter_batches(["source", "row", "error"]):
        if full == len(samples):
            break
        for entry in batch.to_pylist():
            sample = samples.get(entry["source"])
            if sample is not None and not entry["error"] and len(sample) < ROWS_TO_RECOGNISE:
                sample.append(json.loads(entry["row"]))
                full += len(sample) == ROWS_TO_RECOGNISE
    found = {name: shapes.recognise(sample, columns) if sample else "template" for name, sample in samples.items()}
    return {name: found[name] if name in found else cast(Shape, shape) for name, shape in asked.items()}


class Contract:
    """What a row must be to become a record."""

    def __init__(
        self, data: DataParameters, settings: PromptSettings, rules: Validate, schema: dict[str, Any], shapes_of: dict[str, Shape]
    ) -> None:
        """Compile the schema, once for all rows."""
        self.data = data
        self.settings = settings
        self.rules = rules
        self.shapes = shapes_of
        self.weights = {name: source.weight for name, source in data.all_sources().items()}
        # a label is a help, not a condition: rows without its columns are no bad rows
        self.label_columns = columns_of_template(data.label) if data.label else frozenset()
        self.validator = None
        if schema:
            from jsonschema import Draft202012Validator

            self.validator = Draft202012Validator(schema)

    def record(self, source: str, text: str) -> dict[str, Any]:
        """Return the record of a row.

        Raises:
            RowError: with the reason, if it cannot become one.
        """
        row = json.loads(text)
        shape = self.shapes[source]
        rejected, label = None, None
        meta = {"shape": shape, **{name: row[name] for name in self.data.meta if name in row}}
        if shape == "template":
            messages: list[Any] = rendered(row, self.settings)
            self._check_answer(messages[-1]["content"])
            label = render(self.data.label, row) if self.data.label and self.label_columns <= row.keys() else None
        else:
            found = shapes.to_conversation(row, shape)
            messages, rejected, label = list(found.messages), found.rejected, found.label
        # the templates are written for these columns; of a file that was merely named nobody knows whether it has ids
        identity = self._identity(row, required=shape == "template")
        if not any(has_content(turn["content"]) for turn in messages if turn["role"] == "user") and shape != "text":
            raise RowError("the user's message is empty")
        longest = max(len(turn["content"]) for turn in messages if turn["content"] != self.settings.system)
        if longest > self.rules.max_characters:
            limit = f"more than {self.rules.max_characters:,} (validate_rows.max_characters)"
            raise RowError(f"the message has {longest:,} characters, {limit}", f"the message has {limit} characters")
        key = key_of(source, canonical_json(row))
        return {
            "key": key,
            "id": key if identity is None else self.data.called(source, identity),
            "messages": messages,
            "rejected": rejected,
            "label": label,
            "meta": canonical_json(meta),
            "source": source,
            "weight": self.weights[source],
        }

    def _identity(self, row: dict[str, Any], required: bool) -> str | None:
        name = self.data.id
        if name is None:
            return None
        value = row.get(name)
        if value is None or value == "":  # an empty cell of a CSV file
            if required:
                raise RowError(f"has no {name} (data.id)")
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RowError(f"{name} must be text or a whole number (data.id)")
        return str(value)

    def _check_answer(self, answer: str) -> None:
        if self.validator is None:
            return
        try:
            value = strict_json(answer)
        except ValueError as error:
            raise RowError(f"the answer is not JSON: {error}", "the answer is not JSON") from error
        errors = sorted(self.validator.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
        if errors:
            told = [f"answer{''.join(f'.{p}' for p in error.absolute_path)}: {error.message}" for error in errors]
            rules = sorted({".".join(map(str, error.absolute_schema_path)) for error in errors})
            raise RowError("; ".join(told), f"the answer breaks {', '.join(rules)} of its schema")


def shard_of(keys: list[str], shards: int) -> np.ndarray:
    """Return the shard of each key: shards hold consecutive ranges of keys, equally wide."""
    heads = np.array([int(key[:8], 16) for key in keys], np.uint64)
    return ((heads * np.uint64(shards)) >> np.uint64(32)).astype(np.int64)


def validate_shard(out: Path, file: Path, contract: Callable[[], Contract], shards: int) -> None:
    """Check the rows of one shard; write records and origins, sorted by key, one row group a shard to come."""
    judge = contract()
    good: list[dict[str, Any]] = []
    origins: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for entry in pq.read_table(file).to_pylist():
        try:
            if entry["error"]:
                raise RowError(entry["error"], entry["error"].partition(":")[0])
            record = judge.record(entry["source"], entry["row"])
        except RowError as error:
            place = {"file": entry["file"], "line": entry["line"]}
            bad.append({**place, "reason": str(error), "kind": error.kind, "row": entry["row"]})
        else:
            good.append(record)
            origins.append({"key": record["key"], "file": entry["file"], "line": entry["line"]})
    write_table(pa.Table.from_pylist(bad, QUARANTINED), out / "quarantine.parquet")
    for name, rows, schema in (("records", good, RECORD), ("origins", origins, ORIGIN)):
        rows.sort(key=lambda row: (row["key"], row.get("file", ""), row.get("line", 0)))
        table = pa.Table.from_pylist(rows, schema)
        ends = np.searchsorted(shard_of(table.column("key").to_pylist(), shards), np.arange(shards + 1))
        with pq.ParquetWriter(out / f"{name}.parquet", schema, compression="zstd") as writer:
            for start, end in pairwise(ends):
                writer.write_table(table.slice(start, end - start))


def gather_shard(out: Path, number: int, folders: list[Path]) -> None:
    """Collect one range of keys from all that was validated; a row that came twice is one record with two origins."""
    records = _gather(folders, "records", number).sort_by("key")
    keys = records.column("key").to_numpy(zero_copy_only=False)
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    records = records.filter(pa.array(first))
    write_table(records, out / "records.parquet")
    by = [("key", "ascending"), ("file", "ascending"), ("line", "ascending")]
    write_table(_gather(folders, "origins", number).sort_by(by), out / "origins.parquet")
    ids = [int(key_of(name)[:16], 16) for name in records.column("id").to_pylist()]
    np.save(out / "ids.npy", np.array(ids, np.uint64))


def _gather(folders: list[Path], name: str, number: int) -> pa.Table:
    tables = []
    for folder in folders:
        with pq.ParquetFile(folder / f"{name}.parquet") as file:
            tables.append(file.read_row_group(number))
    return pa.concat_tables(tables)


def drop_repeated_ids(out: Path, folder: Path, repeated: list[int], keep: list[str]) -> None:
    """Keep, of the records of one shard whose id stands elsewhere too, those in `keep`; quarantine the others."""
    records = pq.read_table(folder / "records.parquet")
    wrong = np.isin(np.load(folder / "ids.npy"), np.array(repeated, np.uint64))
    wrong &= ~np.isin(records.column("key").to_numpy(zero_copy_only=False), np.array(keep))
    gone = set(records.filter(pa.array(wrong)).column("key").to_pylist())
    ids = dict(zip(records.column("key").to_pylist(), records.column("id").to_pylist(), strict=True))
    origins = pq.read_table(folder / "origins.parquet")
    out_of = pc.is_in(origins.column("key"), pa.array(sorted(gone), pa.string()))
    bad = [
        {"file": row["file"], "line": row["line"], "reason": REPEATED.format(ids[row["key"]]), "kind": REPEATED_KIND, "row": None}
        for row in origins.filter(out_of).to_pylist()
    ]
    write_table(records.filter(pa.array(~wrong)), out / "records.parquet")
    write_table(origins.filter(pc.invert(out_of)), out / "origins.parquet")
    write_table(pa.Table.from_pylist(bad, QUARANTINED), out / "quarantine.parquet")


def _unique_ids(parts: list[Path], executor: Executor) -> list[Path]:
    """Make ids unique: of several records with one id, that with the lowest key stays."""
    ids = np.concatenate([np.load(part / "ids.npy") for part in parts])
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return parts
    keep: dict[int, str] = {}
    touched = {}
    for part in parts:
        hits = np.isin(own := np.load(part / "ids.npy"), repeated)
        if hits.any():
            touched[part] = sorted({int(value) for value in own[hits]})
            keys = pq.read_table(part / "records.parquet", columns=["key"]).column("key").to_pylist()
            for at in np.flatnonzero(hits):
                keep.setdefault(int(own[at]), keys[at])  # shards and rows are in the order of their keys
    tasks = []
    for part, own_ids in touched.items():
        keys_kept = sorted(keep[value] for value in own_ids)
        arguments = {"folder": part, "repeated": own_ids, "keep": keys_kept}
        tasks.append(Task({"part": part.name, "repeated": own_ids, "keep": keys_kept}, arguments))
    mended = dict(zip(touched, executor.map("unique_ids", drop_repeated_ids, tasks), strict=True))
    return [mended.get(part, part) for part in parts]


def validate_rows(
    rows: Shards,
    data: DataParameters,
    settings: PromptSettings,
    rules: Validate,
    schema: dict[str, Any],
    shapes_of: dict[str, Shape],
    executor: Executor,
    rows_per_shard: int,
) -> tuple[Shards, Shards, Shards]:
    """Turn good rows into records and bad ones into quarantine.

    Returns:
        tables of schema `records.RECORD`, sorted by key; `records.ORIGIN`, sorted by key, file and line; and
        `records.QUARANTINED`. Origins and quarantine together hold every row once.

    Raises:
        UserError: if more rows are bad than `rules.max_bad_fraction` allows, with the most frequent reasons.
    """
    shards = max(1, -(-len(rows) // rows_per_shard))
    contract = _ContractOf(data, settings, rules, schema, shapes_of)
    decides = {"contract": contract.facts(), "shards": shards}
    tasks = [
        Task(decides | {"input": sha256}, {"file": file, "contract": contract, "shards": shards})
        for file, sha256 in zip(rows.files, rows.hashes, strict=True)
    ]
    checked = executor.map("validate_rows", validate_shard, tasks)
    names = [folder.name for folder in checked]
    gathering = [Task({"number": n, "of": names}, {"number": n, "folders": checked}) for n in range(shards)]
    parts = _unique_ids(executor.map("gather_records", gather_shard, gathering), executor)
    quarantine_parts = [folder / "quarantine.parquet" for folder in checked]
    quarantine_parts += [part / "quarantine.parquet" for part in parts if (part / "quarantine.parquet").exists()]
    records = executor.table("validate_rows", [part / "records.parquet" for part in parts])
    quarantine = executor.table("validate_rows", quarantine_parts)
    if len(quarantine) > rules.max_bad_fraction * len(rows) or not len(records):
        raise UserError(_too_many(quarantine, len(rows), rules))
    return records, executor.table("validate_rows", [part / "origins.parquet" for part in parts]), quarantine


def numbered_by_content(records: Shards) -> int:
    """Count the records whose row brought no id."""
    return sum(pc.sum(pc.equal(batch["id"], batch["key"])).as_py() or 0 for batch in records.iter_batches(["id", "key"]))


class _ContractOf:
    """Makes the contract in the process that needs it: a compiled schema does not travel."""

    def __init__(
        self, data: DataParameters, settings: PromptSettings, rules: Validate, schema: dict[str, Any], shapes_of: dict[str, Shape]
    ) -> None:
        self.parts = (data, settings, rules, schema, shapes_of)

    def __call__(self) -> Contract:
        return Contract(*self.parts)

    def facts(self) -> dict[str, Any]:
        data, settings, rules, schema, shapes_of = self.parts
        return {
            "id": data.id,
            "label": data.label,
            "meta": data.meta,
            "templates": settings.model_dump(include={"system", "user", "assistant"}),
            "rules": rules.model_dump(),
            "schema": schema,
            "shapes": shapes_of,
            "weights": {name: source.weight for name, source in data.all_sources().items()},
        }


def _too_many(quarantine: Shards, total: int, rules: Validate) -> str:
    first = quarantine.head(5).to_dict(orient="records")
    examples = "\n  ".join(f"{row['file']}:{row['line']}: {str(row['kind'])[:160]}" for row in first)
    kinds = Counter[str]()
    for batch in quarantine.iter_batches(["kind"]):
        kinds.update(batch.column("kind").to_pylist())
    counted = ", ".join(f"{count} x {kind[:160]}" for kind, count in kinds.most_common(3))
    return (
        f"{len(quarantine)} of {total} rows are bad, more than data_processing.validate_rows.max_bad_fraction "
        f"({rules.max_bad_fraction:.0%}) allows: the file or the templates in `data` are wrong. {counted}. The first ones:\n"
        f"  {examples}"
    )
