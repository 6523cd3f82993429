"""Whoever promotes and rolls back, and whoever is killed on the way: one champion, and a log that tells how it came there.

Run as a script, this file is the processes that do it: `python tests/test_registry.py HOST|DIE|'DIE AT EACH' ...`.
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy
from commands import environment, require
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import PASSWORD, free_port, postgres  # noqa: F401

from luthier.artefacts import MANIFEST, read_manifest, staged, verify
from luthier.errors import UserError
from luthier.registry import FIRST, BusyError, DeploymentLog, Line, Registry, check_bytes, check_chain
from luthier.registry.catalogue import ClientCatalogue
from luthier.registry.tables import TableCatalogue

MODEL = "luthier"
GATES = {1: "pass", 2: "pass", 3: "pass", 4: "fail"}
PASSED = [number for number, gate in GATES.items() if gate == "pass"]


# --- what the processes do ---------------------------------------------------------------------------------------------------


def promote_and_roll_back(uri: str, log_uri: str, folder: Path, seed: int, kill: bool) -> None:
    """Promote and roll back at random until told to stop; write down each line that was told to have been written.

    With `kill`, every third alias that MLflow is to write is the end of this process instead: there the log is ahead of it.
    """
    chance = random.Random(seed)
    with (folder / f"journal-{os.getpid()}").open("a") as journal:
        while not (folder / "stop").exists():
            registry = Registry(MODEL, uri, log_uri, who=f"process {os.getpid()}")
            if kill and uri != log_uri:
                _kill_at_alias(registry, lambda alias: chance.random() < 0.3)
            for _ in range(chance.randint(1, 5)):
                try:
                    command = chance.randrange(4)
                    if command <= 1:
                        line = registry.promote(chance.choice(PASSED))
                    elif command == 2:
                        line = registry.rollback()
                    else:
                        line = registry.rollback(to=chance.choice(PASSED))
                except UserError as error:
                    journal.write(json.dumps({"refused": str(error), "busy": isinstance(error, BusyError)}) + "\n")
                    time.sleep(chance.uniform(0, 0.5))  # as a person would, who tries again
                else:
                    journal.write(json.dumps({"number": line.number, "sha256": line.sha256}) + "\n")
                journal.flush()
                os.fsync(journal.fileno())


def host(uri: str, log_uri: str, folder: Path, lines: int, processes: int, kill: bool) -> None:
    """Run processes that promote and roll back; with `kill`, kill -9 one of them every now and then and start another.

    They are told to stop when the log is long enough, or after two minutes.
    """
    _import_all()
    chance = random.Random(processes)
    log = DeploymentLog(MODEL, log_uri, "host")
    end = time.monotonic() + 120
    running: list[int] = []
    codes: list[int] = []

    def start() -> None:
        seed = chance.getrandbits(32)
        child = os.fork()
        if child == 0:
            _leave_with(lambda: promote_and_roll_back(uri, log_uri, folder, seed, kill))
        running.append(child)

    for _ in range(processes):
        start()
    while time.monotonic() < end and len(log.lines()) < lines:
        time.sleep(chance.uniform(0.1, 0.7))
        if kill:
            os.kill(chance.choice(running), signal.SIGKILL)
        for child in list(running):
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                running.remove(child)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                start()
    (folder / "stop").touch()
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in running]
    print(json.dumps(codes))


def die(uri: str, log_uri: str) -> None:
    """Promote version 2 of three models, and be killed on the way: before the line, after it, and between the two aliases."""
    _import_all()
    for model, alias in (("before-the-line", None), ("before-the-aliases", "previous"), ("between-the-aliases", "champion")):
        child = os.fork()
        if child == 0:
            _leave_with(lambda model=model, alias=alias: _promote_and_die(model, uri, log_uri, alias))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _promote_and_die(model: str, uri: str, log_uri: str, alias: str | None) -> None:
    registry = Registry(model, uri, log_uri, check=check_bytes if alias else lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    _kill_at_alias(registry, lambda which: which == alias)
    registry.promote(2)


def die_at_each(template: Path, folder: Path) -> None:
    """Promote version 2 in a copy of a database, and be killed before the first statement; in another, before the second; and so on.

    Prints how each process ended; the last one was not killed. MLflow must not be imported: each statement is ours then.
    """
    for number in range(1000):
        shutil.copy(template, folder / f"{number}.db")
        child = os.fork()
        if child == 0:
            _leave_with(lambda number=number: _promote_until(number, f"sqlite:///{folder / f'{number}.db'}"))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code)
        if code != -signal.SIGKILL:
            break
    assert "mlflow" not in sys.modules


def _promote_until(number: int, uri: str) -> None:
    left = iter(range(number))

    def kill_when_none_is_left(*_) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    for moment in ("before_cursor_execute", "commit"):
        sqlalchemy.event.listen(sqlalchemy.Engine, moment, kill_when_none_is_left)
    Registry(MODEL, uri).promote(2)
    assert "mlflow" not in sys.modules


def _kill_at_alias(registry: Registry, chosen: Callable[[str], bool]) -> None:
    set_alias = registry.client.set_registered_model_alias

    def set_or_die(name: str, alias: str, version: str) -> None:
        if chosen(alias):
            os.kill(os.getpid(), signal.SIGKILL)
        set_alias(name, alias, version)

    registry.client.set_registered_model_alias = set_or_die


def _import_all() -> None:
    """Import what takes seconds once, before the forks; no connection is opened here."""
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    from luthier.quiet import quiet_trackers

    quiet_trackers()


def _leave_with(act) -> None:
    code = 1
    try:
        act()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def script(*arguments: object, timeout: float = 200) -> str:
    """Run this file as a script."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- fixtures ----------------------------------------------------------------------------------------------------------------


