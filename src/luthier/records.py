"""Arrow schemas of the tables that pass between rooms, and what several rooms read out of them.

Schemas are explicit, so that no first row decides a type.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier.shards import Shards

MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("name", pa.string()),
        ("tool_calls", pa.string()),  # OpenAI's list as JSON text: its arguments have no schema
        ("tool_call_id", pa.string()),
    ]
)

INGESTED = pa.schema(
    [
        ("source", pa.string()),  # name of the source in the configuration
        ("file", pa.string()),
        ("line", pa.int64()),  # counted from 1, as an editor counts them
        ("row", pa.string()),  # the row as JSON; null if it could not be read
        ("error", pa.string()),  # why it could not be read
    ]
)

RECORD = pa.schema(
    [
        ("key", pa.string()),  # hash of source and row, 32 hexadecimal digits: unique, and the order of every table
        ("id", pa.string()),  # the user's, behind `source:` if there are several sources, or the key
        ("messages", pa.list_(MESSAGE)),
        ("rejected", pa.list_(MESSAGE)),  # of a preference pair: the turns that were not preferred; null otherwise
        ("label", pa.string()),  # its class, for counts, slices and augmentation; null if the rows have none
        ("meta", pa.string()),  # JSON: what else is known of the record
        ("source", pa.string()),
        ("weight", pa.float64()),  # how often to take it in an epoch of training
    ]
)

ORIGIN = pa.schema([("key", pa.string()), ("file", pa.string()), ("line", pa.int64())])

QUARANTINED = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),  # may quote the row
        ("kind", pa.string()),  # the reason without anything of the row's: what reports count
        ("row", pa.string()),
    ]
)

CHANGED = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("role", pa.string()),
        ("what", pa.string()),  # the changes, joined by commas
        ("before", pa.string()),  # an excerpt around the first change; null where it would show what was taken out
        ("after", pa.string()),
    ]
)

DROPPED = pa.schema([("key", pa.string()), ("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

DUPLICATE = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("kind", pa.string()),  # exact | near
        ("similarity", pa.float64()),  # Jaccard similarity of the shingles with the survivor
        ("survivor", pa.string()),
        ("survivor_key", pa.string()),
    ]
)

CONTAMINATED = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("against", pa.string()),  # the test split, or the benchmark's path
        ("item", pa.string()),  # the id, or file and line, of what it overlaps with most
        ("overlap", pa.float64()),  # share of the record's runs of words that are known
        ("same_answer", pa.bool_()),
        ("dropped", pa.bool_()),
    ]
)

CLUSTERED = RECORD.append(pa.field("content_hash", pa.string())).append(pa.field("cluster", pa.string()))

SPLIT_RECORD = CLUSTERED.append(pa.field("split", pa.string())).append(pa.field("provenance", pa.string()))

# Which split a conversation belongs to, dropped duplicates included: what the next version of the data has to respect.
SPLIT_TABLE = pa.schema([("content_hash", pa.string()), ("cluster", pa.string()), ("split", pa.string()), ("kept", pa.bool_())])

EXAMPLE = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("weight", pa.float64()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),  # True where the token is the assistant's
    ]
)


def user_text(messages: Any) -> str:
    """Return what the user says, turn after turn; of a conversation without a user, all that is said."""
    turns = [message["content"] or "" for message in messages if message["role"] == "user"]
    return "\n".join(turns or [message["content"] or "" for message in messages])


def held_out(records: Shards, examples: Shards, limit: int | None) -> pd.DataFrame:
    """Return the test records that became examples, sorted by id; of like messages with several answers one, asked once.

    Args:
        records: of schema `records.SPLIT_RECORD`.
        examples: of schema `records.EXAMPLE`.
        limit: how many at most; None for all. Keys are hashes, so those with the least key are a sample of all sources.
    """
    rows = learnt(records, examples, "test")
    facts = records.take(rows, ["key", "cluster"]).to_pandas().sort_values("key").drop_duplicates("cluster")
    chosen = narrowed(rows, (facts.head(limit) if limit else facts).index.to_numpy())
    return records.take(chosen).to_pandas().sort_values("id").reset_index(drop=True)


def learnt(records: Shards, examples: Shards, *splits: str) -> NDArray[np.bool_]:
    """Tell which records of some splits became examples: what the chat template refused, no model can be asked."""
    return rows_of(records, splits, examples.to_table(["id"]).column("id"))


def rows_of(records: Shards, splits: Sequence[str], ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Tell which records of some splits have one of the ids."""
    names = pa.array(splits, pa.string())
    found = [np.asarray(pc.is_in(batch.column("split"), names)) for batch in records.iter_batches(["split"])]
    rows = np.concatenate([np.zeros(0, bool), *found])
    # all at once: to look for some in many ids takes a table of these each time
    return narrowed(rows, np.asarray(pc.is_in(records.take(rows, ["id"]).column("id"), ids)))


def lowest(records: Shards, rows: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
    """Take of some records `limit` at most, those with the least keys: a sample of all sources, in any order of the rows."""
    keys = records.take(rows, ["key"])
    if len(keys) <= limit:
        return rows
    return narrowed(rows, pc.select_k_unstable(keys, limit, [("key", "ascending")]).to_numpy())


def narrowed(rows: NDArray[np.bool_], chosen: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask that takes, of the rows that one takes, some only: their numbers among these, or a mask over these."""
    mask = np.zeros(len(rows), bool)
    mask[np.flatnonzero(rows)[chosen]] = True
    return mask
