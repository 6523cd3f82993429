"""Start the training worker as a child, follow it, and find its finished work again.

A job lives in a folder named by the fingerprint of all that decides its result: data, prompt, model, parameters, seed,
code and library versions. The same command finds the same folder, so a killed run goes on and a finished one is done.
"""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

import luthier
from luthier.artefacts import hash_of, hash_of_file, is_complete, write_atomically
from luthier.errors import UserError
from luthier.models import ModelDirectory
from luthier.pipelines.training.lock import alone_in
from luthier.pipelines.training.mirror import Mirror

WORKER = "luthier.pipelines.training.worker"
# the code and the libraries that decide the weights
SOURCES = (
    "models.py",
    "text/chat.py",
    "pipelines/training/worker.py",
    "pipelines/training/batches.py",
    "pipelines/training/examples.py",
    "pipelines/training/lora.py",
    "likelihood.py",
    "attention.py",
)
LIBRARIES = ("accelerate", "peft", "torch", "transformers")
SECONDS_TO_SAVE = 600  # that a worker has, once told to stop, for the rest of its step and a checkpoint

Metrics = dict[str, Any]


def ingredients(job: dict[str, Any]) -> dict[str, Any]:
    """Return all that decides the result of a job, flat, so that two jobs can be compared key by key."""
    package = Path(luthier.__file__).parent
    parts: dict[str, Any] = {
        **{f"training.{key}": value for key, value in _flat(job["parameters"]).items()},
        **{f"prompt.{key}": value for key, value in job["prompt_settings"].items()},
        "examples": job["examples_sha256"],
        "model.base": job["base_identity"],
        "seed": job["seed"],
        "precision": job["precision"],
        "device": job["device"],
        "threads": job["threads"],
    }
    parts |= {f"code {source}": hash_of_file(package / source) for source in SOURCES}
    return parts | {f"version of {name}": importlib.metadata.version(name) for name in LIBRARIES}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def explain_difference(work: Path, parts: dict[str, Any]) -> str:
    """Say in one line what differs from the job before, or why there is nothing to do."""
    latest = work / "latest.json"
    if not latest.exists():
        return "Training for the first time."
    before: dict[str, Any] = json.loads(latest.read_text(encoding="utf-8"))
    changed = [key for key in parts | before if parts.get(key) != before.get(key)]
    if not changed:
        return "Nothing has changed since training was last started: data, prompt, model, parameters, seed and code are the same."
    told = []
    for key in changed:
        values = [str(side.get(key, "nothing")) for side in (before, parts)]
        told.append(f"{key} ({values[0]} -> {values[1]})" if max(map(len, values)) < 40 else key)
    return "Training anew, because these have changed: " + ", ".join(told)


def open_job(work: Path, job: dict[str, Any]) -> Path:
    """Make, or find again, the folder of a job; remember the job as the latest."""
    parts = ingredients(job)
    folder = work / hash_of(parts)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(work / "latest.json", json.dumps(parts, ensure_ascii=False))
    return folder


def write_job(folder: Path, job: dict[str, Any]) -> None:
    """Write the job file, which the worker reads; it names this process as the one to work for."""
    parent = psutil.Process()
    started_by = {"pid": parent.pid, "created": parent.create_time()}
    write_atomically(
        folder / "job.json", json.dumps({**job, "fingerprint": folder.name, "parent": started_by}, ensure_ascii=False)
    )