def package(folder: Path, text: str) -> Path:
    """Make a small package."""
    with staged(folder, kind="merged", about=text) as staging:
        (staging / "model.txt").write_text(text * 100)
        (staging / "config.json").write_text("{}")
        (staging / "deep").mkdir()
        (staging / "deep" / "er.txt").write_text(text)
    return folder


def new_run(uri: str, artefacts: str) -> str:
    """Start an MLflow run in an experiment that keeps its artefacts there."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(MODEL)
    number = experiment.experiment_id if experiment else client.create_experiment(MODEL, artefacts)
    return client.create_run(number).info.run_id


def fill(uri, folder: Path, artefacts: str, model: str = MODEL, gates: dict[int, str] = GATES, log_uri=None) -> Registry:
    """Register one version a gate decision."""
    registry = Registry(model, uri, log_uri)
    run = new_run(uri, artefacts)
    for number, gate in gates.items():
        made = package(folder / f"{model}-{number}", f"{model} {number}")
        figures, data = {"exact_match": 0.5 + number / 100, "nll": -1.0}, {"support": "ab" * 32}
        assert registry.register(made, run, gate, figures, data, f"commit{number}").number == number
    return registry


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return a database with four registered versions, the last of which the gate refused."""
    from luthier.quiet import quiet_trackers

    quiet_trackers()
    folder = tmp_path_factory.mktemp("template")
    fill(f"sqlite:///{folder / 'mlflow.db'}", folder, str(folder / "artefacts"))
    return folder / "mlflow.db"


