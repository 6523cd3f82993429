"""The request log: what is put comes back, once, as it was, and is read by time."""

import json
import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta, timezone

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.serving.records import tables
from luthier.serving.records.feedback import FeedbackRequest, FeedbackStore, read_feedback
from luthier.serving.records.log import RequestLog
from luthier.serving.records.logged import LoggedTexts, read_requests, row_of
from luthier.serving.records.tables import REQUESTS
from tests.serving.logs import NOON, TURNS, logged, uri_of


def test_every_fact_comes_back_as_it_was_put(uri):
    full = logged(
        1, streamed=True, client="alice", experiment="e", assigned="challenger", served="champion", version=3, manifest="a" * 64,
        shadow_of="chatcmpl-x", subject="b" * 32, error="timeout", finish="length", first_token_seconds=0.125, prompt_tokens=12,
        completion_tokens=3, language="en", messages=TURNS, answer="yes – ✓",
    )  # fmt: skip
    with RequestLog(uri) as log:
        assert log.put(full)
        log.put(logged(2))
    first, second = read_requests(uri).to_dict("records")
    for name in set(vars(full)) - {"at", "messages", "answer"}:
        assert first[name] == getattr(full, name), name
    assert first["at"] == full.at
    assert json.loads(first["prompt"]) == TURNS
    assert first["answer"] == full.answer
    assert json.loads(first["pii"]) == {"email": 2, "phone": 1}
    assert (first["turns"], first["prompt_characters"], first["answer_characters"]) == (
        2,
        sum(len(t["content"]) for t in TURNS),
        7,
    )
    assert all(pd.isna(second[name]) for name in ("version", "prompt", "answer", "pii", "turns", "error", "first_token_seconds"))


def test_no_text_is_kept_where_none_is_to_be_but_its_features(tmp_path):
    uri = uri_of(tmp_path)
    with RequestLog(uri, text="none") as log:
        log.put(logged(messages=TURNS, answer="A secret sentence"))
    (row,) = read_requests(uri).to_dict("records")
    assert pd.isna(row["prompt"])
    assert pd.isna(row["answer"])
    assert json.loads(row["pii"]) == {"email": 2, "phone": 1}
    assert row["answer_characters"] == 17
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_ten_thousand_rows_of_eight_threads_are_all_there_after_close(uri):
    log = RequestLog(uri)
    log.start()

    def put(thread: int) -> None:
        for number in range(1250):
            assert log.put(logged(thread * 1250 + number, messages=TURNS, answer="yes"))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.close() == 0
    assert sorted(read_requests(uri)["request"]) == [f"r{number:06d}" for number in range(10_000)]


def test_a_row_is_written_once_however_often_it_is_put(uri):
    with RequestLog(uri) as log:
        for _ in range(3):
            log.put(logged(1))
            log.flush()
    with RequestLog(uri) as log:
        log.put(logged(1))
    assert len(read_requests(uri)) == 1


def test_text_that_a_database_cannot_hold_is_held_as_near_as_it_can(uri):
    with RequestLog(uri) as log:
        log.put(logged(1, asked="a\0b", answer="half \ud83d", messages=[{"role": "user", "content": "\0\udcff"}]))
        log.put(logged(2, first_token_seconds=float("nan"), prompt_tokens=2**70))
    first, second = read_requests(uri).to_dict("records")
    assert first["asked"] == "a\ufffdb"
    assert first["answer"] == "half ?"
    assert pd.isna(second["first_token_seconds"])
    assert pd.isna(second["prompt_tokens"])


@settings(max_examples=100)
@given(st.text(), st.text(), st.floats(), st.integers())
def test_no_client_can_make_a_row_that_cannot_be_written(asked, said, seconds, tokens):
    request = logged(
        asked=asked, messages=[{"role": "user", "content": said}], first_token_seconds=seconds, completion_tokens=tokens
    )
    row = row_of(request, keep_text=True)
    json.dumps(row, allow_nan=False).encode()
    assert set(row) == set(REQUESTS.columns.keys())
    assert all("\0" not in value for value in row.values() if isinstance(value, str))
    assert json.loads(row["prompt"])[0]["content"].count("a") == said.count("a")


