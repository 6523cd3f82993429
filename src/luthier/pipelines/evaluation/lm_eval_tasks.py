"""Any task of EleutherAI's lm-eval, from local task files: an extra, `pip install "luthier[lm-eval]"`.

Written against lm-eval 0.4.13 (`lm_eval.simple_evaluate`, `TaskManager`, `HFLM`). Its own tasks are left out, as they fetch
their data: only those of the folder can be named. A task file can run Python code (`!function`): use files that you trust.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from luthier.configuration import Parameters
from luthier.errors import UserError, did_you_mean
from luthier.text.chat import settle_prompts

FIGURES = ["model", "task", "metric", "filter", "examples", "value", "low", "high", "higher_is_better"]


class LmEval(Parameters):
    """Tasks of lm-eval to run."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, groups or tags; empty runs none."""
    folder: str = "data/01_raw/lm_eval"
    """Where the task files (YAML) are; their `data_files` are relative to where Kedro is run."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first examples of each task."""
    batch_size: int = Field(default=8, ge=1)
    """Examples that the model sees at once."""


def task_manager(parameters: LmEval, folder: Path) -> Any:
    """Return lm-eval's index of the folder's tasks, in which all that are asked for are.

    Raises:
        UserError: if lm-eval is not installed, the folder is missing, or it has no task of that name.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f'evaluation.lm_eval: lm-eval cannot be imported ({error}): pip install "luthier[lm-eval]", or leave tasks empty.'
        ) from error
    if not folder.is_dir():
        raise UserError(f"evaluation.lm_eval.folder: there is no folder {folder}.")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    unknown = [task for task in parameters.tasks if task not in manager.all_tasks]
    if unknown:
        told = [f"no task {task!r}{did_you_mean(task, manager.all_tasks)}" for task in unknown]
        known = ", ".join(manager.all_tasks) or "none"
        raise UserError(f"evaluation.lm_eval.tasks: {'; '.join(told)} in {folder}; it holds: {known}.")
    return manager


def run_lm_eval(name: str, model: Any, tokenizer: Any, parameters: LmEval, folder: Path, seed: int) -> pd.DataFrame:
    """Let a model do tasks of lm-eval.

    Args:
        name: of the model, for the table.
        model: a causal language model of transformers, on its device.
        tokenizer: its tokenizer.
        parameters: which tasks.
        folder: that of the task files, absolute.
        seed: of the examples shown in the prompt, and of lm-eval's own bootstrap.

    Returns:
        a row for each task, metric and filter: `model`, `task`, `metric`, `filter`, `examples`, `value`, `low`, `high` (95 %,
        from lm-eval's standard error; NaN where it gives none), `higher_is_better`. Prompts go through the chat template.

    Raises:
        UserError: as `task_manager`.
    """
    if not parameters.tasks:
        return pd.DataFrame(columns=FIGURES)
    manager = task_manager(parameters, folder)
    settle_prompts(tokenizer)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=parameters.batch_size),
        tasks=list(parameters.tasks),
        task_manager=manager,
        limit=parameters.limit,
        apply_chat_template=True,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return figures(name, dict(results))


def figures(name: str, results: dict[str, Any]) -> pd.DataFrame:
    """Return what `simple_evaluate` found as a table; see `run_lm_eval`.

    Args:
        name: of the model.
        results: with `results`, `n-samples` and `higher_is_better`. The keys of a task's metrics are `METRIC,FILTER`, those of
            their standard errors `METRIC_stderr,FILTER`.
    """
    rows = []
    for task, found in results["results"].items():
        counts = results.get("n-samples", {}).get(task, {})
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in found.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{metric}_stderr,{filtered}")
            half = 1.96 * error if isinstance(error, int | float) else float("nan")
            rows.append(
                {
                    "model": name,
                    "task": task,
                    "metric": metric,
                    "filter": filtered,
                    "examples": counts.get("effective"),
                    "value": float(value),
                    "low": value - half,
                    "high": value + half,
                    "higher_is_better": better.get(metric),
                }
            )
    return pd.DataFrame(rows, columns=FIGURES)