@pytest.fixture
def registry(template, tmp_path):
    """Return a registry of a test's own; the stored packages belong to all."""
    shutil.copy(template, tmp_path / "mlflow.db")
    return Registry(MODEL, f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(params=["beside", "apart"])
def either(registry, request, tmp_path):
    """Return a registry whose log lies beside MLflow's tables, then one whose log lies in a database of its own."""
    return registry if request.param == "beside" else Registry(MODEL, registry.tracking_uri, f"sqlite:///{tmp_path / 'log.db'}")


def aliases(registry: Registry) -> dict[str, int]:
    """Return the aliases as MLflow tells them one by one."""
    from mlflow.exceptions import MlflowException

    found = {}
    for alias in ("previous", "champion", "candidate"):
        try:
            found[alias] = int(registry.client.get_model_version_by_alias(registry.name, alias).version)
        except MlflowException:
            continue
    return found


def assert_sound(registry: Registry) -> list[Line]:
    """Assert that the log is whole, that aliases agree with it, and that there is exactly one champion."""
    lines = registry.log.lines()
    check_chain(lines)
    for earlier, later in zip(lines, lines[1:], strict=False):
        assert later.action == "repair" or later.from_version == earlier.version
    last = lines[-1]
    found = aliases(registry)
    assert (found.get("champion"), found.get("previous")) == (last.version, last.previous)
    assert [v.number for v in registry.versions() if "champion" in v.aliases] == [last.version]
    return lines


def story(lines: list[Line]) -> list[tuple]:
    return [(line.action, line.from_version, line.version, line.previous) for line in lines]


# --- one after another -------------------------------------------------------------------------------------------------------


def test_promote_promote_and_roll_back_are_told_by_the_log(either):
    assert either.promote(1, reason="first").version == 1
    either.promote(2)
    either.promote(3)
    either.rollback(reason="wrong answers")
    either.rollback()
    either.rollback(to=3)
    lines = assert_sound(either)
    assert story(lines) == [
        ("promote", None, 1, None),
        ("promote", 1, 2, 1),
        ("promote", 2, 3, 2),
        ("rollback", 3, 2, 1),
        ("rollback", 2, 1, None),
        ("rollback", 1, 3, 2),
    ]
    assert [line.reason for line in lines[:4]] == ["first", "", "", "wrong answers"]
    assert {line.gate for line in lines} == {"pass"}
    assert {line.forced for line in lines} == {False}
    assert [line.manifest for line in lines] == [either.resolve(line.version).manifest for line in lines]
    assert lines[0].before == FIRST


def test_a_version_carries_what_it_was_registered_with(registry):
    version = registry.resolve("candidate")
    assert (version.number, version.gate, version.commit) == (4, "fail", "commit4")
    assert version.figures == {"exact_match": 0.54, "nll": -1.0}
    assert version.data == {"support": "ab" * 32}
    assert version.manifest == read_manifest(Path(version.source))["sha256"]
    assert registry.resolve(4) == registry.resolve("4") == version
    assert [v.number for v in registry.versions()] == [4, 3, 2, 1]


def test_the_same_package_of_the_same_run_is_the_same_version(registry, tmp_path):
    made = package(tmp_path / "package", "again")
    run = new_run(registry.tracking_uri, str(tmp_path / "artefacts"))
    first = registry.register(made, run, "pass")
    assert registry.register(made, run, "pass") == first
    assert registry.register(made, new_run(registry.tracking_uri, ""), "pass").number == first.number + 1


def test_without_the_gate_only_by_force_and_with_a_reason(either):
    either.promote(1)
    with pytest.raises(UserError, match=r"the gate said 'fail'.*--force --reason"):
        either.promote()
    with pytest.raises(UserError, match="--reason"):
        either.promote(force=True, reason=" ")
    assert len(either.log.lines()) == 1
    line = either.promote(force=True, reason="the boss said so")
    assert (line.version, line.forced, line.gate, line.reason) == (4, True, "fail", "the boss said so")
    assert not either.promote(2, force=True, reason="a needless word").forced
    assert_sound(either)


def test_what_cannot_be_is_refused_and_changes_nothing(either):
    with pytest.raises(UserError, match="no version was ever promoted"):
        either.rollback()
    either.promote(1)
    with pytest.raises(UserError, match="first champion"):
        either.rollback()
    with pytest.raises(UserError, match="champion already"):
        either.promote(1)
    with pytest.raises(UserError, match="never the champion"):
        either.rollback(to=2)
    with pytest.raises(UserError, match=r"no version 9; there are 1, 2, 3, 4"):
        either.promote(9)
    with pytest.raises(UserError, match=r"no version 9{30}; there are"):
        either.promote("9" * 30)
    with pytest.raises(UserError, match="did you mean 'candidate'"):
        either.promote("candidat")
    assert story(assert_sound(either)) == [("promote", None, 1, None)]


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda folder: (folder / "model.txt").write_text("other"), "model.txt has changed"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "extra.py").write_text(""), "extra.py is not in the manifest"),
        (lambda folder: _reseal(folder), "is another package"),
        (lambda folder: _link(folder), "model.txt is a link or no file"),
        (lambda folder: (folder / "away").symlink_to("deep"), "away is not in the manifest"),
    ],
)
def test_a_package_that_was_tampered_with_is_refused_and_nothing_changed(registry, tmp_path, tamper, told):
    made = package(tmp_path / "package", "mine")
    version = registry.register(made, new_run(registry.tracking_uri, str(tmp_path / "artefacts")), "pass")
    registry.promote(version.number)
    registry.promote(1)
    stored = Path(version.source)
    shutil.rmtree(stored)  # it may be among those of the template, which belong to all
    shutil.copytree(made, stored)
    tamper(stored)
    for act in (registry.rollback, lambda: registry.promote(version.number), lambda: registry.fetch(version, tmp_path / "cache")):
        with pytest.raises(UserError, match=told):
            act()
    assert len(assert_sound(registry)) == 2
    assert not list(tmp_path.glob("cache/*"))
    shutil.rmtree(stored)


def _reseal(folder: Path) -> None:
    from luthier.artefacts import write_manifest

    (folder / "model.txt").write_text("other")
    write_manifest(folder, {})


def _link(folder: Path) -> None:
    """Put a link in the place of a file, to the same bytes."""
    (folder / "model.txt").rename(folder.with_suffix(".aside"))
    (folder / "model.txt").symlink_to(folder.with_suffix(".aside"))


