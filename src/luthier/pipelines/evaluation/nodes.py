"""The steps of evaluation."""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from luthier.answers import Answerer, AnswerStore
from luthier.candidates import Asking, Registered, base_answerer, fetch_version, readable_registry, tuned_answerer
from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.endpoint import Endpoint, EndpointAnswerer
from luthier.models import Base, ModelDirectory, load_tokenizer, resolve_base
from luthier.pipelines.evaluation import baselines, gate, lm_eval_tasks, plots, report, robustness, safety, score, tasks
from luthier.pipelines.evaluation.ask import COLUMNS, ask
from luthier.pipelines.evaluation.calibration import calibrate_answers
from luthier.pipelines.evaluation.gate_report import render_markdown
from luthier.pipelines.evaluation.parameters import EvaluationParameters
from luthier.pipelines.evaluation.questions import asked_as_trained, asked_of, last_answers, make_questions, spell_calls
from luthier.pipelines.evaluation.rehearsal import check_rules, rehearse
from luthier.pipelines.evaluation.slices import figures_by_slice, slice_columns
from luthier.records import held_out, learnt, lowest, rows_of, user_text
from luthier.shards import Shards
from luthier.text.prepare import PromptSettings

logger = logging.getLogger(__name__)


def prepare_questions(
    records: Shards,
    examples: Shards,
    prompt_settings: dict[str, Any],
    answer_schema: dict[str, Any],
    data: DataParameters,
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fix what every model is asked and how answers are judged; every file that evaluation needs is read here, before training.

    Returns:
        the questions, and the plan: `tasks`, `labels` (those of training, if the probability of each is to be measured),
        `checks` (of safety), `system` (the data's system prompt), `schema` (that the model `constrained` is held to).
    """
    settings = PromptSettings.model_validate(prompt_settings)
    checks = []
    if data.safety_checks and settings.user is not None:  # as the answer schema, they belong to rows that the templates read
        checks = safety.load_checks(Path(folders.locate(data.safety_checks)), answer_schema)
    passages = None
    if parameters.retention.path:
        passages = tasks.read_passages(Path(folders.locate(parameters.retention.path)))
    if parameters.lm_eval.tasks:
        lm_eval_tasks.task_manager(parameters.lm_eval, Path(folders.locate(parameters.lm_eval.folder)))
    if parameters.constrain:
        from luthier.constrained import check_schema

        check_schema(answer_schema, "evaluation.constrain", "data.answer_schema")
    rows = learnt(records, examples, "train", "validation", "test")
    tokenizer = _tokenizer(resolve_base(model, folders))
    answers, splits = last_answers(records, rows, tokenizer), records.take(rows, ["split"]).to_pandas()["split"]
    chosen = tasks.choose_tasks(answers, answer_schema, parameters.tasks)
    trained = answers[splits == "train"].unique()
    plan = {
        "tasks": list(chosen),
        "labels": tasks.labels_of(trained, parameters.tasks) if "classification" in chosen else [],
        "checks": [check.model_dump() for check in checks],
        "system": settings.system,
        "schema": answer_schema if parameters.constrain else None,
    }
    test = held_out(records, examples, parameters.max_examples)
    test["messages"] = spell_calls(test["messages"], tokenizer)
    key = os.environ.get("LUTHIER_PII_KEY", "")
    questions = make_questions(test, checks, passages, settings, parameters.robustness, seed, key)
    asked = asked_of(questions[questions["set"] != "general"])
    # what only the room's last steps would find wrong is told now
    in_slices = slice_columns(test, parameters.slices)
    if parameters.champion not in (None, "champion"):
        fetch_version(parameters.champion, folders, "evaluation.champion")
    for candidate in parameters.candidates:
        if candidate.endpoint is not None:
            AnswerStore.of(folders).check(_at_endpoint(candidate.name, candidate.endpoint, parameters), asked)
        elif candidate.version is not None:
            fetch_version(candidate.version, folders, f"evaluation.candidates.{candidate.name}.version")
    models = {"majority", "tfidf", "base", "tuned", "champion", *(candidate.name for candidate in parameters.candidates)}
    models |= {"constrained"} if parameters.constrain else set()
    endpoints = {candidate.name for candidate in parameters.candidates if candidate.endpoint is not None}
    rules = parameters.gate.rules_of(chosen)
    rehearsed = rehearse(questions, in_slices, checks, answer_schema, chosen, parameters.tasks, models, endpoints)
    check_rules(rules, rehearsed)
    logger.info("The model goes out if %s.", "; ".join(rule.words() for rule in rules))
    return questions, plan


def _tokenizer(base: Base) -> Callable[[], Any]:
    """Return what loads the base's tokenizer when it is first asked for, and only then."""
    return cache(lambda: load_tokenizer(base))


def answer_with_baselines(
    records: Shards, examples: Shards, questions: pd.DataFrame, model: ModelParameters, folders: FolderParameters
) -> pd.DataFrame:
    """Let the majority answer and TF-IDF with logistic regression answer the same messages.

    They learn what the model learns; of more than `baselines.MOST_ROWS` training records a sample.
    """
    trained = learnt(records, examples, "train")
    rows = lowest(records, trained, baselines.MOST_ROWS)
    if rows.sum() < trained.sum():
        logger.info("The baselines learn from a sample of %s of %s training records.", f"{rows.sum():,}", f"{trained.sum():,}")
    texts = records.take(rows, ["messages"]).to_pandas()["messages"].map(user_text).tolist()
    answers = last_answers(records, rows, _tokenizer(resolve_base(model, folders))).tolist()
    asked = questions[questions["set"].isin(["test", "noise"])].drop(columns="messages")
    majority = asked.assign(model="majority", answer=baselines.majority_answer(answers))
    tfidf = asked.assign(model="tfidf", answer=baselines.tfidf_answers(texts, answers, asked["prompt"].tolist()))
    return pd.concat([majority, tfidf], ignore_index=True)


def answer_with_base(
    questions: pd.DataFrame,
    plan: dict[str, Any],
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    """Let the base model answer, and read; the noisy messages are for models that go out, or could."""
    clean = questions[questions["set"] != "noise"].reset_index(drop=True)
    return _ask(base_answerer(model, folders, _asking(parameters)), clean, plan, parameters, folders)


def answer_with_tuned(
    tuned: ModelDirectory,
    questions: pd.DataFrame,
    plan: dict[str, Any],
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    """Let the tuned model do the same; on demand once more, held to the answer schema."""
    free = _ask(tuned_answerer(tuned, model, folders, _asking(parameters)), questions, plan, parameters, folders)
    if plan["schema"] is None:
        return free
    held = tuned_answerer(tuned, model, folders, replace(_asking(parameters), schema=plan["schema"]), "constrained")
    asked = questions[questions["set"] != "general"].reset_index(drop=True)
    return pd.concat([free, _ask(held, asked, plan, parameters, folders)], ignore_index=True)


def answer_with_champion(
    questions: pd.DataFrame,
    plan: dict[str, Any],
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    """Let the model that is in production do the same, if there is one."""
    registry = readable_registry(folders)
    if registry is None or parameters.champion is None:
        return pd.DataFrame()
    if parameters.champion == "champion" and registry.log.last() is None:
        logger.info("No model is in production yet: there is no champion to compare with.")
        return pd.DataFrame()
    champion = fetch_version(parameters.champion, folders, "evaluation.champion")
    return _ask_version("champion", champion, questions, plan, model, parameters, folders)


def answer_with_candidates(
    questions: pd.DataFrame,
    plan: dict[str, Any],
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    """Let the further candidates do the same: versions of the registry, endpoints."""
    found = []
    for candidate in parameters.candidates:
        if candidate.endpoint is not None:
            endpoint = _at_endpoint(candidate.name, candidate.endpoint, parameters)
            found.append(_ask(endpoint, questions, plan, parameters, folders))
        elif candidate.version is not None:
            version = fetch_version(candidate.version, folders, f"evaluation.candidates.{candidate.name}.version")
            found.append(_ask_version(candidate.name, version, questions, plan, model, parameters, folders))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _asking(parameters: EvaluationParameters) -> Asking:
    return Asking(parameters.max_new_tokens, parameters.batch_tokens, parameters.precision)


def _at_endpoint(name: str, endpoint: Endpoint, parameters: EvaluationParameters) -> EndpointAnswerer:
    return EndpointAnswerer(name, endpoint, parameters.max_new_tokens, f"evaluation.candidates.{name}.endpoint")


def _ask_version(
    name: str,
    version: Registered,
    questions: pd.DataFrame,
    plan: dict[str, Any],
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    logger.info("%s is %s.", name, version.name)
    own = asked_as_trained(questions, plan["system"], version.settings.system)
    return _ask(version.answerer(model, folders, _asking(parameters), name), own, plan, parameters, folders)


def _ask(
    answerer: Answerer,
    questions: pd.DataFrame,
    plan: dict[str, Any],
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    labels = plan["labels"] if answerer.name in parameters.calibration.labels_of else ()
    return ask(answerer, questions, AnswerStore.of(folders), labels, parameters.tasks.label)


def join_answers(*answers: pd.DataFrame) -> pd.DataFrame:
    """Put the answers of all models into one table; what was not measured is missing."""
    return pd.concat([table for table in answers if len(table)], ignore_index=True).reindex(columns=COLUMNS)


def run_benchmarks(
    tuned: ModelDirectory, model: ModelParameters, parameters: EvaluationParameters, folders: FolderParameters, seed: int
) -> pd.DataFrame:
    """Let the base model and the tuned one do tasks of lm-eval, if any are named."""
    if not parameters.lm_eval.tasks:
        return pd.DataFrame(columns=lm_eval_tasks.FIGURES)
    folder = Path(folders.locate(parameters.lm_eval.folder))
    asking = _asking(parameters)
    found = []
    for answerer in (base_answerer(model, folders, asking), tuned_answerer(tuned, model, folders, asking)):
        logger.info("%s: %s of lm-eval.", answerer.name, ", ".join(parameters.lm_eval.tasks))
        found.append(lm_eval_tasks.run_lm_eval(answerer.name, *answerer.model(), parameters.lm_eval, folder, seed))
    return pd.concat(found, ignore_index=True)


def score_answers(
    answers: pd.DataFrame,
    plan: dict[str, Any],
    answer_schema: dict[str, Any],
    records: Shards,
    parameters: EvaluationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge every answer of every model, and say which slices each message is in.

    Returns:
        the scores of the held-out messages, and of the same with noise (`kind` says which).
    """
    judged = tasks.score_by_tasks(
        answers[answers["set"].isin(["test", "noise"])].reset_index(drop=True),
        answer_schema,
        plan["tasks"],
        parameters.tasks,
        parameters.max_new_tokens,
    )
    scores, noisy = (judged[judged["set"] == name].drop(columns="set") for name in ("test", "noise"))
    asked = rows_of(records, ["test"], pa.array(scores["id"].unique(), pa.string()))
    in_slices = slice_columns(records.take(asked, ["id", "messages", "label", "source", "meta"]).to_pandas(), parameters.slices)
    return scores.drop(columns="kind").merge(in_slices, on="id", validate="many_to_one"), noisy.reset_index(drop=True)


def judge_safety(answers: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """Judge the answers to the must and must-not checks."""
    checks = [safety.Check.model_validate(check) for check in plan["checks"]]
    return safety.judge(checks, answers[answers["set"] == "safety"])


def compare_models(
    scores: pd.DataFrame,
    noisy: pd.DataFrame,
    answers: pd.DataFrame,
    safety_verdicts: pd.DataFrame,
    benchmarks: pd.DataFrame,
    parameters: EvaluationParameters,
    seed: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Put figures with intervals on the models, on their differences, and on what else was measured.

    Returns:
        the evaluation, and its figures by slice.
    """
    evaluation = score.compare(scores, seed)
    evaluation["calibration"] = {name: found.as_dict() for name, found in calibrate_answers(scores, seed).items()}
    by_kind = {str(kind): table for kind, table in noisy.groupby("kind")}
    evaluation["robustness"] = robustness.drops(scores, by_kind, seed).to_dict("records")
    evaluation["safety"] = safety.summary(safety_verdicts)
    general = answers[answers["set"] == "general"]
    evaluation["retention"] = tasks.compare_retention(general, seed) if len(general) else {}
    evaluation["lm_eval"] = json.loads(benchmarks.to_json(orient="records"))
    return evaluation, figures_by_slice(scores, parameters.slices.smallest, seed)


def time_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """Say how long answers took; of stored ones, when they were generated."""
    return tasks.times_of(answers[answers["set"] == "test"])


def decide_gate(
    scores: pd.DataFrame,
    answers: pd.DataFrame,
    safety_verdicts: pd.DataFrame,
    plan: dict[str, Any],
    parameters: EvaluationParameters,
) -> dict[str, Any]:
    """Decide whether the tuned model may go out."""
    general = answers[answers["set"] == "general"].rename(columns={"kind": "slice_kind"})
    decision = gate.decide(
        scores,
        parameters.gate.rules_of(plan["tasks"]),
        retention=general if len(general) else None,
        safety=safety_verdicts if len(safety_verdicts) else None,
        alpha=parameters.gate.alpha,
    )
    logger.info("The gate says: %s.", decision["decision"])
    return decision


def find_worst_errors(scores: pd.DataFrame) -> pd.DataFrame:
    """Pick the tuned model's worst answers."""
    return score.worst_errors(scores)


def write_report(
    evaluation: dict[str, Any],
    scores: pd.DataFrame,
    slices: pd.DataFrame,
    errors: pd.DataFrame,
    safety_verdicts: pd.DataFrame,
    times: pd.DataFrame,
    gate_decision: dict[str, Any],
    data_report: dict[str, Any],
    history: pd.DataFrame,
) -> tuple[str, str]:
    """Write the HTML page and the Markdown."""
    shown = report.Shown(evaluation, scores, slices, errors, safety_verdicts, times, gate_decision, data_report, history)
    return report.as_html(shown), report.as_markdown(shown)


def plot_comparison(evaluation: dict[str, Any]) -> Any:
    """Draw the models side by side."""
    return plots.plot_comparison(evaluation)


def log_evaluation(evaluation: dict[str, Any], gate_decision: dict[str, Any]) -> None:
    """Log every figure to the MLflow run that is active, if one is."""
    import mlflow

    if mlflow.active_run():
        figures = {
            # MLflow takes no other characters, and a field of an answer may be called anything
            re.sub(r"[^\w/ .:-]", "_", f"evaluation/{name}/{metric}"): figure["value"]
            for name, metrics in evaluation["models"].items()
            for metric, figure in metrics.items()
        }
        mlflow.log_metrics(figures)
        mlflow.log_text(json.dumps(evaluation, indent=2), "evaluation.json")
        mlflow.log_text(render_markdown(gate_decision), "gate.md")
        mlflow.set_tag("luthier.gate", gate_decision["decision"])
