"""Turn conversations into tokens with a mask over what is to be learnt; count what does not fit; pack what does."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.errors import UserError
from luthier.executors import Executor, Task
from luthier.models import Base, load_tokenizer
from luthier.pipelines.data_processing.messages import turns
from luthier.pipelines.data_processing.parameters import Tokenise
from luthier.records import DROPPED, EXAMPLE, PACKED
from luthier.shards import Shards, write_table
from luthier.text.chat import Encoded, check_template, encode_all
from luthier.text.prepare import Message

_tokenizer = lru_cache(maxsize=2)(load_tokenizer)


def _fitting(tokenizer: Any, messages: list[Message], encoded: Encoded, parameters: Tokenise) -> Encoded | None:
    """Return the example within the limit by the policy, or None."""
    limit = parameters.max_tokens
    if len(encoded.input_ids) <= limit:
        return encoded
    if parameters.too_long == "cut_end":
        return Encoded(encoded.input_ids[:limit], encoded.supervised[:limit])
    if parameters.too_long == "drop_oldest_turns":
        system = [turn for turn in messages if turn["role"] == "system"]
        rest = [turn for turn in messages if turn["role"] != "system"]
        users = [place for place, turn in enumerate(rest) if turn["role"] == "user"]
        for start in users[1:]:
            shorter = encode_all(tokenizer, [[*system, *rest[start:]]])[0]
            if len(shorter.input_ids) <= limit:
                return shorter
    return None


def tokenise_shard(out: Path, file: Path, base: Base, parameters: Tokenise) -> None:
    """Write `examples` (schema `records.EXAMPLE`) and `dropped` (`records.DROPPED`): too long, or nothing to learn."""
    tokenizer = _tokenizer(base)
    table = pq.read_table(file, columns=["key", "id", "source", "split", "weight", "messages"])
    conversations = turns(table, "messages")
    found: dict[str, list[Any]] = {name: [] for name in EXAMPLE.names}
    dropped = []
    names = zip(*(table.column(name).to_pylist() for name in ("key", "id", "source", "split", "weight")), strict=True)
    rows = zip(names, conversations, encode_all(tokenizer, conversations), strict=True)
    for (key, identity, source, split, weight), messages, whole in rows:
        encoded = _fitting(tokenizer, messages, whole, parameters)
        if encoded is None:
            reason = f"longer than {parameters.max_tokens} tokens"
        elif not any(encoded.supervised):
            reason = "no token of an answer to learn"
        else:
            values = (identity, split, weight, encoded.input_ids, encoded.supervised)
            for name, value in zip(EXAMPLE.names, values, strict=True):
                found[name].append(value)
            continue
        dropped.append({"key": key, "id": identity, "source": source, "reason": reason})
    examples = pa.Table.from_pydict(found, schema=EXAMPLE)
    write_table(examples, out / "examples.parquet")
    write_table(pa.Table.from_pylist(dropped, DROPPED), out / "dropped.parquet")
    write_table(pack(examples, parameters.max_tokens), out / "packed.parquet")


def pack(examples: pa.Table, size: int) -> pa.Table:
    """Fill rows of `size` tokens with whole examples of one split: best fit, longest first (Johnson 1974).

        input_ids  a a a a a b b b c c
        positions  0 1 2 3 4 0 1 2 0 1
        documents  0 0 0 0 0 1 1 1 2 2

    Attention must not cross documents, or an example would depend on its neighbours.

    Returns:
        a table of schema `records.PACKED`; every example stands in one row, none is cut.
    """
    rows: list[dict[str, Any]] = []
    entries = examples.to_pylist()
    for split in sorted({entry["split"] for entry in entries}):
        own = sorted((entry for entry in entries if entry["split"] == split), key=lambda e: (-len(e["input_ids"]), e["id"]))
        rows += [_row(split, [own[place] for place in places]) for places in _best_fit([len(e["input_ids"]) for e in own], size)]
    return pa.Table.from_pylist(rows, PACKED)


def _best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put each length, the longest first, into the bin that it fills best."""
    bins: list[list[int]] = []
    open_by_room: list[list[int]] = [[] for _ in range(size + 1)]
    for place, length in enumerate(lengths):
        room = next((room for room in range(length, size + 1) if open_by_room[room]), None)
        if room is None:
            bins.append([])
            number, room = len(bins) - 1, size
        else:
            number = open_by_room[room].pop(0)
        bins[number].append(place)
        open_by_room[room - length].append(number)
    return bins


def _row(split: str, own: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"split": split, "ids": [entry["id"] for entry in own]}
    for name in ("input_ids", "supervised"):
        row[name] = [value for entry in own for value in entry[name]]
    row["positions"] = [position for entry in own for position in range(len(entry["input_ids"]))]
    row["documents"] = [number for number, entry in enumerate(own) for _ in entry["input_ids"]]
    return row


def tokenise(records: Shards, base: Base, parameters: Tokenise, executor: Executor) -> tuple[Shards, Shards, Shards]:
    """Encode each conversation by the chat template.

    Returns:
        the examples, in the order of the records; what was dropped; and the examples packed, shard by shard.

    Raises:
        UserError: if the tokenizer has no chat template, or no example is left to train or to test on.
    """
    check_template(_tokenizer(base))
    tasks = [
        Task({"input": sha256, "base": base.identity, "parameters": parameters.model_dump()}, _arguments(file, base, parameters))
        for file, sha256 in zip(records.files, records.hashes, strict=True)
    ]
    parts = executor.map("tokenise_records", tokenise_shard, tasks)
    names = ("examples", "dropped", "packed")
    examples, dropped, packed = (
        executor.table("tokenise_records", [part / f"{name}.parquet" for part in parts]) for name in names
    )
    splits = {name for batch in examples.iter_batches(["split"]) for name in batch.column("split").to_pylist()}
    for name in sorted({"train", "test"} - splits):
        raise UserError(f"No {name} example has at most {parameters.max_tokens} tokens (data_processing.tokenise.max_tokens).")
    return examples, dropped, packed


def _arguments(file: Path, base: Base, parameters: Tokenise) -> dict[str, Any]:
    return {"file": file, "base": base, "parameters": parameters}
