"""Only what nobody needs goes, whatever the registry, MLflow and the folders of work look like."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow import MlflowClient
from sharp import folders_in

from luthier.artefacts import MANIFEST, hash_of, staged
from luthier.data_versions.needs import needed_by_models, needed_by_runs_under_way, split_of
from luthier.data_versions.prune import UNKNOWN, plan, unneeded_work
from luthier.errors import UserError
from luthier.executors import SECONDS_KEPT
from luthier.registry import Version
from tests.data_versions.stored import NEW, NEXT, OLD, catalog, save_document, save_table

NAMES = ["rows", "steps", "model"]
CROSSING = {"rows", "model"}


class Runs:
    """Runs of an experiment of a test's own."""

    def __init__(self, client, name):
        self.client, self.experiment = client, client.create_experiment(name)

    def log(self, session, made=(), read=(), over=True, params=()):
        """Log a run with its session, and return its id."""
        tags = {"luthier.session": session} | {f"luthier.made.{name}": f"{session} sha256:x" for name in made}
        tags |= {f"luthier.data.{name}": f"{at} sha256:x" for name, at in read}
        found = self.client.create_run(self.experiment, tags=tags).info.run_id
        for key, value in params:
            self.client.log_param(found, key, value)
        if over:
            self.client.set_terminated(found)
        return found

    def all(self):
        """Return all of them."""
        return list(self.client.search_runs([self.experiment]))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Return a client of an MLflow of its own: to make its tables takes seconds."""
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def runs(client, request):
    """Return an experiment without runs."""
    return Runs(client, request.node.name)


def version(number, run_id, *aliases):
    """Return a registered version."""
    return Version(number, aliases, "m", "pass", {}, {}, run_id, "c", "now", "s")


def test_with_an_alias_all_is_needed_and_without_one_what_leads_back(runs):
    runs.log(OLD, made=NAMES)
    trained = runs.log(NEW, made=["model"], read=[("rows", OLD), ("model", NEW)])
    every = runs.all()
    with_alias = needed_by_models([version(1, trained, "champion")], every, NAMES, CROSSING)
    assert set(with_alias) == {(name, session) for name in NAMES for session in (OLD, NEW)}
    assert set(with_alias.values()) == {"champion (version 1)"}
    without = needed_by_models([version(1, trained)], every, NAMES, CROSSING)
    assert set(without) == {("rows", OLD), ("model", OLD), ("model", NEW)}
    assert needed_by_models([], every, NAMES, CROSSING) == {}


def test_what_another_run_made_is_needed_though_it_crosses_nothing(runs):
    resumed = runs.log(NEW, read=[("steps", OLD)])
    assert set(needed_by_models([version(1, resumed)], runs.all(), NAMES, CROSSING)) == {("steps", OLD)}


def test_an_earlier_split_is_needed_that_a_parameter_names(runs):
    path = f"data/03_primary/split_table/{OLD}/split_table"
    made = runs.log(NEW, params=[("data_processing.split.previous", path)])
    assert set(needed_by_models([version(1, made)], runs.all(), NAMES, CROSSING)) == {("split_table", OLD)}
    assert split_of("elsewhere/table.parquet") is None


def test_a_run_that_is_lost_stops_everything(runs):
    with pytest.raises(UserError, match="MLflow has no run of version 3"):
        needed_by_models([version(3, "0" * 32)], runs.all(), NAMES, CROSSING)


def test_a_run_under_way_keeps_what_it_reads_and_makes(runs):
    runs.log(NEW, read=[("rows", OLD)], over=False)
    runs.log(NEXT, read=[("steps", OLD)])
    assert set(needed_by_runs_under_way(runs.all(), NAMES)) == {("rows", OLD), *((name, NEW) for name in NAMES)}
    long_ago = [SimpleNamespace(info=SimpleNamespace(status="RUNNING", start_time=0), data=one.data) for one in runs.all()]
    assert needed_by_runs_under_way(long_ago, NAMES) == {}


def test_the_newest_and_what_is_needed_stay(tmp_path):
    table, report = catalog(str(tmp_path), "table", documents=["report"])
    for at in (OLD, NEW, NEXT):
        save_table(table, at, [{"n": 1}])
    save_document(report, OLD, {})
    known = {OLD, NEW, NEXT}
    planned = plan([table, report], {("table", OLD): "version 1"}, known, [])
    assert [(dataset.name, at) for dataset, at in planned.versions] == [("table", NEW)]
    assert set(planned.kept) == {("table", NEXT, "the newest"), ("table", OLD, "version 1"), ("report", OLD, "the newest")}
    size = sum(file.bytes for file in table.files(NEW))
    assert planned.bytes == size > 0
    assert planned.by_name() == [{"what": "table", "remove": 1, "keep": 2, "bytes": size}]
    planned.carry_out()
    assert table.versions() == [NEXT, OLD]
    assert plan([table, report], {("table", OLD): "version 1"}, known, []).by_name() == []


def test_what_no_run_of_this_mlflow_made_stays(tmp_path):
    (table,) = catalog(str(tmp_path), "table")
    for at in (OLD, NEW, NEXT):
        save_table(table, at, [{"n": 1}])
    assert plan([table], {}, set(), []).versions == []  # as with another MLflow, by mistake
    planned = plan([table], {}, {NEW}, [])
    assert [version for _, version in planned.versions] == [NEW]
    assert ("table", OLD, UNKNOWN) in planned.kept


def aged(path, seconds=SECONDS_KEPT + 60):
    """Make a path old."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_what_was_broken_off_long_ago_goes(tmp_path):
    (table,) = catalog(str(tmp_path), "table")
    save_table(table, NEW, [{"n": 1}])
    for name in (".staging-table-1", ".restoring-x"):
        (Path(table.path) / name).mkdir()
    aged(Path(table.path) / ".staging-table-1")
    planned = plan([table], {}, {NEW}, [])
    assert [work.folder.name for work in planned.work] == [".staging-table-1"]
    planned.carry_out()
    assert table.versions() == [NEW]


