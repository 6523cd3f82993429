"""The project as its user runs it: real commands in a project folder, with the tiny model."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest
from commands import ROOT, command, environment, kedro_in, output
from mlflow.tracking import MlflowClient

from luthier.artefacts import is_complete, verify
from luthier.pipelines.data_processing.croissant_check import check
from luthier.shards import Shards


def newest(project: Path, name: str) -> Path:
    """Return the newest version of a versioned dataset, given as LAYER/NAME."""
    folder = project / "data" / name
    return max(folder.iterdir()) / folder.name


def test_run_writes_every_artefact_once_and_whole(finished):
    for name in ("02_intermediate/records", "03_primary/split_records", "05_model_input/examples", "06_models/tuned_model"):
        assert verify(newest(finished, name))["files"]
    report = newest(finished, "08_reporting/evaluation.html").read_text()
    assert "<svg" in report
    assert not re.search(r'(src|href)="https?:', report)
    evaluation = json.loads(newest(finished, "08_reporting/evaluation.json").read_text())
    for model in ("majority", "tfidf", "base", "tuned"):
        for figure in evaluation["models"][model].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert not list(finished.glob("data/**/.staging-*"))


def test_summary_names_the_next_commands(finished):
    log = (finished / "run.log").read_text()
    assert "field accuracy" in log
    assert "make viz" in log
    assert "make ui" in log


def test_every_row_is_accounted_for(finished):
    report = json.loads(newest(finished, "08_reporting/data_report.json").read_text())
    steps = report["steps"]
    assert steps["validate_rows"]["in"] == report["rows_read"] == 200
    for before, after in pairwise(steps.values()):
        assert before["out"] == after["in"]
    for name, step in steps.items():
        assert step["in"] - step["dropped"] == step["out"], name
        assert sum(report["dropped"].get(name, {}).values()) == step["dropped"], name
    assert sum(report["examples"].values()) == steps["tokenise_records"]["out"]


def test_bad_rows_stand_in_quarantine_with_line_and_reason(finished):
    raw = finished / "data/01_raw"
    planted = json.loads((raw / "planted_defects.json").read_text())["defects"]
    expected = {entry["line"] for entry in planted if entry["expected"] == "quarantined" and entry["line"] <= 200}
    quarantine = Shards(newest(finished, "02_intermediate/quarantine")).to_pandas()
    assert set(quarantine["line"]) == expected
    assert quarantine["reason"].str.len().min() > 5


def test_the_description_is_valid_and_its_records_load(finished):
    folder = newest(finished, "08_reporting/described_data")
    page = json.loads((folder / "croissant.json").read_text())
    assert check(page, folder) == []
    assert '<script type="application/ld+json">' in (folder / "data_card.html").read_text()


@pytest.mark.slow
def test_one_parameter_points_at_data_of_another_shape(project):
    chats = [
        {"conversations": [{"from": "human", "value": f"question {n} about {n * 7}?"}, {"from": "gpt", "value": f"answer {n}"}]}
        for n in range(60)
    ]
    (project / "chats.json").write_text(json.dumps(chats))
    done = kedro_in(
        project, "run", "--env", "test", "--params", "data.path=chats.json,data_processing.deduplicate.near_threshold=1"
    )
    assert done.returncode == 0, output(done)
    assert "60 rows of shape sharegpt" in output(done)
    assert "they are not used" in output(done)
    settings = json.loads(newest(project, "02_intermediate/prompt_settings.json").read_text())
    assert (settings["system"], settings["user"]) == (None, None)


def test_a_second_run_finds_every_shard_finished(copied):
    before = sorted(path.name for path in (copied / "data/02_intermediate/work").glob("*/*"))
    done = kedro_in(copied, "run", "--env", "test", "--pipeline", "data_processing")
    assert done.returncode == 0, output(done)
    assert sorted(path.name for path in (copied / "data/02_intermediate/work").glob("*/*")) == before
    versions = sorted((copied / "data/05_model_input/examples").iterdir())
    assert len(versions) == 2
    assert len({Shards(version / "examples").sha256 for version in versions}) == 1


def test_mlflow_holds_parameters_metrics_inputs_and_lineage(finished):
    mlflow.set_tracking_uri(f"sqlite:///{finished / 'mlflow.db'}")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("luthier")
    assert Path(experiment.artifact_location.removeprefix("file://")).is_relative_to(finished)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lora.rank"] == "16"
    assert len(client.get_metric_history(run.info.run_id, "training/loss")) == 6
    assert "evaluation/tuned/field_accuracy" in run.data.metrics
    assert any(name.startswith("system/") for name in run.data.metrics)
    inputs = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    digest = verify(newest(finished, "05_model_input/examples"))["sha256"]
    assert digest.startswith(inputs["examples"])
    assert run.data.tags["luthier.git_commit"]
    assert {"lineage", "plots"} <= {entry.path for entry in client.list_artifacts(run.info.run_id)}


def test_without_git_lineage_says_unknown(finished):
    # the project of the tests is no repository: a ZIP or a container look the same
    mlflow.set_tracking_uri(f"sqlite:///{finished / 'mlflow.db'}")
    experiment = MlflowClient().get_experiment_by_name("luthier")
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert run.data.tags["luthier.git_commit"] == "unknown"


def test_second_training_does_nothing_and_says_why_and_a_changed_parameter_is_named(copied):
    (copied / "inner").mkdir()
    again = kedro_in(copied / "inner", "run", "--env", "test", "--pipeline", "training")
    assert again.returncode == 0, output(again)
    assert "Nothing has changed since training was last started" in output(again)
    assert "No training step is needed" in output(again)
    first, second = sorted((copied / "data/06_models/tuned_model").iterdir())
    assert verify(first / "tuned_model")["sha256"] == verify(second / "tuned_model")["sha256"]

    changed = kedro_in(copied, "run", "--env", "test", "--pipelines", "training", "--params", "training.learning_rate=0.0005")
    assert changed.returncode == 0, output(changed)
    assert "training.learning_rate (0.002 -> 0.0005)" in output(changed)
    third = max((copied / "data/06_models/tuned_model").iterdir())
    assert verify(third / "tuned_model")["sha256"] != verify(second / "tuned_model")["sha256"]


def test_parts_of_a_pipeline_and_old_versions_run(copied):
    version = next((copied / "data/07_model_output/scores.parquet").iterdir()).name
    arguments = ["--from-nodes", "compare_models", "--load-versions", f"scores:{version}"]
    done = kedro_in(copied, "run", "--env", "test", "--pipeline", "evaluation", *arguments)
    assert done.returncode == 0, output(done)
    old, new = (
        json.loads(next(path.iterdir()).read_text()) for path in sorted((copied / "data/08_reporting/evaluation.json").iterdir())
    )
    assert old == new


def test_missing_inputs_name_the_pipeline_that_makes_them(project):
    done = kedro_in(project, "run", "--env", "test", "--pipeline", "training")
    assert done.returncode != 0
    assert "examples: made by `kedro run --pipeline data_processing`" in output(done)
    assert "Traceback" not in output(done)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            "training.lerning_rate=0.1,training.epochs=-1,modle.base=x",
            ["did you mean 'learning_rate'", "training.epochs", "'model'"],
        ),
        ("data.path=data/01_raw/nothing.jsonl", ["data.path: there is no file data/01_raw/nothing.jsonl"]),
        ("model.base=packaged:smollm3", ["no packaged model 'smollm3'", "smollm2-135m-instruct"]),
        ("model.base=some-team/some-model", ["fetched from the Hugging Face hub", "Without network"]),
    ],
)
def test_a_mistake_is_told_without_a_traceback(project, params, expected):
    done = kedro_in(project, "run", "--env", "test", "--pipeline", "data_processing", "--params", params)
    assert done.returncode != 0
    assert "Traceback" not in output(done)
    for text in expected:
        assert text in output(done), output(done)


def test_a_wrong_key_in_a_file_is_told_with_its_line(project):
    (project / "conf/local/parameters.yml").write_text("training:\n  epochs: 1\n  batchsize: 3\n")
    done = kedro_in(project, "run")
    assert done.returncode != 0
    assert "local/parameters.yml:3 training.batchsize: unknown key (did you mean 'batch_size'?)" in output(done)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_training_goes_on_to_the_same_model(copied, signal_number):
    before = verify(newest(copied, "06_models/tuned_model"))["sha256"]
    shutil.rmtree(copied / "data/06_models/work")
    shutil.rmtree(copied / "data/06_models/tuned_model")
    arguments = command("run", "--env", "test", "--pipeline", "training")
    with (copied / "interrupted.log").open("w") as log:
        running = subprocess.Popen(arguments, cwd=copied, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while not list(copied.glob("data/06_models/work/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(running.pid, signal_number)
        assert running.wait(60) != 0
    assert not list(copied.glob("data/06_models/tuned_model/*/tuned_model/manifest.json"))
    again = kedro_in(copied, "run", "--env", "test", "--pipeline", "training")
    assert again.returncode == 0, output(again)
    assert verify(newest(copied, "06_models/tuned_model"))["sha256"] == before


def test_a_half_written_version_is_never_read(copied):
    folder = copied / "data/05_model_input/examples/9999-01-01T00.00.00.000Z/examples"
    folder.mkdir(parents=True)
    shutil.copy(newest_finished(copied), folder)
    done = kedro_in(copied, "run", "--env", "test", "--pipeline", "training")
    assert done.returncode == 0, output(done)
    assert "Nothing has changed" in output(done)


def newest_finished(project: Path) -> Path:
    """Return a shard of the newest whole version of the examples."""
    folders = [path for path in project.glob("data/05_model_input/examples/*/examples") if is_complete(path)]
    return max(folders) / "part-00000.parquet"


def test_the_command_line_does_not_import_heavy_libraries(project):
    probe = "import sys, luthier.cli, luthier.settings, luthier.pipeline_registry as r; r.register_pipelines()\n"
    probe += "print([m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules])"
    done = subprocess.run([*command()[:1], "-c", probe], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_cleaned_is_as_new(copied, project):
    assert (copied / "mlflow.db-luthier.lock").exists()
    subprocess.run(["make", "-f", str(ROOT / "Makefile"), "clean"], cwd=copied, capture_output=True, check=True)
    left, new = ({path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (copied, project))
    assert left - {Path("run.log")} == new  # that the tests keep


def test_help_is_told(project):
    done = kedro_in(project, "run", "--help")
    assert done.returncode == 0
    assert "--pipelines" in done.stdout


@pytest.mark.slow
def test_kedro_viz_builds(copied):
    done = kedro_in(copied, "viz", "build", "--include-hooks", "--include-previews")
    assert done.returncode == 0, output(done)
    main = json.loads((copied / "build/api/main").read_text())
    names = {node["name"] for node in main["nodes"]}
    assert {"train", "tuned_model", "evaluation_report"} <= names
    assert {"intermediate", "models", "reporting"} <= set(main["layers"])
