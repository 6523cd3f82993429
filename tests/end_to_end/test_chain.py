"""From a run back to the bytes of the source files, and the same run once more."""

import hashlib
import io
import json

import mlflow
import pytest
from commands import kedro_in, output
from rich.console import Console

from luthier.chain import as_html, as_tree, trace
from luthier.errors import UserError
from luthier.reproduce import _pin, changed_sources, compare, reproduce

RAW = "data/01_raw/support_messages.jsonl"


def client_of(folder):
    """Return a client of a project's database."""
    return mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(client):
    """Return the runs of a project, the newest first."""
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_a_run_leads_back_to_its_source_files(finished):
    client = client_of(finished)
    (run, *_) = runs_of(client)
    found = trace(run.info.run_id[:8], client)
    (source,) = found.all_sources()
    assert source["file"] == RAW
    assert source["sha256"] == hashlib.sha256((finished / RAW).read_bytes()).hexdigest()
    assert {"records", "split_records", "examples", "tuned_model"} <= found.made.keys()
    assert found.facts["parameters"]["model"]["base"] == "tiny:llama"
    json.dumps(found.as_dict())
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_tree(found, "Lineage"))
    page = as_html(found, "Lineage <b>")
    for text in (console.export_text(), page):
        assert source["sha256"] in text
        assert found.made["tuned_model"] in text
    assert "Lineage &lt;b&gt;" in page
    assert "http" not in page


def test_a_run_that_is_not_there_is_told(finished):
    with pytest.raises(UserError, match=r"No run begins with 'zzz'. The last ones: [0-9a-f]{8}"):
        trace("zzz", client_of(finished))


def test_a_source_file_that_has_changed_is_told(finished, tmp_path):
    client = client_of(finished)
    found = trace(runs_of(client)[0].info.run_id, client)
    assert changed_sources(found, finished) == []
    assert changed_sources(found, tmp_path) == [f"{RAW} is missing"]
    (tmp_path / RAW).parent.mkdir(parents=True)
    (tmp_path / RAW).write_text("other")
    (told,) = changed_sources(found, tmp_path)
    assert told.startswith(f"{RAW} has changed: it was sha256:{found.sources[0]['sha256']}")


def test_a_candidate_whose_name_holds_dots_is_pinned():
    parameters = {
        "evaluation": {"champion": "champion", "candidates": [{"name": "v1", "version": 9}, {"name": "v1.2", "version": "x"}]}
    }
    _pin(parameters, "evaluation.champion", 3)
    _pin(parameters, "evaluation.candidates.v1.2.version", 4)
    assert parameters["evaluation"]["champion"] == 3
    assert [one["version"] for one in parameters["evaluation"]["candidates"]] == [9, 4]


@pytest.mark.slow
def test_a_run_done_again_gives_the_same_bytes(finished, tmp_path):
    client = client_of(finished)
    before = trace(runs_of(client)[-1].info.run_id, client)
    again = reproduce(before, finished, str(finished / "data"), tmp_path, f"sqlite:///{finished / 'mlflow.db'}")
    after = trace(again, client_of(tmp_path))
    compared = compare(before, after)
    assert {"records", "split_records", "examples", "tuned_model", "evaluation"} <= {found.name for found in compared}
    assert [found.name for found in compared if not found.same] == []


@pytest.mark.slow
def test_a_run_that_asked_the_champion_asks_the_same_version_again(copied, tmp_path):
    def kedro(*arguments, **variables):
        done = kedro_in(copied, *arguments, "--env", "test", **variables)
        assert done.returncode == 0, output(done)
        return done.stdout.strip()

    kedro("promote", "--force", "--reason", "a test")
    shared = {"MLFLOW_RUN_ID": kedro("begin", "--by", "a scheduler")}  # one run, as an orchestrator makes it
    rooms = ["data_processing", "training", "evaluation", "deployment"]
    for room in rooms:
        kedro("run", "--pipeline", room, "--params", "seed=1", **shared)
    kedro("promote", "--force", "--reason", "a test")
    client = client_of(copied)
    before = trace(shared["MLFLOW_RUN_ID"], client)
    assert (before.facts["pipelines"], len(set(before.sessions)), before.earlier) == (rooms, 4, [])
    assert before.versions == {"evaluation.champion": 1}  # since then it is 2
    uri = f"sqlite:///{copied / 'mlflow.db'}"
    after = trace(reproduce(before, copied, str(copied / "data"), tmp_path, uri), client_of(tmp_path))
    assert after.versions == before.versions
    other = kedro_in(copied, "run", "--env", "test", "--pipeline", "training", **shared)
    assert (other.returncode, "seed was 1 and is 0" in output(other)) == (1, True)
    assert [found.name for found in compare(before, after) if not found.same] == []
