"""Show a comparison: a self-contained HTML page, the same as Markdown, and plots."""

import io
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

LABELS = {
    "majority": "majority answer",
    "tfidf": "TF-IDF + logistic regression",
    "base": "base model",
    "tuned": "tuned model",
}
COLOURS = {"majority": "#c9c3b8", "tfidf": "#9aa88f", "base": "#8fa3b8", "tuned": "#b5541c"}


def metric_name(metric: str) -> str:
    """Return a metric's name for people."""
    known = {
        "validity": "valid answers",
        "exact_match": "exact match",
        "field_accuracy": "mean field accuracy",
        "nll_per_token": "held-out loss per supervised token (nats)",
    }
    for prefix, words in (("accuracy_", "accuracy of {}"), ("macro_f1_", "macro-F1 of {}")):
        if metric.startswith(prefix):
            return words.format(metric.removeprefix(prefix))
    return known.get(metric, metric)


def _literal(text: str) -> str:
    r"""Return a label in which matplotlib sees no formula: two dollar signs would make one.

    >>> _literal("$5 to $9")
    '\\$5 to \\$9'
    """
    return text.replace("$", r"\$")


def plot_comparison(evaluation: dict[str, Any]) -> Figure:
    """Draw the accuracies of all models side by side, with their intervals."""
    metrics = ["field_accuracy", "exact_match", *(f"accuracy_{field}" for field in evaluation["fields"])]
    if len(evaluation["fields"]) == 1:
        metrics = ["field_accuracy", f"macro_f1_{evaluation['fields'][0]}"]
    figure = Figure(figsize=(9, 0.8 + 0.62 * len(metrics)), layout="constrained")
    axes = figure.subplots()
    height = 0.2
    for place, (name, label) in enumerate(LABELS.items()):
        figures = [evaluation["models"][name][metric] for metric in metrics]
        values = np.array([f["value"] for f in figures])
        errors = np.abs(np.array([[f["low"] for f in figures], [f["high"] for f in figures]]) - values)
        at = np.arange(len(metrics)) + (place - 1.5) * height
        axes.barh(at, values, height, xerr=errors, color=COLOURS[name], label=label, error_kw={"elinewidth": 0.8})
    axes.set_yticks(np.arange(len(metrics)), [_literal(metric_name(metric)) for metric in metrics])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share right on held-out messages, with 95 % bootstrap interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.16))
    return figure


def plot_confusion(scores: pd.DataFrame, field: str, most: int = 25) -> Figure:
    """Draw what the tuned model said (columns) for what was right (rows)."""
    tuned = scores[scores["model"] == "tuned"]
    classes = [str(name) for name in tuned[f"is_{field}"].value_counts().index[:most]]
    said = tuned[f"said_{field}"].where(tuned[f"said_{field}"].isin(classes), "other")
    counts = pd.crosstab(tuned[f"is_{field}"], said).reindex(index=classes, columns=[*classes, "other"], fill_value=0)
    size = max(4.0, 0.34 * len(classes) + 2)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts.to_numpy(), cmap="Oranges")
    for row, column in zip(*counts.to_numpy().nonzero(), strict=True):
        value = counts.iat[row, column]
        axes.text(
            column,
            row,
            str(value),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > counts.to_numpy().max() / 2 else "black",
        )
    names = [_literal(name.strip('"')) for name in counts.columns]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), [_literal(name.strip('"')) for name in classes], fontsize=8)
    axes.set_xlabel(f"{_literal(field)}: the tuned model's answer")
    axes.set_ylabel(f"{_literal(field)}: right")
    return figure


def plot_history(history: pd.DataFrame) -> Figure:
    """Draw the losses of the training that made the tuned model."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = history[history["loss"].notna()]
    axes.plot(steps["step"], steps["loss"].rolling(15, min_periods=1, center=True).mean(), color="#8fa3b8", label="training")
    if "validation_loss" in history:
        held_out = history[history["validation_loss"].notna()]
        axes.plot(held_out["step"], held_out["validation_loss"], "o-", color="#b5541c", markersize=3, label="held-out")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per supervised token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG for inlining; equal figures give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "luthier", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _cell(figure: dict[str, float] | None) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" if figure else "-"


def table_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return a row for each metric: its name and a cell for each model."""
    metrics = list(evaluation["models"]["tuned"])
    return [[metric_name(m), *(_cell(evaluation["models"][name].get(m)) for name in LABELS)] for m in metrics]


def difference_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return a row for each metric: its name and the paired difference of tuned to each other model."""
    metrics = list(evaluation["differences"]["tuned_minus_base"])
    others = [name for name in LABELS if name != "tuned"]
    return [[metric_name(m), *(_cell(evaluation["differences"][f"tuned_minus_{n}"].get(m)) for n in others)] for m in metrics]


def as_markdown(evaluation: dict[str, Any], errors: pd.DataFrame) -> str:
    """Write the comparison as Markdown."""

    def table(header: list[str], rows: list[list[str]]) -> str:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, ["---"] * len(header), *rows]]
        return "\n".join("| " + " | ".join(row) + " |" for row in cells)

    def code(text: str) -> str:
        return "`" + text.replace("`", "'").replace("\n", " ") + "`"

    told = [
        [code(row["id"]), code(row["prompt"][:160]), code(row["expected"]), code(row["answer"][:160])]
        for row in errors.to_dict("records")
    ]
    others = [label for name, label in LABELS.items() if name != "tuned"]
    return "\n\n".join(
        [
            "# Evaluation",
            f"{evaluation['examples']} held-out messages; value and 95 % bootstrap interval.",
            table(["metric", *LABELS.values()], table_rows(evaluation)),
            "## Tuned model minus the others, paired",
            table(["metric", *others], difference_rows(evaluation)),
            "## The tuned model's worst errors",
            table(["id", "message", "right", "answered"], told),
            "",
        ]
    )


def as_html(
    evaluation: dict[str, Any], scores: pd.DataFrame, errors: pd.DataFrame, data_report: dict[str, Any], history: Figure
) -> str:
    """Write the comparison as one HTML page without any outside resource."""
    template = files("luthier.pipelines.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    field = evaluation["fields"][0]
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(template)
        .render(
            evaluation=evaluation,
            labels=LABELS,
            rows=table_rows(evaluation),
            differences=difference_rows(evaluation),
            errors=errors.to_dict("records"),
            data=data_report,
            comparison=as_svg(plot_comparison(evaluation)),
            confusion=as_svg(plot_confusion(scores, field)),
            history=as_svg(history),
            field=field,
        )
    )
