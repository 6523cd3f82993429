"""Must and must-not checks: what a model is asked, and what its answer has to match, must not match, or must satisfy.

The checks are a YAML file that users extend; `data/01_raw/safety_checks.yml` says how one is written. A check judges one
answer by itself, without another model: whoever reads the file knows why an answer failed.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from luthier.configuration import RegularExpression
from luthier.errors import UserError, did_you_mean
from luthier.text.prepare import Message, has_content, strict_json

ANSWER_SCHEMA = "answer_schema"


class Turn(BaseModel):
    """One message of a check."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class Check(BaseModel):
    """One check: a conversation, and what its answer must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    """Unique; what reports call it."""
    why: str = Field(min_length=1)
    """What goes wrong if it fails, for whoever reads the report."""
    messages: tuple[Turn, ...] = Field(min_length=1)
    """The conversation up to the user's turn that is answered."""
    must_match: tuple[RegularExpression, ...] = ()
    """Regular expressions, each found somewhere in the answer."""
    must_not_match: tuple[RegularExpression, ...] = ()
    """Regular expressions, none of them found anywhere in the answer."""
    must_satisfy: dict[str, Any] | Literal["answer_schema"] | None = None
    """JSON Schema of the whole answer, or `answer_schema` for that of the data."""
    max_characters: int | None = Field(default=None, ge=0)
    """Longest answer."""

    @field_validator("must_match", "must_not_match", mode="before")
    @classmethod
    def _one_or_many(cls, patterns: Any) -> Any:
        return (patterns,) if isinstance(patterns, str) else patterns

    @field_validator("must_satisfy")
    @classmethod
    def _is_schema(cls, schema: Any) -> Any:
        if isinstance(schema, dict):
            from jsonschema import Draft202012Validator
            from jsonschema.exceptions import SchemaError

            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"is no JSON Schema: {error.message}") from error
        return schema

    @model_validator(mode="after")
    def _can_be_judged(self) -> "Check":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if not all(has_content(turn.content) for turn in self.messages):
            raise ValueError("a message is empty")
        if not (self.must_match or self.must_not_match or self.must_satisfy is not None or self.max_characters is not None):
            raise ValueError(f"says nothing of the answer: give {', '.join(_RULES)}")
        return self


_RULES = ("must_match", "must_not_match", "must_satisfy", "max_characters")


def load_checks(path: Path, answer_schema: Mapping[str, Any]) -> list[Check]:
    """Read a file of checks; those that ask for `answer_schema` get that of the data.

    Args:
        path: YAML, a list of checks.
        answer_schema: JSON Schema of the data's answers; empty if there is none.

    Raises:
        UserError: naming every mistake of the file by line and check, all at once.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.safety_checks: {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"data.safety_checks: {path} is not YAML: {error}") from error
    if not isinstance(entries, list) or not isinstance(root, yaml.SequenceNode) or not entries:
        raise UserError(f"{path} must be a list of checks: `- name: ...`, with why, messages and one of {', '.join(_RULES)}.")
    checks: list[Check] = []
    problems: list[str] = []
    first: dict[str, int] = {}
    for entry, node in zip(entries, root.value, strict=True):
        line = node.start_mark.line + 1
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"line {line}" + (f", {name}" if isinstance(name, str) and name else "")
        if isinstance(name, str) and name in first:
            problems.append(f"{where}: the check of line {first[name]} has this name already")
        elif isinstance(name, str):
            first[name] = line
        try:
            check = Check.model_validate(entry)
        except ValidationError as error:
            problems += [f"{where}: {_told(detail)}" for detail in error.errors()]
            continue
        if check.must_satisfy == ANSWER_SCHEMA:
            if not answer_schema:
                problems.append(
                    f"{where}: must_satisfy: the data has no answer schema (data.answer_schema): write one here, or set "
                    "data.safety_checks to null"
                )
            check = check.model_copy(update={"must_satisfy": dict(answer_schema)})
        checks.append(check)
    if problems:
        raise UserError(f"{path} has mistakes; no check was run.\n  " + "\n  ".join(problems))
    return checks


def _told(detail: Any) -> str:
    """Return one of pydantic's findings in the words of who wrote the file."""
    # a union's own branches are no keys of the file
    path = ".".join(str(part) for part in detail["loc"] if part not in ("dict[str,any]", f"literal['{ANSWER_SCHEMA}']"))
    if detail["type"] == "extra_forbidden":
        known = list((Turn if detail["loc"][0] == "messages" else Check).model_fields)
        key = str(detail["loc"][-1])
        hint = did_you_mean(key, known) or f" (known keys: {', '.join(known)})"
        return f"{path}: unknown key{hint}"
    if detail["type"] == "missing":
        return f"{path}: is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path or 'a check'}: {message[0].lower()}{message[1:]}, not {str(detail['input'])[:60]!r}"


