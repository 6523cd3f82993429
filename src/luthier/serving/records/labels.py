"""Right answers that come later: of each request whose label is known, what a record to train on needs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import fsspec
from sqlalchemy import select

from luthier.artefacts import canonical_json
from luthier.errors import UserError
from luthier.serving.records.tables import REQUESTS, existing_log, open_database
from luthier.text.prepare import Message, compact_json, strict_json

_TOLD = ("at", "asked", "experiment", "assigned", "served", "version", "manifest", "answer")


def read_labels(path: str) -> dict[str, Any]:
    """Return the right answer of each request.

    Raises:
        UserError: naming each line that is none, or if the file cannot be read.
    """
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"monitoring.quality.labels: {path} cannot be read: {error}") from error
    found: dict[str, Any] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = strict_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("request"), str) or "answer" not in row:
            problems.append(f'{PurePosixPath(path).name}:{number}  is not {{"request": ID, "answer": ...}}: {line[:80]}')
        else:
            found[row["request"]] = row["answer"]
    if problems:
        raise UserError("monitoring.quality.labels has bad lines; nothing was run.\n  " + "\n  ".join(problems[:20]))
    return found


def is_right(answer: str, label: Any) -> bool:
    """Tell whether an answer is the right one: as JSON if both are, otherwise as text."""
    if not isinstance(label, str):
        wanted = label
    else:
        try:
            wanted = strict_json(label)
        except ValueError:
            return answer.strip() == label.strip()
    try:
        return canonical_json(strict_json(answer)) == canonical_json(wanted)
    except ValueError:
        return False


def labelled(uri: str, labels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the requests whose label is known as rows of the shape `messages` that data processing reads; the oldest first.

    Args:
        uri: of the request log.
        labels: request -> right answer, from `read_labels`.

    Yields:
        id, the messages with the right answer, and in `meta` where it comes from: request, time, model version, manifest,
        variants, and what was answered.

    Raises:
        UserError: if there is no such log.
    """
    columns = (REQUESTS.c.request, REQUESTS.c.prompt, *(REQUESTS.c[name] for name in _TOLD))
    query = select(*columns).where(REQUESTS.c.prompt.is_not(None), REQUESTS.c.shadow_of.is_(None))
    with existing_log(open_database(uri)) as connection:
        for row in connection.execute(query.order_by(REQUESTS.c.at, REQUESTS.c.request)).mappings():
            if row["request"] not in labels:
                continue
            label, turns = labels[row["request"]], json.loads(row["prompt"])
            answer: Message = {"role": "assistant", "content": label if isinstance(label, str) else compact_json(label)}
            meta = {name: row[name] for name in ("request", *_TOLD)}
            yield {"id": f"{row['request']}-label", "messages": [*turns, answer], "meta": meta}
