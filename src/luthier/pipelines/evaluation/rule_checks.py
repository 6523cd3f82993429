"""What can be wrong with the gate's rules, told before anything is computed: unknown names, tables that do not fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from luthier.errors import did_you_mean
from luthier.pipelines.evaluation.rules import (
    CHAMPION,
    LOSS,
    AnyOf,
    AtLeast,
    AtMost,
    BetterThan,
    NoSliceBelow,
    NoSliceWorseThan,
    NotWorseThan,
    Retention,
    Rule,
    Safety,
)
from luthier.stats import Floats

TOKENS = "supervised_tokens"
MEASURED_BY = {
    "scores": "let the models answer",
    "retention": "set evaluation.retention.path",
    "safety": "set data.safety_checks",
}


@dataclass(frozen=True)
class Tables:
    """What rules are about: `scores`, and `retention` and `safety` where they were measured."""

    candidate: str
    given: Mapping[str, pd.DataFrame]

    def models(self, name: str) -> list[str]:
        """Return the models of a table."""
        return [str(model) for model in self.given[name]["model"].unique()]

    def of(self, name: str, model: str) -> pd.DataFrame:
        """Return one model's rows, sorted by id."""
        table = self.given[name]
        rows = table[table["model"] == model]
        return rows.assign(id=rows["id"].map(str)).sort_values("id").reset_index(drop=True)


@dataclass(frozen=True)
class Needs:
    """What a rule reads."""

    table: str
    column: str
    other: str | None = None
    slice: str | None = None


def needs_of(rule: Rule) -> list[Needs]:
    """Return what a rule reads: one table and column, or those of each alternative."""
    match rule:
        case AtLeast() | AtMost():
            return [Needs("scores", rule.metric)]
        case BetterThan():
            return [Needs("scores", rule.metric, rule.better_than)]
        case NotWorseThan():
            return [Needs("scores", rule.metric, rule.not_worse_than)]
        case NoSliceBelow():
            return [Needs("scores", rule.metric, None, rule.slice)]
        case NoSliceWorseThan():
            return [Needs("scores", rule.metric, rule.no_slice_worse_than, rule.slice)]
        case Retention():
            return [Needs("retention", LOSS, rule.not_worse_than)]
        case Safety():
            return [Needs("safety", "passed")]
        case AnyOf():
            return [need for one in rule.any_of for need in needs_of(one)]


def problems_of(tables: Tables, rules: Sequence[Rule]) -> Iterator[str]:
    """Say everything in rules and tables that does not fit together."""
    unusable = set()
    for name, table in tables.given.items():
        missing = [column for column in ("model", "id") if column not in table]
        if missing:
            unusable.add(name)
            yield f"{name}: the column {' and '.join(missing)} is missing"
        elif tables.candidate not in tables.models(name):
            unusable.add(name)
            yield f"{name}: no rows of the candidate {tables.candidate!r}; there are {_listed(tables.models(name)) or 'no rows'}"
    for number, rule in enumerate(rules, start=1):
        where = f"rule {number} ({rule.words()})"
        for need in needs_of(rule):
            if need.table not in tables.given:
                yield f"{where}: {need.table} is not measured: {MEASURED_BY[need.table]}, or leave the rule out"
            elif need.table not in unusable:
                known = replace(need, other=None) if waits_for_champion(need, tables) else need
                yield from (f"{where}: {problem}" for problem in _misfits(known, tables))
        yield from (f"{where}: {problem}" for problem in _misuses(rule, tables) if not unusable)


