"""Turns of a conversation as data sets and clients spell them: OpenAI's chat format, ShareGPT's, lists that are JSON text.

Text is taken as it stands: cleaning is another step.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from luthier.errors import did_you_mean
from luthier.text.prepare import Message, RowError, has_content, strict_json

# Who speaks, by the names that data sets give: LangChain says ai, Gemma model, OpenAssistant prompter, Llama ipython.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "ai", "bot", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
}
# The content of these turns is not said but called.
_CALLS = ("function_call", "tool_call")
# A list of turns that Python's str() wrote into a cell, as pandas does, and not json.dumps.
_PYTHON_TURNS = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value|name|tool_calls)'")
JSON_TURNS = re.compile(r"\s*\[\s*\{")
"""What a list of turns begins with that is written as JSON text."""


def kind_of(value: Any) -> str:
    """Name what a value is, in a user's words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return {type(None): "null", str: "text", dict: "an object", list: "a list"}.get(type(value), type(value).__name__)


def must_be_text(column: str, value: Any) -> str:
    """Return the text of a column.

    Raises:
        RowError: if it is none, with the template that could write it.
    """
    if isinstance(value, str):
        return value
    how = {"an object": "json", "a list": "json", "a number": "string"}.get(kind_of(value))
    hint = f" (a template of `data` can write it: {{{{ {column} | {how} }}}})" if how else ""
    raise RowError(f"{column} must be text, not {kind_of(value)}{hint}")


# One turn


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _sorted_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _call(call: Any, where: str) -> dict[str, Any]:
    """Spell a call as OpenAI does: `{"type": "function", "function": {"name": ..., "arguments": ...}}`, the arguments as text."""
    if not isinstance(call, dict):
        raise RowError(f"{where} must hold objects with a name and arguments, not {kind_of(call)}")
    outer = {name: value for name, value in call.items() if value is not None}
    function = outer.pop("function", None)
    if function is None:
        function = {name: outer.pop(name) for name in ("name", "arguments") if name in outer}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} has a call without the name of its function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = _sorted_json({} if arguments is None else arguments)
    return {"type": "function", **outer, "function": {**function, "arguments": arguments}}


def _calls(value: Any, where: str, *, alone: bool) -> str:
    """Return OpenAI's list of calls as compact JSON text, keys sorted; `alone`: one call may stand without a list."""
    try:
        calls = strict_json(value) if isinstance(value, str) else value
        if alone and isinstance(calls, dict):
            calls = [calls]
        if not isinstance(calls, list):
            raise RowError(f"{where} must be a list, not {kind_of(calls)}")
        return _sorted_json([_call(call, where) for call in calls]) if calls else ""
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"{where} is not JSON: {error}", f"{where} is not JSON") from error


def _content(value: Any, where: str) -> str:
    """Return the text of a turn; the parts of a list stand on lines of their own, as vLLM serves them."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_part(part, where) for part in value)
    raise RowError(f"{where}: content must be text, not {kind_of(value)}")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RowError(f"{where}: a part of its content must be text, not {kind_of(part)}")
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text"):
        shown = repr(kind) if isinstance(kind, str) else kind_of(kind)
        told = f"{where}: its content has a part of type {shown}, and only text can be read"
        raise RowError(told, f"{where}: its content has a part that is no text")
    if not isinstance(part.get("text"), str):
        raise RowError(f"{where}: a part of its content has no text")
    return str(part["text"])


def _turn(turn: Any, where: str) -> Message:
    """Read one turn, spelt with role and content or with from and value."""
    if not isinstance(turn, dict):
        raise RowError(f"{where} must be an object with role and content, not {kind_of(turn)}")
    spelt = _first(turn, "role", "from")
    if spelt is None:
        raise RowError(f"{where} has no role{did_you_mean('role', turn)}")
    if not isinstance(spelt, str):
        raise RowError(f"{where}: role must be text, not {kind_of(spelt)}")
    asked = spelt.strip().casefold()
    if asked not in ROLES:
        told = f"{where}: role {spelt!r} is unknown{did_you_mean(asked, ROLES)}; known are {', '.join(ROLES)}"
        raise RowError(told, f"{where}: its role is unknown")
    content = _first(turn, "content", "value")
    calls = ""
    if asked in _CALLS:
        calls, content = _calls(content, f"{where}: {asked}", alone=True), ""
    elif turn.get("tool_calls") is not None:
        calls = _calls(turn["tool_calls"], f"{where}: tool_calls", alone=False)
    elif turn.get("function_call") is not None:
        calls = _calls(turn["function_call"], f"{where}: function_call", alone=True)
    message: Message = {"role": ROLES[asked], "content": "" if content is None and calls else _content(content, where)}
    for name in ("name", "tool_call_id"):
        value = turn.get(name)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{where}: {name} must be text, not {kind_of(value)}")
        if value:
            message[name] = value
    if calls:
        message["tool_calls"] = calls
    return message


# Lists of turns


def _refuse_python(column: str, text: str) -> None:
    if _PYTHON_TURNS.match(text):
        raise RowError(f"{column} is a list as Python's str() writes it, which cannot be read back: write it with json.dumps")


def listed(column: str, value: Any) -> list[Any]:
    """Return a list that may be written as JSON text, as cells of CSV files are.

    Raises:
        RowError: if it is none.
    """
    if isinstance(value, str):
        _refuse_python(column, value)
        try:
            value = strict_json(value)
        except ValueError as error:
            raise RowError(f"{column} is text that is not JSON: {error}", f"{column} is text that is not JSON") from error
    if not isinstance(value, list):
        raise RowError(f"{column} must be a list, not {kind_of(value)}")
    return value


def read_turns(column: str, value: Any) -> list[Message]:
    """Read a list of turns. A system turn without text says nothing and is left out: ShareGPT data are full of them.

    Raises:
        RowError: naming the turn that is none.
    """
    messages = [_turn(turn, f"turn {number} of {column}") for number, turn in enumerate(listed(column, value), 1)]
    return [message for message in messages if message["role"] != "system" or has_content(message["content"])]


def is_turn(value: Any) -> bool:
    """Tell whether a value looks like one turn."""
    return isinstance(value, dict) and _first(value, "role", "from") is not None


def _turns_in(text: str) -> list[Any]:
    """Return the turns that a text holds as JSON. An answer may be a JSON list of its own: it holds none."""
    if not JSON_TURNS.match(text):
        return []
    try:
        turns = strict_json(text)
    except ValueError:
        return []
    return turns if all(map(is_turn, turns)) else []


def turns_or_text(column: str, value: Any, role: str) -> list[Message]:
    """Read what is a list of turns, one turn, or the text of one turn of this role.

    Raises:
        RowError: if it is none of them.
    """
    if isinstance(value, str):
        _refuse_python(column, value)
        turns = _turns_in(value)
        return read_turns(column, turns) if turns else [{"role": role, "content": value}]
    if isinstance(value, dict) and is_turn(value):
        return read_turns(column, [value])
    if isinstance(value, list):
        return read_turns(column, value)
    return [{"role": role, "content": must_be_text(column, value)}]
