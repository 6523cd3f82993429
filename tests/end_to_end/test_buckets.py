"""The whole project with its data sets, models and reports in a bucket: of S3, of Google Cloud Storage."""

import subprocess
from pathlib import PurePosixPath

import fsspec
import pytest
from commands import command, environment, make_project
from storage import ENVIRONMENT, GOOGLE, gcs_server, s3_server

KINDS = {
    "s3": (s3_server, ENVIRONMENT, "AWS_ENDPOINT_URL"),
    "gs": (gcs_server, GOOGLE, "STORAGE_EMULATOR_HOST"),
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", KINDS)
def test_every_data_set_lies_in_the_bucket(tmp_path, monkeypatch, protocol):
    server, variables, endpoint = KINDS[protocol]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with server() as address:
        monkeypatch.setenv(endpoint, address)
        storage = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
        storage.mkdir("bucket")
        project = make_project(tmp_path / "project")
        settings = environment() | {
            endpoint: address,
            "LUTHIER_DATA": f"{protocol}://bucket/luthier",
            "LUTHIER_WORK": str(tmp_path / "work"),
            "LUTHIER_CACHE": str(tmp_path / "cache"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        }
        run = command("run", "--env", "test")
        done = subprocess.run(run, env=settings, cwd=project, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{protocol}://bucket/luthier/08_reporting/evaluation.html/" in done.stdout
        assert [folder.name for folder in (project / "data").iterdir()] == ["01_raw"]
        stored = [PurePosixPath(found) for found in storage.find("bucket/luthier")]
    names = {path.parts[3] for path in stored}
    assert {"split_records", "tuned_model", "training_history.parquet", "evaluation.json", "data_card.html"} <= names
    assert "artifacts" in names  # of MLflow
