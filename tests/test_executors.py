"""Whoever does the work, and however often it is stopped, the results are the same bytes."""

import ast
import os
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from commands import ROOT
from tasks import fail, kill_myself, note_times, write

from luthier import executors
from luthier.artefacts import is_complete
from luthier.errors import UserError
from luthier.executors import LIBRARIES, SECONDS_KEPT, Executor, Task, key_of, stored

RUN = """
import json, sys
from pathlib import Path
import yaml
from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.pipelines.data_processing import nodes
from luthier.pipelines.data_processing.parameters import DataProcessingParameters

def main():
    root, raw, work, backend = sys.argv[1:]
    base = yaml.safe_load(Path(root, "conf/base/parameters.yml").read_text())
    steps = yaml.safe_load(Path(root, "conf/base/parameters_data_processing.yml").read_text())["data_processing"]
    steps["executor"] = {"backend": backend, "workers": 2, "rows_per_shard": 150}
    data, parameters = DataParameters(**base["data"] | {"path": raw}), DataProcessingParameters(**steps)
    folders = FolderParameters(root=root, base_models=str(Path(work).parent / "models"), shards=work, work=work)
    last = (parameters, folders)
    rows, sources = nodes.ingest_rows(data, ModelParameters(base="tiny:llama"), *last)
    prompt, schema = nodes.fix_prompt_settings(sources, data, parameters), nodes.load_answer_schema(sources, data, folders)
    records, origins, quarantine = nodes.validate_rows(rows, sources, prompt, schema, data, *last)
    cleaned = nodes.clean_records(records, prompt, *last)[0]
    scrubbed = nodes.scrub_records(cleaned, prompt, *last)[0]
    assessed = nodes.assess_quality(scrubbed, *last)[0]
    unique, _, clusters = nodes.deduplicate_records(assessed, *last)
    divided, table = nodes.split_records(unique, clusters, parameters, 0, folders)
    clear = nodes.decontaminate_records(divided, prompt, *last)[0]
    examples, _ = nodes.tokenise_records(clear, ModelParameters(base="tiny:llama"), *last)
    tables = {"records": records, "cleaned": cleaned, "scrubbed": scrubbed, "unique": unique, "table": table, "clear": clear,
              "examples": examples}
    print(json.dumps({name: found.sha256 for name, found in tables.items()} | {"shards": len(records.files)}))

if __name__ == "__main__":
    main()
"""


