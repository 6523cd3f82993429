"""Which variant do people prefer, and may it be said yet? The decision of an experiment, as often as one likes to look.

In this order, and the first that holds is the decision:

    blocked          subjects are not dealt as planned: whatever is wrong there makes any comparison worthless
    roll back        a guardrail is shown to be broken, or the challenger to be worse
    promote          the challenger is shown to be better, and every guardrail to be kept
    no difference    both are shown to be alike within the margin, or there are as many subjects as were planned
    keep collecting  otherwise

All but the first rest on tests that hold at every look (`sequential`). The primary metric and its margin stand in the parameters
before the experiment begins. Each harm has its own margin; that one of several looks broken by luck is held below their common
level by Holm's correction, and as all must be kept to promote, each is shown to be so at the full level (Berger 1982).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln

from luthier.pipelines.monitoring.sequential import FEWEST, Arm, lower_bound, p_above
from luthier.stats import holm

Decision = Literal["blocked", "roll back", "promote", "no difference", "keep collecting"]
MISMATCH = 0.001
"""A p-value of the subjects' numbers from which they are not dealt as planned."""
_PRIOR_SUBJECTS = 100.0  # how sure the prior is of the weights: deviations of about a tenth are found soonest
_MIXED = 0.01
HIGHER_IS_BETTER = ("rating", "voted")
"""The metrics of which a challenger is to have more; of all others it is to have less."""


@dataclass(frozen=True)
class Guardrail:
    """What may not become worse."""

    metric: str
    """A column of the subjects."""
    margin: float
    """How much worse it may be."""
    is_share: bool = False
    """Whether it lies from 0 to 1."""

    @property
    def lower_is_better(self) -> bool:
        """Whether less of the metric is better; of votes, more is."""
        return self.metric not in HIGHER_IS_BETTER


GUARDRAILS = (
    Guardrail("errors", 0.01, is_share=True),
    Guardrail("log_seconds", float(np.log(1.2))),
    Guardrail("log_characters", float(np.log(1.25))),
    Guardrail("voted", 0.05, is_share=True),
)
"""One failed request more in a hundred, answers a fifth slower, a quarter longer, five votes fewer in a hundred answers."""


@dataclass(frozen=True)
class Plan:
    """What was decided before the first subject came."""

    control: str
    challenger: str
    weights: Mapping[str, float]
    """Of all variants, other challengers too."""
    metric: str = "rating"
    """The primary metric, a column of the subjects; higher is better."""
    is_share: bool = True
    """Whether it lies from 0 to 1."""
    margin: float = 0.05
    """The smallest difference that matters."""
    guardrails: tuple[Guardrail, ...] = GUARDRAILS
    alpha: float = 0.025
    """Chance that a challenger that is no better ever wins, shared by all challengers; and that one that is no worse loses."""
    guardrail_alpha: float = 0.05
    """Chance that any guardrail that is kept is ever said to be broken."""
    most_subjects: int | None = None
    """With the primary metric, of both variants: then the experiment ends. None if it may go on."""


@dataclass(frozen=True)
class Compared:
    """A metric of both variants."""

    metric: str
    subjects: dict[str, int]
    """With that metric: control and challenger."""
    means: dict[str, float]
    difference: float
    """Challenger minus control."""
    low: float
    high: float
    """Bounds of the difference, each of which holds at every look; infinite where nothing can be said yet."""


@dataclass(frozen=True)
class Kept:
    """What is known of a guardrail."""

    compared: Compared
    margin: float
    state: Literal["kept", "broken", "open"]
    p_broken: float
    """Adjusted for all guardrails."""
    p_kept: float


@dataclass(frozen=True)
class Assignment:
    """Whether subjects are dealt as planned."""

    subjects: dict[str, int]
    expected: dict[str, float]
    p: float | None
    """None while there are too few."""
    mixed: int
    """Subjects that were dealt to more than one variant."""
    broken: str | None
    """What is wrong."""


