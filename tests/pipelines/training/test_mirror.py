"""A machine that is taken away: another one goes on from the copies of its checkpoints, to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from storage import ENVIRONMENT, s3_server

from luthier.artefacts import MANIFEST, staged, verify
from luthier.errors import UserError
from luthier.pipelines.training import launch
from luthier.pipelines.training.mirror import Mirror
from tests.pipelines.training import jobs
from tests.pipelines.training.test_launch import PYTHONPATH, processes_of

TRAINER = """
import json, sys
from pathlib import Path
from luthier.pipelines.training import launch
from luthier.pipelines.training.mirror import Mirror
job, work, uri = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
launch.WORKER = "killed_worker"
folder = launch.open_job(work, job)
(folder / "moment.json").write_text(json.dumps({"call": "optimiser step", "number": 8, "hold": True}))
launch.run_worker(folder, job, print, Mirror(folder, uri))
"""


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """Return the file system and the URI of an empty bucket."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server}).items():
        monkeypatch.setenv(name, value)
    storage = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    if storage.exists("bucket"):
        storage.rm("bucket", recursive=True)
    storage.mkdir("bucket")
    return storage, "s3://bucket/checkpoints"


def copies(storage, job: Path) -> list[str]:
    return sorted(path.split("/")[-2] for path in storage.glob(f"bucket/checkpoints/{job.name}/step-*/{MANIFEST}"))


@pytest.mark.slow
def test_another_machine_goes_on_where_the_first_was_taken_away(home, whole, tmp_path, bucket, caplog):
    storage, uri = bucket
    folder = tmp_path / "first" / whole.name
    command = [sys.executable, "-c", TRAINER, json.dumps(home.job()), str(tmp_path / "first"), uri]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, stdout=subprocess.DEVNULL) as parent:
        try:
            jobs.wait_until((folder / "held").exists, "the worker is in step 8")
            jobs.wait_until(lambda: "step-00000006" in copies(storage, folder), "the newest checkpoint is copied")
        finally:
            parent.kill()
            for process in processes_of(folder):
                os.kill(process, signal.SIGKILL)
    shutil.rmtree(tmp_path / "first")
    # the copy after it was broken off
    storage.pipe_file(f"bucket/checkpoints/{folder.name}/step-00000009/optimizer.pt", b"half")

    second = launch.open_job(tmp_path / "second", home.job())
    mirror = Mirror(second, uri)
    with caplog.at_level("INFO"):
        launch.run_worker(second, home.job(), lambda metrics: None, mirror)
    assert "Checkpoint step-00000006 is taken" in caplog.text
    assert jobs.result(second).manifest == jobs.result(whole).manifest
    assert jobs.history(second) == jobs.history(whole)
    launch.clear_checkpoints(second, mirror)
    assert not storage.exists(f"bucket/checkpoints/{folder.name}")
    assert not list(second.glob(".sending-*"))


def test_what_is_here_is_not_fetched_and_the_newest_two_are_kept(tmp_path, bucket):
    storage, uri = bucket
    folder = tmp_path / "job"
    mirror = Mirror(folder, uri)
    mirror.bring()  # there is none yet
    for step in (3, 6, 9):
        with staged(folder / "checkpoints" / f"step-{step:08d}", step=step) as staging:
            (staging / "weights.safetensors").write_text(str(step))
        mirror.finish()
    assert copies(storage, folder) == ["step-00000006", "step-00000009"]
    shutil.rmtree(folder / "checkpoints" / "step-00000009")
    mirror.bring()
    assert verify(folder / "checkpoints" / "step-00000009")["step"] == 9
    storage.pipe_file("bucket/checkpoints/job/step-00000009/weights.safetensors", b"damaged")
    mirror.bring()
    assert (folder / "checkpoints" / "step-00000009" / "weights.safetensors").read_text() == "9"


def test_each_checkpoint_is_sent_though_the_one_before_takes_longer_than_the_steps_between(tmp_path, bucket):
    storage, uri = bucket
    folder = tmp_path / "job"
    mirror = Mirror(folder, uri)
    slow, go_on = mirror._storage.exists, threading.Event()

    def exists(path):
        go_on.wait(60)
        return slow(path)

    mirror._storage.exists = exists
    (folder / ".sending-killed").mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    following = threading.Thread(target=launch._follow, args=(folder, child, print, mirror))
    mirror.bring()
    assert not list(folder.glob(".sending-*"))
    following.start()
    for step in (3, 6):
        with staged(folder / "checkpoints" / f"step-{step:08d}", step=step) as staging:
            (staging / "weights.safetensors").write_text(str(step))
        jobs.wait_until(lambda: mirror._sending is not None, "the first is being sent")
        time.sleep(0.5)  # the follower looks
    go_on.set()
    jobs.wait_until(lambda: "step-00000006" in copies(storage, folder), "the second is sent though no third came")
    child.communicate(b"\n")
    following.join()


def test_a_copy_that_broke_off_is_completed(tmp_path, bucket):
    storage, uri = bucket
    folder = tmp_path / "job"
    with staged(folder / "checkpoints" / "step-00000003", step=3) as staging:
        (staging / "weights.safetensors").write_text("3")
    storage.pipe_file("bucket/checkpoints/job/step-00000003/weights.safetensors", b"ha")
    Mirror(folder, uri).finish()
    assert copies(storage, folder) == ["step-00000003"]
    shutil.rmtree(folder / "checkpoints")
    Mirror(folder, uri).bring()
    assert (folder / "checkpoints" / "step-00000003" / "weights.safetensors").read_text() == "3"


def test_a_storage_that_does_not_answer_is_told_at_the_start_and_forgiven_at_the_end(tmp_path, monkeypatch, caplog):
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # those of other tests speak to their servers
    mirror = Mirror(tmp_path / "job", "s3://bucket/checkpoints")
    with pytest.raises(UserError, match="the storage of the checkpoints cannot be read"):
        mirror.bring()
    mirror.clear()
    assert "cannot be deleted" in caplog.text
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_storage_that_is_away_ends_no_training(home, tmp_path, bucket, caplog):
    storage, uri = bucket
    job = home.job(steps=4)
    folder = launch.open_job(tmp_path / "work", job)
    storage.rm("bucket", recursive=True)
    mirror = Mirror(folder, uri)
    launch.run_worker(folder, job, lambda metrics: None, mirror)
    assert launch.result_of(folder) is not None
    assert "is not copied to" in caplog.text
    launch.clear_checkpoints(folder, mirror)
