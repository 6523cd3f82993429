"""Runs that are killed, stopped or orphaned, and go on to the very bytes of an uninterrupted run."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.artefacts import write_atomically
from luthier.errors import UserError
from luthier.pipelines.training import launch, lock
from tests.pipelines.training import jobs
from tests.pipelines.training.jobs import DROPOUT, EVERY, STEPS

PYTHONPATH = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
# how often a run of 10 steps that saves after 3, 6, 9 and 10 calls each function
CALLS = {"optimiser step": 10, "file of a checkpoint": 8, "manifest": 5, "rename": 5, "clearing": 7}


@pytest.fixture
def launched_with_moments(monkeypatch):
    """Let the launcher start `killed_worker` in the place of the worker."""
    monkeypatch.setattr(launch, "WORKER", "killed_worker")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def set_moment(folder, **moment):
    (folder / "moment.json").write_text(json.dumps(moment))


def log(folder):
    return (folder / "worker.log").read_text()


def assert_same_end(folder, whole):
    assert jobs.result(folder).manifest == jobs.result(whole).manifest
    assert jobs.history(folder) == jobs.history(whole)
    launch.clear_checkpoints(folder)  # as the node does
    assert not list(folder.rglob(".staging-*"))


def processes_of(folder):
    """Return the processes of a job: the launcher's child and the workers."""
    running = psutil.process_iter(["cmdline"])
    return [process.pid for process in running if str(folder) in (process.info["cmdline"] or [])]


def files_of(folder):
    """Return when each file of a job was last written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.endswith(".lock")}


def random_kill(chance):
    call = chance.choice(list(CALLS))
    # not too late, so that some steps are left to do after several kills
    return {"call": call, "number": chance.randint(1, CALLS[call] // 2), "after": chance.random() < 0.5}


# -- killed -------------------------------------------------------------------------------------------------------------


def slowly(*values):
    """Mark values of a parameter for the slow set."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("seed", [0, *slowly(1, 2, 3)])
@pytest.mark.parametrize("call", CALLS)
def test_a_killed_run_goes_on_to_the_same_bytes(home, whole, tmp_path, call, seed):
    chance = random.Random(f"{call} {seed}")
    number, after = chance.randint(1, CALLS[call]), chance.random() < 0.5
    folder = jobs.ready(home.job(), tmp_path / "work")
    assert jobs.forge().work(folder, {"call": call, "number": number, "after": after}) == -signal.SIGKILL
    assert f"killed {'after' if after else 'before'} {call} {number}" in log(folder)
    jobs.forge().train(home.job(), tmp_path / "work")
    assert_same_end(folder, whole)


@pytest.mark.parametrize("seed", [0, 1, *slowly(*range(2, 20))])
def test_a_run_killed_again_and_again_goes_on_to_the_same_bytes(home, whole, tmp_path, seed):
    chance = random.Random(seed)
    folder = jobs.ready(home.job(), tmp_path / "work")
    kills, saved = 0, []
    for _ in range(4):
        status = jobs.forge().work(folder, random_kill(chance))
        assert status in (0, -signal.SIGKILL), log(folder)
        kills += status != 0
        saved += jobs.checkpoint_steps(folder)
    assert log(folder).count("killed ") == kills > 0
    assert EVERY in saved  # it went on from the middle at least once
    jobs.forge().train(home.job(), tmp_path / "work")
    assert_same_end(folder, whole)


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(home, whole, tmp_path):
    folder = jobs.ready(home.job(), tmp_path / "work")
    assert jobs.forge().work(folder, {"call": "optimiser step", "number": 8}) == -signal.SIGKILL
    assert jobs.checkpoint_steps(folder) == [3, 6]
    weights = folder / "checkpoints" / "step-00000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    jobs.forge().train(home.job(), tmp_path / "work")
    assert "weights.safetensors has changed" in log(folder)
    assert_same_end(folder, whole)


def killed_under_the_launcher(job, work, *moments):
    """Make the same call again and again: killed at each moment, at last to the end."""
    folder = launch.open_job(work, job)
    for moment, saved in moments:
        set_moment(folder, **moment)
        text = f"killed {'after' if moment['after'] else 'before'} {moment['call']} {moment['number']}"
        with pytest.raises(UserError, match="go on from the last checkpoint") as told:
            jobs.run(job, work)
        assert "status 1" in str(told.value)
        assert text in log(folder)
        assert jobs.checkpoint_steps(folder) == saved
    return jobs.run(job, work)


