"""From the request log to what is watched: one row a message, in windows; and the training messages beside it."""

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from luthier.configuration import DataParameters
from luthier.records import user_text
from luthier.serving.records.logged import LoggedTexts
from luthier.shards import Shards
from luthier.text.pii import PLACEHOLDER
from luthier.text.prepare import RowError, columns_of_template, render, strict_json

WEEKS = 4
COLUMNS = ("request", "at", "version", "served", "subject", "text", "characters", "pii", "language", "label", "window")


def observe(requests: pd.DataFrame, texts: LoggedTexts, size: int, most: int, data: DataParameters) -> pd.DataFrame:
    """Return the messages that windows are made of.

    A window is `size` messages after each other. The first one begins with the first message after a Monday, four weeks before
    the newest: so windows stay what they were while messages come in; every Monday they are cut anew.

    Of each subject the first message of a day counts: one person's messages are alike, and a test takes them for independent.
    Shadows and requests that were refused before a model saw them are left out.

    Args:
        requests: from `luthier.serving.records.logged.read_requests`, the oldest first.
        texts: of these requests; those of the messages that are returned are read, and no others.
        size: of a window.
        most: windows; messages of older ones are left out, as each look takes its time for each.
        data: that the model was made from: it says what the label of an answer is.

    Returns:
        `COLUMNS`, the oldest first; `window` counts from 0 (that of the first message), and is -1 for the newest messages, which
        make no window yet.
    """
    rows = requests[(requests["shadow_of"].isna() & requests["turns"].notna()).to_numpy(bool)]
    if len(rows):
        newest = rows["at"].max()
        monday = (newest - timedelta(days=newest.weekday(), weeks=WEEKS)).normalize()
        rows = rows[rows["at"] >= monday]
        day = rows["at"].dt.floor("D")
        rows = rows[~(rows.assign(day=day).duplicated(["subject", "day"]) & rows["subject"].notna()).to_numpy(bool)]
    whole, number = len(rows) // size, np.arange(len(rows)) // size
    recent = number >= whole - most
    rows, number = rows[recent], number[recent]
    said = texts.of(rows["request"].tolist())
    table = pd.DataFrame(
        {
            **{name: rows[name] for name in ("request", "at", "version", "served", "subject")},
            **_features([_text_of(prompt) for prompt in said["prompt"]]),
            "language": rows["language"].to_numpy(object),
            "label": pd.array([label_of(answer, data) for answer in said["answer"]], dtype="string"),
            "window": np.where(number < whole, number, -1),
        }
    )
    return table.reset_index(drop=True)[list(COLUMNS)]


def reference_of(records: Shards, most: int) -> pd.DataFrame:
    """Return training messages to compare with: `text`, `characters`, `pii`, `language`, `label`.

    Args:
        records: that the model was trained and judged on.
        most: rows; of more, the first ones in the order of their keys, which are hashes.
    """
    return messages_of(islice(records.iter_rows(["messages", "meta", "label"]), most))


def messages_of(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return what is compared of records that have `messages`, `meta` and `label`: `reference_of` names it."""
    texts: list[str | None] = []
    languages: list[str | None] = []
    labels: list[str | None] = []
    for row in records:
        texts.append(user_text(row["messages"]))
        languages.append(json.loads(row["meta"]).get("language"))
        labels.append(row["label"])
    return pd.DataFrame({**_features(texts), "language": languages, "label": pd.array(labels, dtype="string")})


def label_of(answer: Any, data: DataParameters) -> str | None:
    """Return an answer's label, as the data's template makes it of a right answer.

    The answer stands for the one column that `data.assistant` writes, as it is or as JSON. Without templates a labelled text's
    answer is its label.

    Returns:
        None if there is no answer, or if the label cannot be told from it; empty if the answer has none.
    """
    if not isinstance(answer, str):
        return None
    if data.label is None and data.assistant is None:
        return answer.strip()
    column, is_json = _column_of(data.assistant or "", data.label or "")
    if column is None or data.label is None:
        return None
    try:
        return render(data.label, {column: strict_json(answer) if is_json else answer}).strip()
    except (RowError, ValueError):
        return ""


@lru_cache(maxsize=8)
def _column_of(assistant: str, label: str) -> tuple[str | None, bool]:
    """Return the column that a right answer is, and whether as JSON; None if an answer says too little of the label."""
    read = columns_of_template(assistant)
    if len(read) != 1 or columns_of_template(label) != read:
        return None, False
    (column,) = read
    try:
        written = render(assistant, {column: "probe"})
    except RowError:  # it writes a part of the column
        return None, False
    return (column, written != "probe") if written in ("probe", '"probe"') else (None, False)


def _features(texts: list[str | None]) -> dict[str, Any]:
    """Return what is known of texts. Where none is kept, the log's counts say nothing: they are of all turns."""
    return {
        "text": pd.array(texts, dtype="string"),
        "characters": pd.array([None if text is None else len(text) for text in texts], dtype="Int64"),
        "pii": pd.array([None if text is None else len(PLACEHOLDER.findall(text)) for text in texts], dtype="Int64"),
    }


def _text_of(prompt: Any) -> str | None:
    try:
        return user_text(json.loads(prompt)) if isinstance(prompt, str) else None
    except (ValueError, TypeError, KeyError):  # the checks of the log count it
        return None
