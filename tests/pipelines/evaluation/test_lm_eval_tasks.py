"""Tasks of lm-eval run from local files without network, and what goes wrong is told in the user's words."""

import importlib.util
import json

import pandas as pd
import pytest

from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import load_model, load_tokenizer, resolve_base
from luthier.pipelines.evaluation.lm_eval_tasks import FIGURES, LmEval, figures, run_lm_eval

INSTALLED = importlib.util.find_spec("lm_eval") is not None
without = pytest.mark.skipif(INSTALLED, reason="lm-eval is installed: that it is missing cannot be told")
needs = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (the extra lm-eval)")


def test_no_tasks_need_nothing(tmp_path):
    found = run_lm_eval("tuned", None, None, LmEval(), tmp_path / "none", 0)
    assert found.empty
    assert list(found.columns) == FIGURES


@without
def test_a_missing_extra_is_named(tmp_path):
    with pytest.raises(UserError, match=r'pip install "luthier\[lm-eval\]", or leave tasks empty'):
        run_lm_eval("tuned", None, None, LmEval(tasks=("mine",)), tmp_path, 0)


def test_figures_have_an_interval_where_there_is_a_standard_error():
    found = figures(
        "tuned",
        {
            "results": {
                "mine": {
                    "name": "mine",
                    "alias": "mine",
                    "sample_len": 40,
                    "acc,none": 0.5,
                    "acc_stderr,none": 0.1,
                    "f1,strict": 0.25,
                    "f1_stderr,strict": "N/A",
                },
                "group": {"alias": "group", " ": " "},
            },
            "n-samples": {"mine": {"original": 50, "effective": 40}},
            "higher_is_better": {"mine": {"acc": True}},
        },
    ).set_index("metric")
    assert list(found.index) == ["acc", "f1"]
    assert found.loc["acc", ["value", "low", "high"]].tolist() == pytest.approx([0.5, 0.304, 0.696])
    assert found.loc["acc", ["task", "filter", "examples", "higher_is_better"]].tolist() == ["mine", "none", 40, True]
    assert found.loc["f1", "value"] == 0.25
    assert pd.isna(found.loc["f1", ["low", "high"]]).all()


@pytest.fixture
def task(tmp_path):
    """Return a folder with one task of two questions, in local files."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "Is water wet?", "choices": ["yes", "no"], "answer": 0},
        {"question": "Is fire cold?", "choices": ["yes", "no"], "answer": 1},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(
        f"""\
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    return folder


@pytest.fixture
def tiny(tmp_path):
    """Return the tiny model and its tokenizer."""
    import torch

    base = resolve_base(
        ModelParameters(base="tiny:llama"),
        FolderParameters(root=str(tmp_path), base_models=str(tmp_path / "models"), shards="", work=""),
    )
    return load_model(base, torch.float32).eval(), load_tokenizer(base)


@needs
def test_a_local_task_is_done(task, tiny):
    found = run_lm_eval("tuned", *tiny, LmEval(tasks=("mine",)), task, 0)
    assert found[["model", "task", "metric", "examples"]].to_numpy().tolist() == [["tuned", "mine", "acc", 2]]
    assert found["value"].between(0, 1).all()
    pd.testing.assert_frame_equal(found, run_lm_eval("tuned", *tiny, LmEval(tasks=("mine",)), task, 0))


@needs
def test_a_task_that_is_not_there_is_told(task):
    with pytest.raises(UserError, match="no task 'min' \\(did you mean 'mine'\\?\\)"):
        run_lm_eval("tuned", None, None, LmEval(tasks=("min",)), task, 0)
    with pytest.raises(UserError, match="there is no folder"):
        run_lm_eval("tuned", None, None, LmEval(tasks=("min",)), task / "none", 0)