def test_a_tag_that_was_changed_with_the_package_is_refused(registry, tmp_path):
    registry.promote(1)
    registry.promote(2)
    other = registry.resolve(3)
    registry.client.set_model_version_tag(MODEL, "1", "luthier.manifest", other.manifest)
    with pytest.raises(UserError, match="tag luthier.manifest"):
        registry.rollback()
    assert len(registry.log.lines()) == 2


def test_a_package_can_be_judged_by_any_check_before_it_is_first_in_production(registry):
    seen = []
    judge = Registry(MODEL, registry.tracking_uri, check=lambda folder, expected: seen.append((folder, expected)))
    judge.promote(1)
    judge.promote(2)
    versions = [registry.resolve(number) for number in (1, 2)]
    assert seen == [(Path(version.source), version.manifest) for version in versions]
    judge.rollback()
    judge.promote(2)
    assert len(seen) == 2  # what has been judged is compared byte by byte


def test_a_fetched_package_is_a_checked_copy_and_is_mended(registry, tmp_path):
    version = registry.resolve(1)
    folder = registry.fetch(version, tmp_path / "cache")
    assert folder == tmp_path / "cache" / version.manifest
    assert verify(folder) == verify(Path(version.source))
    assert (folder / "model.txt").stat().st_ino != (Path(version.source) / "model.txt").stat().st_ino
    (folder / "model.txt").write_text("damaged")
    assert verify(registry.fetch(version, tmp_path / "cache"))["sha256"] == version.manifest


def test_what_mlflow_leaves_in_a_store_is_not_fetched(registry, tmp_path):
    made = package(tmp_path / "package", "noted")
    version = registry.register(made, new_run(registry.tracking_uri, str(tmp_path / "artefacts")))
    (Path(version.source) / "registered_model_meta").write_text("model_name: luthier\n")
    folder = registry.fetch(version, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {"model.txt", "config.json", "deep", MANIFEST}
    registry.promote(version.number, force=True, reason="nor does it keep a version from production")


def test_a_version_that_was_deleted_does_not_come_back_as_another(either):
    either.promote(1)
    either.promote(2)
    either.client.delete_model_version(MODEL, "2")
    either.repair()
    assert aliases(either) == {"previous": 1, "candidate": 4}
    assert len(either.log.lines()) == 2  # the alias was gone with the version: nothing to repair
    assert either.rollback().version == 1
    assert_sound(either)


# --- MLflow's tables and its client ------------------------------------------------------------------------------------------


def test_the_tables_tell_what_the_client_tells_and_it_sees_what_they_are_told(registry):
    client, tables = ClientCatalogue(MODEL, registry.tracking_uri), TableCatalogue(MODEL, registry.log.database)
    assert tables.is_known()

    def assert_equal() -> None:
        assert tables.versions() == client.versions()
        assert tables.aliases() == client.aliases()
        assert [tables.version(number) for number in range(6)] == [client.version(number) for number in range(6)]

    assert_equal()
    for wanted in ({"champion": 2, "previous": 1}, {"champion": 3, "previous": None}, {"champion": 3}):
        with registry.log.writer("test") as connection:
            tables.set_aliases(connection, wanted)
            connection.commit()
        assert client.aliases() == {"candidate": 4} | {alias: number for alias, number in wanted.items() if number}
        assert_equal()
    client.client.delete_model_version(MODEL, "3")
    assert_equal()
    assert [version.number for version in tables.versions()] == [4, 2, 1]
    assert TableCatalogue("another", registry.log.database).versions() == []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE registered_model_aliases ADD COLUMN since BIGINT",
        "ALTER TABLE model_versions ADD COLUMN path TEXT",
        "ALTER TABLE model_versions DROP COLUMN source",
    ],
)
def test_tables_that_are_not_as_we_know_them_are_left_to_the_client(registry, tmp_path, statement):
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute(statement)
    connection.close()
    assert TableCatalogue(MODEL, registry.log.database).is_known() == ("ADD COLUMN path" in statement)
    if "DROP" not in statement:  # else MLflow cannot read them either
        registry.promote(1)
        registry.promote(2)
        assert_sound(registry)


def test_where_mlflow_is_divided_into_workspaces_its_client_is_asked(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert not TableCatalogue(MODEL, registry.log.database).is_known()


# --- the log -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE luthier_deployments SET reason = 'another'",
        "DELETE FROM luthier_deployments WHERE number = 2",
        "INSERT OR REPLACE INTO luthier_deployments SELECT * FROM luthier_deployments WHERE number = 1",
    ],
)
def test_the_database_refuses_to_change_the_log(registry, tmp_path, statement):
    registry.promote(1)
    registry.promote(2)
    before = registry.log.lines()
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    assert registry.log.lines() == before


