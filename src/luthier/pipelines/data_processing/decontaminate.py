"""Find training records that give away what the model will be tested on: our own test split, and benchmark files.

Two texts overlap where they share a run of 13 words (Brown et al. 2020, appendix C); a text too short for that counts
only whole. Such runs are often quotations that give nothing away, so each finding is listed with its share, and only a
record of which most is known is dropped.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.artefacts import hash_of
from luthier.configuration import FolderParameters
from luthier.errors import UserError
from luthier.executors import Executor, Task, stored
from luthier.pipelines.data_processing import shapes
from luthier.pipelines.data_processing.messages import turns, user_texts
from luthier.pipelines.data_processing.parameters import Decontaminate
from luthier.pipelines.data_processing.shingles import mix
from luthier.reading import as_json, find_files, fingerprint, read
from luthier.records import CONTAMINATED, user_text
from luthier.shards import Shards, write_table
from luthier.text.code_points import Lookup, code_points
from luthier.text.prepare import Message, PromptSettings, RowError, columns_of_template, prepare, rendered
from luthier.text.presidio import pipeline_version
from luthier.text.rows import asked

logger = logging.getLogger(__name__)

Hashes = NDArray[np.uint64]
BENCHMARKS = "data_processing.decontaminate.benchmarks"
RENAME = "Rename the benchmark's columns: to those of a shape, or to those that the templates of `data` read."
ROWS_TO_RECOGNISE = 200
_BITS = 24
_PRIME = np.uint64(0x9E3779B97F4A7C15)


# as `\\w` has it
_in_words = Lookup(lambda character: character.isalnum() or character == "_")


def grams_of_all(texts: Sequence[str], size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash each run of `size` words of each text, all at once; a shorter text is one run, one without words none.

    Returns:
        64-bit hashes in order, repeats included, and where those of each text begin, with the end of the last (length n + 1).
    """
    # a line feed ends each text: no word goes from one into the next
    folded = [text.casefold() + "\n" for text in texts]
    codes = code_points("".join(folded))
    inside = _in_words(codes).astype(bool)
    begins = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]])) if len(codes) else np.zeros(0, np.int64)
    letters = np.flatnonzero(inside)
    first = np.searchsorted(letters, begins)
    place = np.arange(len(letters)) - np.repeat(first, np.diff(first, append=len(letters)))
    mixed = mix(codes[letters].astype(np.uint64) * _PRIME + place.astype(np.uint64))
    words = np.add.reduceat(mixed, first) if len(first) else np.zeros(0, np.uint64)
    ends = np.searchsorted(begins, np.cumsum([len(text) for text in folded], dtype=np.int64))
    starts = np.concatenate([[0], ends])[: len(texts)].astype(np.int64)
    own = ends - starts
    counts = np.where(own > 0, np.maximum(1, own - size + 1), 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    length = np.repeat(np.minimum(own, size), counts)
    padded = np.concatenate([words, np.zeros(size, np.uint64)])
    found = length.astype(np.uint64)
    for step in range(size):
        found = np.where(length > step, mix(found * _PRIME + padded[at + step]), found)
    return found, offsets


def grams(text: str, size: int) -> Hashes:
    """Return the set of hashes of one text, sorted."""
    return np.unique(grams_of_all([text], size)[0])


def _answer(messages: Sequence[Any]) -> str:
    """Return the answer that a conversation ends with; that of a mere question is empty, whatever was said before it."""
    return str(messages[-1]["content"]) if messages[-1]["role"] == "assistant" else ""


def reference_shard(out: Path, file: Path, size: int, splits: Sequence[str]) -> None:
    """Write the runs of the records of a shard that are held out, and the ids that they belong to."""
    table = pq.read_table(file, columns=["id", "messages", "split"])
    table = table.filter(pc.is_in(table.column("split"), pa.array(splits)))
    texts = list(zip(user_texts(table), map(_answer, turns(table, "messages")), strict=True))
    _write_references(out, table.column("id").to_pylist(), texts, size)


def reference_file(out: Path, location: str, shown: str, size: int, settings: PromptSettings, key: str) -> None:
    """Write the runs of a benchmark's questions, prepared as the records are: else none that names somebody is found.

    Raises:
        UserError: if nothing of the benchmark can be compared.
    """
    read_rows = [(line, *as_json(row, error)) for line, row, error in read(location, "auto", shown, BENCHMARKS)]
    rows = [(line, json.loads(text)) for line, text, error in read_rows if not error]
    skipped = [f"line {line}: {error}" for line, _, error in read_rows if error]
    shape = _recognise([row for _, row in rows[:ROWS_TO_RECOGNISE]], settings.user, shown)
    names, texts = [], []
    for line, row in rows:
        try:
            said, _ = prepare(_asked(row, shape, settings), settings, key)
        except RowError as error:
            skipped.append(f"line {line}: {error}")
            continue
        names.append(f"{shown}:{line}")
        texts.append((user_text(said), _answer(said)))
    if not names:
        raise UserError(
            f"{BENCHMARKS}: {shown}: none of its {len(skipped):,} items asks anything, such as {skipped[0]}. {RENAME}"
        )
    (out / "skipped.json").write_text(json.dumps(skipped), encoding="utf-8")
    _write_references(out, names, texts, size)


def _recognise(rows: Sequence[dict[str, Any]], user: str | None, shown: str) -> shapes.Shape:
    columns = columns_of_template(user) if user else frozenset[str]()
    return shapes.recognise(rows, columns, f"{BENCHMARKS}: {shown}", RENAME)


def check_benchmark(path: str, user: str | None, folders: FolderParameters) -> None:
    """Look at the first rows of a benchmark's files.

    Args:
        path: a file, a folder or a glob.
        user: the template of the user's turn, if there is one.
        folders: where the project stands.

    Raises:
        UserError: if there is no such file, or one cannot be read, or its rows are of no known shape.
    """
    for location in find_files(path, folders, BENCHMARKS):
        shown = location.removeprefix(folders.root + "/")
        texts = (as_json(row, error) for _, row, error in read(location, "auto", shown, BENCHMARKS))
        _recognise([json.loads(text) for text, _ in islice((one for one in texts if not one[1]), ROWS_TO_RECOGNISE)], user, shown)


def _asked(row: dict[str, Any], shape: shapes.Shape, settings: PromptSettings) -> list[Message]:
    """Return the turns of a benchmark's item; where there is no answer, a question alone will do."""
    try:
        return rendered(row, settings) if shape == "template" else shapes.to_conversation(row, shape).messages
    except RowError:
        return rendered(row, settings.model_copy(update={"assistant": None})) if shape == "template" else asked(row)


def _tell_skipped(shown: str, folder: Path) -> None:
    skipped = json.loads((folder / "skipped.json").read_text(encoding="utf-8"))
    if skipped:
        logger.warning("%s: %s of its items are not compared, such as %s.", shown, f"{len(skipped):,}", skipped[0])


def _write_references(out: Path, names: Sequence[str], texts: Sequence[tuple[str, str]], size: int) -> None:
    found, offsets = grams_of_all([text for text, _ in texts], size)
    owner = np.repeat(np.arange(len(texts)), np.diff(offsets))
    order = np.lexsort((found, owner))
    found, owner = found[order], owner[order]
    new = np.ones(len(found), bool)
    new[1:] = (found[1:] != found[:-1]) | (owner[1:] != owner[:-1])
    np.save(out / "grams.npy", found[new])
    np.save(out / "owner.npy", owner[new].astype(np.int32))
    write_table(
        pa.table({"name": pa.array(names, pa.string()), "answer": [answer for _, answer in texts]}), out / "names.parquet"
    )


def _bit(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - _BITS)


@dataclass(frozen=True)
class Index:
    """What must not be trained on, on disk: made of all shards, read by the workers."""

    arrays: Path
    """Folder of all runs of words, sorted, and of whose they are, named by what they hold."""
    sets: list[Path]
    """Folders with the names and answers of the items, one for each shard or file."""
    against: list[str]
    """What each of them is, as findings call it."""
    words: int
    """Length of the runs."""

    def decides(self) -> dict[str, Any]:
        """Return what it decides of a result; the sets by name too, for answers and names of items are not in the arrays."""
        sets = [folder.name for folder in self.sets]
        return {"index": self.arrays.name, "sets": sets, "of": self.against, "words": self.words}


class References:
    """All runs of words that must not be trained on, sorted, with their owners."""

    def __init__(self, index: Index) -> None:
        """Open an index."""
        found = stored(index.arrays)
        self.grams, self.owner, self.folder, self._bits = (found[name] for name in ("grams", "owner", "folder", "bits"))
        self.index = index
        self._tables: dict[int, list[dict[str, Any]]] = {}

    def overlap(self, own: Hashes) -> tuple[int, int, float] | None:
        """Return set and number of the item that has most runs in common, and the share of own runs that any item has."""
        place = np.searchsorted(self.grams, own)
        place[place == len(self.grams)] = 0
        if not len(self.grams) or not (hits := self.grams[place] == own).any():
            return None
        last = np.searchsorted(self.grams, own[hits], "right")
        owners = np.concatenate([np.arange(a, b) for a, b in zip(place[hits], last, strict=True)])
        items, counts = np.unique(np.stack([self.folder[owners], self.owner[owners]], 1), axis=0, return_counts=True)
        best = int(np.argmax(counts))
        return int(items[best, 0]), int(items[best, 1]), float(hits.sum() / len(own))

    def known(self, found: Hashes) -> NDArray[np.bool_]:
        """Tell which hashes stand here."""
        # most runs of words stand nowhere here: a bit a hash says so ten times faster than a search
        bit = _bit(found)
        known = (self._bits[bit >> np.uint64(3)] >> (bit & np.uint64(7)).astype(np.uint8) & 1).astype(bool)
        asked = found[known]
        place = np.searchsorted(self.grams, asked)
        place[place == len(self.grams)] = 0
        known[known] = self.grams[place] == asked if len(self.grams) else False
        return known

    def share(self, text: str) -> float:
        """Return the share of a text's runs that stand here."""
        own = grams(text, self.index.words)
        return float(self.known(own).mean()) if len(own) else 0.0

    def item(self, folder: int, owner: int) -> dict[str, Any]:
        """Return name and answer of an item."""
        if folder not in self._tables:
            self._tables[folder] = pq.read_table(self.index.sets[folder] / "names.parquet").to_pylist()
        return self._tables[folder][owner]


def decontaminate_shard(out: Path, file: Path, index: Index, parameters: Decontaminate) -> None:
    """Write the records that stay, and the findings (schema `records.CONTAMINATED`)."""
    references = References(index)
    table = pq.read_table(file)
    findings, stays = [], np.ones(len(table), bool)
    hashes, offsets = grams_of_all(user_texts(table), parameters.words)
    hits = np.concatenate([[0], np.cumsum(references.known(hashes))])
    touched = (hits[offsets[1:]] > hits[offsets[:-1]]) & np.asarray(pc.not_equal(table.column("split"), "test"))
    rows = np.flatnonzero(touched)
    suspects = table.take(pa.array(rows))
    columns = (suspects.column(name).to_pylist() for name in ("key", "id"))
    for row, key, identity, messages in zip(rows, *columns, turns(suspects, "messages"), strict=True):
        found = references.overlap(np.unique(hashes[offsets[row] : offsets[row + 1]]))
        if found is None:
            continue
        folder, owner, share = found
        item = references.item(folder, owner)
        answer = _answer(messages)
        stays[row] = share < parameters.drop_from
        findings.append(
            {
                "key": key,
                "id": identity,
                "against": index.against[folder],
                "item": item["name"],
                "overlap": share,
                "same_answer": bool(answer) and answer.casefold() == item["answer"].casefold(),
                "dropped": not stays[row],
            }
        )
    write_table(table.filter(pa.array(stays)), out / "records.parquet")
    write_table(pa.Table.from_pylist(findings, CONTAMINATED), out / "contaminated.parquet")


def decontaminate(
    records: Shards,
    parameters: Decontaminate,
    settings: PromptSettings,
    key: str,
    folders: FolderParameters,
    executor: Executor,
) -> tuple[Shards, Shards]:
    """Compare training and validation records with the test split and with the benchmarks.

    Args:
        records: with their splits, cleaned and scrubbed.
        parameters: what is compared.
        settings: with which the records were prepared.
        key: of the placeholders in them.
        folders: where the project stands.
        executor: does the work.

    Returns:
        the records that stay, and a table of all findings (schema `records.CONTAMINATED`).

    Raises:
        UserError: if a benchmark cannot be read, or asks nothing.
    """
    index = reference_index(records, ("test",), parameters, settings, key, folders, executor)
    decides = index.decides() | {"drop_from": parameters.drop_from}
    shared = {"index": index, "parameters": parameters}
    parts = executor.map(
        "decontaminate_records",
        decontaminate_shard,
        [
            Task(decides | {"input": sha}, shared | {"file": file})
            for file, sha in zip(records.files, records.hashes, strict=True)
        ],
    )
    kept = executor.table("decontaminate_records", [part / "records.parquet" for part in parts])
    return kept, executor.table("decontaminate_records", [part / "contaminated.parquet" for part in parts])


def reference_index(
    records: Shards,
    splits: Sequence[str],
    parameters: Decontaminate,
    settings: PromptSettings,
    key: str,
    folders: FolderParameters,
    executor: Executor,
) -> Index:
    """Index the runs of words of the records of some splits, and of the benchmarks.

    Raises:
        UserError: if a benchmark cannot be read, or asks nothing.
    """
    own = [
        Task(
            {"input": sha256, "words": parameters.words, "splits": splits},
            {"file": file, "size": parameters.words, "splits": splits},
        )
        for file, sha256 in zip(records.files, records.hashes, strict=True)
    ]
    sets = executor.map("test_references", reference_shard, own)
    against = ["test split"] * len(sets)
    tasks = []
    prepared = {"settings": settings.model_dump(mode="json"), "key": hash_of([key])}
    if settings.scrub and settings.scrub.presidio:
        prepared["pipeline"] = pipeline_version(settings.scrub.presidio.model)
    for path in parameters.benchmarks:
        for location in find_files(path, folders, BENCHMARKS):
            sha256, _ = fingerprint(location, BENCHMARKS)
            shown = location.removeprefix(folders.root + "/")
            arguments = {"location": location, "shown": shown, "size": parameters.words, "settings": settings, "key": key}
            tasks.append(Task({"input": sha256, "shown": shown, "words": parameters.words} | prepared, arguments))
            against.append(path)
    benchmarks = executor.map("benchmark_references", reference_file, tasks)
    for task, folder in zip(tasks, benchmarks, strict=True):
        _tell_skipped(task.arguments["shown"], folder)
    sets += benchmarks
    return Index(_index(sets, executor), sets, against, parameters.words)


def _index(sets: Sequence[Path], executor: Executor) -> Path:
    """Keep the runs of all sets, sorted, with the set and the number of their items, and a bit for each hash that begins one."""
    found = [np.load(folder / "grams.npy") for folder in sets]
    owners = np.concatenate([np.load(folder / "owner.npy") for folder in sets])
    folder = np.repeat(np.arange(len(sets)), [len(own) for own in found]).astype(np.int32)
    every = np.concatenate(found)
    order = np.argsort(every, kind="stable")
    bits = np.zeros(1 << _BITS, bool)
    bits[_bit(every)] = True
    arrays = {"grams": every[order], "owner": owners[order], "folder": folder[order]}
    (index,) = executor.store("reference_index", [arrays | {"bits": np.packbits(bits, bitorder="little")}])
    return index
