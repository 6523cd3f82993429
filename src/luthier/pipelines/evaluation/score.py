"""Judge answers one by one, then put figures with intervals on each model and on the differences between them."""

from typing import Any

import numpy as np
import pandas as pd
from jsonschema import Draft202012Validator

from luthier.artefacts import canonical_json
from luthier.pipelines.evaluation.baselines import as_fields
from luthier.stats import Estimate, Floats, mean_of, ratio_of, resamples
from luthier.text.prepare import compact_json, strict_json

MODELS = ("majority", "tfidf", "base", "tuned")


def score_answers(answers: pd.DataFrame, schema: dict[str, Any]) -> pd.DataFrame:
    """Add to each answer whether it is valid, exact, and right in each field.

    Args:
        answers: columns `model`, `id`, `expected`, `answer`, `nll`, `supervised_tokens`.
        schema: JSON Schema of a valid answer; empty if answers are plain text.

    Returns:
        the same rows with `valid`, `exact_match`, `field_accuracy`, and for each field `right_FIELD`, `is_FIELD`
        (expected value as JSON) and `said_FIELD` (answered value, or an empty string).
    """
    validator = Draft202012Validator(schema) if schema else None
    rows = answers.to_dict("records")
    fields = list(dict.fromkeys(name for row in rows for name in as_fields(str(row["expected"]))))
    return pd.DataFrame([{**row, **_judge(str(row["answer"]), str(row["expected"]), fields, validator)} for row in rows])


def _judge(answer: str, expected: str, fields: list[str], validator: Draft202012Validator | None) -> dict[str, Any]:
    wanted = as_fields(expected)
    plain = wanted == {"answer": expected}
    try:
        value, is_json = strict_json(answer), True
    except ValueError:
        value, is_json = None, False
    said = {"answer": answer} if plain else value if isinstance(value, dict) else {}
    try:
        valid = is_json and validator.is_valid(value) if validator else plain or isinstance(value, dict)
        shown = {field: (_as_json(wanted, field), _as_json(said, field)) for field in fields}
        exact = answer == expected if plain else is_json and canonical_json(value) == canonical_json(wanted)
        right = {field: _same(wanted, said, field) for field in fields}
    except RecursionError:  # JSON that is barely too deep to be judged
        return _judge("", expected, fields, validator)
    # a field that is rightly left out by both says nothing about who is better
    told = [right[field] for field in wanted] or [exact]
    facts: dict[str, Any] = {"valid": valid, "exact_match": exact, "field_accuracy": float(np.mean(told))}
    for field, (is_value, said_value) in shown.items():
        facts |= {f"right_{field}": right[field], f"is_{field}": is_value, f"said_{field}": said_value}
    return facts


def _as_json(values: dict[str, Any], field: str) -> str:
    """Return a field as JSON that any file can hold, or an empty string if the answer leaves it out."""
    return compact_json(values[field]).encode(errors="replace").decode() if field in values else ""


def _same(one: dict[str, Any], other: dict[str, Any], field: str) -> bool:
    """Compare as JSON: true is not 1, and null is not left out."""
    if field not in one or field not in other:
        return field not in one and field not in other
    return canonical_json(one[field]) == canonical_json(other[field])


def fields_of(scores: pd.DataFrame) -> list[str]:
    """Return the names of the answers' fields, in their order."""
    return [column.removeprefix("right_") for column in scores.columns if column.startswith("right_")]


def _macro_f1(expected: Any, said: Any, seed: int) -> tuple[Estimate, Floats]:
    """Mean over the expected classes of 2 TP / (2 TP + FP + FN), with bootstrap draws (for paired differences)."""
    classes = sorted(set(expected))
    number = {value: at for at, value in enumerate(classes)}
    is_class = np.array([number[value] for value in expected])
    said_class = np.array([number.get(value, -1) for value in said])
    everything = np.arange(len(is_class))[None]

    def f1(rows: Any) -> Floats:
        # one column a class: true positives, answered, expected, counted over the chosen rows
        totals = []
        for at in range(len(classes)):
            wanted, answered = is_class[rows] == at, said_class[rows] == at
            both, either = (wanted & answered).sum(1), wanted.sum(1) + answered.sum(1)
            totals.append(np.where(wanted.sum(1) > 0, 2 * both / np.maximum(either, 1), np.nan))
        return np.asarray(np.nanmean(np.array(totals), axis=0))

    draws = f1(resamples(len(is_class), seed))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(f1(everything)[0]), float(low), float(high)), draws


def compare(scores: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Put figures with 95 % bootstrap intervals on every model, and paired ones on the differences to `tuned`.

    Returns:
        `{examples, fields, models: {NAME: {METRIC: {value, low, high}}}, differences: {tuned_minus_NAME: {...}}}`.
    """
    fields = fields_of(scores)
    tables = {name: scores[scores["model"] == name].sort_values("id").reset_index(drop=True) for name in MODELS}
    models: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        figures = {"validity": mean_of(_column(table, "valid"), seed)}
        for metric in ("exact_match", "field_accuracy"):
            figures[metric] = mean_of(_column(table, metric), seed)
        for field in fields:
            figures[f"accuracy_{field}"] = mean_of(_column(table, f"right_{field}"), seed)
            figures[f"macro_f1_{field}"] = _macro_f1(table[f"is_{field}"], table[f"said_{field}"], seed)[0]
        if table["nll"].notna().all():
            figures["nll_per_token"] = ratio_of(_column(table, "nll"), _column(table, "supervised_tokens"), seed)
        models[name] = {metric: figure.as_dict() for metric, figure in figures.items()}
    differences = {}
    tuned = tables["tuned"]
    for name in MODELS[:-1]:
        other = tables[name]
        paired = {m: mean_of(_column(tuned, m) - _column(other, m), seed) for m in ("exact_match", "field_accuracy")}
        for field in fields:
            paired[f"accuracy_{field}"] = mean_of(_column(tuned, f"right_{field}") - _column(other, f"right_{field}"), seed)
        if other["nll"].notna().all():
            paired["nll_per_token"] = ratio_of(
                _column(tuned, "nll") - _column(other, "nll"), _column(tuned, "supervised_tokens"), seed
            )
        differences[f"tuned_minus_{name}"] = {metric: figure.as_dict() for metric, figure in paired.items()}
    return {"examples": len(tuned), "fields": fields, "models": models, "differences": differences}


def _column(table: pd.DataFrame, name: str) -> Floats:
    return table[name].to_numpy(dtype=np.float64)


def worst_errors(scores: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """Return the tuned model's worst answers: fewest fields right, then the right answer least expected."""
    tuned = scores[(scores["model"] == "tuned") & ~scores["exact_match"].astype(bool)]
    return tuned.sort_values(["field_accuracy", "nll"], ascending=[True, False]).head(count)[
        ["id", "prompt", "expected", "answer", "field_accuracy", "nll"]
    ]
