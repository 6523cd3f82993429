"""Decide whether a model may go out: each rule is shown to hold, shown to be missed, or undecided.

A rule speaks about all the messages that will come, not about the few hundred at hand, so a figure alone never decides: the
gate passes a model only if every rule is shown to hold, and fails it only if one is shown to be missed. docs/gate.md says
how the chance of being wrong is kept below `alpha`, with sources and measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from luthier.errors import UserError
from luthier.pipelines.evaluation.rule_checks import (
    TOKENS,
    Tables,
    are_shares,
    needs_of,
    numbers,
    problems_of,
    waits_for_champion,
)
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

POWER = 0.8


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
    problems = list(dict.fromkeys(problems_of(tables, rules)))
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
    (need,) = needs_of(rule)
    if waits_for_champion(need, tables):
        return _skipped(words)
    ours = tables.of(need.table, tables.candidate)
    other = None if need.other is None else tables.of(need.table, need.other)
    shares = need.table == "scores" and are_shares(tables, need.column)
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
    values = numbers(ours[metric])
    tokens = numbers(ours[TOKENS]) if metric == LOSS else None
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
    mine, theirs = numbers(ours[metric]), numbers(other[metric])
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
    tokens = numbers(ours[TOKENS]) if metric == LOSS else None
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
    passed = numbers(rows["passed"]) == 1
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
