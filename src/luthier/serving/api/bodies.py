"""From the bytes of a request to a checked value: every mistake is a 400 that names its field, all of them at once."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from luthier.errors import did_you_mean
from luthier.serving.api.errors import ApiError, Code, invalid, too_large
from luthier.text.prepare import strict_json
from luthier.text.turns import kind_of

MOST_TOLD = 8
"""Mistakes that one answer tells."""
_SHORT = 60  # characters of a client's value that an error repeats


class Body(BaseModel):
    """Base of what clients send: JSON's types as they are, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


AnyBody = TypeVar("AnyBody", bound=Body)
Problem = tuple[str, str, Code]
"""Field, what is wrong with it, and why."""


def read_json(body: bytes, max_bytes: int, max_depth: int) -> dict[str, Any]:
    """Read the JSON object of a request.

    Args:
        body: as it came.
        max_bytes: of the body.
        max_depth: lists and objects within one another; what is nested deeper may end a parser of schemas or grammars.

    Raises:
        ApiError: if it is too large, no UTF-8, no JSON, no object, nested too deeply, or holds half a surrogate pair.
    """
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8: {error.reason} at byte {error.start}.", code="invalid_json") from None
    try:
        value = strict_json(text)
    except ValueError as error:
        raise invalid(f"The body is not JSON: {str(error)[:200]}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(f"The body must be a JSON object, not {kind_of(value)}.", code="invalid_json")
    _check_inside(value, max_depth)
    return value


def _check_inside(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not _is_text(item):
                raise invalid("The body holds half a surrogate pair (\\ud83d alone), which is no text.", code="invalid_json")
        level = below
    if level:
        raise invalid(f"The body is nested deeper than {max_depth} levels.", code="invalid_json")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def validated(model: type[AnyBody], value: Mapping[str, Any], found: list[Problem] | None = None) -> AnyBody:
    """Return the value as a model.

    Args:
        model: what it should be.
        value: as `read_json` gave it.
        found: problems that are known already, to be told with the others.

    Raises:
        ApiError: 400, with all problems; its `param` is the first of them.
    """
    problems = list(found or [])
    try:
        result = model.model_validate(value)
    except ValidationError as error:
        problems += [_problem(model, detail) for detail in error.errors(include_url=False)]
    else:
        if not problems:
            return result
    raise together(problems)


def wrong(field: str, what: str) -> PydanticCustomError:
    """Return what a validator of a whole model raises about one of its fields."""
    return PydanticCustomError("field", "{what}", {"field": field, "what": what})


def together(problems: list[Problem]) -> ApiError:
    """Return one error that tells several problems."""
    told = [f"{param}: {what}" if param else what for param, what, _ in problems[:MOST_TOLD]]
    if len(problems) > MOST_TOLD:
        told.append(f"and {len(problems) - MOST_TOLD} more")
    param, _, code = problems[0]
    return invalid("; ".join(told) + ".", param or None, code)


def _problem(model: type[BaseModel], detail: Mapping[str, Any]) -> Problem:
    kind, given, message = detail["type"], detail["input"], str(detail["msg"])
    path = (*detail["loc"], detail["ctx"]["field"]) if kind == "field" else detail["loc"]
    parts, _ = _followed(model, path)
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{shown_text(part)}" for part in parts).removeprefix(".")
    if kind == "missing":
        return param, "is missing", "missing_required_parameter"
    if kind == "extra_forbidden":
        _, beside = _followed(model, path[:-1])
        known = [field.alias or name for one in beside for name, field in one.model_fields.items()]
        hint = did_you_mean(parts[-1], known) or f"; known are {', '.join(known)}"
        return param, f"is unknown{hint}", "unknown_parameter"
    if kind == "none_required":
        return param, "is not supported: leave it out", "unsupported_parameter"
    if kind == "field":
        return param, message, "invalid_value"
    if kind == "value_error":
        return param, str(detail["ctx"]["error"]), "invalid_value"
    told = f"{message[:1].lower()}{message[1:]}"
    if kind.startswith("union_tag"):
        return param, shown_text(told, 200), "invalid_value"
    hint = ""
    if kind == "literal_error" and isinstance(given, str):
        hint = did_you_mean(given, detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    return param, f"{told}, not {shown(given)}{hint}", "invalid_value"


def shown(value: Any) -> str:
    """Return what a client sent as an error may repeat it: numbers and text, cut where they are long; of others what they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list) or value is None:
        return kind_of(value)
    return repr(shown_text(value)) if isinstance(value, str) else shown_text(repr(value))


def shown_text(text: str, limit: int = _SHORT) -> str:
    """Return a text that comes from a client, cut where it is long."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def _followed(model: type[BaseModel], path: tuple[str | int, ...]) -> tuple[list[Any], list[type[BaseModel]]]:
    """Follow a path of pydantic's through a model.

    Returns:
        the path as a client knows it, without the tags that choose one of several models; and the models that it leads to.
    """
    parts: list[Any] = []
    here: list[type[BaseModel]] = [model]
    for part in path:
        tagged = [one for one in here if "type" in one.model_fields and part in get_args(one.model_fields["type"].annotation)]
        if tagged and len(here) > 1:
            here = tagged
            continue
        parts.append(part)
        if isinstance(part, str):
            fields = [field for one in here for name, field in one.model_fields.items() if part == (field.alias or name)]
            here = [inner for field in fields for inner in _models_in(field.annotation)]
    return parts, here


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