@given(at=st.integers(0, 3), field=st.sampled_from(["version", "reason", "who", "gate", "before", "sha256"]))
@settings(max_examples=20)
def test_a_change_of_any_line_breaks_the_chain(template, tmp_path_factory, at, field):
    lines = _four_lines(template, tmp_path_factory)
    check_chain(lines)
    changed = replace(lines[at], **{field: 7 if field == "version" else "f" * 64})
    with pytest.raises(UserError, match=f"at line {at + 1}"):
        check_chain([*lines[:at], changed, *lines[at + 1 :]])
    # with a hash that fits the changed line, the next one tells; after the last one nothing does, but nothing was hidden either
    resealed = replace(changed, sha256=changed.digest())
    if at < 3 and resealed != lines[at]:
        with pytest.raises(UserError, match=f"at line {at + (1 if field == 'before' else 2)}"):
            check_chain([*lines[:at], resealed, *lines[at + 1 :]])
    if at < 3:
        with pytest.raises(UserError, match=f"at line {at + 1}"):
            check_chain([*lines[:at], *lines[at + 1 :]])


_lines: list[Line] = []


def _four_lines(template, tmp_path_factory) -> list[Line]:
    if not _lines:
        folder = tmp_path_factory.mktemp("lines")
        shutil.copy(template, folder / "mlflow.db")
        registry = Registry(MODEL, f"sqlite:///{folder / 'mlflow.db'}")
        _lines.extend([registry.promote(1), registry.promote(2), registry.rollback(), registry.promote(3)])
    return _lines


def test_where_the_log_was_changed_nothing_is_added(registry, tmp_path):
    registry.promote(1)
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("DROP TRIGGER luthier_no_update")
    connection.execute("UPDATE luthier_deployments SET who = 'another'")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="was changed after it was written, at line 1"):
        registry.promote(2)
    assert aliases(registry)["champion"] == 1


@pytest.mark.parametrize("uri", ["sqlite:///:memory:", "mysql://somebody:secret@host/db", "./mlruns", "sqlite://"])
def test_a_log_needs_a_database_that_can_be_locked(uri):
    with pytest.raises(UserError, match="LUTHIER_LOG_URI") as told:
        DeploymentLog(MODEL, uri, "me")
    assert "secret" not in str(told.value)


def test_with_a_server_the_database_of_the_log_must_be_named():
    with pytest.raises(UserError, match=r"LUTHIER_LOG_URI.*user@host.* PGPASSWORD"):
        Registry(MODEL, "http://127.0.0.1:5000")


# --- at once, and killed -----------------------------------------------------------------------------------------------------


def test_who_comes_second_loses_cleanly_and_hears_who_was_first(either):
    with (
        DeploymentLog(MODEL, either.log.database.url.render_as_string(False), "ann@desk").writer("promote"),
        pytest.raises(BusyError, match=rf"ann@desk, process {os.getpid()}, promote, since 20.*try again"),
    ):
        either.promote(1)
    assert either.log.lines() == []
    assert aliases(either) == {"candidate": 4}
    either.promote(1)
    assert_sound(either)


def test_a_promotion_that_is_killed_before_any_statement_is_done_or_not(template, registry, tmp_path):
    registry.promote(3)
    registry.promote(1)
    copies = tmp_path / "copies"
    copies.mkdir()
    codes = [int(code) for code in script("DIE AT EACH", tmp_path / "mlflow.db", copies).split()]
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    champions = []
    for number in range(len(codes)):
        left = DeploymentLog(MODEL, f"sqlite:///{copies / f'{number}.db'}", "me")
        lines = left.lines()
        check_chain(lines)
        assert story(lines)[2:] in ([], [("promote", 1, 2, 1)])
        # nothing to repair
        found = TableCatalogue(MODEL, left.database).aliases()
        assert (found["champion"], found["previous"]) == (lines[-1].version, lines[-1].previous)
        champions.append(lines[-1].version)
    assert_sound(Registry(MODEL, left.database.url.render_as_string()))
    assert champions == sorted(champions)
    assert champions[-2:] == [1, 2]  # killed before the transaction ends, it never happened
    print(f"killed before each of {len(codes) - 1} statements")


