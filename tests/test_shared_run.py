"""Several commands in one MLflow run: only what one run could have done."""

import mlflow
import pytest
from mlflow import MlflowClient

from luthier.errors import UserError
from luthier.lineage import run_facts
from luthier.pipeline_registry import TOGETHER
from luthier.shared_run import VARIABLE, begun, continued, without


def facts(*pipelines, parameters=None, at="c1", changes="", **params):
    """Return what one command records."""
    return run_facts({"pipeline_names": list(pipelines), "env": "test", **params}, parameters or {"seed": 0}, at, changes)


def after(earlier, *pipelines, finished=True):
    """Return the pipelines of the run once another command has gone on with it."""
    return continued(facts(*pipelines), earlier, TOGETHER, finished)


def test_commands_that_share_a_run_are_one_run_of_their_pipelines():
    both = after(facts("data_processing"), "training")
    assert both == facts("data_processing", "training")
    assert after(both, "training") == both  # tried again
    assert after(facts(), "inference")["pipelines"] == [*TOGETHER, "inference"]


@pytest.mark.parametrize(
    ("earlier", "asked"),
    [
        (["data_processing", "training"], ["data_processing"]),
        ([], ["data_processing"]),  # all of them
        (["data_processing", "training", "evaluation"], []),
        (["data_processing", "training", "inference"], ["training"]),
        ([], []),
        (["data_processing", "training"], ["data_processing", "training"]),
    ],
)
def test_what_was_made_from_a_pipelines_data_stays_made_from_it(earlier, asked):
    with pytest.raises(UserError, match="once more would put other data under what came after"):
        after(facts(*earlier), *asked)


def test_all_of_it_may_be_tried_again_after_a_failure():
    assert after(facts(), finished=False)["pipelines"] == list(TOGETHER)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (facts("training", parameters={"seed": 1}), "seed was 0 and is 1"),
        (facts("training", parameters={"seed": 0, "epochs": 2}), "epochs was None and is 2"),
        (facts("training", env="cluster"), "begun with --env test"),
        (facts("training", at="c2"), "begun with the commit c1, and now it is c2"),
        (facts("training", changes="a line"), "begun with local changes of the hash None"),
        (facts("training", node_names=["plan"]), "select no nodes"),
    ],
)
def test_what_could_not_be_done_again_as_one_is_refused(second, told):
    with pytest.raises(UserError, match=told):
        continued(second, facts("data_processing"), TOGETHER, True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return an MLflow of its own, with a run of this project's, a deleted one and one of another's."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    client = MlflowClient(uri)
    ours, other = (client.create_experiment(name) for name in ("ours", "theirs"))
    runs = {"good": ours, "deleted": ours, "other": other}
    runs = {name: client.create_run(experiment).info.run_id for name, experiment in runs.items()}
    client.delete_run(runs["deleted"])
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield runs
    mlflow.set_tracking_uri(before)


def test_the_run_that_is_named_is_gone_on_with(store):
    assert begun({VARIABLE: store["good"]}, "ours").info.run_id == store["good"]
    assert begun({}, "ours") is None
    assert begun(without({VARIABLE: store["good"], "A": "b"}), "ours") is None


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("", "set and empty"),
        ("0" * 32, "there is no run 0000"),
        ("not an id", "there is no run not an id"),
        ("deleted", "was deleted"),
        ("other", "belongs to the experiment theirs"),
    ],
)
def test_a_run_that_cannot_be_gone_on_with_is_told(store, named, told):
    with pytest.raises(UserError, match=told):
        begun({VARIABLE: store.get(named, named)}, "ours")


def test_a_server_that_does_not_answer_is_no_missing_run(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(UserError, match="MLflow cannot be asked for run"):
            begun({VARIABLE: store["good"]}, "ours")
    finally:
        mlflow.set_tracking_uri(before)