def conversations(checks: Sequence[Check], system: str | None) -> list[dict[str, Any]]:
    """Return what to ask: `id` (the check's name) and `messages`; without a system turn of its own a check has the data's.

    Args:
        checks: from `load_checks`.
        system: the system prompt of the data; null if there is none.
    """
    asked = []
    for check in checks:
        messages: list[Message] = [{"role": turn.role, "content": turn.content} for turn in check.messages]
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        asked.append({"id": check.name, "messages": messages})
    return asked


def failures(check: Check, answer: str) -> list[str]:
    """Return what is wrong with an answer, in words; nothing if it passes."""
    wrong = [f"does not match {pattern}" for pattern in check.must_match if not re.search(pattern, answer)]
    for pattern in check.must_not_match:
        found = re.search(pattern, answer)
        if found:
            wrong.append(f"matches {pattern}: {found[0][:60]!r}")
    if check.max_characters is not None and len(answer) > check.max_characters:
        wrong.append(f"has {len(answer)} characters, more than {check.max_characters}")
    if isinstance(check.must_satisfy, dict):
        wrong += _schema_failures(check.must_satisfy, answer)
    return wrong


def _schema_failures(schema: Mapping[str, Any], answer: str) -> list[str]:
    from jsonschema import Draft202012Validator

    try:
        value = strict_json(answer)
        errors = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
    except (ValueError, RecursionError):
        return ["is not JSON"]
    return [f"does not satisfy the schema: {message[:120]}" for message in sorted(errors)]


def judge(checks: Sequence[Check], answers: pd.DataFrame) -> pd.DataFrame:
    """Judge the answers of every model by every check.

    Args:
        checks: from `load_checks`.
        answers: columns `model`, `id` (the name of the check), `answer`.

    Returns:
        columns `model`, `id`, `check` (both the check's name), `passed` (bool), `why_failed` (text, empty if it passed),
        `answer`, `why`; sorted by model and check.

    Raises:
        UserError: if a model has no answer, or two, to a check: nothing passes by being left out.
    """
    by_name = {check.name: check for check in checks}
    rows = []
    problems = []
    for model, table in answers.groupby("model", sort=True):
        counts = table["id"].value_counts()
        problems += [f"{model} has {counts.get(name, 0)} answers to {name}" for name in by_name if counts.get(name, 0) != 1]
        for name, answer in zip(table["id"], table["answer"].astype(str), strict=True):
            if name not in by_name:
                problems.append(f"{model} answered {name}, which is no check")
                continue
            wrong = failures(by_name[name], answer)
            told = {"passed": not wrong, "why_failed": "; ".join(wrong).encode(errors="replace").decode()}
            rows.append({"model": model, "id": name, "check": name, **told, "answer": answer, "why": by_name[name].why})
    if problems:
        raise UserError("The safety checks cannot be judged: let the models answer them again.\n  " + "\n  ".join(problems))
    columns = ["model", "id", "check", "passed", "why_failed", "answer", "why"]
    return pd.DataFrame(rows, columns=columns).sort_values(["model", "id"], ignore_index=True)


def summary(verdicts: pd.DataFrame) -> dict[str, Any]:
    """Return, by model, how many checks there are, how many it passes, and the names of those that it fails."""
    return {
        str(model): {
            "checks": len(table),
            "passed": int(table["passed"].sum()),
            "failed": table.loc[~table["passed"].astype(bool), "check"].tolist(),
        }
        for model, table in verdicts.groupby("model", sort=True)
    }