@pytest.mark.slow
def test_a_killed_promotion_is_whole_after_the_next_command(template, tmp_path):
    shutil.copy(template, tmp_path / "mlflow.db")
    uri, log_uri = f"sqlite:///{tmp_path / 'mlflow.db'}", f"sqlite:///{tmp_path / 'log.db'}"
    names = ("before-the-line", "before-the-aliases", "between-the-aliases")
    registries = {
        name: fill(uri, tmp_path, str(tmp_path / "artefacts"), name, {1: "pass", 2: "pass", 3: "pass"}, log_uri) for name in names
    }
    for registry in registries.values():
        registry.promote(3)
        registry.promote(1)
    codes = script("DIE", uri, log_uri).split()
    assert codes == ["-9", "-9", "-9"]
    found = {name: aliases(registry) for name, registry in registries.items()}
    assert [(found[name]["champion"], found[name]["previous"]) for name in names] == [(1, 3), (1, 3), (1, 1)]
    assert [registry.resolve("champion").number for registry in registries.values()] == [1, 2, 2]
    for name, registry in registries.items():
        registry.repair()
        lines = assert_sound(registry)
        assert (
            story(lines)[2:]
            == {
                "before-the-line": [],
                "before-the-aliases": [("promote", 1, 2, 1), ("repair", 1, 2, 1)],
                "between-the-aliases": [("promote", 1, 2, 1), ("repair", 1, 2, 1)],
            }[name]
        )
        registry.repair()
        assert registry.log.lines() == lines
    assert registries["between-the-aliases"].log.lines()[-1].reason == "the aliases said previous 1, champion 1"
    assert [registry.rollback().version for registry in registries.values()] == [3, 1, 1]


COMMANDS = st.one_of(
    st.tuples(st.just("promote"), st.sampled_from(PASSED)),
    st.tuples(st.just("back"), st.none() | st.sampled_from(PASSED)),
    st.tuples(st.just("vandal"), st.tuples(st.sampled_from(["champion", "previous"]), st.sampled_from([None, *GATES]))),
)


@given(st.lists(COMMANDS, min_size=2, max_size=7), st.booleans())
@settings(max_examples=12)
def test_a_rollback_goes_back_on_the_stack_of_champions_whatever_others_do_to_the_aliases(
    template, tmp_path_factory, commands, apart
):
    folder = tmp_path_factory.mktemp("stack")
    shutil.copy(template, folder / "mlflow.db")
    registry = Registry(MODEL, f"sqlite:///{folder / 'mlflow.db'}", f"sqlite:///{folder / 'log.db'}" if apart else None)
    stack: tuple[int, ...] = ()
    stacks: dict[int, tuple[int, ...]] = {}  # the last one that each version was on top of
    for command, argument in commands:
        if command == "vandal":
            alias, version = argument
            if version is None:
                registry.client.delete_registered_model_alias(MODEL, alias)
            elif stack:
                registry.client.set_registered_model_alias(MODEL, alias, str(version))
            continue
        if command == "promote":
            wanted = (*stack, argument) if stack[-1:] != (argument,) else None
        elif argument is None:
            wanted = stack[:-1] or None
        else:
            wanted = stacks.get(argument) if stack[-1:] != (argument,) else None
        act = registry.promote if command == "promote" else registry.rollback
        if wanted is None:
            with pytest.raises(UserError):
                act(argument)
        else:
            act(argument)
            stack = stacks[wanted[-1]] = wanted
        if stack:
            registry.repair()
            last = assert_sound(registry)[-1]
            assert (last.version, last.previous) == (stack[-1], stack[-2] if len(stack) > 1 else None)


def stress(uri: str, log_uri: str, folder: Path, goal: int, processes: int, kill: bool) -> None:
    """Let processes promote and roll back at once, then assert that what each was told is in the log, and all is sound."""
    folder.mkdir()
    codes = json.loads(script("HOST", uri, log_uri, folder, goal, processes, int(kill)))
    killed = codes.count(-signal.SIGKILL)
    assert len(codes) == codes.count(0) + killed
    registry = Registry(MODEL, uri, log_uri)
    registry.repair()
    lines = assert_sound(registry)
    hashes = {line.number: line.sha256 for line in lines}
    succeeded, busy = 0, 0
    for journal in folder.glob("journal-*"):
        for entry in _entries(journal):
            if "number" in entry:
                assert hashes[entry["number"]] == entry["sha256"]
                succeeded += 1
            busy += entry.get("busy", False)
    switches = [line for line in lines if line.action != "repair"]
    print(f"{len(lines)} lines, {len(lines) - len(switches)} repairs, {busy} kept out, {killed} killed")
    assert busy > 0
    assert len(lines) >= goal
    assert succeeded <= len(switches)
    # only where the aliases are not in the line's transaction can a kill come between them
    assert (len(switches) < len(lines)) == (kill and uri != log_uri)
    assert (killed > 0) == kill
    if not kill:
        # not a line too many either
        assert succeeded == len(lines)