def job(folder, parts, parent=None, result=True):
    """Lay out a training job."""
    place = folder / hash_of(parts)[:16]
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps({"parent": parent or {"pid": 1, "created": 0}}))
    if result:
        with staged(place / "result") as staging:
            (staging / "w").write_text("x")
    return place


def test_work_stays_that_somebody_may_ask_for(tmp_path):
    folders = folders_in(tmp_path)
    shards, jobs, packages, copies = Path(folders.shards), Path(folders.work), folders.registry, tmp_path / "copies"
    fresh, old = shards / "clean" / "a", shards / "clean" / "b"
    asked, forgotten = folders.answers / "0a" / "used", folders.answers / "0b" / "unused"
    kept, unread, foreign = copies / ("a" * 64), copies / ("b" * 64), copies / "pip"
    for folder in (
        fresh,
        old,
        packages / "champion's",
        packages / "another's",
        packages / "new",
        asked,
        forgotten,
        kept,
        unread,
        foreign,
    ):
        folder.mkdir(parents=True)
    aged(old)
    for folder in (kept, unread):
        (folder / MANIFEST).touch()
    for folder in (forgotten, unread, foreign, packages / "champion's", packages / "another's"):
        aged(folder, 31 * 86_400)
    for folder in (asked, kept, packages / "new"):
        aged(folder, 29 * 86_400)
    me = psutil.Process()
    latest, over = job(jobs, {"seed": 1}), job(jobs, {"seed": 2})
    running = job(jobs, {"seed": 3}, {"pid": me.pid, "created": me.create_time()})
    broken_off, given_up = (job(jobs, {"seed": seed}, result=False) for seed in (4, 5))
    aged(given_up, 8 * 86_400)
    (jobs / "latest.json").write_text(json.dumps({"seed": 1}))
    found = unneeded_work(folders, copies, {"champion's"})
    assert {work.folder for work in found} == {old, over, given_up, packages / "another's", forgotten, unread}
    plan([], {}, set(), found).carry_out()
    left = [
        fresh,
        asked,
        kept,
        foreign,
        packages / "new",
        latest,
        running,
        broken_off,
        packages / "champion's",
        jobs / "latest.json",
    ]
    assert all(path.exists() for path in left)
    assert not any(path.exists() for path in (old, over, given_up))


def test_folders_that_are_not_there_hold_nothing(tmp_path):
    assert unneeded_work(folders_in(tmp_path / "nowhere"), tmp_path / "nowhere", set()) == []
