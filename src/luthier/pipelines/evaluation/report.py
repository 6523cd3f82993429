"""Show a comparison: a self-contained HTML page, and the same as Markdown."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from luthier.pages import as_svg, render_page
from luthier.pipelines.evaluation import plots, tables
from luthier.pipelines.evaluation.baselines import MOST_ROWS
from luthier.pipelines.evaluation.gate_report import NEXT, render_markdown


@dataclass(frozen=True)
class Shown:
    """All that a report shows."""

    evaluation: dict[str, Any]
    scores: pd.DataFrame
    slices: pd.DataFrame
    """From `slices.figures_by_slice`."""
    errors: pd.DataFrame
    """The worst ones."""
    safety: pd.DataFrame
    """Verdicts, from `safety.judge`."""
    times: pd.DataFrame
    """From `tasks.times_of`."""
    gate: dict[str, Any]
    data_report: dict[str, Any]
    history: pd.DataFrame
    """Of the training, a row a step."""


def as_markdown(shown: Shown) -> str:
    """Write the comparison as Markdown."""
    evaluation, errors = shown.evaluation, shown.errors
    names = [tables.label_of_model(name) for name in evaluation["models"]]

    def table(header: list[str], rows: list[list[str]]) -> str:
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, ["---"] * len(header), *rows]]
        return "\n".join("| " + " | ".join(row) + " |" for row in cells)

    def code(text: str) -> str:
        return "`" + text.replace("`", "'").replace("\n", " ") + "`"

    told = [
        [code(row["id"]), code(row["prompt"][:160]), code(row["expected"]), code(row["answer"][:160])]
        for row in errors.to_dict("records")
    ]
    others = [tables.label_of_model(name) for name in evaluation["models"] if name != "tuned"]
    return "\n\n".join(
        [
            "# Evaluation",
            render_markdown(shown.gate).strip(),
            f"{evaluation['examples']} held-out messages; value and 95 % bootstrap interval.",
            table(["metric", *names], tables.table_rows(evaluation)),
            "## Tuned model minus the others, paired",
            table(["metric", *others], tables.difference_rows(evaluation)),
            "## The tuned model's worst errors",
            table(["id", "message", "right", "answered"], told),
            "",
        ]
    )


def as_html(shown: Shown) -> str:
    """Write the comparison as one HTML page without any outside resource."""
    evaluation, field = shown.evaluation, shown.evaluation["fields"][0]
    metric = tables.main_metrics(evaluation)[0]
    sliced = [str(name) for name in dict.fromkeys(shown.slices["slice"])]
    return render_page(
        "luthier.pipelines.evaluation",
        "report.html",
        {},
        evaluation=evaluation,
        names=[tables.label_of_model(name) for name in evaluation["models"]],
        others=[tables.label_of_model(name) for name in evaluation["models"] if name != "tuned"],
        lead=metric,
        lead_name=tables.metric_name(metric),
        rows=tables.table_rows(evaluation),
        differences=tables.difference_rows(evaluation),
        gate=shown.gate,
        gate_says=NEXT[shown.gate["decision"]],
        rules=tables.gate_rows(shown.gate),
        errors=shown.errors.to_dict("records"),
        data=shown.data_report,
        most_rows=MOST_ROWS,
        comparison=as_svg(plots.plot_comparison(evaluation)),
        confusion=as_svg(plots.plot_confusion(shown.scores, field)),
        slices={name: as_svg(plots.plot_slices(shown.slices, name, metric)) for name in sliced},
        reliability=as_svg(plots.plot_calibration(evaluation["calibration"])) if evaluation["calibration"] else "",
        calibration=tables.calibration_rows(evaluation["calibration"]),
        robustness=tables.robustness_rows(evaluation),
        safety=tables.safety_rows(shown.safety),
        safety_models=[tables.label_of_model(name) for name in dict.fromkeys(shown.safety["model"])],
        safety_summary=evaluation["safety"],
        retention=tables.retention_rows(evaluation["retention"]),
        outputs=tables.output_rows(evaluation),
        times=tables.time_rows(shown.times),
        lm_eval=tables.lm_eval_rows(evaluation["lm_eval"]),
        history=as_svg(plots.plot_history(shown.history)),
        field=field,
    )
