"""`kedro data` in a finished project."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from kedro.framework.startup import bootstrap_project
from mlflow import MlflowClient

from luthier.chain import trace
from luthier.cli import cli
from luthier.errors import UserError
from luthier.reproduce import reproduce
from tests.data_versions.stored import NEW, OLD

LATER = "2999-01-01T00.00.00.000Z"
BY_ID = "m-00020"


@pytest.fixture
def kedro(monkeypatch):
    """Return a function that gives a command in a project, in this process: to start one takes seconds."""
    for name in ("MLFLOW_TRACKING_URI", "KEDRO_ENV", "LUTHIER_DATA", "LUTHIER_WORK"):
        monkeypatch.delenv(name, raising=False)

    def invoke(folder, *arguments):
        monkeypatch.chdir(folder)
        bootstrap_project(folder)
        return CliRunner().invoke(cli, ["data", *arguments], catch_exceptions=False)

    return invoke


@pytest.fixture
def told(kedro):
    """Return a function that gives a command, and returns what it says as JSON."""

    def ask(folder, *arguments):
        done = kedro(folder, *arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return ask


def versions_on_disk(folder):
    """Return the versions of each data set."""
    return {
        path.name: sorted(version.name for version in path.iterdir())
        for layer in sorted((folder / "data").iterdir())
        if layer.name not in ("01_raw", "09_tracking") and layer.is_dir()
        for path in layer.iterdir()
        if any(version.name.startswith("2") for version in path.iterdir())
    }


def test_old_versions_go_and_the_registered_model_still_leads_back(copied, told):
    (only,) = told(copied, "versions")
    assert (only["models"], only["missing"], sum(only["rows"].values())) == ([1], [], 192)
    assert told(copied, "prune")["remove"] == []
    before = versions_on_disk(copied)
    for layer in ("02_intermediate", "03_primary", "05_model_input", "08_reporting"):  # as a later run leaves them
        for folder in (copied / "data" / layer).iterdir():
            if (folder / only["version"]).exists():
                shutil.copytree(folder / only["version"], folder / LATER)
    assert told(copied, "prune")["remove"] == []  # the candidate needs it all
    client = MlflowClient(f"sqlite:///{copied / 'mlflow.db'}")
    client.delete_registered_model_alias("luthier", "candidate")
    planned = told(copied, "prune")
    removable = {entry["data_set"] for entry in planned["remove"]}
    assert {"cleaned_records", "drift", "scrub_changes"} & removable == {"cleaned_records", "scrub_changes"}
    assert not {"split_records", "examples", "tuned_model", "evaluation"} & removable
    assert not planned["done"]
    assert versions_on_disk(copied)["cleaned_records"] == [only["version"], LATER]  # it was only said
    few = told(copied, "prune", "cleaned_records", "--yes")
    assert [entry["data_set"] for entry in few["remove"]] == ["cleaned_records"]
    assert told(copied, "prune", "--yes")["bytes"] > 0
    left = versions_on_disk(copied)
    assert left["cleaned_records"] == [LATER]
    assert left["split_records"] == [only["version"], LATER]
    assert left["tuned_model"] == before["tuned_model"]
    (version,) = client.search_model_versions("name='luthier'")
    assert trace(version.run_id, client).all_sources()


def test_old_reports_of_the_monitor_go_though_mlflow_has_no_run_of_them(copied, told):
    for version in (OLD, NEW):
        folder = copied / "data/08_reporting/drift.json" / version
        folder.mkdir(parents=True)
        (folder / "drift.json").write_text("{}")
    assert told(copied, "prune")["remove"] == [{"data_set": "drift", "version": OLD}]


def test_a_version_brought_back_is_the_same_rows_and_leads_back(copied, kedro, told, tmp_path):
    (only,) = told(copied, "versions")
    rows = copied / "data" / "03_primary" / "split_records"
    done = kedro(copied, "restore", "1")
    assert done.exit_code == 1
    assert "is the newest version already" in done.output
    for layer in ("02_intermediate", "03_primary", "05_model_input", "08_reporting"):  # a run a moment later
        for folder in (copied / "data" / layer).iterdir():
            if (folder / only["version"]).exists():
                shutil.copytree(folder / only["version"], folder / f"{only['version']}Z")
    done = kedro(copied, "restore", "1")
    assert done.exit_code == 0, done.output
    newest, *_ = found = told(copied, "versions")
    assert len(found) == 3
    assert newest["version"] == max(path.name for path in rows.iterdir())
    assert (newest["sha256"], newest["missing"]) == (only["sha256"], [])
    same = told(copied, "diff", "1")
    assert (same["added"], same["removed"], same["changed"], same["moved"]) == ([], [], {}, {})
    client = MlflowClient(f"sqlite:///{copied / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], f"tags.`luthier.session` = '{newest['version']}'")
    traced = trace(run.info.run_id, client)
    assert traced.made["split_records"] == f"{newest['version']} sha256:{only['sha256']}"
    assert [entry["file"] for entry in traced.all_sources()] == ["data/01_raw/support_messages.jsonl"]
    with pytest.raises(UserError, match="cannot be done again"):
        reproduce(traced, copied, "data", tmp_path / "again", "sqlite:///x.db")


def test_a_row_is_erased_from_files_and_versions(copied, kedro, told):
    raw = copied / "data" / "01_raw" / "support_messages.jsonl"
    before = raw.read_bytes().splitlines(keepends=True)
    found = told(copied, "erase", "--row", BY_ID)
    ((file, (line,)),) = [(entry["file"], entry["lines"]) for entry in found["raw"]]
    assert file == "data/01_raw/support_messages.jsonl"
    assert json.loads(before[line - 1])["id"] == BY_ID
    ((version, names),) = found["prepared"].items()
    assert {"records", "split_records", "examples"} <= set(names)
    assert found["models"] == [{"number": 1, "data": version, "rows": found["models"][0]["rows"]}]
    assert sum(found["models"][0]["rows"].values()) == 1
    assert raw.read_bytes().splitlines(keepends=True) == before  # it was only said
    done = kedro(copied, "erase", "--row", BY_ID, "--yes", "--reason", "ticket 7")
    assert done.exit_code == 0, done.output
    assert raw.read_bytes().splitlines(keepends=True) == before[: line - 1] + before[line:]
    left = told(copied, "erase", "--row", BY_ID)
    assert (left["raw"], left["prepared"], left["others"], left["requests"]) == ([], {}, [], 0)
    assert told(copied, "versions") == []
    assert versions_on_disk(copied)["tuned_model"]
    record = (copied / "erasures.jsonl").read_text()
    assert "ticket 7" in record
    assert BY_ID not in record


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["diff", "2031"], "No version of the data begins with '2031'"),
        (["prune", "recrods"], "did you mean 'records'?"),
        (["erase"], "Give either --row ID or --text TEXT."),
        (["erase", "--text", "ab"], "too short"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(finished, kedro, arguments, says):
    done = kedro(finished, *arguments)
    assert done.exit_code == 1
    assert says in done.output
    assert "Traceback" not in done.output


def test_without_data_it_is_told_how_to_make_some(project, kedro):
    done = kedro(project, "versions")
    assert done.exit_code == 0, done.output
    assert "kedro run --pipeline data_processing" in done.stdout


def test_figures_of_the_evaluation_are_written_as_they_are(finished, kedro, tmp_path):
    done = kedro(finished, "metrics", str(tmp_path / "in" / "metrics.json"))
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "in" / "metrics.json").read_text())
    (path,) = Path(finished, "data", "08_reporting", "evaluation.json").glob("*/evaluation.json")
    evaluation = json.loads(path.read_text())
    assert written["tuned"]["field_accuracy"] == evaluation["models"]["tuned"]["field_accuracy"]["value"]
    assert written["examples"] == evaluation["examples"]
