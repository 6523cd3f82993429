"""Airflow runs the pipelines as tasks of one graph, and MLflow keeps them as one run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment, kedro_in, output
from mlflow import MlflowClient

AIRFLOW = "LUTHIER_AIRFLOW"
"""Variable that names the program: docs/orchestrators.md says how to install it."""


def made(tmp_path, *options):
    """Return the file that kedro-airflow makes of our template."""
    done = kedro_in(
        ROOT, "airflow", "create", "--jinja-file", "deploy/airflow/dag.py.j2", "--target-dir", str(tmp_path / "dags"), *options
    )
    assert done.returncode == 0, output(done)
    (file,) = (tmp_path / "dags").iterdir()
    return file


def test_each_pipeline_waits_for_those_whose_data_it_reads(tmp_path):
    file = made(tmp_path, "--env", "test", "--params", "schedule='@weekly'")
    text = file.read_text(encoding="utf-8")
    (after,) = (node.value for node in ast.parse(text).body if isinstance(node, ast.AnnAssign))
    assert ast.literal_eval(after) == {
        "data_processing": [],
        "training": ["data_processing"],
        "evaluation": ["data_processing", "training"],
        "deployment": ["data_processing", "evaluation", "training"],
    }
    assert (re.findall('dag_id="(.*)"', text), re.findall("schedule=(.*),", text)) == (["luthier_test"], ['"@weekly"'])
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), str(file)], check=True)


@pytest.mark.slow
def test_airflow_runs_all_pipelines_in_one_run(tmp_path):
    program = os.environ.get(AIRFLOW)
    if not program:
        pytest.skip(f"{AIRFLOW} names no Airflow: docs/orchestrators.md installs one, which takes minutes")
    file = made(tmp_path, "--env", "test")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = {"DAGS_FOLDER": str(file.parent), "LOAD_EXAMPLES": "False"}
    airflow = {"AIRFLOW_HOME": str(tmp_path / "home")} | {f"AIRFLOW__CORE__{name}": value for name, value in settings.items()}
    ours = {"LUTHIER_PROJECT": str(ROOT), "LUTHIER_DATA": str(tmp_path / "data"), "LUTHIER_WORK": str(tmp_path / "work")}
    for arguments in (["db", "migrate"], ["dags", "test", "luthier_test"]):
        done = subprocess.run(
            [Path(program).resolve(), *arguments],
            env=environment() | airflow | ours | {"MLFLOW_TRACKING_URI": store},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, output(done)
    client = MlflowClient(store)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.run_name == "data_processing, training, evaluation, deployment"
    assert run.data.tags["luthier.begun_by"].startswith("airflow manual__")
    assert len(run.data.tags["luthier.session"].split()) == 4
    (version,) = client.search_model_versions("name = 'luthier'")
    assert version.run_id == run.info.run_id
