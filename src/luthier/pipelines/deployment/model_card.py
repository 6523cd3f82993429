"""The model card: what a person must know before using a model, in Markdown.

What a card should answer is taken from Mitchell et al. 2019, "Model Cards for Model Reporting",
https://doi.org/10.1145/3287560.3287596. A fact that nobody gave is said to be missing, never left out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

USE = """```python
from pathlib import Path

import torch

from luthier.packages import PackagedModel, load_package

model = PackagedModel(*load_package(Path("PACKAGE"), torch.float32))
model.answer([{"role": "user", "content": "..."}])
```

`mlflow.pyfunc.load_model("models:/NAME@champion").predict(frame)` answers a pandas table with a column `messages` or `prompt`.
For vLLM, Ollama or transformers alone: `kedro export VERSION FOLDER`, and ask with temperature 0."""


@dataclass(frozen=True)
class Facts:
    """What is known about a model; None where it is not known."""

    name: str
    description: str
    license: str
    limits: str
    base: str
    base_license: str | None
    kind: str
    dtype: str
    parameters: int
    context: int | None
    """Tokens of prompt and answer together."""
    max_new_tokens: int
    prompt: Json
    answer_schema: Json
    evaluation: Json | None
    gate: Json | None
    data_report: Json | None
    lineage: Json | None


def model_card(facts: Facts) -> str:
    """Write the card; equal facts give equal text. It begins with the YAML that model hubs read."""
    head = {"base_model": facts.base, "library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts.license != "not stated":
        head["license"] = facts.license
    parts = [
        "---\n" + "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()) + "\n---",
        f"# {shown(facts.name)}",
        shown(facts.description),
        _table(["", ""], _about(facts)),
        "## How to use",
        USE,
        "## What it was evaluated to do",
        *(_evaluation(facts.evaluation) if facts.evaluation else ["No evaluation was given to the package."]),
        "## Gate",
        *(_gate(facts.gate) if facts.gate else ["No gate decided on this model."]),
        "## Data",
        *(_data(facts.data_report) if facts.data_report else ["No report of the data was given to the package."]),
        "## Limits",
        *_limits(facts),
        "## Lineage",
        *(_lineage(facts.lineage) if facts.lineage else ["No lineage was given to the package."]),
    ]
    return "\n\n".join(parts) + "\n"


def shown(text: str) -> str:
    r"""Return text that Markdown shows as it is, on one line.

    >>> shown("*a* | <b>")
    '\\*a\\* \\| \\<b\\>'
    """
    return re.sub(r"([\\`*_\[\]<>|~#!&$])", r"\\\1", " ".join(str(text).split()))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[shown(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [[shown(name) for name in header], ["---"] * len(header), *cells])


def _about(facts: Facts) -> list[tuple[str, str]]:
    return [
        ("base model", facts.base),
        ("licence of the base model", facts.base_license or "not stated"),
        ("licence of this model", facts.license),
        ("weights", f"{facts.kind}, {facts.parameters:,} parameters, {facts.dtype}, safetensors"),
        ("longest conversation", f"{facts.context:,} tokens" if facts.context else "not stated"),
        ("longest answer", f"{facts.max_new_tokens:,} tokens"),
    ]


def _figure(figure: Any) -> str:
    if not isinstance(figure, Mapping) or figure.get("value") is None:
        return "-"
    if figure.get("low") is None or figure.get("high") is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _evaluation(evaluation: Json) -> list[str]:
    models = evaluation.get("models", {})
    metrics = list(dict.fromkeys(metric for figures in models.values() for metric in figures))
    rows = [[metric, *(_figure(figures.get(metric)) for figures in models.values())] for metric in metrics]
    count = evaluation.get("examples", "An unknown number of")
    told = f"{count} held-out messages; value and 95 % interval. This model is `tuned`."
    return [told, _table(["metric", *models], rows), *_beside(evaluation)]


def _beside(evaluation: Json) -> list[str]:
    """Say what else was measured of the tuned model."""
    points = []
    if checks := evaluation.get("safety", {}).get("tuned"):
        failed = f"; it fails {', '.join(map(shown, checks['failed']))}" if checks["failed"] else ""
        points.append(f"It passes {checks['passed']} of {checks['checks']} must and must-not checks{failed}.")
    if found := evaluation.get("calibration", {}).get("tuned"):
        points.append(
            f"Its mean confidence is {found['confidence']:.3f}, and {found['accuracy']:.3f} of its answers are right. Expected "
            f"calibration error: {found['error']:.3f}; a perfectly calibrated model stays under {found['error_at_most']:.3f}."
        )
    if grown := evaluation.get("retention", {}).get("differences", {}).get("tuned_minus_base", {}).get("nll_per_token"):
        points.append(f"Its loss on general text is {_figure(grown)} nats per token above that of its base.")
    return ["\n".join(f"- {point}" for point in points)] if points else []


def _gate(gate: Json) -> list[str]:
    rows = [
        [
            rule.get("rule", ""),
            rule.get("decision", ""),
            _figure(rule),
            "-" if rule.get("limit") is None else f"{rule['limit']:g}",
            rule.get("why", ""),
        ]
        for rule in gate.get("rules", [])
    ]
    against = f" against {shown(gate['champion'])}" if gate.get("champion") else ""
    count = gate.get("examples", "an unknown number of")
    told = f"Decision: **{shown(gate.get('decision', 'none'))}**{against}, on {count} examples."
    return [told, _table(["rule", "decision", "value", "limit", "why"], rows)] if rows else [told]


def _data(report: Json) -> list[str]:
    parts = []
    if report.get("rows_read") is not None:
        parts.append(f"{report['rows_read']:,} rows were read.")
    if report.get("splits"):
        parts.append(_table(["split", "records"], [[name, f"{count:,}"] for name, count in report["splits"].items()]))
    if report.get("steps"):
        columns = ("in", "out", "dropped", "changed")
        rows = [
            [step, *("" if counts.get(name) is None else f"{counts[name]:,}" for name in columns)]
            for step, counts in report["steps"].items()
        ]
        parts.append(_table(["step", *columns], rows))
    return parts or ["The report of the data is empty."]


def _limits(facts: Facts) -> list[str]:
    points = [shown(facts.limits) if facts.limits != "not stated" else "Its owner stated none."]
    points.append("It was evaluated with greedy answers only; sampling was not.")
    if facts.answer_schema:
        points.append(
            "Answers are meant to follow `answer_schema.json`; nothing in the weights enforces it, so check each answer."
        )
    if facts.prompt.get("scrub"):
        points.append(
            "Personal data are taken out of prompts as in training, so answers can hold placeholders such as `<EMAIL_k3f7qz>`."
        )
    return ["\n".join(f"- {point}" for point in points)]


def _lineage(lineage: Json) -> list[str]:
    return [_table(["", ""], _leaves(lineage))]


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for name, inner in value.items() for row in _leaves(inner, f"{path}.{name}" if path else str(name))]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(path, text if len(text) <= 200 else f"{text[:200]} ... (whole in lineage.json)")]
