"""A machine that is taken away: another one goes on from the copies of its checkpoints, to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.artefacts import MANIFEST, staged, verify
from luthier.pipelines.training import launch
from luthier.pipelines.training.mirror import Mirror
from tests.pipelines.training import jobs
from tests.pipelines.training.test_launch import PYTHONPATH, Home, processes_of

TRAINER = """
import json, sys
from pathlib import Path
from luthier.pipelines.training import launch
from luthier.pipelines.training.mirror import Mirror
job, work, uri = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
launch.WORKER = "killed_worker"
folder = launch.open_job(work, job)
(folder / "moment.json").write_text(json.dumps({"call": "optimiser step", "number": 8, "hold": True}))
launch.run_worker(folder, 1, 1, "cpu", print, Mirror(folder, uri))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def whole(home):
    return jobs.forge().train(home.job(), home.folder / "whole")


def copies(storage: Path, job: Path) -> list[str]:
    return sorted(path.parent.name for path in (storage / job.name).glob(f"step-*/{MANIFEST}"))


def test_another_machine_goes_on_where_the_first_was_taken_away(home, whole, tmp_path, caplog):
    storage, folder = tmp_path / "storage", tmp_path / "first" / whole.name
    command = [sys.executable, "-c", TRAINER, json.dumps(home.job()), str(tmp_path / "first"), f"file://{storage}"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, stdout=subprocess.DEVNULL) as parent:
        jobs.wait_until(lambda: copies(storage, folder) == ["step-00000003", "step-00000006"], "two checkpoints are copied")
        jobs.wait_until((folder / "held").exists, "the worker is in step 8")
        parent.kill()
        for process in processes_of(folder):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(tmp_path / "first")
    # the newest copy was broken off: the one before it is taken
    (storage / folder.name / "step-00000009").mkdir()
    (storage / folder.name / "step-00000009" / "optimizer.pt").write_bytes(b"half")

    second = launch.open_job(tmp_path / "second", home.job())
    mirror = Mirror(second, f"file://{storage}")
    with caplog.at_level("INFO"):
        launch.run_worker(second, 1, 1, "cpu", lambda metrics: None, mirror)
    assert "Checkpoint step-00000006 is taken" in caplog.text
    assert jobs.result(second).manifest == jobs.result(whole).manifest
    assert jobs.history(second) == jobs.history(whole)
    launch.clear_checkpoints(second, mirror)
    assert not (storage / folder.name).exists()
    assert not list(second.glob(".sending-*"))


def test_what_is_here_is_not_fetched_and_the_newest_two_are_kept(home, whole, tmp_path):
    storage, folder = tmp_path / "storage", tmp_path / "job"
    mirror = Mirror(folder, f"file://{storage}")
    assert mirror.bring() is None  # there is none yet
    for step in (3, 6, 9):
        with staged(folder / "checkpoints" / f"step-{step:08d}", step=step) as staging:
            (staging / "weights.safetensors").write_text(str(step))
        mirror.finish()
    assert copies(storage, folder) == ["step-00000006", "step-00000009"]
    verify(storage / "job" / "step-00000009")
    shutil.rmtree(folder / "checkpoints" / "step-00000009")
    mirror.bring()
    assert verify(folder / "checkpoints" / "step-00000009")["step"] == 9
    (storage / "job" / "step-00000009" / "weights.safetensors").write_text("damaged")
    mirror.bring()
    assert (folder / "checkpoints" / "step-00000009" / "weights.safetensors").read_text() == "9"


def test_a_storage_that_is_away_ends_no_training(home, tmp_path, caplog):
    (tmp_path / "storage").write_text("no folder")
    folder = launch.open_job(tmp_path / "work", home.job(steps=4))
    mirror = Mirror(folder, f"file://{tmp_path}/storage")
    launch.run_worker(folder, 1, 1, "cpu", lambda metrics: None, mirror)
    launch.clear_checkpoints(folder, mirror)
    assert launch.result_of(folder) is not None
