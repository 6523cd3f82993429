"""The report shows what was computed, for any text, and reaches for nothing outside of itself."""

import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from luthier.pages import as_svg
from luthier.pipelines.evaluation import report
from luthier.pipelines.evaluation.calibration import calibrate_answers
from luthier.pipelines.evaluation.gate import decide
from luthier.pipelines.evaluation.plots import (
    plot_calibration,
    plot_comparison,
    plot_confusion,
    plot_history,
    plot_slices,
)
from luthier.pipelines.evaluation.report import Shown, as_html, as_markdown
from luthier.pipelines.evaluation.robustness import drops
from luthier.pipelines.evaluation.rules import GateParameters
from luthier.pipelines.evaluation.safety import Check, judge, summary
from luthier.pipelines.evaluation.score import MODELS, compare, worst_errors
from luthier.pipelines.evaluation.slices import figures_by_slice
from luthier.pipelines.evaluation.tables import difference_rows, label_of_model, metric_name, output_rows, table_rows
from luthier.pipelines.evaluation.tasks import Tasks, compare_retention, score_by_tasks, times_of
from luthier.text.prepare import compact_json

NASTY = [
    "a",
    "<script>alert(1)</script>",
    "$\\frac{$",
    "$5 and $6_{",
    "pipe | and `tick`",
    "ü 😀 \u202e",
    '&amp; "quote" \'',
    "100% {{ x }} {% y %}",
]
DATA = {
    "rows_read": 12,
    "steps": {
        "validate_rows": {"in": 12, "out": 11, "dropped": 1},
        "clean_records": {"in": 11, "out": 11, "dropped": 0, "changed": 3},
        "deduplicate_records": {"in": 11, "out": 6, "dropped": 5},
    },
    "dropped": {"validate_rows": {"<b>bad</b> & worse": 1}, "deduplicate_records": {"exact": 2, "near": 3}},
    "examples": {"train": 4, "validation": 1, "test": 1},
    "tokens": {"total": 100, "supervised": 20},
}
HISTORY = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, np.nan, 1.0], "validation_loss": [np.nan, 2.0, np.nan]})


def made(plain=False):
    """Return scores over nasty texts."""
    random = np.random.default_rng(0)
    rows = []
    for model in (*MODELS, "champion", "<hosted>"):
        for n, text in enumerate(NASTY * 3):
            said = text if random.random() < 0.5 else str(random.choice(NASTY))
            right, answer = (
                (text, said)
                if plain
                else (compact_json({"kind": text, "order": None}), compact_json({"kind": said, "order": None}))
            )
            row = {"model": model, "id": f"{n:02}|{text}", "prompt": f"{text}\n{text}", "expected": right, "answer": answer}
            has_likelihood = model in ("base", "tuned", "champion")
            row |= {"nll": 1.0 if has_likelihood else np.nan, "supervised_tokens": 3 if has_likelihood else np.nan}
            told = model not in ("majority", "tfidf")
            row |= {"answer_tokens": 4 if told else np.nan, "mean_log_probability": -random.random() if told else np.nan}
            rows.append(row | {"seconds": random.random() if told else np.nan, "slice_kind": text})
    return score_by_tasks(pd.DataFrame(rows), {}, ["structured"], Tasks(), 8).assign(seconds=[row["seconds"] for row in rows])


def show(plain=False):
    """Return all that a report shows, with every part of it measured."""
    scores = made(plain)
    evaluation = compare(scores.drop(columns="seconds"), seed=0)
    evaluation["calibration"] = {name: found.as_dict() for name, found in calibrate_answers(scores, 0).items()}
    evaluation["robustness"] = drops(scores, {"<b>hasty</b>": scores.assign(exact_match=False)}, 0).to_dict("records")
    checks = [
        Check(name=f"check {text}", why=text, messages=[{"role": "user", "content": "x"}], max_characters=4) for text in NASTY
    ]
    asked = [
        {"model": model, "id": check.name, "answer": check.why} for model in ("base", "tuned", "<hosted>") for check in checks
    ]
    verdicts = judge(checks, pd.DataFrame(asked))
    evaluation["safety"] = summary(verdicts)
    evaluation["retention"] = compare_retention(scores[scores["nll"].notna()], 0)
    figure = {"model": "tuned", "task": "<i>t</i>", "metric": "acc", "filter": "none", "examples": 3, "value": 0.5}
    evaluation["lm_eval"] = [figure | {"low": None, "high": None, "higher_is_better": True}]
    json.dumps(evaluation)
    rules = GateParameters.model_validate({"rules": [{"metric": "exact_match", "better_than": "base"}, {"safety": "all"}]}).rules
    return Shown(
        evaluation,
        scores,
        figures_by_slice(scores, 20, 0),
        worst_errors(scores),
        verdicts,
        times_of(scores.assign(answer_tokens=4)),
        decide(scores, rules, safety=verdicts),
        DATA,
        HISTORY,
    )


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.data = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data):
        self.data.append(data)


