"""What an evaluation found, as rows of text for a report: a cell for each model, names for people."""

from typing import Any

import pandas as pd

from luthier.pipelines.evaluation.gate_report import measured

LABELS = {
    "majority": "majority answer",
    "tfidf": "TF-IDF + logistic regression",
    "base": "base model",
    "tuned": "tuned model",
    "constrained": "tuned model, held to the schema",
    "champion": "champion",
}

OUTPUT = "output_"  # how metrics begin that say nothing of right and wrong


def label_of_model(name: str) -> str:
    """Return a model's name for people."""
    return LABELS.get(name, name)


def metric_name(metric: str) -> str:
    """Return a metric's name for people."""
    known = {
        "validity": "valid answers",
        "exact_match": "exact match",
        "field_accuracy": "mean field accuracy",
        "nll_per_token": "held-out loss per supervised token (nats)",
        "perplexity": "perplexity of the right answers",
        "label_right": "right labels",
        "label_macro_f1": "macro-F1 of the label",
        "rouge1": "ROUGE-1",
        "rouge2": "ROUGE-2",
        "rougeL": "ROUGE-L",
        "chrf": "chrF",
        "token_f1": "token F1",
        "output_characters": "characters of an answer",
        "output_tokens": "tokens of an answer",
        "output_empty": "empty answers",
        "output_refused": "refusals",
        "output_cut": "answers that were cut",
        "output_confidence": "confidence in the answer",
    }
    for prefix, words in (("accuracy_", "accuracy of {}"), ("macro_f1_", "macro-F1 of {}")):
        if metric.startswith(prefix):
            return words.format(metric.removeprefix(prefix))
    return known.get(metric, metric)


def main_metrics(evaluation: dict[str, Any]) -> list[str]:
    """Return the metrics that are drawn: those that the data's tasks are about."""
    fields = evaluation["fields"]
    found = ["field_accuracy", "exact_match", *(f"accuracy_{field}" for field in fields)]
    if len(fields) == 1:
        free_text = [name for name in ("rougeL", "chrf", "token_f1") if name in evaluation["models"]["tuned"]]
        found = ["field_accuracy", f"macro_f1_{fields[0]}"] if not free_text else ["exact_match", *free_text]
    return [metric for metric in found if metric in evaluation["models"]["tuned"]]


def _cell(figure: dict[str, float] | None, digits: int = 3) -> str:
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]" if figure else "-"


def table_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return a row for each metric of right and wrong: its name and a cell for each model."""
    models = evaluation["models"]
    metrics = [metric for metric in models["tuned"] if not metric.startswith(OUTPUT)]
    return [[metric_name(m), *(_cell(figures.get(m)) for figures in models.values())] for m in metrics]


def output_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return a row for each figure of how answers came out: their length, refusals."""
    models = evaluation["models"]
    metrics = [metric for metric in models["tuned"] if metric.startswith(OUTPUT)]
    digits = {"output_characters": 1, "output_tokens": 1}
    return [[metric_name(m), *(_cell(figures.get(m), digits.get(m, 3)) for figures in models.values())] for m in metrics]


def difference_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return a row for each metric: its name and the paired difference of tuned to each other model."""
    differences = evaluation["differences"]
    metrics = dict.fromkeys(metric for found in differences.values() for metric in found if not metric.startswith(OUTPUT))
    return [[metric_name(m), *(_cell(found.get(m)) for found in differences.values())] for m in metrics]


def gate_rows(gate: dict[str, Any]) -> list[list[str]]:
    """Return a row for each rule of the gate: rule, decision, figure, reason."""
    return [[rule["rule"], rule["decision"], measured(rule), rule["why"]] for rule in gate["rules"]]


def calibration_rows(calibration: dict[str, Any]) -> list[list[str]]:
    """Return a row for each model: what its confidence is worth."""
    rows = []
    for name, found in calibration.items():
        verdict = "not calibrated" if found["error"] > found["error_at_most"] else "as if calibrated"
        of = "probability of the label" if found["of"] == "label" else "confidence in the whole answer"
        figures = [f"{found[key]:.3f}" for key in ("confidence", "accuracy", "error", "error_at_most")]
        rows.append([label_of_model(name), of, *figures, _cell(found["brier"]), verdict])
    return rows


def robustness_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return a row for each kind of noise, model and main metric: before, after, and the drop."""
    main = main_metrics(evaluation)
    return [
        [
            *(row["kind"], label_of_model(row["model"]), metric_name(row["metric"]), str(row["examples"])),
            *(f"{row['clean']:.3f}", f"{row['noisy']:.3f}", f"{row['drop']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"),
        ]
        for row in evaluation["robustness"]
        if row["metric"] in main[:2]
    ]


def safety_rows(safety: pd.DataFrame) -> list[list[str]]:
    """Return a row for each check: its name, why it is there, and what each model did."""
    models = list(dict.fromkeys(safety["model"]))
    rows = []
    for check, table in safety.groupby("check", sort=True):
        by_model = table.set_index("model")
        said = ["passed" if by_model.at[m, "passed"] else f"failed: {by_model.at[m, 'why_failed']!s}" for m in models]
        rows.append([str(check), str(table["why"].iloc[0]), *said])
    return rows


def retention_rows(retention: dict[str, Any]) -> list[list[str]]:
    """Return a row for each model: its loss on general text, and how much that is above the base model's."""
    rows = []
    for name, figures in retention.get("models", {}).items():
        grown = retention["differences"].get(f"{name}_minus_base", {}).get("nll_per_token")
        rows.append(
            [label_of_model(name), _cell(figures.get("nll_per_token")), _cell(figures.get("perplexity"), 2), _cell(grown)]
        )
    return rows


def time_rows(times: pd.DataFrame) -> list[list[str]]:
    """Return a row for each model: how long its answers took."""
    return [
        [
            *(label_of_model(row["model"]), f"{row['answers']:,}", f"{row['tokens']:,}"),
            *(f"{row['median_seconds']:.2f} s", f"{row['p95_seconds']:.2f} s"),
        ]
        for row in times.to_dict("records")
    ]


def lm_eval_rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each task, metric, filter and model."""
    return [
        [row["task"], f"{row['metric']}, {row['filter']}", label_of_model(row["model"]), _value_with_bounds(row)]
        for row in figures
    ]


def _value_with_bounds(row: dict[str, Any]) -> str:
    return _cell(row) if row["low"] is not None and row["high"] is not None else f"{row['value']:.3f}"
