"""Turn conversations into tokens with a mask over what is to be learnt; count what does not fit."""

import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.executors import Executor, Task
from luthier.models import Base, context_of, load_tokenizer, tokenizer_identity
from luthier.pipelines.data_processing.messages import turns
from luthier.pipelines.data_processing.parameters import Tokenise
from luthier.records import DROPPED, EXAMPLE
from luthier.shards import Shards, write_table
from luthier.text.chat import Encoded, check_template, encode_all, learns_every_answer, writes_calls
from luthier.text.prepare import Message

logger = logging.getLogger(__name__)

AT_ONCE = 1024


def _fitting(tokenizer: Any, messages: list[Message], encoded: Encoded, parameters: Tokenise) -> Encoded | None:
    """Return the example within the limit by the policy, or None."""
    limit = parameters.max_tokens
    if len(encoded.input_ids) <= limit:
        return encoded
    if parameters.too_long == "cut_end":
        return encoded.cut(limit)
    if parameters.too_long == "drop_oldest_turns":
        system = [turn for turn in messages if turn["role"] == "system"]
        rest = [turn for turn in messages if turn["role"] != "system"]
        users = [place for place, turn in enumerate(rest) if turn["role"] == "user"]
        for start in users[1:]:
            shorter = encode_all(tokenizer, [[*system, *rest[start:]]])[0]
            if len(shorter.input_ids) <= limit:
                return shorter
    return None


def _encoded(tokenizer: Any, conversations: list[list[Message]]) -> list[Encoded | str]:
    """Encode conversations; in place of one that the chat template cannot write as it is, say why."""
    calling = [any("tool_calls" in message for message in messages) for messages in conversations]
    if any(calling) and not writes_calls(tokenizer):
        left = iter(_encoded(tokenizer, [m for m, calls in zip(conversations, calling, strict=True) if not calls]))
        return ["the base model's chat template leaves out tool calls" if calls else next(left) for calls in calling]
    try:
        return list(encode_all(tokenizer, conversations))
    except (TemplateError, UserError) as error:
        if len(conversations) == 1:
            why = "the base model's chat template refuses it: " if isinstance(error, TemplateError) else ""
            return [f"{why}{str(error).rstrip('.')}"]
        return [own for messages in conversations for own in _encoded(tokenizer, [messages])]


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> Any:
    return pickle.loads(packed)  # noqa: S301  packed by the process that sent it here


def tokenise_shard(out: Path, file: Path, packed_tokenizer: bytes, parameters: Tokenise) -> None:
    """Write `examples` (schema `records.EXAMPLE`) and `dropped` (`records.DROPPED`): too long, or nothing to learn."""
    tokenizer = _unpacked(packed_tokenizer)
    kept: list[tuple[str, str, float]] = []
    tokens: list[NDArray[np.int32]] = []
    masks: list[NDArray[np.bool_]] = []
    dropped = []
    columns = ["key", "id", "source", "split", "weight", "messages"]
    with pq.ParquetFile(file) as parquet:
        # a few at a time: tokens take thirty times the room as Python's numbers
        for batch in parquet.iter_batches(batch_size=AT_ONCE, columns=columns):
            table = pa.Table.from_batches([batch])
            conversations = turns(table, "messages")
            names = zip(*(table.column(name).to_pylist() for name in columns[:-1]), strict=True)
            rows = zip(names, conversations, _encoded(tokenizer, conversations), strict=True)
            for (key, identity, source, split, weight), messages, whole in rows:
                encoded = None if isinstance(whole, str) else _fitting(tokenizer, messages, whole, parameters)
                if isinstance(whole, str):
                    reason = whole
                elif encoded is None:
                    reason = f"longer than {parameters.max_tokens} tokens"
                elif not encoded.answers:
                    reason = "no token of an answer to learn"
                else:
                    kept.append((identity, split, weight))
                    tokens.append(np.array(encoded.input_ids, np.int32))
                    masks.append(encoded.mask())
                    continue
                dropped.append({"key": key, "id": identity, "source": source, "reason": reason})
    ids, splits, weights = zip(*kept, strict=True) if kept else ((), (), ())
    facts = [pa.array(ids, pa.string()), pa.array(splits, pa.string()), pa.array(weights, pa.float64())]
    lists = [_lists(tokens, pa.int32()), _lists(masks, pa.bool_())]
    write_table(pa.Table.from_arrays([*facts, *lists], schema=EXAMPLE), out / "examples.parquet")
    write_table(pa.Table.from_pylist(dropped, DROPPED), out / "dropped.parquet")


def _lists(values: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    """Return a column of lists, without a Python object a number."""
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in values], dtype=np.int64)]).astype(np.int32)
    flat = np.concatenate(values) if values else np.zeros(0, kind.to_pandas_dtype())
    return pa.ListArray.from_arrays(offsets, pa.array(flat, kind))


def _why(dropped: Shards) -> str:
    """Return why most conversations were dropped, and what to do about it."""
    reasons = Counter(dropped.to_pandas(["reason"])["reason"]).most_common(1)
    if not reasons:
        return "none is in that split (data_processing.split)."
    ((reason, count),) = reasons
    change = (
        "raise data_processing.tokenise.max_tokens" if reason.startswith("longer") else "choose another model.base, or other data"
    )
    return f"{count:,} are left out: {reason}. If that is a mistake, {change}."


def usable_tokenizer(base: Base, parameters: Tokenise) -> Any:
    """Return the base's tokenizer.

    Raises:
        UserError: if its chat template cannot be trained with, or examples may be longer than what the base can read: of
            more tokens it does not know the positions.
    """
    context = context_of(base)
    if context is not None and parameters.max_tokens > context:
        raise UserError(
            f"data_processing.tokenise.max_tokens is {parameters.max_tokens}, more than {base.name} can read: "
            f"write {context} at most, or choose another model.base."
        )
    tokenizer = load_tokenizer(base)
    check_template(tokenizer)
    return tokenizer


def tokenise(records: Shards, base: Base, parameters: Tokenise, executor: Executor) -> tuple[Shards, Shards]:
    """Encode each conversation by the chat template.

    Returns:
        the examples, in the order of the records, and what was dropped.

    Raises:
        UserError: as `usable_tokenizer`, or if no example is left to train or to test on.
    """
    tokenizer = usable_tokenizer(base, parameters)
    if not learns_every_answer(tokenizer):
        logger.info(
            "The base model's chat template rewrites earlier turns: of several answers in a conversation only the last is learnt."
        )
    decides = {"base": base.identity, "parameters": parameters.model_dump()}
    # the tokenizer itself travels: to load one takes a worker seconds, most of them for the models' code around it
    shared = {"packed_tokenizer": pickle.dumps(tokenizer), "parameters": parameters}
    tasks = [
        Task(decides | {"input": sha256}, shared | {"file": file})
        for file, sha256 in zip(records.files, records.hashes, strict=True)
    ]
    parts = executor.map("tokenise_records", tokenise_shard, tasks)
    vocabulary = tokenizer_identity(tokenizer)
    examples, dropped = (
        executor.table("tokenise_records", [part / f"{name}.parquet" for part in parts], base=base.identity, tokenizer=vocabulary)
        for name in ("examples", "dropped")
    )
    splits = {name for batch in examples.iter_batches(["split"]) for name in batch.column("split").to_pylist()}
    for name in sorted({"train", "test"} - splits):
        raise UserError(f"No {name} example is left of {len(records):,} conversations: {_why(dropped)}")
    return examples, dropped
