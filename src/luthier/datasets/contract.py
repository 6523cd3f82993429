"""What a table of records must be, as a validator of Kedro's catalog: checked whenever the table is saved."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from luthier import records
from luthier.shards import Shards


class RecordContract:
    """Accepts a handle to records whose columns, roles, weights and splits are as `luthier.records` says.

    In the catalog: `validator: {class: luthier.datasets.RecordContract, on: [save], options: {schema: SPLIT_RECORD}}`.
    """

    def __init__(self, schema: str) -> None:
        """Take the name of a schema in `luthier.records`."""
        self.schema: pa.Schema = getattr(records, schema)

    def validate(self, data: Any) -> Shards:
        """Return the handle.

        Raises:
            ValueError: naming everything that is wrong.
        """
        if not isinstance(data, Shards):
            raise ValueError(f"is no table in shards but {type(data).__name__}")
        if not data.schema.equals(self.schema):
            raise ValueError(f"has the columns {', '.join(data.schema.names)}, not {', '.join(self.schema.names)}")
        problems: dict[str, int] = {}
        for batch in data.iter_batches(size=4096):
            for what, count in violations(pa.Table.from_batches([batch])).items():
                problems[what] = problems.get(what, 0) + count
        if problems:
            raise ValueError("; ".join(f"{count} records: {what}" for what, count in problems.items()))
        return data


def violations(table: pa.Table) -> dict[str, int]:
    """Count the records that break a rule, by rule; no key where all keep it."""
    turns = pc.list_flatten(table.column("messages"))
    roles, contents = pc.struct_field(turns, "role"), pc.struct_field(turns, "content")
    broken = {
        "a key is null or not 32 digits": pc.not_equal(pc.fill_null(pc.utf8_length(table.column("key")), 0), 32),
        "an id is null or empty": pc.equal(pc.fill_null(pc.utf8_length(table.column("id")), 0), 0),
        "there are no messages": pc.equal(pc.fill_null(pc.list_value_length(table.column("messages")), 0), 0),
        "a role is unknown": pc.invert(pc.is_in(roles, pa.array(["system", "user", "assistant", "tool"]))),
        "a turn has no text": pc.is_null(contents),
        "a weight is not above 0": pc.invert(pc.greater(pc.fill_null(table.column("weight"), 0), 0)),
    }
    if "split" in table.column_names:
        broken["a split is unknown"] = pc.invert(pc.is_in(table.column("split"), pa.array(["train", "validation", "test"])))
    counts = {what: int(pc.sum(pc.cast(rows, pa.int64())).as_py() or 0) for what, rows in broken.items()}
    return {what: count for what, count in counts.items() if count}
