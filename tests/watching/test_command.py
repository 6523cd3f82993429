"""`kedro monitor` as cron gives it: exit codes, an act that is done once, and mistakes that are told."""

import json
import shutil
import socket

import pytest
from commands import kedro_in, output
from mlflow import MlflowClient

from luthier.registry import Registry
from tests.pipelines.monitoring.test_nodes import MESSAGES, OTHER, logged_messages, message
from tests.watching.test_acts import server

__all__ = ["server"]


@pytest.mark.slow
def test_drift_starts_a_training_once_and_the_log_says_so(copied, server, monkeypatch):
    url, seen = server
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_0123456789")
    folder = copied / "data" / "06_models" / "serving"
    folder.mkdir(parents=True)
    workflow = {"repository": "team/models", "api": url}
    settings = {"monitoring": {"drift": {"window": 50, "draws": 799}, "act": {"workflow": workflow}}}
    (copied / "conf/test/parameters_monitoring.yml").write_text(json.dumps(settings))
    assert kedro_in(copied, "promote", "1", "--force", "--reason", "a test", "--env", "test").returncode == 0
    logged_messages(folder, [message(text) for text in [*MESSAGES[:50], *(OTHER * 34)[:100]]])
    # somebody has prepared other data since
    prepared = copied / "data/03_primary/split_records"
    (made_from,) = (path.name for path in prepared.iterdir())
    shutil.copytree(prepared / made_from, prepared / "2099-01-01T00.00.00.000Z")

    once = kedro_in(copied, "monitor", "--once", "--env", "test")
    assert once.returncode == 3, output(once)
    assert "Decision: retrain" in output(once)
    assert "With --act this would follow: retrain" in output(once)
    assert seen == []
    run = MlflowClient(f"sqlite:///{copied / 'mlflow.db'}").search_runs(["1"], "tags.`luthier.monitoring` = 'retrain'")[0]
    assert run.data.tags["luthier.data.split_records"].split()[0] == made_from
    quiet = kedro_in(copied, "run", "--pipeline", "monitoring", "--env", "test", LUTHIER_UNTRACKED="monitoring")
    assert "Decision: retrain" in output(quiet)
    told = kedro_in(copied, "run", "--pipeline", "monitoring", "--nodes", "log_monitoring", "--env", "test")
    assert told.returncode == 0, output(told)
    known = MlflowClient(f"sqlite:///{copied / 'mlflow.db'}").search_runs(["1"], "tags.`luthier.monitoring` = 'retrain'")
    assert len(known) == 2
    assert len(list((copied / "data/08_reporting/drift.json").iterdir())) == 2

    acting = kedro_in(copied, "monitor", "--once", "--act", "--env", "test")
    assert acting.returncode == 3, output(acting)
    assert [path for path, *_ in seen] == ["/repos/team/models/actions/workflows/train.yml/dispatches"]
    assert "ghp_0123456789" not in output(acting)
    again = kedro_in(copied, "monitor", "--once", "--act", "--env", "test")
    assert "Not done, retrain: the last such act was at" in output(again)
    assert len(seen) == 1
    lines = Registry("luthier", f"sqlite:///{copied / 'mlflow.db'}").log.lines()
    assert [line.action for line in lines] == ["promote", "retrain"]
    assert lines[-1].who.startswith("kedro monitor, ")
    assert "2 of the last three windows" in lines[-1].reason
    page = max((copied / "data/08_reporting/monitoring.html").glob("*/monitoring.html"))
    assert "retrain" in page.read_text()


def test_mistakes_are_told(project):
    missing = kedro_in(project, "monitor", "--once", "--env", "test")
    assert missing.returncode == 1
    assert "requests: written by `kedro serve`" in output(missing)
    assert "Traceback" not in output(missing)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = kedro_in(project, "monitor", "--port", str(taken.getsockname()[1]), "--env", "test")
    assert busy.returncode == 1
    assert "cannot be listened on" in output(busy)
    assert "Traceback" not in output(busy)
