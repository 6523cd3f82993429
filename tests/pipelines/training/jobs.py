"""Training jobs for the tests of training: small, seeded, run by the real launcher in real processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.configuration import FolderParameters, ModelParameters
from luthier.models import Base, ModelDirectory, load_tokenizer, resolve_base
from luthier.pipelines.training import launch
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.shards import Shards, write_shards
from luthier.text.chat import encode

STEPS, EVERY = 10, 3
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.2}  # so that the random state matters
TRAIN, VALIDATION = 25, 7  # batches of 8 leave a last one of a single example: fewer than two processes
WORDS = ("arch", "belly", "bout", "bridge", "chin", "fret", "glue", "inlay", "maple", "nut", "peg", "plate", "purfling", "scroll")

Metrics = dict[str, Any]
Moment = dict[str, Any]  # see killed_worker.py


def folders_in(folder: Path) -> FolderParameters:
    """Return the folders of a project in `folder`."""
    return FolderParameters(root=str(folder), base_models=str(folder / "base"), shards="", work=str(folder / "work"))


def tiny_base(folder: Path) -> Base:
    """Build the tiny model."""
    return resolve_base(ModelParameters(base="tiny:llama"), folders_in(folder))


def write_examples(folder: Path, base: Base, seed: int = 0, weights: Sequence[float] = (1.0,)) -> Shards:
    """Write examples of very different lengths, weighted in turn: the answer repeats words of the question."""
    tokenizer, random = load_tokenizer(base), np.random.default_rng(seed)
    rows = []
    for number in range(TRAIN + VALIDATION):
        words = random.choice(WORDS, size=int(random.integers(2, 12))).tolist()
        answer = " ".join(words[: int(random.integers(1, len(words) + 1))])
        messages = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": answer}]
        encoded = encode(tokenizer, messages)
        split = "train" if number < TRAIN else "validation"
        rows.append(
            {
                "id": f"example-{number}",
                "split": split,
                "weight": weights[number % len(weights)],
                "input_ids": encoded.input_ids,
                "supervised": encoded.supervised,
            }
        )
    return write_shards(pa.Table.from_pylist(rows), folder)


def make_job(
    home: Path, examples: Shards, *, steps: int = 10, seed: int = 7, device: str = "cpu", **parameters: Any
) -> dict[str, Any]:
    """Return a job as the node `train` makes it, for the tiny model in fp32."""
    settings: dict[str, Any] = {
        "batch_size": 8,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "evaluate_every": 3,
        "checkpoint_every": 3,
    }
    settings["lora"] = {"rank": 4, "alpha": 8}
    return {
        "examples": str(examples.folder),
        "examples_sha256": examples.sha256,
        "prompt_settings": {"system": None, "user": "{{ text }}"},
        "model": ModelParameters(base="tiny:llama").model_dump(),
        "base_identity": tiny_base(home).identity,
        "folders": folders_in(home).model_dump(),
        "parameters": TrainingParameters(**(settings | parameters)).model_dump(),
        "steps": steps,
        "seed": seed,
        "precision": "fp32",
        "device": device,
        "threads": 1,
    }


def run(job: dict[str, Any], work: Path) -> Path:
    """Train as the node does, and return the job's folder."""
    folder = launch.open_job(work, job)
    launch.run_worker(folder, job, lambda metrics: None)
    return folder


def ready(job: dict[str, Any], work: Path) -> Path:
    """Return the job's folder with its job file, for a worker without launcher."""
    folder = launch.open_job(work, job)
    launch.write_job(folder, job)
    return folder


def result(folder: Path) -> ModelDirectory:
    """Return the finished model."""
    model = launch.result_of(folder)
    assert model is not None
    return model


def curve(folder: Path, key: str = "loss") -> list[float]:
    """Return one figure over the steps."""
    return [metrics[key] for metrics in launch.read_metrics(folder) if key in metrics]


def history(folder: Path) -> list[Metrics]:
    """Return the metrics without those of time."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in launch.read_metrics(folder)]


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the finished checkpoints."""
    return sorted(json.loads(path.read_text())["step"] for path in folder.glob("checkpoints/step-*/manifest.json"))


class Forge:
    """A process that has imported all that a worker needs and forks one for each call: a second instead of ten.

    Its workers are real, single processes, but they are not started by torch.distributed.run.
    """

    def __init__(self) -> None:
        settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )

    def work(self, folder: Path, moment: Moment | None = None) -> int:
        """Run the worker in a job's folder, to be killed at a moment; return its exit status."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), "moment": moment}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def train(self, job: dict[str, Any], work: Path) -> Path:
        """Train to the end and return the job's folder."""
        folder = ready(job, work)
        status = self.work(folder)
        assert status == 0, (folder / "worker.log").read_text()
        return folder


@cache
def forge() -> Forge:
    """Return the one forge of this test session; it ends when its standard input is closed, with this process."""
    return Forge()


def wait_until(done: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.02)


class Home:
    """A folder with base model, examples and"""

    def __init__(self, folder: Path) -> None:
        forge()
        self.folder = folder
        self.examples = write_examples(folder / "examples", tiny_base(folder))

    def job(self, **settings):
        defaults = {"lora": DROPOUT, "steps": STEPS, "checkpoint_every": EVERY}
        return make_job(self.folder, self.examples, **(defaults | settings))