def result_of(folder: Path) -> ModelDirectory | None:
    """Return the finished model of a job, if there is one."""
    return ModelDirectory(folder / "result") if is_complete(folder / "result") else None


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the metrics that the worker has written, without a line that is being written."""
    return MetricsReader(folder).new()


class MetricsReader:
    """What a worker writes of its steps, read as it grows."""

    def __init__(self, folder: Path) -> None:
        """Read the metrics of the job in `folder`, from their beginning."""
        self._path = folder / "metrics.jsonl"
        self._file, self._offset = 0, 0

    def new(self) -> list[Metrics]:
        """Return the lines that were written since the last call, or all, if the file is another one: a resumed worker's."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._file, self._offset = found.st_ino, 0
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def run_worker(folder: Path, job: dict[str, Any], on_metrics: Callable[[Metrics], None], mirror: Mirror | None = None) -> None:
    """Run the worker processes of a job to their end, calling `on_metrics` for every line that they write.

    A job that another command trains already is waited for, and its result taken. When this process is interrupted, or dies, the
    worker saves a checkpoint and leaves. With a mirror, it begins with the newest copy if there is one, and each checkpoint is
    copied.

    Raises:
        UserError: if the worker failed, with its reason, or was stopped; another command trains the job and does not finish; or
            the storage of the copies cannot be read.
        KeyboardInterrupt: after the worker has saved, if this process was interrupted.
    """
    with alone_in(folder, "job.lock") as lock:
        if result_of(folder) is not None:
            return
        write_job(folder, job)
        for told in ("error.json", "stopped.json"):
            (folder / told).unlink(missing_ok=True)
        if mirror is not None:
            mirror.bring()
        child = _start(folder, job, lock)
        try:
            _follow(folder, child, on_metrics, mirror)
        except BaseException:
            child.send_signal(signal.SIGTERM)
            child.wait()
            if mirror is not None:
                mirror.finish()
            raise
        if result_of(folder) is not None:
            return
        if (folder / "error.json").exists():
            raise UserError(json.loads((folder / "error.json").read_text(encoding="utf-8"))["message"])
        if mirror is not None:
            mirror.finish()
        raise UserError(_why_it_ended(folder, child.returncode))


def _start(folder: Path, job: dict[str, Any], lock: IO[str]) -> subprocess.Popen[bytes]:
    """Start the processes of a job, which keep its lock even if this one dies before they do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(job["parameters"]["processes"])]
    command += ["--max-restarts", "0", "--shutdown-timeout", str(SECONDS_TO_SAVE), "-m", WORKER, str(folder)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if job["device"] == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    else:
        environment |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it cuBLAS does not repeat its results
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            # a session of its own: Ctrl-C in the terminal reaches us alone, and we let the worker save before it leaves
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )


def _follow(folder: Path, child: subprocess.Popen[bytes], on_metrics: Callable[[Metrics], None], mirror: Mirror | None) -> None:
    """Pass on new lines until the worker ends; a resumed worker rewrites the file, and what it does again is not told again."""
    told: set[tuple[int, bool]] = set()
    reader, sent = MetricsReader(folder), ""
    while True:
        ended = child.poll() is not None
        for metrics in reader.new():
            key = (metrics["step"], "validation_loss" in metrics)
            if key not in told:
                told.add(key)
                on_metrics(metrics)
        if ended:
            return
        newest = max((path.name for path in (folder / "checkpoints").glob("step-*")), default="")
        if mirror is not None and newest > sent and mirror.send():
            sent = newest
        time.sleep(0.2)


def _why_it_ended(folder: Path, status: int) -> str:
    stopped = folder / "stopped.json"
    if stopped.exists():
        told = json.loads(stopped.read_text(encoding="utf-8"))
        return (
            f"Training was stopped after step {told['step']} of {told['steps']}, and a checkpoint is saved. "
            "Give the same command again to go on."
        )
    log = (folder / "worker.log").read_text(encoding="utf-8", errors="replace")
    tail = "\n  ".join(log.strip().splitlines()[-12:])
    again = "give the same command again to go on from the last checkpoint"
    return f"The training worker ended with status {status}; {again}.\n  {tail}"


def clear_checkpoints(folder: Path, mirror: Mirror | None = None) -> None:
    """Delete the checkpoints of a finished job, and their copies: its result replaces them."""
    import shutil

    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if mirror is not None:
        mirror.clear()
