"""The last thing that a run prints: base against tuned, and what to try next."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(
    evaluation: dict[str, Any], report: str, gate: dict[str, Any] | None = None, registered: dict[str, Any] | None = None
) -> None:
    """Print a small table of the main figures, the gate's, the version in the registry, and the next commands."""
    console = Console(width=max(100, Console().width))
    table = Table(title=f"Held-out messages: {evaluation['examples']}", title_justify="left")
    table.add_column("share right, with 95 % interval")
    models = evaluation["models"]
    others = [name for name in models if name != "tuned"]
    for name in (*("TF-IDF" if name == "tfidf" else name for name in others), "tuned", "tuned - base"):
        table.add_column(name, justify="right", no_wrap=True)
    fields = evaluation["fields"]
    metrics = [
        "field_accuracy",
        "exact_match",
        "validity",
        *(f"accuracy_{field}" for field in fields if len(fields) > 1),
    ]
    for metric in metrics:
        cells = [f"{models[name][metric]['value']:.3f}" if metric in models[name] else "-" for name in others]
        tuned = models["tuned"][metric]
        difference = evaluation["differences"]["tuned_minus_base"].get(metric)
        gain = f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]" if difference else ""
        table.add_row(metric.replace("_", " "), *cells, f"{tuned['value']:.3f} [{tuned['low']:.3f}, {tuned['high']:.3f}]", gain)
    console.print(table)
    losses = [models[name]["nll_per_token"]["value"] for name in ("base", "tuned")]
    console.print(f"held-out loss per supervised token: base {losses[0]:.3f}, tuned {losses[1]:.3f} nats\n")
    if gate:
        from luthier.pipelines.evaluation.gate_report import render_table

        console.print(render_table(gate))
    if registered:
        console.print(
            f"Registered as version {registered['version']} of {registered['model']}, the candidate.  "
            "[bold]kedro promote[/] puts it into production\n",
            highlight=False,
        )
    console.print(
        "Next:  [bold]make viz[/] the pipeline   [bold]make ui[/] the runs in MLflow   [bold]make lab[/] notebooks",
        highlight=False,
    )
    console.print(f"       {report}", highlight=False, soft_wrap=True)
    console.print("       docs/your-own-data.md               the same with your own messages", highlight=False)
