"""Judge answers one by one, then put figures with intervals on each model and on the differences between them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from luthier.artefacts import canonical_json
from luthier.errors import UserError
from luthier.pipelines.evaluation.baselines import as_fields
from luthier.stats import Estimate, Floats, estimate, mean_of, ratio_of, resamples
from luthier.text.prepare import compact_json, strict_json

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

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
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema) if schema else None
    rows = answers.to_dict("records")
    fields = list(dict.fromkeys(name for row in rows for name in as_fields(str(row["expected"]))))
    return pd.DataFrame([{**row, **_judge(str(row["answer"]), str(row["expected"]), fields, validator)} for row in rows])


def _judge(answer: str, expected: str, fields: list[str], validator: "Draft202012Validator | None") -> dict[str, Any]:
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
    size = len(is_class)

    def members(rows: Any, of: Any) -> csr_array:
        return csr_array((np.ones(len(rows)), (rows, of)), shape=(size, len(classes)))

    everybody = np.arange(size)
    known = np.flatnonzero(said_class >= 0)
    wanted, answered = members(everybody, is_class), members(known, said_class[known])
    both = wanted * answered  # an example counts for a class that is both expected and answered

    def f1(times: Floats) -> Floats:
        """Return the macro-F1 of each sample; `times` says how often it holds each example, shape (samples, examples)."""
        expected_times = times @ wanted
        either = expected_times + times @ answered
        return np.asarray(np.nanmean(np.where(expected_times > 0, 2 * (times @ both) / np.maximum(either, 1), np.nan), axis=1))

    def counted(rows: NDArray[np.int64]) -> Floats:
        # whole numbers counted once a sample, in place of comparing every class with every drawn example
        places = (rows + size * np.arange(len(rows))[:, None]).ravel()
        return np.bincount(places, minlength=rows.size).reshape(rows.shape).astype(np.float64)

    draws = np.concatenate([f1(counted(rows)) for rows in resamples(size, seed)])
    return estimate(float(f1(np.ones((1, size)))[0]), draws), draws


def tables_by_model(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each model's rows sorted by id, the baselines first and `tuned` before the rest.

    Raises:
        UserError: if a model has not answered the same messages as the others: nothing could be paired.
    """
    present = set(scores["model"])
    names = [*(name for name in MODELS if name in present), *sorted(present - set(MODELS))]
    tables = {name: scores[scores["model"] == name].sort_values("id").reset_index(drop=True) for name in names}
    first = tables[names[0]]["id"].tolist() if names else []
    others = [name for name, table in tables.items() if table["id"].tolist() != first]
    if others:
        raise UserError(
            f"{', '.join(others)} answered other messages than {names[0]}: only answers to the same ones can be compared.\n"
            "  Let every model answer the same test split (the stored answers belong to another version of the data)."
        )
    return tables


def likelihoods(table: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """Return `nll_per_token` (nats) and `perplexity`, its exponential; empty if a row has no `nll`."""
    if "nll" not in table or not table["nll"].notna().all():
        return {}
    nll = ratio_of(_column(table, "nll"), _column(table, "supervised_tokens"), seed)
    return {"nll_per_token": nll, "perplexity": Estimate(*(float(np.exp(bound)) for bound in (nll.value, nll.low, nll.high)))}


def likelihood_difference(one: pd.DataFrame, other: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """Return the paired difference `nll_per_token`, one minus other (below 0: one is better); empty if a row has none."""
    if not all("nll" in table and table["nll"].notna().all() for table in (one, other)):
        return {}
    return {"nll_per_token": ratio_of(_column(one, "nll") - _column(other, "nll"), _column(one, "supervised_tokens"), seed)}


def means_of(table: pd.DataFrame) -> dict[str, str]:
    """Map the name of each mean that can be taken of these rows to its column; one with a gap has none.

    These are the numeric and bool columns, `valid` by the name of `validity` and `right_FIELD` by that of `accuracy_FIELD`; not
    `nll` and `supervised_tokens`, which are divided.
    """
    means = {"validity": "valid", "exact_match": "exact_match", "field_accuracy": "field_accuracy"}
    means |= {f"accuracy_{field}": f"right_{field}" for field in fields_of(table)}
    known = {*means.values(), "nll", "supervised_tokens"}
    kinds = table.select_dtypes(include=["number", "bool"]).columns
    means |= {name: name for name in kinds if name not in known}
    return {name: column for name, column in means.items() if column in table and table[column].notna().all()}


def _figures(table: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    figures = {}
    for name, column in means_of(table).items():
        figures[name] = mean_of(_column(table, column), seed)
        if column.startswith("right_"):
            field = column.removeprefix("right_")
            figures[f"macro_f1_{field}"] = _macro_f1(table[f"is_{field}"], table[f"said_{field}"], seed)[0]
    if "label_expected" in table:
        figures["label_macro_f1"] = _macro_f1(table["label_expected"], table["label_answer"], seed)[0]
    return figures | likelihoods(table, seed)


def compare(scores: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Put figures with 95 % bootstrap intervals on every model, and paired ones on the differences to `tuned`.

    A column that one model has no values of (a baseline has no likelihoods) gives that model no figure.

    Returns:
        `{examples, fields, models: {NAME: {METRIC: {value, low, high}}}, differences: {tuned_minus_NAME: {...}}}`.

    Raises:
        UserError: if the models have not answered the same messages.
    """
    tables = tables_by_model(scores)
    tuned = tables["tuned"]
    models = {name: as_dicts(_figures(table, seed)) for name, table in tables.items()}
    differences = {}
    for name, other in tables.items():
        if name == "tuned":
            continue
        shared = {mean: column for mean, column in means_of(tuned).items() if mean in models[name] and mean != "validity"}
        paired = {mean: mean_of(_column(tuned, column) - _column(other, column), seed) for mean, column in shared.items()}
        differences[f"tuned_minus_{name}"] = as_dicts(paired | likelihood_difference(tuned, other, seed))
    return {"examples": len(tuned), "fields": fields_of(scores), "models": models, "differences": differences}


def as_dicts(figures: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return each figure as `{value, low, high}`."""
    return {name: figure.as_dict() for name, figure in figures.items()}


def _column(table: pd.DataFrame, name: str) -> Floats:
    return table[name].to_numpy(dtype=np.float64)


def worst_errors(scores: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """Return the tuned model's worst answers: fewest fields right, then the right answer least expected."""
    tuned = scores[(scores["model"] == "tuned") & ~scores["exact_match"].astype(bool)]
    return tuned.sort_values(["field_accuracy", "nll"], ascending=[True, False]).head(count)[
        ["id", "prompt", "expected", "answer", "field_accuracy", "nll"]
    ]
