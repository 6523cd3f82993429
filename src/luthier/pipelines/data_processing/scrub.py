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
from luthier.text.prepare import PromptSettings, scrub_message, scrub_text

AROUND = 60


def scrub_shard(out: Path, file: Path, settings: PromptSettings, key: str) -> None:
    """Write `records` and `changed` (schema `records.CHANGED`, `before` always null)."""
    whole = pq.read_table(file)
    if settings.scrub is None:
        write_table(whole, out / "records.parquet")
        write_table(CHANGED.empty_table(), out / "changed.parquet")
        return
    rows = rows_with(whole, might_hold, ("content", "tool_calls"))
    rows |= np.asarray(might_hold(whole.column("meta").combine_chunks()))
    table = whole.filter(pa.array(rows))
    changed: list[dict[str, Any]] = []
    names = zip(table.column("key").to_pylist(), table.column("id").to_pylist(), strict=True)
    new: dict[str, list[Any]] = {"messages": [], "rejected": []}
    for (record, identity), messages, rejected in zip(names, turns(table, "messages"), turns(table, "rejected"), strict=True):
        for column, found in (("messages", messages), ("rejected", rejected)):
            scrubbed = []
            for message in found or []:
                safe, values = scrub_message(message, settings, key)
                scrubbed.append(safe)
                if values:
                    changed.append(_change(record, identity, message["role"], list(values), safe["content"]))
            new[column].append(None if found is None else scrubbed)
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
