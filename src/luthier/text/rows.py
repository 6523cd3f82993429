"""Columns of raw rows by the names that data sets give them, and what a row asks, whether it has an answer or not.

Training and inference read the same columns in the same way, so a model is asked as it was taught.
"""

from collections.abc import Mapping
from typing import Any

from luthier.errors import did_you_mean
from luthier.text.prepare import Message, RowError, has_content
from luthier.text.turns import listed, must_be_text, read_turns, turns_or_text

Row = Mapping[str, Any]
Columns = tuple[str, ...]
"""Names that one column goes by, the one to prefer first."""

SYSTEM: Columns = ("system", "system_prompt")
MESSAGES: Columns = ("messages", "conversation", "chat")
CONVERSATIONS: Columns = ("conversations",)
INSTRUCTION: Columns = ("instruction",)
INPUT: Columns = ("input", "context")
HISTORY: Columns = ("history",)
PROMPT: Columns = ("prompt", "question", "query", "input")
LABELLED: Columns = ("text", "sentence", "content", "query", "utterance")


def column_of(row: Row, names: Columns) -> str | None:
    """Return the first of the names that the row fills, or else the first that it has: Parquet gives every row every column."""
    present = [name for name in names if name in row]
    return next((name for name in present if row[name] is not None), present[0] if present else None)


def take(row: Row, names: Columns) -> tuple[str, Any]:
    """Return a column that must be there, and its value.

    Raises:
        RowError: if it is not there.
    """
    column = column_of(row, names)
    if column is None:
        others = f" (nor {', '.join(map(repr, names[1:]))})" if names[1:] else ""
        hint = next(filter(None, (did_you_mean(name, row) for name in names)), "")
        raise RowError(f"has no column {names[0]!r}{others}{hint}")
    return column, row[column]


def text_of(row: Row, names: Columns) -> str:
    """Return the text of a column that must be there.

    Raises:
        RowError: if it is not there, or is no text.
    """
    return must_be_text(*take(row, names))


def optional_text(row: Row, names: Columns) -> str:
    """Return the text of a column, empty if the row lacks it or leaves it null."""
    column = column_of(row, names)
    return "" if column is None or row[column] is None else must_be_text(column, row[column])


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Put the system prompt of the row's own column first, unless the messages bring one."""
    system = optional_text(row, SYSTEM)
    if not has_content(system) or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def instruction(row: Row) -> str:
    """Return the user's turn: instruction and input on lines of their own, as LLaMA-Factory and axolotl join them."""
    parts = (optional_text(row, INSTRUCTION), optional_text(row, INPUT))
    return "\n".join(part for part in parts if has_content(part))


def history(row: Row) -> list[Message]:
    """Return earlier turns: pairs of what was asked and answered."""
    column = column_of(row, HISTORY)
    messages: list[Message] = []
    if column is None or row[column] in (None, ""):
        return messages
    for number, pair in enumerate(listed(column, row[column]), 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"{column}: entry {number} must be a pair of texts, asked and answered")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def asked(row: Row, column: str | None = None) -> list[Message]:
    """Return what a row asks: its turns up to the last one that is not the assistant's, as training reads them.

    Args:
        row: as JSON, CSV or Parquet give it; lists of messages may be JSON text.
        column: what holds the turns, or the text of the user's; null takes the first that is filled of messages, conversations,
            instruction (with its input and history), prompt, text, and the other names that these go by.

    Raises:
        RowError: if there is no such column, or nothing is asked in it.
    """
    messages = with_system(row, _turns_of(row, column))
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(message["role"] != "system" for message in messages):
        raise RowError("nothing is asked: there is no turn of the user's")
    for number, message in enumerate(messages, 1):
        if message["role"] == "user" and not has_content(message["content"]):
            raise RowError(f"the user's message is empty (turn {number})")
    return messages


def _turns_of(row: Row, column: str | None) -> list[Message]:
    if column is not None:
        return turns_or_text(*take(row, (column,)), "user")
    empty = ""
    for names in (MESSAGES, CONVERSATIONS, INSTRUCTION, PROMPT, LABELLED):
        name = column_of(row, names)
        if name is None:
            continue
        if row[name] is None or (row[name] == "" and names in (MESSAGES, CONVERSATIONS)):  # a cell of a CSV file
            empty = empty or name
        elif names is INSTRUCTION:
            return [*history(row), {"role": "user", "content": instruction(row)}]
        else:
            return read_turns(name, row[name]) if names in (MESSAGES, CONVERSATIONS) else turns_or_text(name, row[name], "user")
    if empty:
        raise RowError(f"{empty} is empty")
    known = ", ".join(names[0] for names in (MESSAGES, CONVERSATIONS, INSTRUCTION, PROMPT, LABELLED))
    raise RowError(f"no column is known to hold what is asked, such as {known}; it has {', '.join(row) or 'none'}")