def test_a_run_killed_under_the_launcher_goes_on_by_the_same_call(home, whole, tmp_path, launched_with_moments):
    moment = {"call": "rename", "number": 2, "after": False}
    assert_same_end(killed_under_the_launcher(home.job(), tmp_path, (moment, [3])), whole)


@pytest.mark.slow
def test_two_processes_killed_go_on_by_the_same_call(home, tmp_path, launched_with_moments):
    job = home.job(processes=2)
    moments = [
        ({"call": "rename", "number": 2, "after": False}, [3]),
        ({"call": "optimiser step", "number": 5, "after": True}, [3, 6]),
    ]
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(jobs.run, job, tmp_path / "whole")
        folder = killed_under_the_launcher(job, tmp_path / "killed", *moments)
        whole = whole.result()
    states = torch.load(folder / "checkpoints" / f"step-{STEPS:08d}" / "random.pt", weights_only=True)
    assert not torch.equal(states[0]["torch"], states[1]["torch"])  # each process drops out on its own
    assert_same_end(folder, whole)


# -- stopped, orphaned --------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_tells_and_the_same_call_goes_on(home, whole, tmp_path, launched_with_moments):
    folder = launch.open_job(tmp_path / "work", home.job())
    set_moment(folder, call="optimiser step", number=5, hold=True)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(jobs.run, home.job(), tmp_path / "work")
        jobs.wait_until((folder / "held").exists, "the worker is in step 5")
        child = next(p for p in psutil.Process().children() if str(folder) in p.cmdline())
        child.terminate()
        jobs.wait_until(lambda: "closing signal SIGTERM" in log(folder), "the worker is told")
        (folder / "go").touch()
        with pytest.raises(UserError, match=r"stopped after step 5 of 10.*same command again"):
            running.result()
    assert jobs.checkpoint_steps(folder) == [3, 5]
    assert not processes_of(folder)
    jobs.forge().train(home.job(), tmp_path / "work")
    assert_same_end(folder, whole)


ORPHAN_MAKER = """
import json, sys
from pathlib import Path
from luthier.pipelines.training import launch, lock
job, work = json.loads(sys.argv[1]), Path(sys.argv[2])
launch.WORKER = "killed_worker"
folder = launch.open_job(work, job)
(folder / "moment.json").write_text(json.dumps({"call": "optimiser step", "number": 5, "hold": True}))
launch.run_worker(folder, job, print)
"""


def test_an_orphaned_worker_saves_and_leaves_by_itself(home, whole, tmp_path, monkeypatch):
    folder = tmp_path / "work" / whole.name
    command = [sys.executable, "-c", ORPHAN_MAKER, json.dumps(home.job()), str(tmp_path / "work")]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, stdout=subprocess.DEVNULL) as parent:
        try:
            jobs.wait_until((folder / "held").exists, "the worker is in step 5")
        finally:
            parent.kill()
    assert processes_of(folder)
    # until it has left, nobody else writes there
    before = files_of(folder)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="Another process trains in"):
        patch.setattr(lock, "PATIENCE", 0.2)
        jobs.run(home.job(), tmp_path / "work")
    assert files_of(folder) == before
    (folder / "go").touch()
    jobs.wait_until(lambda: not processes_of(folder), "the orphan has left")
    assert json.loads((folder / "stopped.json").read_text()) == {"step": 5, "steps": STEPS}
    assert jobs.checkpoint_steps(folder) == [3, 5]
    jobs.forge().train(home.job(), tmp_path / "work")
    assert_same_end(folder, whole)


def test_a_second_worker_waits_for_the_first_to_leave(home, whole, tmp_path):
    folder = jobs.ready(home.job(), tmp_path / "work")
    with (folder / "worker.lock").open("w") as held, ThreadPoolExecutor() as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        running = pool.submit(jobs.forge().train, home.job(), tmp_path / "work")
        time.sleep(3)  # without the lock it would be done by now
        assert not running.done()
        assert not (folder / "metrics.jsonl").exists()
        fcntl.flock(held, fcntl.LOCK_UN)
        running.result()
    assert_same_end(folder, whole)


def test_a_second_command_takes_the_result_of_the_first_and_disturbs_nothing(
    home, whole, tmp_path, launched_with_moments, monkeypatch
):
    folder = launch.open_job(tmp_path / "work", home.job())
    set_moment(folder, call="optimiser step", number=5, hold=True)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(jobs.run, home.job(), tmp_path / "work")
        jobs.wait_until((folder / "held").exists, "the worker is in step 5")
        before = (files_of(folder), processes_of(folder))
        with monkeypatch.context() as patch, pytest.raises(UserError, match="Another process trains in"):
            patch.setattr(lock, "PATIENCE", 0.2)
            jobs.run(home.job(), tmp_path / "work")
        second = pool.submit(jobs.run, home.job(), tmp_path / "work")
        time.sleep(1)  # longer than it takes to start a process
        assert (files_of(folder), processes_of(folder)) == before
        (folder / "go").touch()
        assert first.result() == second.result() == folder
    assert_same_end(folder, whole)


