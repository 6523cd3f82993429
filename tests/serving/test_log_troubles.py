"""The request log in trouble: no row is lost or doubled, whatever ails the database or the process, and no answer waits for it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.serving.records.log import RequestLog
from luthier.serving.records.logged import read_requests
from tests.serving.logs import logged, uri_of

SCRIPT = str(Path(__file__).with_name("killed_log.py"))


def test_a_full_queue_drops_counts_and_does_not_wait(tmp_path):
    dropped = []
    log = RequestLog(uri_of(tmp_path), queue=10, on_drop=dropped.append)  # not started: nothing is written meanwhile
    began = time.perf_counter()
    taken = [log.put(logged(number)) for number in range(25)]
    assert time.perf_counter() - began < 2
    assert taken == [True] * 10 + [False] * 15
    assert sum(dropped) == 15
    log.start()
    assert log.close() == 0
    assert len(read_requests(uri_of(tmp_path))) == 10
    assert not log.put(logged(99))  # closed: told, not raised
    assert sum(dropped) == 16


def test_the_queue_is_bounded_in_characters_too(tmp_path):
    log = RequestLog(uri_of(tmp_path), queue=10)
    long = [{"role": "user", "content": "x" * 60_000}]
    assert [log.put(logged(number, messages=long)) for number in range(4)] == [True, True, False, False]
    log.start()
    log.flush()
    assert log.put(logged(9, messages=long))  # what is written makes room
    log.close()


def test_a_locked_database_delays_nobody_and_loses_nothing(tmp_path):
    uri = uri_of(tmp_path)
    log = RequestLog(uri)
    log.start()
    with sqlite3.connect(tmp_path / "requests.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.perf_counter()
        for number in range(1000):
            log.put(logged(number))
        assert time.perf_counter() - began < 2
        assert not log.flush(0.3)
        other.execute("COMMIT")
    assert log.close() == 0
    assert len(read_requests(uri)) == 1000


def test_a_database_that_goes_away_gets_its_rows_when_it_is_back(tmp_path, caplog):
    there, away = tmp_path / "there", tmp_path / "away"
    log = RequestLog(uri_of(there))
    log.start()
    log.put(logged(1))
    assert log.flush()
    there.rename(away)
    log.put(logged(2))
    assert not log.flush(0.4)
    assert "takes no rows" in caplog.text
    away.rename(there)
    assert log.flush(5)
    shutil.rmtree(there)
    there.mkdir()
    log.put(logged(3))  # an empty folder: the tables are made again
    assert log.close() == 0
    assert list(read_requests(uri_of(there))["request"]) == ["r000003"]


def test_closing_without_a_database_ends_in_time_and_says_what_is_lost(tmp_path, caplog):
    dropped = []
    log = RequestLog(uri_of(tmp_path / "there"), on_drop=dropped.append)
    log.start()
    shutil.rmtree(tmp_path / "there")
    for number in range(7):
        log.put(logged(number))
    began = time.monotonic()
    assert log.close(0.5) == 7
    assert time.monotonic() - began < 3
    assert "7 rows are lost" in caplog.text
    assert sum(dropped) == 7


def test_a_row_that_no_database_takes_does_not_keep_the_others_waiting(uri, caplog):
    dropped = []
    wrong = [
        logged(5, prompt_tokens="many"),
        logged(6, request=None),
        logged(7, at=datetime(2026, 3, 1)),
        logged(8, request="x" * 65),
    ]
    with RequestLog(uri, on_drop=dropped.append) as log:
        for number in range(5):
            log.put(logged(number))
            log.put(wrong[number % len(wrong)])
        assert log.flush()
    kept = set(read_requests(uri)["request"])
    assert {f"r{number:06d}" for number in range(5)} <= kept
    assert len(kept) + sum(dropped) == 10
    assert caplog.text.count("is lost") == sum(dropped) >= 4


def test_a_killed_process_loses_only_what_was_not_promised(tmp_path):
    uri, there = uri_of(tmp_path), 0
    for pause in (0.0, 0.02):
        process = subprocess.Popen([sys.executable, SCRIPT, uri, str(there)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        promised = int(process.stdout.readline())
        time.sleep(pause)  # in the middle of the batches that follow
        os.kill(process.pid, signal.SIGKILL)
        promised = [promised, *map(int, process.stdout.read().split())][-1]
        process.wait()
        with sqlite3.connect(tmp_path / "requests.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = list(read_requests(uri)["request"])
        there = len(found)
        assert there >= promised > 0
        assert found == [f"r{number:08d}" for number in range(there)]  # no gap: rows are written in their order


@pytest.mark.parametrize("uri", ["mysql://h/d", "sqlite://", "sqlite:///:memory:", "no url", "postgresql://u:hidden@h"])
def test_what_is_no_database_for_a_log_is_told_without_its_password(uri):
    with pytest.raises(UserError, match=r"serving\.log\.uri") as caught:
        RequestLog(uri)
    assert "hidden" not in str(caught.value)


def test_a_log_that_cannot_be_written_to_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"serving\.log\.uri.*cannot be"):
        RequestLog(uri_of(tmp_path / "file")).start()
    (tmp_path / "requests.db").write_text("this is no database, and long enough to be told from one" * 100)
    with pytest.raises(UserError, match="not a database"):
        RequestLog(uri_of(tmp_path)).start()


def test_tables_of_another_version_are_told_at_the_start(tmp_path):
    with sqlite3.connect(tmp_path / "requests.db") as connection:
        connection.execute("CREATE TABLE luthier_requests (request TEXT PRIMARY KEY, at TEXT)")
    with pytest.raises(UserError, match="no column answer, answer_characters"):
        RequestLog(uri_of(tmp_path)).start()


def test_two_gateways_may_start_at_once_on_one_database(uri):
    logs = [RequestLog(uri) for _ in range(4)]
    threads = [threading.Thread(target=log.start) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, log in enumerate(logs):
        log.put(logged(number))
    assert [log.close() for log in logs] == [0] * 4
    assert len(read_requests(uri)) == 4