def start(folder: Path, raw: Path, work: str, backend: str) -> "subprocess.Popen[str]":
    """Start the chain over a file in a process of its own."""
    script = folder / "run.py"
    script.write_text(RUN)
    arguments = [sys.executable, str(script), str(ROOT), str(raw), str(folder / work), backend]
    environment = os.environ | {"RAY_DISABLE_IMPORT_WARNING": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def result(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Return the hashes that the chain printed."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return yaml.safe_load(out.splitlines()[-1])


@pytest.fixture(scope="module")
def raw() -> Path:
    """Return the shipped messages."""
    return ROOT / "data/01_raw/support_messages.jsonl"


@pytest.fixture(scope="module")
def expected(tmp_path_factory, raw) -> dict[str, str]:
    """Return the hashes of the chain in one process."""
    found = result(start(tmp_path_factory.mktemp("serial"), raw, "work", "serial"))
    assert found["shards"] > 5
    return found


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(tmp_path, raw, expected):
    assert result(start(tmp_path, raw, "work", "process")) == expected


@pytest.mark.slow
def test_shuffled_input_makes_the_same_bytes(tmp_path, raw, expected):
    lines = raw.read_text(encoding="utf-8").splitlines()
    random.Random(1).shuffle(lines)
    shuffled = tmp_path / "support_messages.jsonl"
    shuffled.write_text("\n".join(lines), encoding="utf-8")
    assert result(start(tmp_path, shuffled, "work", "process")) == expected


@pytest.mark.slow
def test_ray_makes_the_same_bytes(tmp_path, raw, expected):
    assert result(start(tmp_path, raw, "work", "ray")) == expected


@pytest.mark.slow
def test_no_more_ray_tasks_run_at_a_time_than_there_are_workers(tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for Ray's workers
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)  # as a cluster has more cores than one may want
    try:
        outs = Executor(tmp_path, "ray", 2).map("step", note_times, [Task({"n": n}) for n in range(8)])
    finally:
        ray.shutdown()
    spans = [tuple(map(float, (out / "times").read_text().split())) for out in outs]
    together = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(together) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_chain_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path, raw, expected, seed):
    process = start(tmp_path, raw, "work", "process")
    time.sleep(random.Random(seed).uniform(2, 14))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path for path in (tmp_path / "work").glob("*/*") if is_complete(path)}
    before = {path: (path / "manifest.json").stat().st_ino for path in finished}
    assert result(start(tmp_path, raw, "work", "process")) == expected
    assert {path: (path / "manifest.json").stat().st_ino for path in finished} == before


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path, raw):
    process = start(tmp_path, raw, "work", "process")
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    workers = []
    while not workers and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = [child for child in parent.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    assert workers
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


@pytest.mark.parametrize("backend", ["serial", "process"])
def test_a_task_is_done_once_and_results_come_in_order(tmp_path, backend):
    log = tmp_path / "log"
    executor = Executor(tmp_path / "work", backend, 2)
    tasks = [Task({"text": text}, {"text": text, "log": str(log)}) for text in "abcab"]
    for _ in range(2):
        found = executor.map("step", write, tasks)
        assert [(out / "text").read_text() for out in found] == list("abcab")
    assert sorted(log.read_text()) == ["a", "b", "c"]
    executor.map("step", write, [Task({"text": "a", "more": 1}, {"text": "a", "log": str(log)})])
    assert sorted(log.read_text()) == ["a", "a", "b", "c"]


@pytest.mark.parametrize("backend", ["serial", "process"])
def test_an_error_is_told_and_finished_tasks_stay(tmp_path, backend):
    executor = Executor(tmp_path, backend, 2)
    with pytest.raises(UserError, match="b is bad"):
        executor.map("step", fail, [Task({"t": text}, {"text": text}) for text in "ab"])
    time.sleep(0.2)
    assert not list((tmp_path / "step").glob(".staging-*")) or backend == "process"
    assert (executor.map("step", fail, [Task({"t": "a"}, {"text": "a"})])[0] / "text").read_text() == "a"


def test_a_worker_that_is_killed_is_an_error_in_plain_words(tmp_path):
    with pytest.raises(UserError, match="a worker was killed"):
        Executor(tmp_path, "process", 2).map("step", kill_myself, [Task({"n": n}) for n in range(2)])


@pytest.mark.parametrize("error", ["OutOfMemoryError", "WorkerCrashedError", "NodeDiedError"])
def test_a_ray_task_whose_worker_is_killed_is_an_error_in_plain_words(tmp_path, monkeypatch, error):
    import ray

    kinds = {"OutOfMemoryError": ("memory",), "WorkerCrashedError": (), "NodeDiedError": ("gone",)}

    def lost(_):
        raise getattr(ray.exceptions, error)(*kinds[error])

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda *_: object()))
    monkeypatch.setattr(ray, "wait", lambda running: (running[:1], running[1:]))
    monkeypatch.setattr(ray, "get", lost)
    monkeypatch.setattr(ray, "cancel", lambda *_, **__: None)
    with pytest.raises(UserError, match="a worker was killed"):
        Executor(tmp_path, "ray", 2).map("step", kill_myself, [Task({"n": n}) for n in range(2)])


def test_old_results_are_forgotten_and_used_ones_are_not(tmp_path):
    executor = Executor(tmp_path, "serial")
    tasks = {text: Task({"text": text}, {"text": text, "log": os.devnull}) for text in "ab"}
    (old,), (used,) = (executor.map("step", write, [task]) for task in tasks.values())
    past = time.time() - SECONDS_KEPT - 60
    for out in (old, used):
        os.utime(out, (past, past))
    executor.map("step", write, [tasks["b"]])
    assert not old.exists()
    assert used.exists()


