"""Answer rows chunk by chunk, and write what came out. Memory holds one chunk."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.answers import Answerer, AnswerStore, Progress, Refusal
from luthier.artefacts import hash_of, hash_of_file, is_complete, link, staged
from luthier.errors import UserError
from luthier.executors import SECONDS_KEPT
from luthier.pipelines.inference.rows import AskedRow
from luthier.shards import ROWS_PER_SHARD, Shards

PREDICTION = pa.schema(
    [
        ("id", pa.string()),  # the user's, or the line; behind the file's name where there are several
        ("row", pa.string()),  # all that the source's row held, as JSON
        ("answer", pa.string()),  # null if there is an error
        ("finish", pa.string()),  # stop | length: whether it ended, or was cut
        ("tokens", pa.int64()),
        ("log_probability", pa.float64()),  # of the answer, in nats; NaN where an endpoint does not say
        ("model", pa.string()),  # such as luthier@3
        ("manifest", pa.string()),  # root sha256 of the version's package, or the identity of what has none
        ("error", pa.string()),  # why there is no answer
    ]
)


@dataclass(frozen=True)
class Model:
    """What answers, as each row will say."""

    answerer: Answerer
    name: str
    manifest: str


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    kept: int = 0
    """Of those answered, how many an earlier run had answered."""
    answered: int = 0
    cut: int = 0
    """Answers that reached the limit."""
    tokens: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)
    """The first ones."""

    def add(self, rows: list[dict[str, Any]], kept: bool) -> None:
        """Count the rows of a chunk."""
        bad = [row for row in rows if row["error"] is not None]
        self.rows += len(rows)
        self.answered += len(rows) - len(bad)
        self.kept += len(rows) - len(bad) if kept else 0
        self.cut += sum(row["finish"] == "length" for row in rows)
        self.tokens += sum(row["tokens"] or 0 for row in rows)
        self.errors += [{"id": row["id"], "error": row["error"]} for row in bad[: 5 - len(self.errors)]]


def predict(
    rows: Iterator[AskedRow], model: Model, store: AnswerStore, folder: Path, progress: Progress
) -> tuple[Shards, Counts]:
    """Answer all rows.

    Args:
        rows: in the order in which they will stand.
        model: what answers.
        store: of the answers; its chunks are these chunks.
        folder: where the table goes, in a folder named by its content.
        progress: called with the number of rows that are done.

    Returns:
        a table of schema `PREDICTION`, and what became of the rows.

    Raises:
        UserError: if the model cannot answer, there is no row, or nothing can be asked about any of the first ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    with TemporaryDirectory(dir=folder, prefix=".staging-") as place:
        _write(_tables(rows, model, store, progress, counts), Path(place))
        parts = sorted(Path(place).iterdir())
        final = folder / hash_of([hash_of_file(part) for part in parts])[:32]
        try:
            with staged(final, rows=counts.rows) as staging:
                for part in parts:
                    link(part, staging / part.name)
        except OSError:
            if not is_complete(final):  # else it had been made before
                raise
    os.utime(final)
    return Shards(final), counts


def forget(folder: Path) -> None:
    """Remove tables, whole or not, that no run has made for a day: data sets link their files, so nothing is lost."""
    for old in folder.glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > SECONDS_KEPT:
                shutil.rmtree(old, ignore_errors=True)


def _tables(rows: Iterator[AskedRow], model: Model, store: AnswerStore, progress: Progress, counts: Counts) -> Iterator[pa.Table]:
    while chunk := list(islice(rows, store.rows_per_chunk)):
        good = [row.turns for row in chunk if row.error is None]
        if not good and not counts.rows:
            told = "\n  ".join(f"{row.id}: {row.error}" for row in chunk[:5])
            raise UserError(
                f"inference.source: nothing can be asked about any of the first {len(chunk)} rows. Name the column of the text "
                f"or the turns in inference.column, or give the rows what the model's template reads. The first ones:\n  {told}"
            )
        progress(len(chunk) - len(good))
        answered = store.chunk(model.answerer, good, progress) if good else None
        replies = iter(answered.replies if answered else [])
        told_rows = [_row(row, model, next(replies) if row.error is None else Refusal(row.error)) for row in chunk]
        counts.add(told_rows, kept=answered is not None and answered.kept)
        yield pa.Table.from_pylist(told_rows, PREDICTION)
    if not counts.rows:
        raise UserError("inference.source: there are no rows in it.")


def _row(row: AskedRow, model: Model, reply: Any) -> dict[str, Any]:
    told = {"id": row.id, "row": row.row, "model": model.name, "manifest": model.manifest}
    if isinstance(reply, Refusal):
        return told | {"answer": None, "finish": None, "tokens": None, "log_probability": None, "error": reply.error}
    return told | {
        "answer": reply.text,
        "finish": reply.finish,
        "tokens": reply.tokens,
        "log_probability": reply.log_probability,
        "error": None,
    }


def _write(tables: Iterator[pa.Table], folder: Path) -> None:
    """Write tables into Parquet files of some thousand rows, each table as it comes."""
    for number, first in enumerate(tables):
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", PREDICTION, compression="zstd") as writer:
            writer.write_table(first)
            rows = first.num_rows
            while rows < ROWS_PER_SHARD and (table := next(tables, None)) is not None:
                writer.write_table(table)
                rows += table.num_rows