@pytest.mark.slow
def test_an_interrupted_call_lets_the_worker_save(home, tmp_path, launched_with_moments):
    """What Ctrl-C does: the exception passes through the call, and the worker has left when it does."""
    job = home.job(steps=60)
    folder = launch.open_job(tmp_path / "work", job)

    def interrupt(metrics):
        if metrics["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run_worker(folder, job, interrupt)
    assert not processes_of(folder)
    stopped = json.loads((folder / "stopped.json").read_text())
    assert jobs.checkpoint_steps(folder)[-1] == stopped["step"] < 60


# -- told ---------------------------------------------------------------------------------------------------------------


def test_only_damaged_checkpoints_are_told_not_trained_over(home, tmp_path):
    folder = jobs.ready(home.job(), tmp_path / "work")
    assert jobs.forge().work(folder, {"call": "optimiser step", "number": 5}) == -signal.SIGKILL
    (folder / "checkpoints" / "step-00000003" / "optimizer.pt").write_bytes(b"")
    for _ in range(2):
        assert jobs.forge().work(folder) == 1
        assert "optimizer.pt has changed" in json.loads((folder / "error.json").read_text())["message"]
    assert launch.result_of(folder) is None


def test_a_finished_job_is_found_by_the_same_job_only(home, whole):
    assert launch.open_job(home.folder / "whole", home.job()) == whole
    assert launch.result_of(launch.open_job(home.folder / "whole", home.job() | {"seed": 99})) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 0.5}, "training.learning_rate (0.01 -> 0.5)"),
        ({"lora": DROPOUT | {"rank": 5}}, "training.lora.rank (4 -> 5)"),
        ({"seed": 8}, "seed (7 -> 8)"),
        ({"max_steps": 3}, "training.max_steps (None -> 3)"),
    ],
)
def test_what_has_changed_is_named_and_nothing_else(home, tmp_path, change, told):
    launch.open_job(tmp_path, home.job())
    difference = launch.explain_difference(tmp_path, launch.ingredients(home.job(**change)))
    assert difference == f"Training anew, because these have changed: {told}"


def test_the_first_and_an_unchanged_training_are_told(home, tmp_path):
    parts = launch.ingredients(home.job())
    assert "first time" in launch.explain_difference(tmp_path, parts)
    launch.open_job(tmp_path, home.job())
    assert launch.explain_difference(tmp_path, parts).startswith("Nothing has changed")
    changed = parts | {"prompt.system": "Be brief.", "version of torch": "9.9", "examples": "f" * 64}
    told = launch.explain_difference(tmp_path, changed)
    for name in ("prompt.system (None -> Be brief.)", "version of torch (", "examples"):
        assert name in told
    assert "f" * 64 not in told  # a hash tells nobody anything


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.data())
def test_metrics_are_read_on_line_by_line_however_they_are_written(tmp_path_factory, steps, data):
    folder = tmp_path_factory.mktemp("job")
    reader, read = launch.MetricsReader(folder), []
    text = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    for begin, end in pairwise([0, *cuts, len(text)]):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(text[begin:end])
        new = reader.new()
        assert len(new) == text[:end].count("\n") - len(read)
        read += [line["step"] for line in new]
    assert read == steps
    assert reader.new() == []
    # what a resumed worker does with the steps that it does again
    kept = data.draw(st.integers(0, len(steps)))
    write_atomically(folder / "metrics.jsonl", "".join(text.splitlines(keepends=True)[:kept]))
    assert [line["step"] for line in reader.new()] == steps[:kept]


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert launch.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("call", ["optimiser step", "file of a checkpoint", "rename"])
def test_a_killed_run_on_gpus_goes_on_to_the_same_bytes(home, tmp_path, launched_with_moments, processes, call):
    job = home.job(processes=processes, device="cuda")
    whole = jobs.run(job, tmp_path / "whole")
    folder = launch.open_job(tmp_path / "work", job)
    set_moment(folder, call=call, number=3)
    with pytest.raises(UserError):
        jobs.run(job, tmp_path / "work")
    assert f"killed before {call} 3" in log(folder)
    jobs.run(job, tmp_path / "work")
    assert_same_end(folder, whole)