def test_old_requests_leave_with_the_feedback_on_them(uri):
    now = datetime.now(UTC)
    with RequestLog(uri) as log:
        for number in range(1300):
            log.put(logged(number, at=now - timedelta(days=number / 20), version=1))
        for number in (5, 1250):
            FeedbackStore(log).vote(FeedbackRequest(request_id=f"r{number:06d}", rating="up"))
        assert log.delete_older_than(10) == 1100
        assert log.delete_older_than(10) == 0
    assert len(read_requests(uri)) == 200
    assert list(read_feedback(uri)["request"]) == ["r000005"]


def test_the_writer_deletes_by_itself(tmp_path):
    uri = uri_of(tmp_path)
    with RequestLog(uri) as log:
        log.put(logged(1, at=datetime.now(UTC) - timedelta(days=9)))
        log.put(logged(2, at=datetime.now(UTC)))
    with RequestLog(uri, retention_days=5) as log:
        log.put(logged(3, at=datetime.now(UTC)))
        log.flush()
        end = time.monotonic() + 5
        while len(read_requests(uri)) > 2 and time.monotonic() < end:
            time.sleep(0.02)
    assert list(read_requests(uri)["request"]) == ["r000002", "r000003"]


def test_a_window_holds_what_came_in_it_whatever_its_time_zone(uri):
    with RequestLog(uri) as log:
        for number in (3, 1, 2, 0):
            log.put(logged(number))
    tokyo = timezone(timedelta(hours=9))
    window = read_requests(uri, (NOON + timedelta(seconds=1)).astimezone(tokyo), NOON + timedelta(seconds=3))
    assert list(window["request"]) == ["r000001", "r000002"]
    with pytest.raises(ValueError, match="time zone"):
        read_requests(uri, datetime(2026, 3, 1))


def test_an_empty_window_has_the_types_of_a_full_one(uri):
    with RequestLog(uri) as log:
        log.put(logged(1, messages=TURNS, answer="x", version=3))
    full, empty = read_requests(uri), read_requests(uri, NOON + timedelta(days=1))
    assert not len(empty)
    assert dict(full.dtypes) == dict(empty.dtypes)
    assert list(full.columns) == list(REQUESTS.columns.keys())
    assert str(full["at"].dtype) == "datetime64[us, UTC]"


def test_texts_are_read_of_the_requests_that_are_asked_for_in_that_order(uri):
    with RequestLog(uri) as log:
        for number in range(1_500):
            log.put(logged(number, messages=TURNS, answer=f"answer {number}"))
    asked = [f"r{number:06d}" for number in (*range(1_499, 200, -1), 7)]
    found = LoggedTexts(uri).of([*asked, "gone"])
    assert found.index.tolist() == [*asked, "gone"]
    assert found["answer"].tolist()[:-1] == [f"answer {int(name[1:])}" for name in asked]
    assert json.loads(found["prompt"].iloc[0]) == TURNS
    assert found.loc["gone"].isna().all()
    assert LoggedTexts(uri).of([]).empty


def test_a_long_log_is_read_in_parts_that_make_one_frame(uri, monkeypatch):
    with RequestLog(uri) as log:
        for number in range(100):
            log.put(logged(number, version=number or None, answer="x"))
    whole = read_requests(uri)
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 7)
    pd.testing.assert_frame_equal(read_requests(uri), whole)
    pd.testing.assert_frame_equal(read_requests(uri, texts=False), whole.drop(columns=["prompt", "answer"]))


def test_reading_does_not_keep_the_writer_waiting(tmp_path):
    uri = uri_of(tmp_path)
    with RequestLog(uri) as log:
        log.put(logged(1))
        log.flush()
        with sqlite3.connect(tmp_path / "requests.db", isolation_level=None) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM luthier_requests").fetchone() == (1,)
            log.put(logged(2))
            assert log.flush(2)
            assert reader.execute("SELECT count(*) FROM luthier_requests").fetchone() == (1,)


def test_there_is_nothing_to_read_before_the_first_start(uri, tmp_path):
    with pytest.raises(UserError, match="no request log"):
        read_requests(uri)
    assert not list(tmp_path.iterdir())  # and nothing was made by looking


def test_at_rest_a_row_is_there_soon_without_anybody_waiting_for_it(tmp_path):
    uri = uri_of(tmp_path)
    with RequestLog(uri) as log:
        for number in range(3):
            log.put(logged(number))
            end = time.monotonic() + 5
            while len(read_requests(uri)) <= number and time.monotonic() < end:
                time.sleep(0.01)
            assert len(read_requests(uri)) == number + 1
            assert log.waiting == 0
