"""From a raw row to the messages that a model sees. Training, evaluation and serving call the same functions.

The settings travel with the model, as JSON, so that a served model prepares a client's text as its training did.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NotRequired, TypedDict

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict

from luthier.configuration import RegularExpression
from luthier.errors import did_you_mean
from luthier.text.clean import clean_with_changes
from luthier.text.pii import KINDS, Kind, Recognizer, scrub, scrub_all
from luthier.text.presidio import PresidioSettings, load_recognizer


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[str]
    """OpenAI's list as JSON text."""
    tool_call_id: NotRequired[str]


class RowError(ValueError):
    """A row that cannot become a conversation: the message says why, in the user's words."""

    def __init__(self, reason: str, kind: str | None = None) -> None:
        """Say why, and under what it is counted.

        Args:
            reason: may quote the row.
            kind: the same without anything of the row's, for reports, which others read; None if the reason quotes nothing.
        """
        super().__init__(reason)
        self.kind = reason if kind is None else kind


class ScrubSettings(BaseModel):
    """What is taken out of prompts and answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kinds: tuple[Kind, ...] = KINDS
    """What to look for by patterns; empty looks for nothing."""
    keep: tuple[RegularExpression, ...] = ()
    """Regular expressions: what lies wholly in a match of one of them is never taken out, in prompts and answers alike. A longer
    value is: `help@shop\\.example` keeps that address alone, `@shop\\.example` none, `\\S+@shop\\.example` all of its domain."""
    extraction_fields: tuple[str, ...] = ()
    """Fields of a JSON answer whose values stay as they are: they are what the model is to extract."""
    presidio: PresidioSettings | None = None
    """Names and addresses, found by a model; null leaves them in."""

    def recognizer(self) -> Recognizer | None:
        """Return what finds more than the patterns do, if anything is to.

        Raises:
            UserError: if it is asked for and is not installed.
        """
        return load_recognizer(self.presidio) if self.presidio else None


class PromptSettings(BaseModel):
    """All that turns a row, or a client's messages, into a prompt. Saved beside the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str | None = None
    user: str | None = None
    assistant: str | None = None
    scrub: ScrubSettings | None = None


# Unicode categories in which nothing can be seen: controls, joiners, spaces, marks that need a letter to stand on.
_UNSEEN = {"Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp"}


def has_content(text: str) -> bool:
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


def columns_of_template(template: str) -> frozenset[str]:
    """Return the columns that a template reads."""
    return frozenset(meta.find_undeclared_variables(_TEMPLATES.parse(template)))


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
        raise RowError(f"{name} must be text, not {what}{hint}", f"{name} must be text") from error
    except UndefinedError as error:
        missing = re.search(r"'(\w+)' is undefined", str(error))
        if missing:
            name = missing[1]
            raise RowError(f"has no column {name!r}{did_you_mean(name, row)}") from error
        raise RowError(f"the template fails: {error}", "the template fails") from error
    except _FAILURES as error:
        raise RowError(f"the template fails: {error}", "the template fails") from error


def rendered(row: Mapping[str, Any], settings: PromptSettings) -> list[Message]:
    """Return what the templates make of a row: the system prompt, if any, the user's turn, and the answer, if there is one.

    Raises:
        RowError: if the row lacks a column or a turn is empty.
    """
    if settings.user is None:
        raise RowError("there is no template for the user's turn (data.user)")
    user = render(settings.user, row)
    if not has_content(user):
        raise RowError("the user's message is empty")
    messages: list[Message] = [{"role": "system", "content": settings.system}] if settings.system else []
    messages.append({"role": "user", "content": user})
    if settings.assistant is not None:
        answer = render(settings.assistant, row)
        if not has_content(answer) or answer.strip() in ("null", "None"):
            raise RowError("the answer is empty")
        messages.append({"role": "assistant", "content": answer})
    return messages


def clean_message(message: Message, settings: PromptSettings) -> tuple[Message, list[str]]:
    """Clean one turn; the configured system prompt is the user's own and stays. Returns also what was changed."""
    if message["role"] == "system" and message["content"] == settings.system:
        return message, []
    content, changes = _clean_json(message["content"]) if message["role"] == "assistant" else (None, [])
    if content is None:
        content, changes = clean_with_changes(message["content"])
    return ({**message, "content": content}, changes) if changes else (message, [])


def _clean_json(text: str) -> tuple[str | None, list[str]]:
    """Clean the strings of a JSON answer, so that it stays JSON and says the same; None if it is none."""
    if text[:1] not in ("{", "["):
        return None, []
    try:
        value = strict_json(text)
    except ValueError:
        return None, []
    changes = [] if text == text.strip() else ["white space"]
    tidy = list(changes)

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            better, what = clean_with_changes(value)
            changes.extend(name for name in what if name not in changes)
            return better
        if isinstance(value, list):
            return [cleaned(item) for item in value]
        return {name: cleaned(item) for name, item in value.items()} if isinstance(value, dict) else value

    better = cleaned(value)
    return (text.strip() if changes == tidy else compact_json(better)), changes


