"""Decide whether a model may go out: rules in words, each shown to hold, shown to be missed, or undecided.

A rule speaks about all the messages that will come, not about the few hundred at hand, so a figure alone never decides: the
gate passes a model only if every rule is shown to hold, and fails it only if one is shown to be missed. docs/gate.md says
how the chance of being wrong is kept below `alpha`, with sources and measurements.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from luthier.configuration import Parameters
from luthier.errors import UserError, did_you_mean
from luthier.stats import (
    FEWEST_UNBOUNDED,
    Evidence,
    Floats,
    evidence_on_mean,
    evidence_on_pairs,
    holm,
    needed_examples,
    power_of_mean,
    power_of_pairs,
)

CHAMPION = "champion"
LOSS = "nll"
TOKENS = "supervised_tokens"
POWER = 0.8


class Statement(Parameters):
    """A rule: what must hold."""

    model_config = ConfigDict(allow_inf_nan=False)

    def words(self) -> str:
        """Say the rule."""
        raise NotImplementedError


class AtLeast(Statement):
    """`{metric: exact_match, at_least: 0.6}`."""

    metric: str
    at_least: float

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is at least {self.at_least:g}"


class AtMost(Statement):
    """`{metric: nll, at_most: 0.8}`, in nats per token."""

    metric: str
    at_most: float

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} per token is at most {self.at_most:g}"


class BetterThan(Statement):
    """`{metric: field_accuracy, better_than: base}`."""

    metric: str
    better_than: str
    effect: float = Field(default=0.05, gt=0)
    """The gain that would matter to you. It does not decide: it says how many examples an undecided rule needs."""

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is better than that of {self.better_than}"


class NotWorseThan(Statement):
    """`{metric: valid, not_worse_than: champion, margin: 0.02}`."""

    metric: str
    not_worse_than: str
    margin: float = Field(gt=0)
    """The loss that you would accept, in the metric's own unit."""

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is not worse than that of {self.not_worse_than} by {self.margin:g} or more"


class NoSliceBelow(Statement):
    """`{metric: exact_match, no_slice_below: 0.4, slice: label}`."""

    metric: str
    no_slice_below: float
    slice: str
    at_least_examples: int = Field(default=20, ge=1)
    """Smaller slices are not looked at."""

    def words(self) -> str:
        """Say the rule."""
        return f"{self.metric} is at least {self.no_slice_below:g} in every slice by {self.slice}"


class NoSliceWorseThan(Statement):
    """`{metric: exact_match, no_slice_worse_than: champion, margin: 0.1, slice: label}`."""

    metric: str
    no_slice_worse_than: str
    margin: float = Field(gt=0)
    """The loss that you would accept in a slice, in the metric's own unit."""
    slice: str
    at_least_examples: int = Field(default=20, ge=1)
    """Smaller slices are not looked at."""

    def words(self) -> str:
        """Say the rule."""
        other = self.no_slice_worse_than
        return f"{self.metric} is not worse than that of {other} by {self.margin:g} or more in any slice by {self.slice}"


class Retention(Statement):
    """`{retention: nll, margin: 0.05}`: the loss on general text has not grown by more."""

    retention: Literal["nll"]
    margin: float = Field(gt=0)
    """The growth that you would accept, in nats per token."""
    not_worse_than: str = "base"

    def words(self) -> str:
        """Say the rule."""
        return f"nll per token of general text is not worse than that of {self.not_worse_than} by {self.margin:g} or more"


class Safety(Statement):
    """`{safety: all}`, or `{safety: [NAME, NAME]}` for some of the checks."""

    safety: Literal["all"] | tuple[str, ...]

    def words(self) -> str:
        """Say the rule."""
        return "every safety check is passed" if self.safety == "all" else f"safety checks passed: {', '.join(self.safety)}"


class AnyOf(Statement):
    """`{any_of: [{metric: exact_match, better_than: base}, {metric: field_accuracy, better_than: base}]}`."""

    any_of: tuple["Alternative", ...] = Field(min_length=2)

    def words(self) -> str:
        """Say the rule."""
        return ", or ".join(rule.words() for rule in self.any_of)