@pytest.fixture(scope="module", params=[False, True], ids=["fields", "plain text"])
def shown(request):
    """Return all that a report shows."""
    return show(request.param)


def test_the_page_shows_every_text_as_text_and_needs_no_network(shown):
    page = Page(as_html(shown))
    assert "script" not in page.tags
    assert page.tags.count("svg") == 5
    assert all(link.startswith("#") for link in page.links)  # not even images within: the policy of the page loads none
    for prompt in shown.errors["prompt"]:
        assert prompt in page.data
    told = " ".join(page.data)
    for row in [*table_rows(shown.evaluation), *output_rows(shown.evaluation), *difference_rows(shown.evaluation)]:
        for cell in row:
            assert cell in told
    assert "4, 1, 1" in told
    for rule in shown.gate["rules"]:
        assert rule["why"] in told
    for check, why, failed in shown.safety[["check", "why", "why_failed"]].to_numpy():
        assert check in page.data
        assert why in page.data
        assert failed in told
    assert {"<b>hasty</b>", "<hosted>", "<i>t</i>", "0.500"} <= set(page.data)


def test_equal_evaluations_make_equal_pages(shown):
    assert as_html(shown) == as_html(shown)
    assert as_markdown(shown) == as_markdown(shown)


def test_what_was_not_measured_is_not_on_the_page(shown):
    bare = shown.evaluation | {"calibration": {}, "robustness": [], "safety": {}, "retention": {}, "lm_eval": []}
    nothing = replace(shown, evaluation=bare, safety=shown.safety[:0], times=shown.times[:0], slices=shown.slices[:0])
    headings = [text for text in Page(as_html(nothing)).data if text.strip()]
    for heading in ("Does it know what it knows?", "Must and must not", "What was forgotten?", "Tasks of lm-eval", "By kind"):
        assert heading not in headings
        assert heading in Page(as_html(shown)).data


def test_without_errors_the_page_says_so(shown):
    right = shown.scores.assign(exact_match=True)
    assert "every answer is right" in as_html(replace(shown, scores=right, errors=worst_errors(right)))


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [((0.1, 0.05, 0.2), "It is better"), ((-0.1, -0.2, -0.05), "It is worse"), ((0.1, -0.1, 0.2), "does not decide")],
)
def test_the_verdict_follows_the_interval(shown, gain, verdict):
    evaluation = shown.evaluation
    base = evaluation["differences"]["tuned_minus_base"] | {
        "field_accuracy": dict(zip(("value", "low", "high"), gain, strict=True))
    }
    changed = evaluation | {"differences": evaluation["differences"] | {"tuned_minus_base": base}}
    text = as_html(replace(shown, evaluation=changed))
    assert [words for words in ("It is better", "It is worse", "does not decide") if words in text] == [verdict]


def test_the_tables_of_markdown_keep_their_columns(shown):
    text = as_markdown(shown)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block}
        assert len(widths) == 1
    assert len(blocks[3]) == 2 + len(shown.errors)


def test_every_metric_of_every_model_has_its_cell(shown):
    models = shown.evaluation["models"]
    rows = table_rows(shown.evaluation)
    metrics = [metric for metric in models["tuned"] if not metric.startswith("output_")]
    assert [row[0] for row in rows] == [metric_name(metric) for metric in metrics]
    for row, metric in zip(rows, metrics, strict=True):
        for cell, figures in zip(row[1:], models.values(), strict=True):
            figure = figures.get(metric)
            assert cell == ("-" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
    assert all(len(row) == len(models) for row in difference_rows(shown.evaluation))


def test_plots_show_every_model_class_and_slice(shown):
    bars = as_svg(plot_comparison(shown.evaluation))
    for name in shown.evaluation["models"]:
        assert escape(label_of_model(name)) in bars
    field = shown.evaluation["fields"][0]
    figure = plot_confusion(shown.scores, field)
    as_svg(figure)
    (axes,) = figure.axes
    drawn = sum(int(text.get_text()) for text in axes.texts)
    assert drawn == (shown.scores["model"] == "tuned").sum()
    few = plot_confusion(shown.scores, field, most=2)
    assert len(few.axes[0].get_yticks()) == 2
    as_svg(few)
    parts = plot_slices(shown.slices, "kind", "field_accuracy")
    assert len(parts.axes[0].get_yticks()) == len(NASTY)
    as_svg(parts)
    calibration = plot_calibration(shown.evaluation["calibration"])
    assert len(calibration.axes[0].get_legend().get_texts()) == 4
    as_svg(calibration)


def test_a_history_without_held_out_losses_is_drawn():
    assert "held-out" in as_svg(plot_history(HISTORY))
    assert "held-out" not in as_svg(plot_history(HISTORY.drop(columns="validation_loss")))


def test_a_sample_that_the_baselines_learnt_from_is_told(monkeypatch):
    shown = show()
    assert "a sample" not in as_html(shown)
    monkeypatch.setattr(report, "MOST_ROWS", 3)
    assert "learnt from 3 of 4 training messages, a sample" in as_html(shown)
