"""The messages of a table as Python sees them, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier.records import MESSAGE


def turns(table: pa.Table, column: str) -> list[Any]:
    """Return the turns of each record, without the fields that are null; None where a record has no such turns."""
    found = table.column(column).to_pylist()
    return [
        None if messages is None else [{name: value for name, value in turn.items() if value is not None} for turn in messages]
        for messages in found
    ]


def user_texts(table: pa.Table, otherwise: str = "all") -> list[str]:
    """Return what the user says in each record, its turns joined by line feeds, as `records.user_text` does.

    Args:
        table: records.
        otherwise: what stands for a conversation without a user: `all` turns, or all but those of the `system`.
    """
    lists = table.column("messages").combine_chunks()
    turns_of_all, parents = lists.flatten(), np.asarray(pc.list_parent_indices(lists))
    roles = pc.struct_field(turns_of_all, "role")
    said = np.asarray(pc.fill_null(pc.equal(roles, "user"), False))
    has_user = np.zeros(len(table), bool)
    has_user[parents[said]] = True
    said |= ~has_user[parents] & (otherwise == "all" or np.asarray(pc.fill_null(pc.not_equal(roles, "system"), True)))
    contents = pc.fill_null(pc.struct_field(turns_of_all, "content"), "").filter(pa.array(said))
    ends = np.cumsum(np.bincount(parents[said], minlength=len(table)))
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), contents), "\n")
    texts: list[str] = joined.to_pylist()
    return texts


def replace_messages(table: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    """Return the table with new turns in place of the old ones."""
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.list_(MESSAGE)))
    return table


def rows_with(table: pa.Table, test: Callable[[pa.Array], pa.Array], fields: tuple[str, ...] = ("content",)) -> NDArray[np.bool_]:
    """Tell which records have a turn whose text passes a test of Arrow arrays; no text becomes a Python object."""
    found = np.zeros(len(table), bool)
    for column in ("messages", "rejected"):
        lists = table.column(column).combine_chunks()
        turns_of_all, parents = lists.flatten(), np.asarray(pc.list_parent_indices(lists))
        for field in fields:
            passed = pc.fill_null(test(pc.struct_field(turns_of_all, field)), False)
            found[parents[np.asarray(passed)]] = True
    return found


def replaced(table: pa.Table, rows: NDArray[np.bool_], new: pa.Table) -> pa.Table:
    """Return the table with other records in place of some, in the order of their keys."""
    return pa.concat_tables([table.filter(pa.array(~rows)), new]).sort_by("key") if rows.any() else table
