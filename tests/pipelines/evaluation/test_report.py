"""The report shows what was computed, for any text, and reaches for nothing outside of itself."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from luthier.pipelines.evaluation.report import (
    LABELS,
    as_html,
    as_markdown,
    as_svg,
    difference_rows,
    metric_name,
    plot_comparison,
    plot_confusion,
    plot_history,
    table_rows,
)
from luthier.pipelines.evaluation.score import MODELS, compare, score_answers, worst_errors
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
    for model in MODELS:
        for n, text in enumerate(NASTY * 3):
            said = text if random.random() < 0.5 else str(random.choice(NASTY))
            right, answer = (
                (text, said)
                if plain
                else (compact_json({"kind": text, "order": None}), compact_json({"kind": said, "order": None}))
            )
            row = {"model": model, "id": f"{n:02}|{text}", "prompt": f"{text}\n{text}", "expected": right, "answer": answer}
            rows.append(row | {"nll": 1.0 if model in ("base", "tuned") else np.nan, "supervised_tokens": 3})
    return score_answers(pd.DataFrame(rows), {})


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
def scored(request):
    """Return scores and their comparison."""
    scores = made(request.param)
    return scores, compare(scores, seed=0)


def test_the_page_shows_every_text_as_text_and_needs_no_network(scored):
    scores, evaluation = scored
    errors = worst_errors(scores)
    page = Page(as_html(evaluation, scores, errors, DATA, plot_history(HISTORY)))
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    for prompt in errors["prompt"]:
        assert prompt in page.data
    told = " ".join(page.data)
    for row in table_rows(evaluation):
        for cell in row:
            assert cell in told
    assert "4, 1, 1" in told


def test_equal_evaluations_make_equal_pages(scored):
    scores, evaluation = scored
    one, two = (as_html(evaluation, scores, worst_errors(scores), DATA, plot_history(HISTORY)) for _ in range(2))
    assert one == two


def test_without_errors_the_page_says_so(scored):
    scores, evaluation = scored
    right = scores.assign(exact_match=True)
    assert "every answer is right" in as_html(evaluation, right, worst_errors(right), DATA, plot_history(HISTORY))


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [((0.1, 0.05, 0.2), "It is better"), ((-0.1, -0.2, -0.05), "It is worse"), ((0.1, -0.1, 0.2), "does not decide")],
)
def test_the_verdict_follows_the_interval(scored, gain, verdict):
    scores, evaluation = scored
    base = evaluation["differences"]["tuned_minus_base"] | {
        "field_accuracy": dict(zip(("value", "low", "high"), gain, strict=True))
    }
    changed = evaluation | {"differences": evaluation["differences"] | {"tuned_minus_base": base}}
    text = as_html(changed, scores, worst_errors(scores), DATA, plot_history(HISTORY))
    assert [words for words in ("It is better", "It is worse", "does not decide") if words in text] == [verdict]


def test_the_tables_of_markdown_keep_their_columns(scored):
    scores, evaluation = scored
    text = as_markdown(evaluation, worst_errors(scores))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block}
        assert len(widths) == 1
    assert len(blocks[2]) == 2 + len(worst_errors(scores))


def test_every_metric_of_every_model_has_its_cell(scored):
    _, evaluation = scored
    rows = table_rows(evaluation)
    assert [row[0] for row in rows] == [metric_name(metric) for metric in evaluation["models"]["tuned"]]
    for row, metric in zip(rows, evaluation["models"]["tuned"], strict=True):
        for cell, model in zip(row[1:], LABELS, strict=True):
            figure = evaluation["models"][model].get(metric)
            assert cell == ("-" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
    assert all(len(row) == len(LABELS) for row in difference_rows(evaluation))


def test_plots_show_every_model_and_class(scored):
    scores, evaluation = scored
    bars = as_svg(plot_comparison(evaluation))
    for label in LABELS.values():
        assert label in bars
    field = evaluation["fields"][0]
    figure = plot_confusion(scores, field)
    as_svg(figure)
    (axes,) = figure.axes
    shown = sum(int(text.get_text()) for text in axes.texts)
    assert shown == (scores["model"] == "tuned").sum()
    few = plot_confusion(scores, field, most=2)
    assert len(few.axes[0].get_yticks()) == 2
    as_svg(few)


def test_a_history_without_held_out_losses_is_drawn():
    assert "held-out" in as_svg(plot_history(HISTORY))
    assert "held-out" not in as_svg(plot_history(HISTORY.drop(columns="validation_loss")))
