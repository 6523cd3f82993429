"""Progress of a training run: a live bar for a terminal, a line now and then for a log, live metrics for MLflow."""

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 15.0


class TrainingProgress:
    """Shows each step as it is recorded, and logs it to the MLflow run that is active, if one is."""

    def __init__(self, steps: int) -> None:
        """Prepare for a run of so many steps."""
        self.steps = steps
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps, facts="starting the worker")
        self.seen = 0
        self.tokens = 0
        self.seconds = 0.0
        self.held_out = ""
        self.told = time.monotonic()

    def __enter__(self) -> "TrainingProgress":
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar's live display."""
        self.bar.stop()

    def update(self, metrics: dict[str, Any]) -> None:
        """Show and log a line of the worker's metrics."""
        import mlflow

        step = metrics["step"]
        if "validation_loss" in metrics:
            self.held_out = f"  held-out {metrics['validation_loss']:.3f}"
        else:
            self.seen += 1
            self.tokens += metrics["tokens"]
            self.seconds += metrics["seconds"]
            facts = f"loss {metrics['loss']:.3f}{self.held_out}  {self.tokens / self.seconds:,.0f} tokens/s"
            self.bar.update(self.task, completed=step, facts=facts)
            if not self.console.is_terminal and (time.monotonic() - self.told > SECONDS_BETWEEN_LINES or step == self.steps):
                self.told = time.monotonic()
                left = self.seconds / self.seen * (self.steps - step)
                logger.info("step %d of %d  %s  about %d s left", step, self.steps, facts, left)
        if mlflow.active_run():
            mlflow.log_metrics({f"training/{key}": value for key, value in metrics.items() if key != "step"}, step=step)