def _misfits(need: Needs, tables: Tables) -> Iterator[str]:
    """Say what a rule reads that is not there, or not fit to be read."""
    table = tables.given[need.table]
    metrics = metrics_of(table)
    if need.column not in metrics:
        yield f"no metric {need.column!r}{did_you_mean(need.column, metrics)}; there are {_listed(metrics)}"
    if need.slice is not None and f"slice_{need.slice}" not in table:
        slices = [str(column).removeprefix("slice_") for column in table if str(column).startswith("slice_")]
        there = _listed(slices) or "none: name some in evaluation.slices"
        yield f"no slice {need.slice!r}{did_you_mean(need.slice, slices)}; there are {there}"
    if need.other == tables.candidate:
        yield f"compares {tables.candidate} with itself"
    elif need.other is not None and need.other not in tables.models(need.table):
        others = [model for model in tables.models(need.table) if model != tables.candidate]
        yield f"no model {need.other!r}{did_you_mean(need.other, others)}; there are {_listed(others) or 'no others'}"
        return
    ids = tables.of(need.table, tables.candidate)["id"].tolist()
    for model in dict.fromkeys([tables.candidate, need.other or tables.candidate]):
        rows = tables.of(need.table, model)
        if rows["id"].duplicated().any():
            yield f"{need.table} of {model}: {rows['id'].duplicated().sum()} ids are there more than once"
        elif set(rows["id"]) != set(ids):
            apart = sorted(set(rows["id"]) ^ set(ids))
            yield f"{need.table} of {model}: other ids than {tables.candidate}, {len(apart)} in all, such as {apart[0]}"
        for column in [need.column, TOKENS] if need.column == LOSS else [need.column]:
            if column in metrics or (column == TOKENS and TOKENS in table):
                values = numbers(rows[column])
                unfit = ~(values > 0) if column == TOKENS else ~np.isfinite(values)
                if unfit.any():
                    yield f"{column} of {model} is no usable number in {unfit.sum()} of {len(rows)} rows of {need.table}"
            elif column == TOKENS:
                yield f"{LOSS} needs the column {TOKENS}, the number of tokens that it is the sum of"


def _misuses(rule: Rule, tables: Tables) -> Iterator[str]:
    """Say what cannot be asked of a metric."""
    match rule:
        case AtLeast(metric="nll"):
            yield "lower is better for nll: write at_most"
        case NoSliceBelow(metric="nll"):
            yield "lower is better for nll: compare with another model by no_slice_worse_than"
        case AtMost() if rule.metric != LOSS:
            yield f"higher is better for {rule.metric}: write at_least"
        case AtLeast() | NoSliceBelow():
            limit = rule.at_least if isinstance(rule, AtLeast) else rule.no_slice_below
            if are_shares(tables, rule.metric) and not 0 < limit < 1:
                yield f"{rule.metric} lies between 0 and 1: write a limit between them, not {limit:g}, which no examples can show"
        case BetterThan() | NotWorseThan() | NoSliceWorseThan():
            size = rule.effect if isinstance(rule, BetterThan) else rule.margin
            if are_shares(tables, rule.metric) and size >= 1:
                yield f"{rule.metric} lies between 0 and 1: write {size / 100:g} for {size:g} points"
        case Safety() if rule.safety != "all" and "safety" in tables.given:
            rows = tables.of("safety", tables.candidate)
            checks = sorted(set(rows["check"])) if "check" in rows else []
            for name in rule.safety:
                if name not in checks:
                    yield f"no check {name!r}{did_you_mean(name, checks)}"
        case AnyOf():
            for one in rule.any_of:
                yield from _misuses(one, tables)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Return the columns that a rule can be about: numbers and bools."""
    named = [str(column) for column in table if column not in ("model", "id", TOKENS) and not str(column).startswith("slice_")]
    return [column for column in named if _is_number(table[column])]


def _is_number(column: "pd.Series[Any]") -> bool:
    if column.dtype == object:  # bools beside missing values
        return bool(column.notna().any()) and all(isinstance(value, bool | np.bool_) for value in column.dropna())
    return pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column)


def numbers(column: "pd.Series[Any]") -> Floats:
    """Return a column of numbers or bools; what is missing is NaN."""
    return np.asarray(column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def are_shares(tables: Tables, metric: str) -> bool:
    """Tell whether all values of a metric lie between 0 and 1, as those of accuracies do."""
    if metric == LOSS or metric not in metrics_of(tables.given["scores"]):
        return False
    values = numbers(tables.given["scores"][metric])
    return bool(((values >= 0) & (values <= 1) | np.isnan(values)).all())


def waits_for_champion(need: Needs, tables: Tables) -> bool:
    """Tell whether a rule compares with a champion while there is none."""
    return need.other == CHAMPION and CHAMPION not in tables.models("scores")
