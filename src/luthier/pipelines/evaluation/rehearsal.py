"""The tables that the gate will see, were every answer right: what is wrong with its rules is told before a model is trained."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from luthier.errors import UserError
from luthier.pipelines.evaluation import safety, tasks
from luthier.pipelines.evaluation.baselines import as_fields
from luthier.pipelines.evaluation.rule_checks import TOKENS, Tables, problems_of
from luthier.pipelines.evaluation.rules import LOSS, Rule

CANDIDATE = "tuned"
NEVER_READ = {"majority", "tfidf"}  # what has no likelihoods
TOKENS_EACH = 2  # of a rehearsed answer: with 1, a number of tokens would look like a share


def check_rules(rules: Sequence[Rule], tables: Tables) -> None:
    """Check rules before anything is answered.

    Args:
        rules: `GateParameters.rules_of` the tasks.
        tables: from `rehearse`.

    Raises:
        UserError: naming everything in the rules that does not fit.
    """
    problems = list(dict.fromkeys(problems_of(tables, rules)))
    if problems:
        raise UserError("evaluation.gate.rules: the gate could not decide; nothing was answered.\n  " + "\n  ".join(problems))


def rehearse(
    questions: pd.DataFrame,
    slices: pd.DataFrame,
    checks: Sequence[safety.Check],
    schema: dict[str, Any],
    chosen: Sequence[tasks.Task],
    parameters: tasks.Tasks,
    models: Collection[str],
    endpoints: Collection[str],
) -> Tables:
    """Return the tables of scores, retention and safety as they would be, had every model given the right answers.

    Args:
        questions: from `make_questions`.
        slices: of the held-out messages, from `slice_columns`.
        checks: of safety.
        schema: of a valid answer.
        chosen: from `choose_tasks`.
        parameters: of the tasks.
        models: all that answer; `tuned` is to be decided on.
        endpoints: those of them whose likelihoods cannot be had.
    """
    silent = NEVER_READ | set(endpoints)
    test = questions[questions["set"] == "test"]
    # answers with the same fields give the same columns
    kinds = [frozenset(as_fields(answer)) for answer in test["expected"].astype(str)]
    few = test[~pd.Series(kinds, index=test.index).duplicated()]
    read = {LOSS: 1.0, TOKENS: TOKENS_EACH}
    right = few.assign(answer=few["expected"], answer_tokens=TOKENS_EACH, mean_log_probability=-0.1, **read)
    scores = tasks.score_by_tasks(right.assign(model=CANDIDATE), schema, chosen, parameters).drop(columns=["set", "kind"])
    scores = scores.merge(slices, on="id", validate="many_to_one")
    general = questions[questions["set"] == "general"].assign(**read)
    given = {
        "scores": pd.concat([_of(model, scores, model in silent) for model in sorted(models)], ignore_index=True),
        "retention": pd.concat([_of(model, general, False) for model in sorted(set(models) - silent)], ignore_index=True),
        "safety": pd.DataFrame(
            {"model": CANDIDATE, "id": [c.name for c in checks], "check": [c.name for c in checks], "passed": True}
        ),
    }
    return Tables(CANDIDATE, {name: table for name, table in given.items() if len(table)})


def _of(model: str, table: pd.DataFrame, silent: bool) -> pd.DataFrame:
    return table.assign(model=model, **({LOSS: float("nan")} if silent else {}))
