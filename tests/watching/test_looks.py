"""A look compares with the data of what is in production, whatever was prepared since."""

import subprocess
import time
from types import SimpleNamespace

import pytest
from commands import ROOT
from kedro.config import OmegaConfigLoader
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

from luthier.settings import CONFIG_LOADER_ARGS
from luthier.watching.looks import Looks, data_in_production
from tests.data_versions.stored import NEW, NEXT, OLD, catalog, record, records, save_document


@pytest.fixture
def rows(tmp_path):
    """Return records in three versions."""
    (dataset,) = catalog(str(tmp_path / "data"), "split_records")
    for version in (OLD, NEW, NEXT):
        records(dataset, version, [record("a")])
    return dataset


def say(registry, number, tag, version):
    """Tag the run of a version of the model."""
    registry.client.set_tag(registry.resolve(number).run, tag, f"{version} sha256:x")


def test_it_is_the_data_that_the_champion_was_made_from(home, rows):
    registry = home.registry()
    say(registry, 1, "luthier.data.split_records", OLD)
    say(registry, 2, "luthier.made.split_records", NEW)
    found = []
    for number in (1, 2):
        registry.promote(number)
        found.append(data_in_production(registry, rows))
    registry.rollback()
    assert [*found, data_in_production(registry, rows)] == [OLD, NEW, OLD]


def test_where_that_is_unknown_or_gone_it_is_the_newest_and_the_log_says_why(home, rows, caplog):
    registry = home.registry()
    assert data_in_production(registry, rows) is None
    registry.promote(1)
    assert data_in_production(registry, rows) is None
    say(registry, 1, "luthier.data.split_records", OLD)
    rows.remove(OLD)
    assert data_in_production(registry, rows) is None
    told = [line.getMessage() for line in caplog.records if "newest prepared data" in line.getMessage()]
    assert [("No version" in line, "not known" in line, f"{OLD}, which is gone" in line) for line in told] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


class Runs:
    """Runs of the pipeline that decide what they are told to."""

    def __init__(self, reports):
        self.reports, self.commands, self.tracked, self.decision = reports, [], [], "keep"

    def __call__(self, command, env, **_):
        self.commands.append(command)
        self.tracked.append(env.get("LUTHIER_UNTRACKED") != "monitoring")
        if "log_monitoring" not in command:
            decided = {"decision": self.decision, "experiment": None, "version": None}
            for report in self.reports:
                save_document(report, f"2026-03-01T00.00.00.{len(self.commands):03}Z", decided)
        return SimpleNamespace(returncode=0)


@pytest.fixture
def reports(tmp_path):
    """Return two of the reports."""
    return catalog(f"{tmp_path}/08_reporting", documents=["monitoring_decision", "drift"])


@pytest.fixture
def runs(reports, monkeypatch):
    """Return what is run in the place of the pipeline."""
    found = Runs(reports)
    monkeypatch.setattr(subprocess, "run", found)
    return found


@pytest.fixture
def looks(home, rows, reports, tmp_path):
    """Return looks of which nobody has had one."""
    return Looks(tmp_path, "test", str(tmp_path), home.registry(), rows, reports)


def test_a_look_names_that_version(looks, runs):
    looks.look()
    looks.registry.promote(1)
    say(looks.registry, 1, "luthier.made.split_records", OLD)
    looks.look()
    newest, named = runs.commands
    assert named == [*newest, "--load-versions", f"split_records:{OLD}"]


def test_mlflow_hears_of_the_first_look_of_other_decisions_and_of_one_a_day(looks, runs, monkeypatch):
    clock, heard = SimpleNamespace(), []
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    for at, decision in ((1e6, "keep"), (1e6 + 60, "keep"), (2e6, "keep"), (2e6 + 60, "retrain"), (2e6 + 61, "retrain")):
        clock.now, runs.decision, runs.tracked = at, decision, []
        looks.look()
        heard.append(runs.tracked)
    assert heard == [[True], [False], [True], [False, True], [False]]
    assert [command[-1] for command in runs.commands].count("log_monitoring") == 1


def test_of_old_looks_no_report_stays(looks, runs, reports, monkeypatch):
    monkeypatch.setattr("luthier.watching.looks.LOOKS_KEPT", 3)
    for _ in range(5):
        looks.look()
    assert [[version[-4:] for version in report.versions()] for report in reports] == [["005Z", "004Z", "003Z"]] * 2
    assert looks.newest("monitoring_decision")["decision"] == "keep"


def test_kedro_mlflow_leaves_out_the_pipelines_that_the_environment_names(monkeypatch):
    def left_out():
        found = OmegaConfigLoader(conf_source=str(ROOT / "conf"), env="test", **CONFIG_LOADER_ARGS)["mlflow"]
        return KedroMlflowConfig.model_validate(found).tracking.disable_tracking.pipelines

    assert left_out() == []
    monkeypatch.setenv("LUTHIER_UNTRACKED", "monitoring")
    assert left_out() == ["monitoring"]