def scrub_message(message: Message, settings: PromptSettings, key: str) -> tuple[Message, dict[str, str]]:
    """Take personal data out of one turn. Returns also the value behind each placeholder."""
    return scrub_messages([message], settings, key)[0]


SCRUBBED = ("content", "tool_calls", "name")
"""Of a turn, what may hold personal data."""


def scrub_messages(messages: Sequence[Message], settings: PromptSettings, key: str) -> list[tuple[Message, dict[str, str]]]:
    """Take personal data out of turns, of one conversation or many: all at once is several times faster.

    Returns:
        for each turn what is left of it, and the value behind each placeholder.
    """
    done: list[tuple[Message, dict[str, str]]] = [(message, {}) for message in messages]
    if settings.scrub is None:
        return done
    plain: list[tuple[int, str]] = []
    texts: list[str] = []
    for number, message in enumerate(messages):
        if message["role"] == "system" and message["content"] == settings.system:
            continue
        for name in SCRUBBED:
            text = str(message.get(name) or "")
            if message["role"] == "assistant" and text[:1] in ("{", "["):
                _put(done, number, name, *scrub_text(text, settings.scrub, key))
            elif text:
                plain.append((number, name))
                texts.append(text)
    scrubbed, values = scrub_all(texts, key, settings.scrub.kinds, settings.scrub.keep, settings.scrub.recognizer())
    for place, found in values.items():
        _put(done, *plain[place], scrubbed[place], found)
    return done


def _put(done: list[tuple[Message, dict[str, str]]], number: int, name: str, text: str, found: dict[str, str]) -> None:
    message, known = done[number]
    if found:
        done[number] = ({**message, name: text}, known | found)  # type: ignore[misc]


def scrub_text(text: str, settings: ScrubSettings, key: str) -> tuple[str, dict[str, str]]:
    """Scrub a text; in JSON its strings, names of fields and whole numbers, but for the fields that are to be extracted.

    It stays JSON: a number that is taken out becomes a string.
    """
    found: dict[str, str] = {}
    if text[:1] in ("{", "["):
        try:
            value = strict_json(text)
        except ValueError:
            pass
        else:
            scrubbed = _scrub_json(value, settings, key, found)
            return (compact_json(scrubbed) if found else text), found
    return scrub(text, key, settings.kinds, settings.keep, settings.recognizer())


def _scrub_json(value: Any, settings: ScrubSettings, key: str, found: dict[str, str]) -> Any:
    if isinstance(value, str):
        # JSON in a string, as in tool calls, is scrubbed as JSON too
        text, values = scrub_text(value, settings, key)
        found.update(values)
        return text
    if isinstance(value, int) and not isinstance(value, bool):
        text = _scrub_by_patterns(str(value), settings, key, found)
        return value if text == str(value) else text
    if isinstance(value, list):
        return [_scrub_json(item, settings, key, found) for item in value]
    if isinstance(value, dict):
        scrubbed = {}
        for name, item in value.items():
            if name in settings.extraction_fields:
                scrubbed[name] = item
            else:
                scrubbed[_scrub_by_patterns(name, settings, key, found)] = _scrub_json(item, settings, key, found)
        return scrubbed
    return value


def _scrub_by_patterns(text: str, settings: ScrubSettings, key: str, found: dict[str, str]) -> str:
    """Scrub a number or the name of a field: a model that looks for people's names would take many a field's for one."""
    scrubbed, values = scrub(text, key, settings.kinds, settings.keep)
    found.update(values)
    return scrubbed


def prepare(messages: Sequence[Message], settings: PromptSettings, key: str = "") -> tuple[list[Message], dict[str, str]]:
    """Clean and scrub a conversation as it is trained on, evaluated and served.

    Args:
        messages: the turns, raw.
        settings: what travels with the model.
        key: of the placeholders; `LUTHIER_PII_KEY`.

    Returns:
        the turns, and the value behind each placeholder, so that an answer can be mapped back.
    """
    prepared: list[Message] = []
    values: dict[str, str] = {}
    for message in messages:
        cleaned, _ = clean_message(message, settings)
        scrubbed, found = scrub_message(cleaned, settings, key)
        prepared.append(scrubbed)
        values.update(found)
    return prepared, values


def conversation(row: Mapping[str, Any], settings: PromptSettings, key: str = "") -> list[Message]:
    """Return what training sees of a row: its prompt and the answer to learn, cleaned and scrubbed.

    Raises:
        RowError: as `rendered`.
    """
    return prepare(rendered(row, settings), settings, key)[0]


def prompt_messages(row: Mapping[str, Any], settings: PromptSettings, key: str = "") -> list[Message]:
    """Return what the model is asked about a row: the system prompt, if any, and the user's turn.

    Raises:
        RowError: as `rendered`.
    """
    return conversation(row, settings.model_copy(update={"assistant": None}), key)