@dataclass(frozen=True)
class Finding:
    """The decision and its figures."""

    decision: Decision
    why: str
    assignment: Assignment
    primary: Compared | None = None
    guardrails: tuple[Kept, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON: bounds that are not known yet are null."""
        return {
            "decision": self.decision,
            "why": self.why,
            "assignment": vars(self.assignment),
            "primary": None if self.primary is None else _finite(self.primary),
            "guardrails": [vars(one) | {"compared": _finite(one.compared)} for one in self.guardrails],
        }


def _finite(compared: Compared) -> dict[str, Any]:
    told = vars(compared)
    return told | {name: told[name] if np.isfinite(told[name]) else None for name in ("low", "high")}


def decide(subjects: pd.DataFrame, plan: Plan) -> Finding:
    """Decide what to do with the challenger.

    Args:
        subjects: from `subjects.subjects_of`, or any frame with a row a subject: `assigned`, `variants` and the metrics' columns
            (NaN where a subject has none).
        plan: what was planned.

    Raises:
        ValueError: if the plan's variants have no weight, or a subject has a variant that the plan does not name.
    """
    assignment = check_assignment(subjects, plan.weights)
    if missing := {plan.control, plan.challenger} - plan.weights.keys():
        raise ValueError(f"the weights name no variant {sorted(missing)[0]!r}")
    if assignment.broken:
        return Finding("blocked", assignment.broken, assignment)
    arms = _arms(subjects, plan, plan.metric, plan.is_share)
    primary = _compare(*arms, plan, plan.metric, plan.margin, plan.alpha / (len(plan.weights) - 1))
    guardrails = _guardrails(subjects, plan)
    decision, why = _decision(primary, guardrails, plan)
    return Finding(decision, why, assignment, primary, guardrails)


def check_assignment(subjects: pd.DataFrame, weights: Mapping[str, float]) -> Assignment:
    """Tell whether as many subjects have each variant as its weight says (sample-ratio mismatch).

    The p-value holds at every look: it is one over the Bayes factor of a Dirichlet prior around the weights against the weights
    themselves (Lindon and Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022).

    Args:
        subjects: `assigned` and `variants` of each.
        weights: share of each variant; they add up to 1.

    Raises:
        ValueError: if a subject has another variant.
    """
    counts = subjects["assigned"].value_counts()
    if unknown := sorted(set(counts.index) - weights.keys()):
        raise ValueError(f"the weights name no variant {unknown[0]!r}, which subjects have")
    seen = {name: int(counts.get(name, 0)) for name in weights}
    expected = {name: weight * len(subjects) for name, weight in weights.items()}
    mixed = int((subjects["variants"] > 1).sum())
    dealt = [name for name, weight in weights.items() if weight > 0]
    p: float | None = None
    if len(dealt) > 1:
        p = _p_of_counts(np.array([seen[name] for name in dealt]), np.array([weights[name] for name in dealt]))
    broken = None
    if stray := [name for name, weight in weights.items() if weight == 0 and seen[name]]:
        broken = f"Subjects were dealt to {stray[0]}, whose weight is 0."
    elif p is not None and p < MISMATCH:
        told = ", ".join(f"{name} {seen[name]:,} instead of {expected[name]:,.0f}" for name in dealt)
        broken = f"The numbers of subjects are not those of the weights ({told}; p = {p:.1g}): some are lost or dealt otherwise."
    elif mixed > _MIXED * len(subjects):
        broken = f"{mixed:,} of {len(subjects):,} subjects were dealt to more than one variant: assignment is not sticky."
    return Assignment(seen, expected, p, mixed, broken)


def _p_of_counts(counts: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the anytime-valid p-value of "subjects are dealt by these weights"."""
    prior, total = _PRIOR_SUBJECTS * weights, counts.sum()
    log_factor = gammaln(prior.sum()) - gammaln(prior.sum() + total) + (gammaln(prior + counts) - gammaln(prior)).sum()
    log_factor -= (counts * np.log(weights)).sum()
    return float(np.exp(min(0.0, -log_factor)))


def _arms(subjects: pd.DataFrame, plan: Plan, metric: str, is_share: bool) -> tuple[Arm, Arm]:
    """Return control and challenger."""
    values, assigned = subjects[metric].to_numpy(np.float64), subjects["assigned"].to_numpy()
    of = [values[(assigned == name) & ~np.isnan(values)] for name in (plan.control, plan.challenger)]
    control, challenger = (Arm.of(one, 1.0 if is_share else 0.0) for one in of)
    return control, challenger


def _compare(control: Arm, challenger: Arm, plan: Plan, metric: str, scale: float, alpha: float) -> Compared:
    both = {plan.control: control, plan.challenger: challenger}
    return Compared(
        metric=metric,
        subjects={name: int(arm.subjects) for name, arm in both.items()},
        means={name: float(arm.mean) for name, arm in both.items()},
        difference=float(challenger.mean - control.mean),
        low=float(lower_bound(challenger, control, scale, alpha)),
        high=-float(lower_bound(control, challenger, scale, alpha)),
    )


def _guardrails(subjects: pd.DataFrame, plan: Plan) -> tuple[Kept, ...]:
    compared, broken, kept = [], [], []
    for guardrail in plan.guardrails:
        control, challenger = _arms(subjects, plan, guardrail.metric, guardrail.is_share)
        worse, better = (challenger, control) if guardrail.lower_is_better else (control, challenger)
        broken.append(float(p_above(worse, better, guardrail.margin, guardrail.margin)))
        kept.append(float(p_above(better, worse, -guardrail.margin, guardrail.margin)))
        compared.append(_compare(control, challenger, plan, guardrail.metric, guardrail.margin, plan.guardrail_alpha))
    adjusted = holm(np.array(broken)).tolist()
    found = []
    for guardrail, figures, p_broken, p_kept in zip(plan.guardrails, compared, adjusted, kept, strict=True):
        is_broken, is_kept = p_broken <= plan.guardrail_alpha, p_kept <= plan.guardrail_alpha
        found.append(Kept(figures, guardrail.margin, "broken" if is_broken else "kept" if is_kept else "open", p_broken, p_kept))
    return tuple(found)


def _decision(primary: Compared, guardrails: tuple[Kept, ...], plan: Plan) -> tuple[Decision, str]:
    told = f"{primary.metric} {primary.difference:+.3f} [{primary.low:+.3f}, {primary.high:+.3f}]"
    if broken := [one.compared.metric for one in guardrails if one.state == "broken"]:
        return "roll back", f"{plan.challenger} breaks a guardrail: {', '.join(broken)}."
    if primary.high < 0:
        return "roll back", f"{plan.challenger} is worse: {told}."
    waiting = [one.compared.metric for one in guardrails if one.state == "open"]
    if primary.low > 0 and not waiting:
        return "promote", f"{plan.challenger} is better: {told}, and every guardrail is kept."
    if -plan.margin < primary.low and primary.high < plan.margin and primary.low <= 0:
        return "no difference", f"Both are alike within {plan.margin:g}: {told}."
    seen = sum(primary.subjects.values())
    if plan.most_subjects is not None and seen >= plan.most_subjects:
        return "no difference", f"Nothing is shown by the {seen:,} subjects that were planned: {told}."
    if primary.low > 0:
        return (
            "keep collecting",
            f"{plan.challenger} is better: {told}, but it is not yet shown of {', '.join(waiting)} to be kept.",
        )
    if min(primary.subjects.values()) < FEWEST:
        return "keep collecting", f"Each variant needs {FEWEST} subjects with {primary.metric} before anything is said."
    return "keep collecting", f"Nothing is shown yet: {told}."
