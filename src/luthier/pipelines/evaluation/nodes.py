"""The steps of evaluation."""

import json
import logging
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import track

from luthier.configuration import FolderParameters, ModelParameters
from luthier.models import ModelDirectory, load_model, load_tokenizer, load_tuned, resolve_base
from luthier.pipelines.evaluation import baselines, report, score
from luthier.pipelines.evaluation.parameters import EvaluationParameters
from luthier.records import user_text
from luthier.shards import Shards

logger = logging.getLogger(__name__)


def _test_records(records: Shards, examples: Shards, limit: int | None) -> pd.DataFrame:
    """Return the test records that became examples, sorted by id, with the message and the right answer."""
    lengths = examples.to_pandas(["id", "supervised"]).assign(supervised_tokens=lambda t: t["supervised"].map(sum))
    table = records.to_pandas()
    table = table[table["split"] == "test"].merge(lengths[["id", "supervised_tokens"]], on="id").sort_values("id")
    table["expected"] = table["messages"].map(lambda messages: messages[-1]["content"])
    table["prompt"] = table["messages"].map(user_text)
    return table.head(limit).reset_index(drop=True) if limit else table.reset_index(drop=True)


def _answer(
    name: str,
    model: Any,
    tokenizer: Any,
    records: Shards,
    examples: Shards,
    parameters: EvaluationParameters,
) -> pd.DataFrame:
    """Let one model answer the test messages and measure the loss of the right answers."""
    import torch

    from luthier.likelihood import make_examples
    from luthier.pipelines.evaluation.answer import encode_prompts, generate, negative_log_likelihoods

    test = _test_records(records, examples, parameters.max_examples)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    encoded = {example.id: example for example in make_examples(examples, "test")}
    prompts = encode_prompts(tokenizer, test["messages"].tolist())
    console = Console(stderr=True)
    steps = track(range(len(prompts)), f"{name} answers", console=console, disable=not console.is_terminal)
    ticks = iter(steps)

    def progress(done: int) -> None:
        for _ in range(done):
            next(ticks, None)

    logger.info("The %s model answers %d held-out messages.", name, len(test))
    answers = generate(model, tokenizer, prompts, parameters.max_new_tokens, parameters.batch_tokens, progress)
    next(ticks, None)
    losses = negative_log_likelihoods(model, [encoded[key] for key in test["id"]], parameters.batch_tokens)
    return test[["id", "prompt", "expected", "supervised_tokens"]].assign(model=name, answer=answers, nll=losses)


def _dtype(precision: str) -> Any:
    import torch

    from luthier.machine import resolve_precision

    return torch.bfloat16 if resolve_precision(precision) == "bf16" else torch.float32


def answer_with_base(
    records: Shards,
    examples: Shards,
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    """Let the base model answer the held-out messages."""
    base = resolve_base(model, folders)
    return _answer(
        "base",
        load_model(base, _dtype(parameters.precision)),
        load_tokenizer(base),
        records,
        examples,
        parameters,
    )


def answer_with_tuned(
    tuned: ModelDirectory,
    records: Shards,
    examples: Shards,
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> pd.DataFrame:
    """Let the tuned model answer the same messages."""
    base = resolve_base(model, folders)
    loaded = load_tuned(base, tuned, _dtype(parameters.precision))
    return _answer("tuned", loaded, load_tokenizer(base), records, examples, parameters)


def answer_with_baselines(records: Shards, examples: Shards, parameters: EvaluationParameters) -> pd.DataFrame:
    """Let the majority answer and TF-IDF with logistic regression answer the same messages."""
    test = _test_records(records, examples, parameters.max_examples)
    table = records.to_pandas()
    train = table[table["split"] == "train"]
    texts, answers = (
        train["messages"].map(user_text).tolist(),
        train["messages"].map(lambda messages: messages[-1]["content"]).tolist(),
    )
    columns = test[["id", "prompt", "expected", "supervised_tokens"]]
    majority = columns.assign(model="majority", answer=baselines.majority_answer(answers))
    tfidf = columns.assign(model="tfidf", answer=baselines.tfidf_answers(texts, answers, test["prompt"].tolist()))
    return pd.concat([majority, tfidf], ignore_index=True).assign(nll=float("nan"))


def score_answers(base: pd.DataFrame, tuned: pd.DataFrame, simple: pd.DataFrame, answer_schema: dict[str, Any]) -> pd.DataFrame:
    """Judge every answer of every model."""
    return score.score_answers(pd.concat([simple, base, tuned], ignore_index=True), answer_schema)


def compare_models(scores: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Put figures with intervals on the models and on their differences."""
    return score.compare(scores, seed)


def find_worst_errors(scores: pd.DataFrame) -> pd.DataFrame:
    """Pick the tuned model's worst answers."""
    return score.worst_errors(scores)


def write_report(
    evaluation: dict[str, Any],
    scores: pd.DataFrame,
    errors: pd.DataFrame,
    data_report: dict[str, Any],
    history: pd.DataFrame,
) -> tuple[str, str]:
    """Write the HTML page and the Markdown."""
    return report.as_html(evaluation, scores, errors, data_report, report.plot_history(history)), report.as_markdown(
        evaluation, errors
    )


def plot_comparison(evaluation: dict[str, Any]) -> Any:
    """Draw the models side by side."""
    return report.plot_comparison(evaluation)


def log_evaluation(evaluation: dict[str, Any]) -> None:
    """Log every figure to the MLflow run that is active, if one is."""
    import mlflow

    if mlflow.active_run():
        figures = {
            f"evaluation/{name}/{m}": f["value"] for name, metrics in evaluation["models"].items() for m, f in metrics.items()
        }
        mlflow.log_metrics(figures)
        mlflow.log_text(json.dumps(evaluation, indent=2), "evaluation.json")
