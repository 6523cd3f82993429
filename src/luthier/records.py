"""Arrow schemas of the tables that pass between rooms. Explicit, so that no first row decides a type."""

import pyarrow as pa

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])

INGESTED = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),  # counted from 1, as an editor counts them
        ("row", pa.string()),  # the row as JSON; null if it could not be read
        ("error", pa.string()),  # why it could not be read
    ]
)

RECORD = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("row", pa.string()),  # the source row as JSON: parity with serving starts here
        ("source", pa.string()),  # file and line
        ("content_hash", pa.string()),  # sha256 of the normalised conversation
    ]
)

QUARANTINED = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("row", pa.string())])

DUPLICATE = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),  # exact | near
        ("similarity", pa.float64()),  # Jaccard similarity of the shingles with the survivor
        ("survivor", pa.string()),
        ("survivor_source", pa.string()),
    ]
)

SPLIT_RECORD = RECORD.append(pa.field("split", pa.string()))

EXAMPLE = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),  # True where the token is the assistant's
    ]
)
