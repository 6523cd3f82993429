"""The steps of evaluation."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import track

from luthier.configuration import FolderParameters, ModelParameters
from luthier.models import ModelDirectory, load_model, load_tokenizer, load_tuned, resolve_base
from luthier.pipelines.evaluation import baselines, gate, report, score
from luthier.pipelines.evaluation.parameters import EvaluationParameters
from luthier.pipelines.evaluation.slices import slice_columns
from luthier.pipelines.evaluation.tasks import compare_retention
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
    folders: FolderParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Let one model answer the test messages, and measure the loss of the right answers and of general texts."""
    import torch

    from luthier.likelihood import make_examples
    from luthier.pipelines.evaluation.answer import encode_prompts, generate, negative_log_likelihoods
    from luthier.pipelines.evaluation.tasks import read_passages, retention_examples, retention_table

    passages = None
    if parameters.retention.path:  # read first: a mistake in the file is told before the work begins
        passages = read_passages(Path(folders.locate(parameters.retention.path)))

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
    told = test[["id", "prompt", "expected", "supervised_tokens"]].assign(model=name, answer=answers, nll=losses)
    if passages is None:
        return told, pd.DataFrame(columns=["model", "id", "slice_kind", "nll", "supervised_tokens"])
    general = retention_examples(tokenizer, passages)
    losses = negative_log_likelihoods(model, general, parameters.batch_tokens)
    return told, retention_table(passages, general, {name: losses})


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
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Let the base model answer the held-out messages, and read general texts."""
    base = resolve_base(model, folders)
    return _answer(
        "base",
        load_model(base, _dtype(parameters.precision)),
        load_tokenizer(base),
        records,
        examples,
        parameters,
        folders,
    )


def answer_with_tuned(
    tuned: ModelDirectory,
    records: Shards,
    examples: Shards,
    model: ModelParameters,
    parameters: EvaluationParameters,
    folders: FolderParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Let the tuned model do the same."""
    base = resolve_base(model, folders)
    loaded = load_tuned(base, tuned, _dtype(parameters.precision))
    return _answer("tuned", loaded, load_tokenizer(base), records, examples, parameters, folders)


def answer_with_champion(
    records: Shards, examples: Shards, model: ModelParameters, parameters: EvaluationParameters, folders: FolderParameters
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Let the model that is in production do the same, if there is one; its losses count if it reads the same tokens."""
    from luthier.packages import load_package
    from luthier.registry import of_active_run

    registry = of_active_run(Path(folders.work).parent / "registry")
    line = registry.log.last() if registry else None
    if registry is None or line is None:
        logger.info("No model is in production yet: there is no champion to compare with.")
        return pd.DataFrame(), pd.DataFrame()
    package = registry.fetch(registry.resolve(line.version), Path(folders.work).parent / "registry")
    champion, tokenizer, _ = load_package(package, _dtype(parameters.precision))
    answers, retention = _answer("champion", champion, tokenizer, records, examples, parameters, folders)
    own = load_tokenizer(resolve_base(model, folders))
    if tokenizer.get_vocab() != own.get_vocab() or tokenizer.chat_template != own.chat_template:
        logger.info("The champion reads other tokens: its losses cannot be compared.")
        return answers.assign(nll=float("nan")), pd.DataFrame()
    return answers, retention


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


def score_answers(
    base: pd.DataFrame,
    tuned: pd.DataFrame,
    champion: pd.DataFrame,
    simple: pd.DataFrame,
    answer_schema: dict[str, Any],
    records: Shards,
    parameters: EvaluationParameters,
) -> pd.DataFrame:
    """Judge every answer of every model, and say which slices each message is in."""
    scores = score.score_answers(_joined(simple, base, tuned, champion), answer_schema)
    table = records.to_pandas(["id", "messages", "label", "source", "meta", "split"])
    return scores.merge(slice_columns(table[table["split"] == "test"], parameters.slices), on="id", validate="many_to_one")


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    """Join tables; what was not measured has no rows and no columns."""
    return pd.concat([table for table in tables if len(table)] or [pd.DataFrame()], ignore_index=True)


def compare_models(
    scores: pd.DataFrame, base: pd.DataFrame, tuned: pd.DataFrame, champion: pd.DataFrame, seed: int
) -> dict[str, Any]:
    """Put figures with intervals on the models and on their differences; say how much general text was forgotten."""
    compared = score.compare(scores, seed)
    return compared | ({"retention": compare_retention(_joined(base, tuned, champion), seed)} if len(base) else {})


def decide_gate(
    scores: pd.DataFrame,
    base: pd.DataFrame,
    tuned: pd.DataFrame,
    champion: pd.DataFrame,
    parameters: EvaluationParameters,
) -> dict[str, Any]:
    """Decide whether the tuned model may go out."""
    retention = _joined(base, tuned, champion) if len(base) else None
    decision = gate.decide(scores, parameters.gate.rules, retention=retention, alpha=parameters.gate.alpha)
    logger.info("The gate says: %s.", decision["decision"])
    return decision


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
