"""The training worker: one process of a job, started by torch.distributed.run. It uses neither Kedro nor MLflow.

    job file -> setup -> fit -> finish

Only rank 0 writes: `metrics.jsonl` (a line a step), checkpoints, at last the folder `result`. It does not support
sharded weights (FSDP) or several machines yet: every process holds the whole model and all examples.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from luthier.artefacts import staged, write_atomically
from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.likelihood import IGNORED, SupervisedNll, collate, micro_batches
from luthier.machine import freed_memory_kept
from luthier.models import Base, load_model, load_tokenizer, resolve_base
from luthier.pipelines.training import checkpoints
from luthier.pipelines.training.batches import Order
from luthier.pipelines.training.examples import read_examples, sample_of
from luthier.pipelines.training.lock import alone_in
from luthier.pipelines.training.lora import freeze_in, use_low_rank_linear
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.shards import Shards


def learning_rate_factor(step: int, steps: int, parameters: TrainingParameters) -> float:
    """Return the share of the peak rate at a step counted from 0: linear warm-up, then the schedule down to zero."""
    warmup = math.ceil(parameters.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match parameters.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case _:
            return 1.0


def with_adapters(model: Any, parameters: TrainingParameters, dtype: torch.dtype) -> Any:
    """Freeze the model and add LoRA adapters that compute in `dtype`, or make all weights trainable."""
    if parameters.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    lora = parameters.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, use_low_rank_linear(config))
    except ValueError as error:
        raise UserError(f"training.lora.targets: {error}") from error
    freeze_in(adapted, dtype)
    return adapted


def make_optimizer(model: torch.nn.Module, parameters: TrainingParameters) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); the decay goes to matrices only."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": parameters.weight_decay},
        {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=parameters.learning_rate, fused=True)


class Job:
    """A training job in its folder: everything that one process needs, and the loop over steps."""

    def __init__(self, folder: Path) -> None:
        """Read the job file and build model, data and optimiser: the same on every process."""
        self.folder = folder
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.job = job
        self.parameters = TrainingParameters.model_validate(job["parameters"])
        self.steps: int = job["steps"]
        self.seed: int = job["seed"]
        self.stop_asked = False
        on_cpu = job["device"] == "cpu"
        self.accelerator = Accelerator(mixed_precision="bf16" if job["precision"] == "bf16" else "no", cpu=on_cpu)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # nothing here reads what it has not written, and filling every new tensor takes a tenth of the time
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.manual_seed(self.seed)

        self.base: Base = resolve_base(
            ModelParameters.model_validate(job["model"]), FolderParameters.model_validate(job["folders"])
        )
        if self.base.identity != job["base_identity"]:
            raise UserError(f"model.base was {job['base_identity']} when this run was planned, and is {self.base.identity} now.")
        self.train, self.validation = read_examples(Shards(Path(job["examples"])), "train", "validation")
        self.measured = sample_of(self.validation.measures, self.parameters.evaluate_examples)
        known = self.train.measures
        self.order = Order(known.names(), known.weights, known.lengths, self.parameters.batch_size, self.seed)

        dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
        # a GPU's memory is for larger models: what is frozen need not be wider than what is computed in
        halved = not on_cpu and self.parameters.method == "lora"
        model = load_model(self.base, dtype if halved else torch.float32)
        model.config.use_cache = False
        self.model = with_adapters(model, self.parameters, dtype)
        self.model.train()
        optimizer = make_optimizer(self.model, self.parameters)
        # the same first weights everywhere, but a dropout of its own in every process
        set_seed(self.seed + self.accelerator.process_index)
        # without a device to move to, the optimiser's parameters are the prepared model's
        self.loss, self.optimizer = self.accelerator.prepare(SupervisedNll(self.model), optimizer)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def fit(self, report: Callable[[dict[str, Any]], None]) -> int:
        """Train from the newest checkpoint to the last step; return the steps done, fewer if the run was stopped.

        Raises:
            UserError: if the loss is not finite, with the step and the examples.
        """
        with torch.no_grad():
            raw = self.optimizer.optimizer
            done = checkpoints.load_latest(self.folder / "checkpoints", self.model, raw, self.accelerator.process_index)
        self._forget_metrics_after(done)
        measuring = self.parameters.measuring_steps(self.steps)
        for step in range(done, self.steps):
            start = time.perf_counter()
            facts = self._step(step)
            if self.is_main:
                report({"step": step + 1, **facts, "seconds": time.perf_counter() - start})
            last = step + 1 == self.steps
            if self.measured and (last or step + 1 in measuring):
                loss = self._held_out_loss()
                if self.is_main:
                    report({"step": step + 1, "validation_loss": loss})
            stopped = self._must_stop()
            if stopped or last or (step + 1) % self.parameters.checkpoint_every == 0:
                self._save_checkpoint(step + 1)
            if stopped:
                return step + 1
        return self.steps

    def _step(self, step: int) -> dict[str, float]:
        """Do one optimiser step over this process's share of the batch; return what to record."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batch, known = self.order.batch(step), self.train.measures
        # every process knows the whole batch, so the divisor needs no communication
        supervised, tokens = (int(count[batch].sum()) for count in (known.supervised, known.lengths))
        pieces = micro_batches(batch[rank::world], known.lengths, self.parameters.micro_batch_tokens)
        total = torch.zeros((), device=self.accelerator.device)
        if not pieces:
            # a last, small batch may leave a process without an example, but all must take part in the exchange
            pieces, weight = [[batch[0]]], 0.0
        else:
            weight = 1.0
        for number, piece in enumerate(pieces):
            ids, labels = (t.to(self.accelerator.device) for t in collate([self.train[i] for i in piece]))
            last = number + 1 == len(pieces)
            with self.accelerator.no_sync(self.loss) if not last else nullcontext():
                nll = self.loss(ids, labels).sum() * weight
            # DDP averages the gradients over processes: undo that, so that the mean is over all supervised tokens
            self.accelerator.backward(nll * (world / supervised))
            total += nll.detach()
        mean = float(self.accelerator.reduce(total, "sum")) / supervised
        if not math.isfinite(mean):
            names = ", ".join(self.train[i].id for i in batch)
            raise UserError(
                f"The loss of step {step + 1} is {mean}: lower training.learning_rate, or look at the examples {names}."
            )
        rate = self.parameters.learning_rate * learning_rate_factor(step, self.steps, self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(self.loss.parameters(), self.parameters.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": mean,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "tokens": tokens,
            "supervised_tokens": supervised,
        }

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Return the mean loss per supervised token of what is measured of the validation split, whatever the batches."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        lengths = self.validation.measures.lengths
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        self.model.eval()
        for piece in micro_batches(self.measured[rank::world], lengths, self.parameters.micro_batch_tokens):
            ids, labels = (t.to(self.accelerator.device) for t in collate([self.validation[i] for i in piece]))
            # the bare module: processes may have different numbers of pieces here, and DDP's forward synchronises
            sums[0] += self.accelerator.unwrap_model(self.loss)(ids, labels).sum()
            sums[1] += (labels != IGNORED).sum()
        self.model.train()
        sums = self.accelerator.reduce(sums, "sum")
        return float(sums[0] / sums[1])

    def _must_stop(self) -> bool:
        """Agree on stopping: one process was told to, or the parent is gone."""
        asked = self.stop_asked or not _is_alive(self.job["parent"])
        flag = torch.tensor(float(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _save_checkpoint(self, step: int) -> None:
        states = gather_object([checkpoints.random_state()])
        if self.is_main:
            checkpoints.save(self.folder / "checkpoints", step, self.model, self.optimizer.optimizer, states)
        self.accelerator.wait_for_everyone()

    def _forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a kill made undone: they are done again."""
        path = self.folder / "metrics.jsonl"
        if self.is_main and path.exists():
            lines = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        lines.append(line)
                except ValueError:  # the line that a kill cut
                    break
            write_atomically(path, "".join(line + "\n" for line in lines))
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Write the trained model, its tokenizer and what it was made of; nothing in it depends on the time or the machine."""
        if self.is_main and not (self.folder / "result").exists():
            facts = {key: self.job[key] for key in ("fingerprint", "parameters", "seed", "precision", "prompt_settings")}
            base = {"name": self.base.name, "identity": self.base.identity}
            with staged(self.folder / "result", base=base, method=self.parameters.method, steps=self.steps, **facts) as staging:
                self.model.save_pretrained(staging)
                (staging / "README.md").unlink(missing_ok=True)
                _make_repeatable(staging / "adapter_config.json", self.base.name)
                load_tokenizer(self.base).save_pretrained(staging)
                (staging / "prompt_settings.json").write_text(
                    json.dumps(self.job["prompt_settings"], indent=2, ensure_ascii=False), encoding="utf-8"
                )
            for leftover in self.folder.glob(".staging-*"):
                shutil.rmtree(leftover)
        self.accelerator.wait_for_everyone()


def _make_repeatable(path: Path, base: str) -> None:
    """Name the base as the user does, not by a path of this machine, and put sets into order."""
    if not path.exists():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _is_alive(parent: dict[str, float]) -> bool:
    """Tell whether the process that started the job still runs; a pid that was given away again does not count."""
    try:
        return abs(psutil.Process(int(parent["pid"])).create_time() - parent["created"]) < 1
    except psutil.NoSuchProcess:
        return False


def main(folder: Path) -> int:
    """Run the job in `folder`; return the exit status: 0 finished, or stopped (see stopped.json); 1 failed (see error.json)."""
    main_process = int(os.environ.get("RANK", "0")) == 0
    try:
        # the launcher keeps other commands out; this keeps out a worker that was left alone by its launcher
        with alone_in(folder, "worker.lock") if main_process else nullcontext():
            _work(folder, main_process)
        return 0
    except UserError as error:
        write_atomically(folder / "error.json", json.dumps({"message": str(error)}))
        return 1


def _work(folder: Path, main_process: bool) -> None:
    job = Job(folder)

    def stop(*_: object) -> None:
        job.stop_asked = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def report(facts: dict[str, Any]) -> None:
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            metrics.write(json.dumps(facts) + "\n")

    with freed_memory_kept():
        done = job.fit(report)
    if done == job.steps:
        job.finish()
    elif main_process:
        write_atomically(folder / "stopped.json", json.dumps({"step": done, "steps": job.steps}))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
