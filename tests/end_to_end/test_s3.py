"""The whole project with its data sets, models and reports on S3."""

import subprocess
from pathlib import PurePosixPath

import fsspec
import pytest
from commands import command, environment, make_project
from storage import ENVIRONMENT, s3_server


@pytest.mark.slow
def test_every_data_set_lies_in_the_bucket(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with s3_server() as address:
        storage = fsspec.filesystem("s3", endpoint_url=address, use_listings_cache=False)
        storage.mkdir("bucket")
        project = make_project(tmp_path / "project")
        settings = environment() | {
            "AWS_ENDPOINT_URL": address,
            "LUTHIER_DATA": "s3://bucket/luthier",
            "LUTHIER_WORK": str(tmp_path / "work"),
            "LUTHIER_CACHE": str(tmp_path / "cache"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        }
        run = command("run", "--env", "test")
        done = subprocess.run(run, env=settings, cwd=project, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "s3://bucket/luthier/08_reporting/evaluation.html/" in done.stdout
        assert [folder.name for folder in (project / "data").iterdir()] == ["01_raw"]
        stored = [PurePosixPath(found) for found in storage.find("bucket/luthier")]
    names = {path.parts[3] for path in stored}
    assert {"split_records", "tuned_model", "training_history.parquet", "evaluation.json", "data_card.html"} <= names
    assert "artifacts" in names  # of MLflow
