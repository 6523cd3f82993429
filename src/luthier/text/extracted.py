"""What an answer takes from its message, word for word: noise and paraphrases must leave it there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.records import user_text
from luthier.text.prepare import strict_json


def extracted_texts(messages: Sequence[Mapping[str, Any]], protect: Sequence[str] | None) -> set[str]:
    """Return the texts of the assistant's answers that the user's turns hold.

    Args:
        messages: the conversation, answers included.
        protect: fields of a JSON answer (`order`, `customer.name`) that count; None counts all, an empty list nothing. An
            answer that is not JSON is one text without a name, which counts unless nothing does.
    """
    if protect is not None and not protect:
        return set()
    user = user_text(messages)
    kept = set()
    for message in messages:
        if message["role"] == "assistant":
            for path, text in _texts_of(_value_of(message["content"])):
                if text and text in user and (protect is None or not path or path in protect):
                    kept.add(text)
    return kept


def _value_of(answer: str) -> Any:
    try:
        return strict_json(answer)
    except ValueError:
        return answer


def _texts_of(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of every string within a JSON value; places in lists have no name of their own."""
    waiting = [("", value)]  # no recursion: JSON may be nested more deeply than Python can follow
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            waiting.extend((f"{path}.{name}" if path else name, inner) for name, inner in item.items())
        elif isinstance(item, list):
            waiting.extend((path, inner) for inner in item)
