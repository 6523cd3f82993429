"""The messages of a table as Python sees them, and back."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from luthier.records import MESSAGE


def turns(table: pa.Table, column: str) -> list[Any]:
    """Return the turns of each record, without the fields that are null; None where a record has no such turns."""
    found = table.column(column).to_pylist()
    return [
        None if messages is None else [{name: value for name, value in turn.items() if value is not None} for turn in messages]
        for messages in found
    ]


def replace_messages(table: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    """Return the table with new turns in place of the old ones."""
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.list_(MESSAGE)))
    return table
