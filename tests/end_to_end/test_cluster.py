"""`kedro run --env cluster`: S3, PostgreSQL and a Ray cluster of two nodes make the very bytes that one machine makes of files."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import psutil
import pytest
import yaml
from commands import command, environment, make_project
from faulty import Faults, faulty
from postgres import postgresql
from ray_cluster import Cluster, ray_cluster
from storage import ENVIRONMENT, s3_server

from luthier.artefacts import MANIFEST, hash_of

KILLS = int(os.environ.get("LUTHIER_KILLS", "6"))  # each costs half a minute
FAULTS_A_KILL = 10


def tiny_cluster(folder: Path) -> Path:
    """Make a project whose environment `cluster` has the tiny model of `test`."""
    project = make_project(folder)
    file = project / "conf" / "cluster" / "parameters.yml"
    tiny = yaml.safe_load((project / "conf" / "test" / "parameters.yml").read_text())
    cluster = yaml.safe_load(file.read_text())
    tiny["data_processing"] = tiny.get("data_processing", {}) | cluster.pop("data_processing")
    file.write_text(yaml.safe_dump(cluster | tiny))
    return project


def model_of(storage, root: str) -> tuple[str, dict]:
    """Return root hash and files of the newest model in a storage."""
    manifest = max(storage.glob(f"{root}/06_models/tuned_model/*/tuned_model/{MANIFEST}"))
    found = json.loads(storage.cat_file(manifest))
    return found["sha256"], found["files"]


def manifests(storage, root: str) -> list[str]:
    return storage.glob(f"{root}/*/*/*/*/{MANIFEST}")


def broken(storage, root: str) -> list[str]:
    """Return the artefacts that a reader would take for whole though they are not."""
    wrong = []
    for manifest in manifests(storage, root):
        folder = manifest.rpartition("/")[0]
        said = json.loads(storage.cat_file(manifest))
        for name, entry in said["files"].items():
            if not storage.exists(f"{folder}/{name}") or hash_of(storage.cat_file(f"{folder}/{name}")) != entry["sha256"]:
                wrong.append(f"{folder}/{name}")
    for file in storage.glob(f"{root}/08_reporting/*.json/*/*.json"):
        try:
            json.loads(storage.cat_file(file))
        except ValueError:
            wrong.append(file)
    return wrong


def run(project: Path, variables: dict[str, str], *what: str) -> "subprocess.Popen[bytes]":
    log = (project / "run.log").open("ab")
    settings = environment() | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        command("run", *(what or ("--env", "cluster"))), env=settings, cwd=project, stdout=log, stderr=log, start_new_session=True
    )


def of_cluster(storage: str, database: str, cluster: Cluster, folder: Path) -> dict[str, str]:
    """Return what docs/cluster.md sets, for servers of a test's own."""
    places = {
        "AWS_ENDPOINT_URL": storage,
        "MLFLOW_S3_ENDPOINT_URL": storage,
        "LUTHIER_DATA": "s3://bucket/luthier",
        "LUTHIER_WORK": str(folder / "work"),
        "LUTHIER_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": database,
        "LUTHIER_REQUEST_LOG_URI": database,
        "RAY_ADDRESS": cluster.address,
    }
    return ENVIRONMENT | cluster.environment | places


def lines_of(project: Path) -> int:
    return (project / "run.log").read_bytes().count(b"\n")


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a run and all that it started, at once."""
    family = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *family]:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait(30)


@pytest.mark.slow
def test_the_same_model_comes_from_a_cluster_whatever_storage_and_machines_do(finished, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    local = fsspec.filesystem("file")
    expected = model_of(local, str(finished / "data"))
    project, faults, chance = tiny_cluster(tmp_path / "project"), Faults(0.12, 7), random.Random(7)
    with s3_server() as address, faulty(address, faults) as bad, postgresql() as database, ray_cluster() as cluster:
        storage = fsspec.filesystem("s3", endpoint_url=address, use_listings_cache=False, skip_instance_cache=True)
        storage.mkdir("bucket")
        variables = of_cluster(bad, database, cluster, tmp_path)
        kills = 0
        while kills < KILLS:
            process, end = run(project, variables), time.monotonic() + 300
            # at a random moment of a random step; the first ones more often, as they come again and again
            moment = lines_of(project) + min(chance.randint(1, 40) for _ in range(3))
            while process.poll() is None and lines_of(project) < moment:
                assert time.monotonic() < end, (project / "run.log").read_text()[-5000:]
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 0.5))
            if process.poll() is not None:
                assert process.returncode == 0, (project / "run.log").read_text()[-5000:]
                continue
            kill(process)
            kills += 1
            if kills == KILLS // 2:
                cluster.kill(1)  # one machine less, from now on
            assert broken(storage, "bucket/luthier") == []
        last = run(project, variables)
        assert last.wait(600) == 0, (project / "run.log").read_text()[-5000:]
        print(f"{kills} kills, {sum(faults.seen.values())} faults: {dict(faults.seen)}")
        assert sum(faults.seen.values()) >= FAULTS_A_KILL * KILLS
        assert len(manifests(storage, "bucket/luthier")) > 10  # what is looked through is there
        assert broken(storage, "bucket/luthier") == []
        assert model_of(storage, "bucket/luthier") == expected
        assert [folder.name for folder in (project / "data").iterdir()] == ["01_raw"]


@pytest.mark.slow
@pytest.mark.skipif("LUTHIER_REAL_CLUSTER" not in os.environ, reason="trains the real model twice: set LUTHIER_REAL_CLUSTER=1")
def test_the_real_model_is_the_same_too(tmp_path, monkeypatch):
    """Without faults, with the model and the data of `make run`."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    trained = ("--pipelines", "data_processing,training")
    here, there = make_project(tmp_path / "here"), make_project(tmp_path / "there")
    with s3_server() as address, postgresql() as database, ray_cluster() as cluster:
        storage = fsspec.filesystem("s3", endpoint_url=address, use_listings_cache=False, skip_instance_cache=True)
        storage.mkdir("bucket")
        threads = {"OMP_NUM_THREADS": "2"}
        for project, variables, what in (
            (here, threads, trained),
            (there, of_cluster(address, database, cluster, tmp_path) | threads, (*trained, "--env", "cluster")),
        ):
            assert run(project, variables, *what).wait(3600) == 0, (project / "run.log").read_text()[-5000:]
        model = model_of(fsspec.filesystem("file"), str(here / "data"))
        print(f"sha256 of the model: {model[0]}")
        assert model_of(storage, "bucket/luthier") == model