def test_tables_and_arrays_are_named_by_what_they_hold(tmp_path):
    import numpy as np

    executor = Executor(tmp_path, "serial")
    one, other = executor.store("arrays", ({"x": np.arange(n)} for n in (3, 4)))
    assert one != other
    assert [one] == executor.store("arrays", [{"x": np.arange(3)}])
    found = stored(one)["x"]
    assert list(found) == [0, 1, 2]
    assert not found.flags.owndata  # mapped: the tasks of a machine share it
    for array in (np.zeros((2, 0), np.uint64), np.array(["ä", "bc"]), np.array([], str), np.ones((2, 3), bool).T):
        (folder,) = executor.store("arrays", [{"a": array}])
        assert np.array_equal(stored(folder)["a"], array)


def test_old_arrays_are_forgotten_and_what_a_task_reads_is_not(tmp_path):
    import numpy as np

    executor = Executor(tmp_path, "serial")
    old, read, asked = executor.store("arrays", ({"x": np.arange(n)} for n in range(3)))
    past = time.time() - SECONDS_KEPT - 60
    for out in (old, read, asked):
        os.utime(out, (past, past))
    stored(read)  # by a task of another run, which has been under way for long
    executor.store("arrays", ({"x": np.arange(n)} for n in (2, 3)))
    assert not old.exists()
    assert list(stored(read)["x"]) == [0]
    assert list(stored(asked)["x"]) == [0, 1]


# what the steps import that changes no byte of their results
NOT_DECIDING = {
    "fsspec": "brings bytes, which are hashed",
    "huggingface_hub": "brings the model, whose identity is in the keys",
    "kedro": "wires the nodes",
    "markupsafe": "for the data card, which is written outside of the maps, like all that follows",
    "matplotlib": "for plots",
    "mlcroissant": "for the description",
    "mlflow": "for lineage",
    "pandas": "for those who look at a table",
    "peft": "for adapters",
    "psutil": "counts cores and memory",
    "pydantic": "checks the parameters, which are in the keys as they are after that",
    "yaml": "reads what is in the keys",
    "ray": "is where the work is done",
    "rich": "draws the bar",
    "torch": "for models; tokenizers do without",
}


def imports_of(module):
    """Return the modules that a module imports, in functions too, as far as names tell."""
    for node in ast.walk(ast.parse(source_of(module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source_of(module):
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_results_are_named_by_all_that_the_steps_import():
    steps = (ROOT / "src/luthier/pipelines/data_processing").glob("*.py")
    waiting = [f"luthier.pipelines.data_processing.{path.stem}" for path in steps if path.stem != "__init__"]
    ours, others = set(), set()
    while waiting:
        module = waiting.pop()
        if not module.startswith("luthier"):
            others.add(module.split(".")[0])
        elif module not in ours and source_of(module).is_file():  # else a name in a module
            ours.add(module)
            waiting += imports_of(module)
    hashed = {source for part in executors.SOURCES for source in (ROOT / "src/luthier" / part).glob("*.py")}
    assert {source_of(module) for module in ours} <= hashed | {ROOT / "src/luthier/pipelines/__init__.py"}
    assert others >= NOT_DECIDING.keys()
    owners = packages_distributions()
    deciding = others - sys.stdlib_module_names - NOT_DECIDING.keys()
    found = {name for top in deciding for name in owners.get(top, [top])}  # an extra may not be installed
    assert {name.lower().replace("_", "-") for name in found} == {*LIBRARIES}


@pytest.mark.parametrize("library", [*LIBRARIES, "Python"])
def test_another_version_makes_other_results(monkeypatch, library):
    before = executors.code_version.__wrapped__()
    if library == "Python":
        monkeypatch.setattr("platform.python_version", lambda: "3.11.999")
    else:
        known = executors.version
        monkeypatch.setattr(executors, "version", lambda name: "999" if name == library else known(name))
    assert executors.code_version.__wrapped__() != before


def test_keys_do_not_run_together():
    assert key_of("ab", "c") != key_of("a", "bc")
    assert len(key_of("")) == 32
