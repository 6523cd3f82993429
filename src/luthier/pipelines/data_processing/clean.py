"""Clean the turns of every record, and show what was changed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.pipelines.data_processing.messages import replace_messages, replaced, rows_with, turns
from luthier.records import CHANGED, DROPPED
from luthier.shards import write_table
from luthier.text.clean import need_cleaning
from luthier.text.prepare import Message, PromptSettings, clean_message, has_content

AROUND = 60
"""Characters of an excerpt."""


def _excerpt(before: str, after: str) -> tuple[str, str]:
    """Return the same stretch of both texts, around the first difference."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, at - AROUND // 3)
    return before[start : start + AROUND], after[start : start + AROUND]


def _empty(messages: list[Message]) -> str | None:
    """Say which turn holds nothing any more."""
    for message in messages:
        if not has_content(message["content"]) and not message.get("tool_calls"):
            return f"the {message['role']}'s turn is empty once cleaned"
    return None


def clean_shard(out: Path, file: Path, settings: PromptSettings) -> None:
    """Write `records`, `changed` (schema `records.CHANGED`) and `dropped` (`records.DROPPED`): what is empty once cleaned."""
    whole = pq.read_table(file)
    rows = rows_with(whole, need_cleaning)
    table = whole.filter(pa.array(rows))
    changed: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    names = zip(*(table.column(name).to_pylist() for name in ("key", "id", "source")), strict=True)
    new: dict[str, list[Any]] = {"messages": [], "rejected": []}
    keep = []
    for (key, identity, source), messages, rejected in zip(
        names, turns(table, "messages"), turns(table, "rejected"), strict=True
    ):
        cleaned = {}
        for column, found in (("messages", messages), ("rejected", rejected)):
            cleaned[column] = found
            for number, message in enumerate(found or []):
                better, what = clean_message(message, settings)
                if what:
                    before, after = _excerpt(message["content"], better["content"])
                    role = message["role"]
                    changed.append(
                        {"key": key, "id": identity, "role": role, "what": ", ".join(what), "before": before, "after": after}
                    )
                    cleaned[column] = [*cleaned[column][:number], better, *cleaned[column][number + 1 :]]
        reason = _empty(cleaned["messages"]) or _empty(cleaned["rejected"] or [])
        if reason:
            dropped.append({"key": key, "id": identity, "source": source, "reason": reason})
        keep.append(reason is None)
        for column, value in cleaned.items():
            new[column].append(value)
    if changed:
        table = replace_messages(table, new)
    write_table(replaced(whole, rows, table.filter(pa.array(keep, pa.bool_()))), out / "records.parquet")
    write_table(pa.Table.from_pylist(changed, CHANGED), out / "changed.parquet")
    write_table(pa.Table.from_pylist(dropped, DROPPED), out / "dropped.parquet")