def _entries(journal: Path) -> list[dict]:
    """Read a journal; its last line may be half written where the process was killed."""
    lines = journal.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log", "goal", "processes", "kill"),
    [("beside", 25, 10, False), ("beside", 25, 10, True), ("apart", 12, 5, True)],
    ids=["beside", "beside-killed", "apart-killed"],
)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_many_processes_at_once(request, tmp_path, database, log, goal, processes, kill):
    def uri_of(name: str) -> str:
        if database == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        return new_database(request.getfixturevalue("postgres"), f"{name}_{log}_{kill}".lower())

    uri = uri_of("mlflow")
    log_uri = uri if log == "beside" else uri_of("log")
    fill(uri, tmp_path, str(tmp_path / "artefacts"))
    stress(uri, log_uri, tmp_path / "journals", goal, processes, kill)


# --- PostgreSQL, S3, the commands --------------------------------------------------------------------------------------------


def new_database(uri: str, name: str) -> str:
    """Make an empty database on a server."""
    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return uri.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture
def moto(monkeypatch, tmp_path):
    """Start a server that speaks S3, with an empty bucket; return its URI."""
    command = Path(sys.executable).with_name("moto_server")
    require(command.exists(), "moto[server]")
    boto3 = pytest.importorskip("boto3")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "of-one-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "moto.log").open("w") as log:
        process = subprocess.Popen([command, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        client = boto3.client("s3", endpoint_url=endpoint)
        for attempt in range(100):
            try:
                client.create_bucket(Bucket="luthier")
                break
            except Exception:
                assert attempt < 99, (tmp_path / "moto.log").read_text()
                time.sleep(0.2)
        yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_password_that_is_in_no_uri_comes_from_libpqs_variable_or_file(postgres, tmp_path):  # noqa: F811
    uri = new_database(postgres, "no_password").replace(f":{PASSWORD}@", "@")
    database = DeploymentLog(MODEL, uri, "ann@desk").database
    assert database.url.password is None
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    for name, value in (("PGPASSWORD", PASSWORD), ("PGPASSFILE", str(tmp_path / "pgpass"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            with database.connection() as connection:
                assert connection.exec_driver_sql("SELECT current_user").scalar() == database.url.username
        with pytest.raises(UserError, match="cannot be opened.*no password"), database.connection():
            pass


@pytest.mark.slow
def test_on_postgresql_with_packages_on_s3(postgres, moto, tmp_path):  # noqa: F811
    uri = new_database(postgres, "on_s3")
    fill(uri, tmp_path, "s3://luthier/artefacts")
    registry = Registry(MODEL, uri, cache=tmp_path / "cache")
    registry.promote(1)
    registry.promote(2)
    registry.rollback()
    version = registry.resolve("champion")
    assert version.source.startswith("s3://luthier/")
    assert verify(registry.fetch(version, tmp_path / "elsewhere"))["sha256"] == version.manifest
    assert story(assert_sound(registry)) == [("promote", None, 1, None), ("promote", 1, 2, 1), ("rollback", 2, 1, None)]
    with sqlalchemy.create_engine(uri).connect() as connection, pytest.raises(sqlalchemy.exc.DBAPIError, match="append-only"):
        connection.exec_driver_sql("TRUNCATE luthier_deployments")
    with (
        DeploymentLog(MODEL, uri, "ann@desk").writer("promote"),
        pytest.raises(BusyError, match=r"luthier promote ann@desk.*since 20"),
    ):
        registry.promote(2)
    # what is stored was changed: seen in the listing where a copy is in the cache, in the bytes where none is
    key = registry.resolve(2).source.removeprefix("s3://luthier/")
    moto.put_object(Bucket="luthier", Key=f"{key}/extra.py", Body=b"")
    with pytest.raises(UserError, match=r"extra\.py"):
        registry.promote(2)
    moto.delete_object(Bucket="luthier", Key=f"{key}/extra.py")
    text = (tmp_path / "luthier-2" / "model.txt").read_bytes()
    moto.put_object(Bucket="luthier", Key=f"{key}/model.txt", Body=text.upper())
    with pytest.raises(UserError, match=r"model\.txt has changed"):
        Registry(MODEL, uri, cache=tmp_path / "empty").promote(2)
    moto.delete_object(Bucket="luthier", Key=f"{key}/manifest.json")
    with pytest.raises(UserError, match="cannot be read from s3://"):
        registry.promote(2)
    assert len(assert_sound(registry)) == 3


@pytest.mark.slow
def test_with_a_tracking_server_and_the_log_elsewhere(tmp_path):
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--artifacts-destination", str(tmp_path / "artefacts")]
    command = [sys.executable, "-m", "mlflow", "server", "-h", "127.0.0.1", "-p", str(port), "--workers", "1", *store]
    uri, log_uri = f"http://127.0.0.1:{port}", f"sqlite:///{tmp_path / 'log.db'}"
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for attempt in range(300):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert attempt < 299, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        registry = fill(uri, tmp_path, "mlflow-artifacts:/", log_uri=log_uri)
        with pytest.raises(UserError, match="no version 9; there are 1, 2, 3, 4"):
            registry.promote(9)
        registry.promote(1)
        registry.promote(2)
        registry.client.delete_registered_model_alias(MODEL, "previous")
        registry.rollback()
        assert [line.action for line in assert_sound(registry)] == ["promote", "promote", "repair", "rollback"]
        version = registry.resolve("champion")
        assert version.source.startswith("mlflow-artifacts:/")
        assert verify(registry.fetch(version, tmp_path / "cache"))["sha256"] == version.manifest
        stored = next((tmp_path / "artefacts").rglob(f"{registry.resolve(2).manifest}/model.txt"))
        stored.write_text("other")
        with pytest.raises(UserError, match=r"model\.txt has changed"):
            registry.promote(2)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_commands_say_what_is_missing(project, monkeypatch):
    from click.testing import CliRunner
    from kedro.framework.project import configure_project

    from luthier.cli import cli

    configure_project("luthier")
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told = [
        CliRunner().invoke(cli, command.split()) for command in ("models", "models --log", "rollback", "promote", "models -e x")
    ]
    assert [done.exit_code for done in told] == [0, 0, 1, 1, 1]
    words = ("kedro run", "Nothing was promoted", "was ever promoted", "candidate", "no environment x")
    for done, word in zip(told, words, strict=True):
        assert word in done.output
    assert (project / "mlflow.db").exists()


@pytest.fixture
def told(project, monkeypatch):
    """Return a function that gives a command in this process, in a project around another MLflow, and returns what it prints."""
    from click.testing import CliRunner
    from kedro.framework.project import configure_project

    from luthier.cli import cli

    def give(command, tracking_uri, **variables):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(cli, command.split())
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit), done.exception
        return done.output

    configure_project("luthier")
    monkeypatch.chdir(project)
    # what a command sets for itself is gone after the test
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return give


@pytest.mark.parametrize("command", ["models", "models --number champion", "promote 1", "lineage 1", "lineage 0123abcd"])
def test_a_server_that_is_away_is_told_without_its_password(told, tmp_path, command):
    printed = told(command, "http://me:secret@127.0.0.1:9/mlflow", LUTHIER_LOG_URI=f"sqlite:///{tmp_path}/log.db")
    assert "MLflow at http://127.0.0.1:9/mlflow cannot be asked: [Errno 111] Connection refused" in printed
    assert "MLFLOW_TRACKING_URI" in printed
    assert "secret" not in printed
    assert len(printed.splitlines()) <= 3


@pytest.mark.parametrize("command", ["models", "promote", "rollback", "lineage 1", "lineage 0123abcd"])
def test_a_tracking_file_that_is_no_database_is_told(told, tmp_path, command):
    (tmp_path / "notes.txt").write_text("this is no database, it is a page of notes\n" * 100)
    printed = told(command, f"sqlite:///{tmp_path}/notes.txt")
    assert "A database cannot be used: file is not a database" in printed
    assert f"sqlite:///{tmp_path}/notes.txt" in printed
    assert len(printed.splitlines()) <= 3


def test_a_server_that_fails_is_soon_told(told, tmp_path, monkeypatch):
    asked = []

    class Failing(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_):
            pass

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        printed = told("models --number 1", address, LUTHIER_LOG_URI=f"sqlite:///{tmp_path}/log.db")
        server.shutdown()
    assert f"MLflow at {address} cannot be asked" in printed
    assert 1 < len(asked) <= 3


if __name__ == "__main__":
    match sys.argv[1:]:
        case "HOST", uri, log_uri, folder, lines, processes, kill:
            host(uri, log_uri, Path(folder), int(lines), int(processes), bool(int(kill)))
        case "DIE", uri, log_uri:
            die(uri, log_uri)
        case "DIE AT EACH", template, folder:
            die_at_each(Path(template), Path(folder))
