"""What follows from what is seen.

The first that holds is the decision:

    check       the request log is broken: whatever rests on it is worthless
    roll back   a challenger breaks a guardrail, or is worse
    retrain     requests have drifted, or answers are no longer good enough
    promote     a challenger is better, and keeps every guardrail
    check       subjects are not dealt as planned: nothing can be said of that experiment
    keep        otherwise
"""

from typing import Any, Literal

Decision = Literal["check", "roll back", "retrain", "promote", "keep"]
DECISIONS: tuple[Decision, ...] = ("keep", "promote", "retrain", "roll back", "check")
"""By how much they ask of a person."""
NEXT: dict[Decision, str] = {
    "check": "Mend the log or the assignment first; no figure that rests on it can be trusted.",
    "roll back": "Take the version back: `kedro rollback`, or end the experiment.",
    "retrain": "Train again, on messages of the new kind and on what users corrected.",
    "promote": "Put the challenger into production: `kedro promote`.",
    "keep": "Nothing needs to be done.",
}


def decide(drift: dict[str, Any], quality: dict[str, Any], experiments: list[dict[str, Any]]) -> dict[str, Any]:
    """Decide what is to be done, with the evidence in words.

    Args:
        drift: windows and alarm, from `nodes.measure_drift`.
        quality: from `nodes.measure_quality`.
        experiments: of each challenger, from `nodes.analyse_experiment`.

    Returns:
        `decision`, `why` (a list), `next`; of a decision about versions `experiment`, `version` and `variant`; `at` and
        `requests` say what it rests on.
    """
    why: dict[Decision, list[str]] = {name: [] for name in DECISIONS}
    subject: dict[Decision, dict[str, Any]] = {}
    broken = [f"{one['rows']} {one['check']}." for one in quality["checks"] if not one["passed"]]
    for found in experiments:
        outcome: Decision = {"blocked": "check", "roll back": "roll back", "promote": "promote"}.get(found["decision"], "keep")  # type: ignore[assignment]
        why[outcome].append(f"Experiment {found['experiment']}: {found['why']}")
        if outcome in ("roll back", "promote"):
            about = {"experiment": found["experiment"], "version": found["version"], "variant": found["challenger"]}
            subject.setdefault(outcome, about)
    if drift["alarm"]:
        why["retrain"].append(_drift_in_words(drift))
    why["retrain"] += quality["too_low"]
    why["check"] += broken
    why["keep"] = why["keep"] or ["Nothing that counts has changed."]
    order: tuple[Decision, ...] = ("roll back", "retrain", "promote", "check", "keep")
    decision = "check" if broken else next(one for one in order if why[one])
    return {
        "decision": decision,
        "why": why[decision],
        "next": NEXT[decision],
        **({"experiment": None, "version": None, "variant": None} | subject.get(decision, {})),
        "at": quality["until"],
        "requests": quality["requests"],
    }


def _drift_in_words(drift: dict[str, Any]) -> str:
    windows = [window for window in drift["windows"][-3:] if window["drifted"]]
    features = {change["feature"] for window in windows for change in window["changes"] if change["drifted"]}
    changed = sorted(feature.replace("_", " ") for feature in features)
    return f"Requests differ from the training messages in {len(windows)} of the last three windows ({', '.join(changed)})."
