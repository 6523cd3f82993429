"""From a raw row to the messages that a model sees. Training, evaluation and serving call the same functions.

The settings travel with the model, as JSON, so that a served model prepares a client's text as its training did.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypedDict

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict

from luthier.errors import did_you_mean


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class RowError(ValueError):
    """A row that cannot become a conversation: the message says why, in the user's words."""


class PromptSettings(BaseModel):
    """All that turns a row into a prompt. Saved beside the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str | None
    user: str
    assistant: str


# Control characters but tab and line feed, zero-width marks that carry no meaning, byte-order marks.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f​⁠﻿]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")
# Unicode categories in which nothing can be seen: controls, joiners, spaces, marks that need a letter to stand on.
_UNSEEN = {"Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp"}


def clean(text: str) -> str:
    r"""Return the text in NFC, without control characters, with single spaces and at most one blank line.

    Idempotent: `clean(clean(x)) == clean(x)`. Zero-width joiners stay: Persian, Hindi and emoji need them.

    >>> clean("caf\u0065\u0301  \r\n\r\n\r\n\r\nthere ")
    'café\n\nthere'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _INVISIBLE.sub("", text)
    text = unicodedata.normalize("NFC", text)
    text = _SPACES.sub(" ", text)
    text = "\n".join(line.strip(" ") for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def _has_content(text: str) -> bool:
    """Tell whether anything can be seen: joiners and other format characters alone are no message."""
    return any(unicodedata.category(character) not in _UNSEEN for character in text)


def compact_json(value: Any) -> str:
    """Write JSON on one line, keys in the order given, no spaces: fewest tokens, one form.

    Raises:
        ValueError: if the value holds NaN or an infinity, which JSON has not.
    """
    if isinstance(value, Undefined):
        str(value)  # raises, naming the column
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def strict_json(text: str) -> Any:
    """Read JSON as its standard has it: no NaN, no infinity, no nesting that Python cannot follow.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _no_number(number)


class _NotTextError(Exception):
    """A template would print a value that is no text."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _only_text(value: Any) -> Any:
    """Refuse to print null, lists, objects and numbers: Python's spelling of them would become training data."""
    if isinstance(value, Undefined):
        str(value)  # raises, naming the column
    if not isinstance(value, str):
        raise _NotTextError(value)
    return value


# A sandbox: a template may come with somebody's configuration, and must not reach the interpreter.
_TEMPLATES = ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_only_text, autoescape=False)
_TEMPLATES.filters["json"] = compact_json


# What a template can raise that meets a row it was not written for.
_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


@lru_cache(maxsize=64)
def _compile(template: str) -> Template:
    return _TEMPLATES.from_string(template)


def _column_to_blame(template: Template, row: Mapping[str, Any], value: Any) -> str:
    """Name the column whose value cannot be printed: with text in its place the template gets further."""
    names = [name for name, item in row.items() if item is value]
    for name in names:
        try:
            template.render({**row, name: "text"})
        except _NotTextError as error:
            if error.value is value:
                continue
        except _FAILURES:
            continue
        return name
    return names[0] if names else "a value"


def render(template: str, row: Mapping[str, Any]) -> str:
    """Fill a Jinja template from a row.

    Raises:
        RowError: if the template names a column that the row lacks, prints what is no text, fails, or does not parse.
    """
    try:
        return _compile(template).render(row)
    except _NotTextError as error:
        name = _column_to_blame(_compile(template), row, error.value)
        what = {"NoneType": "null", "dict": "an object", "list": "a list"}.get(type(error.value).__name__, f"{error.value!r}")
        hint = " (write `| string` in the template if numbers are meant)" if isinstance(error.value, int | float) else ""
        raise RowError(f"{name} must be text, not {what}{hint}") from error
    except UndefinedError as error:
        missing = re.search(r"'(\w+)' is undefined", str(error))
        if missing:
            name = missing[1]
            raise RowError(f"has no column {name!r}{did_you_mean(name, row)}") from error
        raise RowError(f"the template fails: {error}") from error
    except _FAILURES as error:
        raise RowError(f"the template fails: {error}") from error


def prompt_messages(row: Mapping[str, Any], settings: PromptSettings) -> list[Message]:
    """Return what the model is asked: the system prompt, if any, and the user's turn.

    Raises:
        RowError: if the row lacks a column or the user's turn is empty.
    """
    user = clean(render(settings.user, row))
    if not _has_content(user):
        raise RowError("the user's message is empty")
    system: list[Message] = [{"role": "system", "content": settings.system}] if settings.system else []
    return [*system, {"role": "user", "content": user}]


def conversation(row: Mapping[str, Any], settings: PromptSettings) -> list[Message]:
    """Return the prompt and the answer to learn.

    Raises:
        RowError: as `prompt_messages`, or if the answer is empty.
    """
    answer = clean(render(settings.assistant, row))
    if not _has_content(answer) or answer in ("null", "None"):
        raise RowError("the answer is empty")
    return [*prompt_messages(row, settings), {"role": "assistant", "content": answer}]