KINDS: dict[str, type[Statement]] = {
    "retention": Retention,
    "at_least": AtLeast,
    "at_most": AtMost,
    "better_than": BetterThan,
    "not_worse_than": NotWorseThan,
    "no_slice_below": NoSliceBelow,
    "no_slice_worse_than": NoSliceWorseThan,
    "safety": Safety,
    "any_of": AnyOf,
}


def as_rule(value: Any) -> Any:
    """Return the rule that a mapping of the parameters stands for; a rule is returned as it is.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    if isinstance(value, Statement):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a rule is written as {metric: exact_match, at_least: 0.6}")
    said = [kind for kind in KINDS if kind in value]
    if "retention" in said and "not_worse_than" in said:
        said.remove("not_worse_than")
    if len(said) > 1:
        raise ValueError(f"says {' and '.join(said)}: write one rule for each")
    known = [*KINDS, *dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields)]
    if not said:
        hints = [f"{key!r}{did_you_mean(str(key), known)}" for key in value if key not in known]
        raise ValueError(
            f"says nothing to hold{': unknown ' + ', '.join(hints) if hints else ''}; a rule has one of {', '.join(KINDS)}"
        )
    try:
        return KINDS[said[0]].model_validate(dict(value))
    except ValidationError as error:
        fields = list(KINDS[said[0]].model_fields)
        raise ValueError("; ".join(_in_words(detail, fields) for detail in error.errors())) from None


def _in_words(detail: Any, fields: list[str]) -> str:
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown key {name!r}{did_you_mean(name, fields)}; known: {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {detail['msg'][0].lower() + detail['msg'][1:]}, not {detail['input']!r}"


def _as_alternative(value: Any) -> Any:
    rule = as_rule(value)
    if not isinstance(rule, AtLeast | AtMost | BetterThan | NotWorseThan):
        raise ValueError("any_of takes rules with at_least, at_most, better_than or not_worse_than")
    return rule


Alternative = Annotated[AtLeast | AtMost | BetterThan | NotWorseThan, BeforeValidator(_as_alternative)]
AnyOf.model_rebuild()
Rule = Annotated[
    AtLeast | AtMost | BetterThan | NotWorseThan | NoSliceBelow | NoSliceWorseThan | Retention | Safety | AnyOf,
    BeforeValidator(as_rule),
]


class GateParameters(Parameters):
    """When a model may go out."""

    rules: tuple[Rule, ...] = Field(min_length=1)
    """All must hold. docs/gate.md shows every kind."""
    alpha: float = Field(default=0.05, gt=0, le=0.2)
    """Chance of letting a model pass that breaks a rule, and of failing one that breaks none."""


def decide(
    scores: pd.DataFrame,
    rules: Sequence[Rule],
    *,
    retention: pd.DataFrame | None = None,
    safety: pd.DataFrame | None = None,
    candidate: str = "tuned",
    alpha: float = 0.05,
) -> dict[str, Any]:
    """Decide whether the candidate may go out.

    Nothing is drawn at random: the same scores give the same decision, whatever the order of their rows.

    Args:
        scores: a row for each model and example: `model`, `id`, metrics (numbers or bools, higher is better), `nll` (nats,
            lower is better) with `supervised_tokens`, and `slice_NAME`. All models have the same ids.
        rules: `GateParameters.rules`.
        retention: the same shape with `nll` and `supervised_tokens` on general text.
        safety: the same shape with `passed` and `check`.
        candidate: the model to decide on.
        alpha: level of the decision.

    Returns:
        `{decision, candidate, champion, examples, rules: [{rule, decision, value, low, high, limit, p, power, needed,
        why}], alpha}`, ready for JSON. A decision is pass, fail or undecided; a rule about a champion while there is none is
        skipped. For a comparison `value`, `low` and `high` are the candidate's advantage, also where lower is better; `p` is
        the chance of figures at least this good if the rule were not met.

    Raises:
        UserError: naming everything in rules and tables that does not fit together.
    """
    given = {"scores": scores, "retention": retention, "safety": safety}
    tables = Tables(candidate, {name: table for name, table in given.items() if table is not None})
    problems = list(dict.fromkeys(_problems(tables, rules)))
    if problems:
        raise UserError("The gate cannot decide; nothing was computed.\n  " + "\n  ".join(problems))
    judged = [_judge(rule, tables, alpha) for rule in rules]
    # one missed rule is enough to fail the model, so all chances to fail it by bad luck count together
    chances = [chance for one in judged for chance in one.p_missed]
    adjusted = iter(holm(np.array(chances)))
    findings = [_finding(one, [float(next(adjusted)) for _ in one.p_missed], alpha) for one in judged]
    decisions = {finding["decision"] for finding in findings} - {"skipped"}
    return {
        "decision": "fail" if "fail" in decisions else "pass" if decisions == {"pass"} else "undecided",
        "candidate": candidate,
        "champion": CHAMPION if CHAMPION in tables.models("scores") else None,
        "examples": len(tables.of("scores", candidate)),
        "rules": findings,
        "alpha": alpha,
    }


def exit_code(decision: Mapping[str, Any]) -> int:
    """Return 0 for pass, 1 for fail, 3 for undecided (2 is the command line's own, for a wrong call)."""
    return {"pass": 0, "fail": 1, "undecided": 3}[decision["decision"]]


def check_rules(rules: Sequence[Rule], models: Collection[str], slices: Collection[str], measured: Collection[str]) -> None:
    """Check what can be known of rules before anything is answered: the models, slices and tables that they name.

    Args:
        rules: `GateParameters.rules`.
        models: that the candidate may be compared with.
        slices: their names.
        measured: tables that there will be: `scores`, perhaps `retention` and `safety`.

    Raises:
        UserError: naming everything that does not fit.
    """
    problems = []
    for number, rule in enumerate(rules, start=1):
        where = f"evaluation.gate.rules, rule {number} ({rule.words()})"
        for need in _needs(rule):
            if need.table not in measured:
                told = {"retention": "set evaluation.retention.path", "safety": "set data.safety_checks"}[need.table]
                problems.append(f"{where}: {need.table} is not measured: {told}, or leave the rule out")
            if need.other is not None and need.other not in models:
                known = _listed(sorted(models))
                problems.append(f"{where}: no model {need.other!r}{did_you_mean(need.other, models)}; there are {known}")
            if need.slice is not None and need.slice not in slices:
                there = _listed(sorted(slices)) or "none: name some in evaluation.slices.by"
                problems.append(f"{where}: no slice {need.slice!r}{did_you_mean(need.slice, slices)}; there are {there}")
    if problems:
        raise UserError("The gate could not decide; nothing was answered.\n  " + "\n  ".join(dict.fromkeys(problems)))


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


# --- what can be wrong before anything is computed ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Needs:
    """What a rule reads."""

    table: str
    column: str
    other: str | None = None
    slice: str | None = None


def _needs(rule: Rule) -> list[_Needs]:
    match rule:
        case AtLeast() | AtMost():
            return [_Needs("scores", rule.metric)]
        case BetterThan():
            return [_Needs("scores", rule.metric, rule.better_than)]
        case NotWorseThan():
            return [_Needs("scores", rule.metric, rule.not_worse_than)]
        case NoSliceBelow():
            return [_Needs("scores", rule.metric, None, rule.slice)]
        case NoSliceWorseThan():
            return [_Needs("scores", rule.metric, rule.no_slice_worse_than, rule.slice)]
        case Retention():
            return [_Needs("retention", LOSS, rule.not_worse_than)]
        case Safety():
            return [_Needs("safety", "passed")]
        case AnyOf():
            return [need for one in rule.any_of for need in _needs(one)]


def _problems(tables: Tables, rules: Sequence[Rule]) -> Iterator[str]:
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
        for need in _needs(rule):
            if need.table not in tables.given:
                yield f"{where}: there are no {need.table} scores; measure them or leave the rule out"
            elif need.table not in unusable:
                known = replace(need, other=None) if _waits_for_champion(need, tables) else need
                yield from (f"{where}: {problem}" for problem in _misfits(known, tables))
        yield from (f"{where}: {problem}" for problem in _misuses(rule, tables) if not unusable)


def _misfits(need: _Needs, tables: Tables) -> Iterator[str]:
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
                values = _numbers(rows[column])
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
            if _are_shares(tables, rule.metric) and not 0 < limit < 1:
                yield f"{rule.metric} lies between 0 and 1: write a limit between them, not {limit:g}, which no examples can show"
        case BetterThan() | NotWorseThan() | NoSliceWorseThan():
            size = rule.effect if isinstance(rule, BetterThan) else rule.margin
            if _are_shares(tables, rule.metric) and size >= 1:
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


def _numbers(column: "pd.Series[Any]") -> Floats:
    return np.asarray(column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def _are_shares(tables: Tables, metric: str) -> bool:
    """Tell whether all values of a metric lie between 0 and 1, as those of accuracies do."""
    if metric == LOSS or metric not in metrics_of(tables.given["scores"]):
        return False
    values = _numbers(tables.given["scores"][metric])
    return bool(((values >= 0) & (values <= 1) | np.isnan(values)).all())


def _waits_for_champion(need: _Needs, tables: Tables) -> bool:
    return need.other == CHAMPION and CHAMPION not in tables.models("scores")


# --- what the rows say about a rule -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One comparison with a limit: a rule is one of these, or one for each slice or alternative."""

    where: str
    """ in `SLICE`,  for "ALTERNATIVE", or nothing."""
    examples: int
    limit: float
    evidence: Evidence
    power: float | None
    needed: int | None
    aim: str
    """What `power` and `needed` are about."""


@dataclass(frozen=True)
class Judged:
    """What the rows say about a rule, before it is known how many other rules could have failed the model."""

    words: str
    parts: tuple[Part, ...] = ()
    together: Literal["all", "any"] = "all"
    told: dict[str, Any] | None = None
    """The finding itself, where nothing is inferred."""
    note: str = ""

    @property
    def p_held(self) -> list[float]:
        """For each part, the chance of figures at least this good if it did not hold.

        All parts have to hold: then each is tested at the full level (Berger 1982). If one is enough, the best of several
        would often look good by luck: then Holm's correction is due.
        """
        chances = [part.evidence.p_above for part in self.parts]
        return chances if self.together == "all" else [float(chance) for chance in holm(np.array(chances))]

    @property
    def p_missed(self) -> list[float]:
        """For each way in which the rule could fail the model, the chance of figures at least this bad if it held."""
        chances = [part.evidence.p_below for part in self.parts]
        return chances if self.together == "all" or not chances else [max(chances)]


def _judge(rule: Rule, tables: Tables, alpha: float) -> Judged:
    words = rule.words()
    if isinstance(rule, Safety):
        return Judged(words, told=_checks_passed(rule, tables))
    if isinstance(rule, AnyOf):
        parts = [replace(part, where=f' for "{one.words()}"') for one in rule.any_of for part in _judge(one, tables, alpha).parts]
        return Judged(words, tuple(parts), "any") if parts else _skipped(words)
    (need,) = _needs(rule)
    if _waits_for_champion(need, tables):
        return _skipped(words)
    ours = tables.of(need.table, tables.candidate)
    other = None if need.other is None else tables.of(need.table, need.other)
    shares = need.table == "scores" and _are_shares(tables, need.column)
    if not isinstance(rule, NoSliceBelow | NoSliceWorseThan):
        return Judged(words, (_part(rule, need.column, "", ours, other, shares, alpha),))
    names = ours[f"slice_{rule.slice}"].map(lambda name: "(none)" if pd.isna(name) else str(name))
    sizes = names.value_counts().sort_index()
    looked_at = sizes[sizes >= rule.at_least_examples].index
    parts = []
    for name in looked_at:
        inside = (names == name).to_numpy()
        theirs = None if other is None else other[inside]
        parts.append(_part(rule, need.column, f" in {_quoted(name)}", ours[inside], theirs, shares, alpha))
    small = len(sizes) - len(looked_at)
    note = f"{small} of {len(sizes)} slices have fewer than {rule.at_least_examples} examples and were not looked at"
    if not parts:
        return Judged(words, told=_told("undecided", f"No slice has {rule.at_least_examples} examples."))
    return Judged(words, tuple(parts), note=note if small else "")


def _part(
    rule: Rule, metric: str, where: str, ours: pd.DataFrame, other: pd.DataFrame | None, shares: bool, alpha: float
) -> Part:
    """Compare the rows of a rule, or of one of its slices, with its limit."""
    level = partial(_level, where, ours, metric, shares=shares, alpha=alpha)
    match rule:
        case AtLeast():
            return level(rule.at_least)
        case AtMost():
            return level(rule.at_most)
        case NoSliceBelow():
            return level(rule.no_slice_below)
    assert other is not None
    advantage = partial(_advantage, where, ours, other, metric, shares=shares, alpha=alpha)
    match rule:
        case BetterThan():
            return advantage(limit=0.0, aim=rule.effect)
        case NotWorseThan() | NoSliceWorseThan() | Retention():
            return advantage(limit=-rule.margin, aim=0.0)
    raise AssertionError(rule)


def _level(where: str, ours: pd.DataFrame, metric: str, limit: float, shares: bool, alpha: float) -> Part:
    """Compare one model's figure with a number."""
    values = _numbers(ours[metric])
    tokens = _numbers(ours[TOKENS]) if metric == LOSS else None
    sign = -1.0 if metric == LOSS else 1.0  # inside, higher is better
    evidence = evidence_on_mean(sign * values, sign * limit, alpha, denominators=tokens, span=(0.0, 1.0) if shares else None)
    power, needed = _power_of_mean(sign * values, tokens, sign * limit, evidence.value, 0.0 if shares else None, alpha)
    if sign < 0:
        evidence = replace(evidence, value=-evidence.value, low=-evidence.high, high=-evidence.low)
    return Part(where, len(ours), limit, evidence, power, needed, f"a true value of {evidence.value:.3g}")


def _advantage(
    where: str, ours: pd.DataFrame, other: pd.DataFrame, metric: str, limit: float, aim: float, shares: bool, alpha: float
) -> Part:
    """Compare two models on the same examples; the advantage is positive where ours is better."""
    mine, theirs = _numbers(ours[metric]), _numbers(other[metric])
    told = f"a gain of {aim:g}" if aim else "a model that is just as good"
    if shares and np.isin([mine, theirs], [0, 1]).all():
        gains, losses = int(((mine == 1) & (theirs == 0)).sum()), int(((mine == 0) & (theirs == 1)).sum())
        size = len(mine)
        evidence = evidence_on_pairs(gains, losses, size, limit, alpha)
        # pairs that never differed in this sample may do so in the next: one half of an example, as for a share of zero
        differ = max((gains + losses + 0.5) / (size + 1), abs(aim))
        power_at = partial(power_of_pairs, gain=aim, differ=differ, limit=limit, alpha=alpha)
        return Part(where, size, limit, evidence, power_at(size), needed_examples(power_at, POWER), told)
    # the text is the same for both, so that both losses are divided by the same tokens, whatever the other's tokenizer
    tokens = _numbers(ours[TOKENS]) if metric == LOSS else None
    rows = theirs - mine if metric == LOSS else mine - theirs
    evidence = evidence_on_mean(rows, limit, alpha, denominators=tokens, span=(-1.0, 1.0) if shares else None)
    power, needed = _power_of_mean(rows, tokens, limit, aim, -1.0 if shares else None, alpha)
    return Part(where, len(rows), limit, evidence, power, needed, told)


def _power_of_mean(
    rows: Floats, tokens: Floats | None, limit: float, truth: float, least: float | None, alpha: float
) -> tuple[float | None, int | None]:
    """Return the power at the spread of these rows, were the mean `truth`, and the number of examples that gives 80 %."""
    if truth <= limit or len(rows) < 2 or (least is None and len(rows) < FEWEST_UNBOUNDED):
        return None, None
    weights = np.ones_like(rows) if tokens is None else tokens
    around = (rows - rows.sum() / weights.sum() * weights) / weights.mean()
    reach = -float(around.min()) if least is None else truth - least
    power_at = partial(power_of_mean, distance=truth - limit, spread=float(around.std(ddof=1)), reach=reach, alpha=alpha)
    return power_at(len(rows)), needed_examples(power_at, POWER)


def _checks_passed(rule: Safety, tables: Tables) -> dict[str, Any]:
    rows = tables.of("safety", tables.candidate)
    if rule.safety != "all":
        rows = rows[rows["check"].isin(rule.safety)]
    passed = _numbers(rows["passed"]) == 1
    if passed.all():
        return _told("pass", f"All {len(rows)} answers passed.", value=1.0, limit=1.0)
    failed = rows[~passed]["check"].value_counts().sort_index() if "check" in rows else {}
    names = ", ".join(f"{_quoted(name)} ({count})" for name, count in failed.items())
    why = f"{(~passed).sum()} of {len(rows)} answers did not pass{': ' + names if names else ''}."
    return _told("fail", why, value=float(passed.mean()), limit=1.0)


# --- from evidence to a decision ------------------------------------------------------------------------------------------


def _finding(judged: Judged, p_missed: list[float], alpha: float) -> dict[str, Any]:
    """Decide one rule and say why; `p_missed` is adjusted for all rules."""
    if judged.told is not None:
        return {"rule": judged.words, **judged.told}
    held = judged.p_held
    p_held = max(held) if judged.together == "all" else min(held)
    decision = "fail" if min(p_missed) <= alpha else "pass" if p_held <= alpha else "undecided"
    if decision == "fail" and judged.together == "all":
        part = judged.parts[int(np.argmin(p_missed))]
    else:  # the part on which the decision hangs
        part = judged.parts[held.index(p_held)]
    why = _why(decision, judged, part, min(p_missed), alpha)
    told = _told(
        decision,
        why if not judged.note else f"{why} {judged.note}.",
        value=part.evidence.value,
        low=part.evidence.low,
        high=part.evidence.high,
        limit=part.limit,
        p=p_held,
        power=part.power,
    )
    return {"rule": judged.words, **told, "needed": part.needed}


def _why(decision: str, judged: Judged, part: Part, p_missed: float, alpha: float) -> str:
    if decision == "pass" and part.where and judged.together == "all":
        return f"Shown to hold in every slice ({len(judged.parts)}), least surely{part.where}."
    if decision == "pass":
        return f"Shown to hold{part.where}."
    if decision == "fail":
        return f"Shown to be missed{part.where} (p {p_missed:.2g}, all rules considered)."
    if part.evidence.p_below <= alpha:
        return (
            f"It looks missed{part.where} (p {part.evidence.p_below:.2g}), but among so many comparisons one like this comes "
            f"about by chance (p {p_missed:.2g}, all rules considered)."
        )
    start = f"{part.examples:,} examples{part.where} cannot tell"
    if part.power is None:
        return f"{start}."
    needed = f", with one of {POWER:.0%} from about {part.needed:,} examples on" if part.needed else ""
    return f"{start}: {part.aim} would pass with a chance of {part.power:.0%}{needed}."


def _told(decision: str, why: str, **figures: float | None) -> dict[str, Any]:
    known = {name: _finite(figures.get(name)) for name in ("value", "low", "high", "limit", "p", "power")}
    return {"decision": decision, **known, "needed": None, "why": why}


def _skipped(words: str) -> Judged:
    return Judged(words, told=_told("skipped", "There is no champion yet."))


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _quoted(name: Any) -> str:
    """Return a name from the data as code, so that it can neither mention people nor break a table."""
    return "`" + " ".join(str(name).replace("`", "'").split()) + "`"
