"""Draw what an evaluation found."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from luthier.pipelines.evaluation.tables import label_of_model, main_metrics, metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "majority": "#c9c3b8",
    "tfidf": "#9aa88f",
    "base": "#8fa3b8",
    "tuned": "#b5541c",
    "constrained": "#d99a6c",
    "champion": "#5b7a4d",
}
FURTHER = ("#7a6a9b", "#3f8a8c", "#a98a2e", "#8c5063")
MOST_PARTS = 30  # of a slice, that are drawn


def _colours(models: Iterable[str]) -> dict[str, str]:
    further = itertools.cycle(FURTHER)
    return {name: COLOURS.get(name) or next(further) for name in models}


def _figure(**options: Any) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(**options)


def _literal(text: str) -> str:
    r"""Return a label in which matplotlib sees no formula: two dollar signs would make one.

    >>> _literal("$5 to $9")
    '\\$5 to \\$9'
    """
    return text.replace("$", r"\$")


def plot_comparison(evaluation: dict[str, Any]) -> "Figure":
    """Draw the main figures of all models side by side, with their intervals."""
    metrics, models = main_metrics(evaluation), evaluation["models"]
    height = 0.8 / len(models)
    figure = _figure(figsize=(9, 0.8 + (0.16 * len(models)) * len(metrics)), layout="constrained")
    axes = figure.subplots()
    for place, (name, colour) in enumerate(_colours(models).items()):
        at = [number for number, metric in enumerate(metrics) if metric in models[name]]
        figures = [models[name][metrics[number]] for number in at]
        values = np.array([f["value"] for f in figures])
        errors = np.abs(np.array([[f["low"] for f in figures], [f["high"] for f in figures]]) - values)
        where = np.array(at) + (place - (len(models) - 1) / 2) * height
        label = _literal(label_of_model(name))
        axes.barh(where, values, height, xerr=errors, color=colour, label=label, error_kw={"elinewidth": 0.8})
    axes.set_yticks(np.arange(len(metrics)), [_literal(metric_name(metric)) for metric in metrics])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("on held-out messages, with 95 % bootstrap interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.16))
    return figure


def plot_slices(slices: pd.DataFrame, name: str, metric: str) -> "Figure":
    """Draw a metric of the tuned model in each part of a slice, beside the base model and the champion."""
    table = slices[(slices["slice"] == name) & (slices["metric"] == metric)]
    tuned = table[table["model"] == "tuned"].sort_values("value").tail(MOST_PARTS)
    places = {part: place for place, part in enumerate(tuned["part"])}
    figure = _figure(figsize=(9, 1.2 + 0.27 * len(places)), layout="constrained")
    axes = figure.subplots()
    for model in ("base", "champion", "tuned"):
        rows = table[(table["model"] == model) & table["part"].isin(places)]
        if rows.empty:
            continue
        at = [places[part] for part in rows["part"]]
        bounds = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        axes.errorbar(
            rows["value"], at, xerr=bounds, fmt="o", markersize=5, elinewidth=1, color=COLOURS[model], label=label_of_model(model)
        )
    told = [f"{part}  ({count}{', few' if few else ''})" for part, count, few in tuned[["part", "examples", "small"]].to_numpy()]
    axes.set_yticks(range(len(told)), [_literal(str(text).strip('"')) for text in told])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"{_literal(metric_name(metric))} by {_literal(name)}, number of messages in brackets")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.9 / (1.2 + 0.27 * len(places))))
    return figure


def plot_calibration(calibration: dict[str, Any]) -> "Figure":
    """Draw reliability diagrams: how often answers of a confidence are right."""
    figure = _figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#c9c3b8", linewidth=1)
    for name, colour in _colours(calibration).items():
        bins = pd.DataFrame(calibration[name]["reliability"])
        bounds = np.abs(bins[["low", "high"]].to_numpy().T - bins["accuracy"].to_numpy())
        label = _literal(label_of_model(name))
        axes.errorbar(
            bins["confidence"], bins["accuracy"], yerr=bounds, fmt="o-", markersize=4, elinewidth=0.8, color=colour, label=label
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right, with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def plot_confusion(scores: pd.DataFrame, field: str, most: int = 25) -> "Figure":
    """Draw what the tuned model said (columns) for what was right (rows)."""
    tuned = scores[scores["model"] == "tuned"]
    classes = [str(name) for name in tuned[f"is_{field}"].value_counts().index[:most]]
    said = tuned[f"said_{field}"].where(tuned[f"said_{field}"].isin(classes), "other")
    counts = pd.crosstab(tuned[f"is_{field}"], said).reindex(index=classes, columns=[*classes, "other"], fill_value=0)
    size = max(4.0, 0.34 * len(classes) + 2)
    figure = _figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    # drawn, not an image: the page's policy loads none
    axes.pcolormesh(counts.to_numpy(), cmap="Oranges", edgecolors="white", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    for row, column in zip(*counts.to_numpy().nonzero(), strict=True):
        value = counts.iat[row, column]
        axes.text(
            column + 0.5,
            row + 0.5,
            str(value),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > counts.to_numpy().max() / 2 else "black",
        )
    names = [_literal(name.strip('"')) for name in counts.columns]
    axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(classes)) + 0.5, [_literal(name.strip('"')) for name in classes], fontsize=8)
    axes.set_xlabel(f"{_literal(field)}: the tuned model's answer")
    axes.set_ylabel(f"{_literal(field)}: right")
    return figure


def plot_history(history: pd.DataFrame) -> "Figure":
    """Draw the losses of the training that made the tuned model."""
    figure = _figure(figsize=(8, 3.2), layout="constrained")
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
