"""From the request log to what is watched: one row a message, in windows; and the training messages beside it."""

import json
from datetime import timedelta
from typing import Any

import pandas as pd

from luthier.records import user_text
from luthier.shards import Shards
from luthier.text.pii import PLACEHOLDER

WEEKS = 4
COLUMNS = ("request", "at", "version", "served", "subject", "text", "characters", "pii", "language", "window")


def observe(requests: pd.DataFrame, size: int) -> pd.DataFrame:
    """Return the messages that windows are made of.

    A window is `size` messages after each other. The first one begins with the first message after a Monday, four weeks before
    the newest: so windows stay what they were while messages come in, and while old ones leave the log.

    Of each subject the first message of a day counts: one person's messages are alike, and a test takes them for independent.
    Shadows and requests that were refused before a model saw them are left out.

    Args:
        requests: from `luthier.serving.logged.read_requests`, the oldest first.
        size: of a window.

    Returns:
        `COLUMNS`, the oldest first; `window` counts from 0, and is -1 for the newest messages, which make no window yet.
    """
    rows = requests[(requests["shadow_of"].isna() & requests["turns"].notna()).to_numpy(bool)]
    if len(rows):
        newest = rows["at"].max()
        monday = (newest - timedelta(days=newest.weekday(), weeks=WEEKS)).normalize()
        rows = rows[rows["at"] >= monday]
        day = rows["at"].dt.floor("D")
        rows = rows[~(rows.assign(day=day).duplicated(["subject", "day"]) & rows["subject"].notna()).to_numpy(bool)]
    texts = [None if not isinstance(prompt, str) else user_text(json.loads(prompt)) for prompt in rows["prompt"]]
    table = pd.DataFrame(
        {
            **{name: rows[name] for name in ("request", "at", "version", "served", "subject")},
            **_features(texts, rows["prompt_characters"].tolist(), [_findings(pii) for pii in rows["pii"]]),
            "language": rows["language"].to_numpy(object),
        }
    ).reset_index(drop=True)
    whole = len(table) // size * size
    table["window"] = [number // size if number < whole else -1 for number in range(len(table))]
    return table[list(COLUMNS)]


def reference_of(records: Shards, most: int) -> pd.DataFrame:
    """Return training messages to compare with: `text`, `characters`, `pii`, `language`.

    Args:
        records: that the model was trained and judged on.
        most: rows; of more, the first ones in the order of their keys, which are hashes.
    """
    texts: list[str | None] = []
    languages: list[str | None] = []
    for row in records.iter_rows(["messages", "meta"]):
        texts.append(user_text(row["messages"]))
        languages.append(json.loads(row["meta"]).get("language"))
        if len(texts) == most:
            break
    return pd.DataFrame({**_features(texts), "language": languages})


def _features(
    texts: list[str | None], characters: list[Any] | None = None, pii: list[int | None] | None = None
) -> dict[str, Any]:
    """Return what is known of texts, and where a text is not kept what the log counted of all turns."""
    counted, found = characters or [None] * len(texts), pii or [None] * len(texts)
    return {
        "text": pd.array(texts, dtype="string"),
        "characters": pd.array([c if t is None else len(t) for t, c in zip(texts, counted, strict=True)], dtype="Int64"),
        "pii": pd.array(
            [f if t is None else len(PLACEHOLDER.findall(t)) for t, f in zip(texts, found, strict=True)], dtype="Int64"
        ),
    }


def _findings(pii: Any) -> int | None:
    return sum(json.loads(pii).values()) if isinstance(pii, str) else None
