"""Figures by part of the data: by label, source, language, any meta key, any field of the answer, the prompt's length."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from luthier.configuration import Parameters
from luthier.errors import UserError, did_you_mean
from luthier.pipelines.evaluation.baselines import as_fields
from luthier.pipelines.evaluation.score import likelihoods, means_of
from luthier.records import user_text
from luthier.stats import mean_of

NONE, OTHER = "(none)", "(other)"
COLUMNS = ("label", "source")  # of the records, that can be sliced by
PROMPT_LENGTH = "prompt_length"


class Slices(Parameters):
    """What the figures are broken down by."""

    by: tuple[str, ...] = ()
    """`label`, `source`, `prompt_length`, a key of the meta (`language` or `meta.language`), a field of the answer (`intent`
    or `answer.intent`)."""
    smallest: int = Field(default=20, ge=1)
    """A slice of fewer examples is marked as small: its figures say little."""
    most: int = Field(default=30, ge=2)
    """Values of one slice that are told apart, the most frequent ones; the rest is `(other)`."""
    prompt_characters: tuple[int, ...] = (80, 160, 320, 640)
    """Where the buckets of `prompt_length` begin, in characters of what the user says."""

    @field_validator("prompt_characters")
    @classmethod
    def _rises(cls, bounds: tuple[int, ...]) -> tuple[int, ...]:
        if not bounds or bounds[0] <= 0 or list(bounds) != sorted(set(bounds)):
            raise ValueError("must rise and begin above 0")
        return bounds


def slice_columns(records: pd.DataFrame, parameters: Slices) -> pd.DataFrame:
    """Return, for each record, its `id` and a text column `slice_NAME` for each of `parameters.by`.

    A record without the value is in the slice `(none)`, also where the value is null.

    Args:
        records: columns `id`, `messages` (the last one the answer), `label`, `source`, and `meta` (JSON text).
        parameters: names and limits.

    Raises:
        UserError: naming every name that no record has, or that is both a key of the meta and a field of the answer.
    """
    metas = [_meta(text) for text in records["meta"]]
    answers = [as_fields(messages[-1]["content"]) for messages in records["messages"]]
    known = {"meta": _names(metas), "answer": _names(answers)}
    problems = [problem for name in parameters.by if (problem := _problem(name, known))]
    if problems:
        raise UserError("evaluation.slices.by cannot be followed.\n  " + "\n  ".join(problems))
    table = pd.DataFrame({"id": records["id"]})
    for name in parameters.by:
        values = _values(name, records, metas, answers, known, parameters)
        frequent = _most_frequent(values, parameters.most)
        table[f"slice_{name}"] = [value if value in frequent else OTHER for value in values]
    return table


def _meta(text: Any) -> dict[str, Any]:
    value = json.loads(text) if isinstance(text, str) and text else {}
    return value if isinstance(value, dict) else {}


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _problem(name: str, known: Mapping[str, Sequence[str]]) -> str | None:
    place, _, key = name.partition(".")
    if name in COLUMNS or name == PROMPT_LENGTH or (place in known and key in known[place]):
        return None
    places = [place for place, names in known.items() if name in names]
    if len(places) == 1:
        return None
    if len(places) > 1:
        return f"{name} is a key of the meta and a field of the answer: write meta.{name} or answer.{name}"
    everything = [*COLUMNS, PROMPT_LENGTH, *known["meta"], *known["answer"]]
    hint = did_you_mean(name, everything) or f"; known: {', '.join(dict.fromkeys(everything))}"
    return f"no record has {name}{hint}"


def _values(
    name: str,
    records: pd.DataFrame,
    metas: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    known: Mapping[str, Sequence[str]],
    parameters: Slices,
) -> list[str]:
    if name in COLUMNS:
        return [_text(value) for value in records[name]]
    if name == PROMPT_LENGTH:
        bucket = _buckets(parameters.prompt_characters)
        return [bucket(len(user_text(messages[:-1]))) for messages in records["messages"]]
    place, _, key = name.partition(".")
    if place not in known or key not in known[place]:
        place, key = ("meta" if name in known["meta"] else "answer"), name
    return [_text(row.get(key)) for row in (metas if place == "meta" else answers)]


def _text(value: Any) -> str:
    """Return a value as the name of a slice, which any file can hold."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return NONE
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text.encode(errors="replace").decode() or NONE


def _buckets(bounds: Sequence[int]) -> Callable[[int], str]:
    # names of equal width, so that their order as text is their order as numbers
    width = len(str(bounds[-1]))
    edges = [0, *bounds]
    names = [f"{low:0{width}}-{high - 1:0{width}}" for low, high in zip(edges, bounds, strict=False)]
    names.append(f"{bounds[-1]:0{width}}+")
    return lambda length: names[bisect_right(bounds, length)]


def _most_frequent(values: Sequence[str], most: int) -> set[str]:
    counts = Counter(values)
    if len(counts) <= most:
        return set(counts)
    return set(sorted(counts, key=lambda value: (-counts[value], value))[: most - 1])


def slices_of(scores: pd.DataFrame) -> list[str]:
    """Return the names of the slices, in their order."""
    return [column.removeprefix("slice_") for column in scores.columns if column.startswith("slice_")]


def figures_by_slice(scores: pd.DataFrame, smallest: int, seed: int) -> pd.DataFrame:
    """Put a figure with its 95 % bootstrap interval on each metric of each model in each slice.

    Args:
        scores: metric columns and `slice_NAME` columns, a row for each model and example.
        smallest: a slice of fewer examples is marked.
        seed: of the bootstrap.

    Returns:
        columns `slice`, `part` (a value of the slice), `model`, `metric`, `examples`, `small` (bool), `value`, `low`, `high`;
        sorted by the first four. Metrics have the names that `score.compare` gives them.
    """
    rows = []
    for name in slices_of(scores):
        for (part, model), group in scores.groupby([f"slice_{name}", "model"], sort=True):
            table = group.sort_values("id")
            about = {"slice": name, "part": part, "model": model, "examples": len(table), "small": len(table) < smallest}
            means = means_of(table).items()
            found = {metric: mean_of(table[column].to_numpy(dtype=np.float64), seed) for metric, column in means}
            found |= likelihoods(table, seed)
            rows += [{**about, "metric": metric, **figure.as_dict()} for metric, figure in found.items()]
    columns = ["slice", "part", "model", "metric", "examples", "small", "value", "low", "high"]
    made = pd.DataFrame(rows, columns=columns)
    return made.sort_values(columns[:4], ignore_index=True)
