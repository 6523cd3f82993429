"""Take personal data and secrets out of every record. The table of changes names kinds, never what was taken out."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.pipelines.data_processing.messages import replace_messages, replaced, rows_with, turns
from luthier.records import CHANGED
from luthier.shards import write_table
from luthier.text.pii import PLACEHOLDER, might_hold
from luthier.text.prepare import SCRUBBED, PromptSettings, scrub_messages, scrub_text

AROUND = 60


def scrub_shard(out: Path, file: Path, settings: PromptSettings, key: str) -> None:
    """Write `records` and `changed` (schema `records.CHANGED`, `before` always null)."""
    whole = pq.read_table(file)
    if settings.scrub is None:
        write_table(whole, out / "records.parquet")
        write_table(CHANGED.empty_table(), out / "changed.parquet")
        return
    rows = rows_with(whole, might_hold, SCRUBBED)
    rows |= np.asarray(might_hold(whole.column("meta").combine_chunks()))
    if settings.scrub.presidio is not None:  # a model may find something in any text
        rows[:] = True
    table = whole.filter(pa.array(rows))
    changed: list[dict[str, Any]] = []
    names = list(zip(table.column("key").to_pylist(), table.column("id").to_pylist(), strict=True))
    new = {column: turns(table, column) for column in ("messages", "rejected")}
    # turn by turn in the order of the records: each is put back where it came from
    places = [
        (row, column, number)
        for row in range(len(table))
        for column, conversations in new.items()
        for number in range(len(conversations[row] or []))
    ]
    scrubbed = scrub_messages([new[column][row][number] for row, column, number in places], settings, key)
    for (row, column, number), (safe, values) in zip(places, scrubbed, strict=True):
        if values:
            new[column][row][number] = safe
            changed.append(_change(*names[row], safe["role"], list(values), safe["content"]))
    if changed:
        table = replace_messages(table, new)
    meta = [scrub_text(text, settings.scrub, key)[0] for text in table.column("meta").to_pylist()]
    table = table.set_column(table.schema.get_field_index("meta"), "meta", pa.array(meta, pa.string()))
    write_table(replaced(whole, rows, table), out / "records.parquet")
    write_table(pa.Table.from_pylist(changed, CHANGED), out / "changed.parquet")


def _change(record: str, identity: str, role: str, placeholders: list[str], text: str) -> dict[str, Any]:
    kinds = sorted(name[1 : name.rindex("_")].lower() for name in placeholders)
    first = PLACEHOLDER.search(text)
    start = max(0, (first.start() if first else 0) - 20)
    after = text[start : start + AROUND]
    return {"key": record, "id": identity, "role": role, "what": ", ".join(kinds), "before": None, "after": after}
