"""The steps of training."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.machine import give_back_freed_memory
from luthier.models import Base, ModelDirectory, load_tokenizer, resolve_base, tokenizer_identity
from luthier.pipelines.training import launch
from luthier.pipelines.training.batches import Order
from luthier.pipelines.training.mirror import Mirror
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.pipelines.training.plan import describe_plan, make_plan
from luthier.shards import Shards

logger = logging.getLogger(__name__)


def plan_training(
    examples: Shards, model: ModelParameters, parameters: TrainingParameters, folders: FolderParameters, seed: int
) -> dict[str, Any]:
    """Work out and print steps, memory and time; refuse what cannot fit."""
    from luthier.pipelines.training.examples import read_measures

    base = resolve_base(model, folders)
    _check_tokens(examples, base)
    train, validation = read_measures(examples, "train", "validation")
    order = Order(train.names(), train.weights, train.lengths, parameters.batch_size, seed)
    plan = make_plan(order, train, validation, base, parameters, seed)
    logger.info("Plan: %s", describe_plan(plan))
    return plan


def _check_tokens(examples: Shards, base: Base) -> None:
    """Refuse examples that are tokens of another vocabulary, or of another chat template.

    Raises:
        UserError: if they are.
    """
    made_with = examples.manifest
    # tables of earlier releases do not say it
    if made_with.get("tokenizer", "") not in ("", tokenizer_identity(load_tokenizer(base))):
        raise UserError(
            f"model.base is {base.identity}, but the training examples are tokens of {made_with['base']}, whose vocabulary or "
            "chat template is another: run data processing with this model.base first (kedro run --pipeline data_processing), or "
            "write the other base."
        )


def train(
    examples: Shards,
    prompt_settings: dict[str, Any],
    plan: dict[str, Any],
    model: ModelParameters,
    parameters: TrainingParameters,
    folders: FolderParameters,
) -> tuple[ModelDirectory, pd.DataFrame]:
    """Fine-tune, or find that it was done: returns the model and a table with a row for every recorded step."""
    from luthier.progress import TrainingProgress

    job = {
        "examples": str(examples.folder.resolve()),
        "examples_sha256": examples.sha256,
        "prompt_settings": prompt_settings,
        "model": model.model_dump(),
        "base_identity": plan["base"],
        "folders": folders.model_dump(),
        "parameters": parameters.model_dump(),
        "steps": plan["steps"],
        "seed": plan["seed"],
        "precision": plan["precision"],
        "device": plan["device"],
        "threads": plan["threads_per_process"],
    }
    work = Path(folders.work)
    logger.info(launch.explain_difference(work, launch.ingredients(job)))
    folder = launch.open_job(work, job)
    if launch.result_of(folder) is None:
        done = launch.read_metrics(folder)
        if done:
            logger.info(
                "Going on with unfinished training in %s: %d of %d steps were recorded.",
                folder,
                done[-1]["step"],
                plan["steps"],
            )
        give_back_freed_memory()
        mirror = Mirror(folder, folders.checkpoints) if "://" in folders.checkpoints else None
        with TrainingProgress(plan["steps"]) as progress:
            launch.run_worker(folder, job, progress.update, mirror)
        launch.clear_checkpoints(folder, mirror)
    else:
        logger.info("No training step is needed: the finished model of this very job is in %s.", folder)
    result = launch.result_of(folder)
    assert result is not None
    return result, pd.DataFrame(launch.read_metrics(folder))


def summarise_training(history: pd.DataFrame) -> dict[str, Any]:
    """Return first, last and best losses and the speed."""
    steps = history[history["loss"].notna()]
    held_out = history["validation_loss"].dropna() if "validation_loss" in history else pd.Series(dtype=float)
    return {
        "steps": len(steps),
        "first_loss": float(steps["loss"].iloc[0]),
        "last_loss": float(steps["loss"].tail(10).mean()),
        "validation_loss": float(held_out.iloc[-1]) if len(held_out) else None,
        "seconds": float(steps["seconds"].sum()),
        "tokens_per_second": float(steps["tokens"].sum() / steps["seconds"].sum()),
    }


def plot_training(history: pd.DataFrame) -> Any:
    """Draw the losses over the steps, and the learning rate below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = history[history["loss"].notna()]
    above.plot(steps["step"], steps["loss"], color="#9ab", linewidth=0.8, label="training, each step")
    smooth = steps["loss"].rolling(15, min_periods=1, center=True).mean()
    above.plot(steps["step"], smooth, color="#236", label="training, mean of 15 steps")
    if "validation_loss" in history:
        held_out = history[history["validation_loss"].notna()]
        above.plot(held_out["step"], held_out["validation_loss"], "o-", color="#c40", markersize=3, label="held-out")
    above.set_ylabel("loss per supervised token (nats)")
    above.set_ylim(bottom=0)
    above.legend(frameon=False)
    below.plot(steps["step"], steps["learning_rate"], color="#666")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    return figure
