"""Feedback: a vote counts once, for the variant that the server knows; a correction comes back as data to train on."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.pipelines.data_processing.shapes import recognise, to_conversation
from luthier.serving.api.bodies import read_json, validated
from luthier.serving.api.errors import ApiError
from luthier.serving.records.feedback import NAMES_PER_REQUEST, FeedbackRequest, FeedbackStore, corrections, read_feedback
from luthier.serving.records.log import RequestLog
from luthier.serving.records.logged import LoggedRequest
from tests.serving.logs import logged

TURNS = [
    {"role": "system", "content": "Triage."},
    {"role": "user", "content": "Where is my order, <EMAIL_aaaaaa>?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": '[{"function":{"arguments":"{}","name":"find"},"id":"1","type":"function"}]',
    },
    {"role": "tool", "content": "on its way", "tool_call_id": "1"},
]


def answered(number: int, **facts) -> LoggedRequest:
    known = {"version": 4, "experiment": "e1", "assigned": "challenger", "served": "champion", "manifest": "f" * 64}
    return logged(number, **known | {"messages": TURNS, "answer": "no idea", "request": f"r{number}"} | facts)


@pytest.fixture
def store(uri):
    with RequestLog(uri) as log:
        log.put(answered(1))
        yield FeedbackStore(log), log


def said(request: str = "r1", **content) -> FeedbackRequest:
    return FeedbackRequest(request_id=request, **content)


def test_a_vote_counts_for_the_variant_of_its_request_though_the_row_is_still_in_the_queue(store, uri):
    kept, log = store
    log.put(answered(2, assigned="champion", served="champion", version=3))
    vote = kept.vote(said("r2", rating="down"))
    assert (vote.result, vote.assigned, vote.served, vote.version) == ("created", "champion", "champion", 3)
    kept.vote(said("r1", rating="up"))
    rows = read_feedback(uri).set_index("request")
    assert dict(rows["assigned"]) == {"r1": "challenger", "r2": "champion"}
    assert dict(rows["rating"]) == {"r1": "up", "r2": "down"}
    assert dict(rows["version"]) == {"r1": 4, "r2": 3}


def test_the_same_vote_again_changes_nothing_and_another_one_takes_its_place(store, uri):
    kept, _ = store
    assert kept.vote(said(rating="up")).result == "created"
    (first,) = read_feedback(uri).to_dict("records")
    assert kept.vote(said(rating="up")).result == "unchanged"
    assert read_feedback(uri).to_dict("records") == [first]
    assert kept.vote(said(rating="down", comment="too late")).result == "updated"
    (second,) = read_feedback(uri).to_dict("records")
    assert second["at"] == first["at"]
    assert second["updated_at"] > first["updated_at"]
    assert second["rating"] == "down"
    assert kept.vote(said(name="polite", rating="up")).result == "created"
    assert len(read_feedback(uri)) == 2


@pytest.mark.parametrize("request_id", ["r9", "shadow", "failed"])
def test_only_an_answer_that_was_shown_can_be_judged(store, uri, request_id):
    kept, log = store
    log.put(answered(0, request="shadow", shadow_of="r1"))
    log.put(answered(0, request="failed", version=None, status=503, error="engine_unavailable"))
    with pytest.raises(ApiError) as caught:
        kept.vote(said(request_id, rating="up"))
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "request_not_found", "request_id")
    assert not len(read_feedback(uri))


@pytest.mark.parametrize("field", ["variant", "assigned", "model_version", "experiment"])
def test_a_client_cannot_say_whom_it_judges(field):
    body = json.dumps({"request_id": "r1", "rating": "up", field: "challenger"}).encode()
    with pytest.raises(ApiError, match=f"{field}: is unknown"):
        validated(FeedbackRequest, read_json(body, 1000, 10))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"rating": "up"}, "request_id"),
        ({"request_id": "r1"}, "rating"),
        ({"request_id": "r1", "rating": "sideways"}, "rating"),
        ({"request_id": "r1", "rating": 1}, "rating"),
        ({"request_id": "r1", "correction": " \n"}, "correction"),
        ({"request_id": "r1", "rating": "up", "name": "Robert'); DROP TABLE"}, "name"),
        ({"request_id": "r1", "comment": "x" * 10_001}, "comment"),
        ({"request_id": "", "rating": "up"}, "request_id"),
    ],
)
def test_a_bad_vote_is_refused_by_its_field(body, param):
    with pytest.raises(ApiError) as caught:
        validated(FeedbackRequest, body)
    assert (caught.value.status, caught.value.param) == (400, param)


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["request_id", "name", "rating", "correction", "comment"]) | st.text(), inner), max_leaves=8))  # fmt: skip
def test_any_json_is_a_vote_or_refused(value):
    try:
        validated(FeedbackRequest, read_json(json.dumps(value).encode(), 10_000, 20))
    except ApiError as error:
        assert error.status == 400
        json.dumps(error.body()).encode()


def test_one_answer_takes_a_bounded_number_of_votes(store, uri):
    kept, _ = store
    for number in range(NAMES_PER_REQUEST):
        kept.vote(said(name=f"n{number}", rating="up"))
    with pytest.raises(ApiError, match="different votes"):
        kept.vote(said(name="one_more", rating="up"))
    assert kept.vote(said(name="n3", rating="down")).result == "updated"
    assert len(read_feedback(uri)) == NAMES_PER_REQUEST


def test_votes_of_many_at_once_are_one_vote(store, uri):
    kept, _ = store
    results = []
    threads = [threading.Thread(target=lambda: results.append(kept.vote(said(rating="up")).result)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["created"] + ["unchanged"] * 7
    assert len(read_feedback(uri)) == 1


def test_a_correction_comes_back_as_a_row_that_data_processing_reads(store, uri):
    kept, _ = store
    kept.vote(said(rating="down", correction='{"intent": "order_status"}', comment="it was about an order"))
    kept.vote(said(name="polite", rating="up"))  # corrects nothing
    rows = list(corrections(uri))
    rows = [json.loads(json.dumps(row)) for row in rows]  # as a file of JSON lines has them
    assert recognise(rows, frozenset()) == "messages"
    conversation = to_conversation(rows[0], "messages")
    assert conversation.messages == [*TURNS, {"role": "assistant", "content": '{"intent": "order_status"}'}]
    meta = rows[0]["meta"]
    assert rows[0]["id"] == "r1-helpful"
    assert (meta["request"], meta["version"], meta["served"], meta["manifest"]) == ("r1", 4, "champion", "f" * 64)
    assert (meta["answer"], meta["rating"], meta["comment"]) == ("no idea", "down", "it was about an order")


def test_corrections_since_are_those_that_changed_since(store, uri):
    kept, log = store
    log.put(answered(2))
    kept.vote(said("r1", correction="first"))
    kept.vote(said("r2", correction="second"))
    between = datetime.now(UTC)
    kept.vote(said("r1", correction="first"))  # says nothing new
    assert list(corrections(uri, between)) == []
    kept.vote(said("r1", correction="better"))
    assert [row["messages"][-1]["content"] for row in corrections(uri, between)] == ["better"]
    assert [row["messages"][-1]["content"] for row in corrections(uri)] == ["second", "better"]
    assert list(corrections(uri, datetime.now(UTC) + timedelta(hours=1))) == []


def test_where_no_text_is_kept_none_is_taken(tmp_path):
    with RequestLog(f"sqlite:///{tmp_path / 'r.db'}", text="none") as log:
        log.put(answered(1))
        kept = FeedbackStore(log)
        for field in ("correction", "comment"):
            with pytest.raises(ApiError, match="keeps no text"):
                kept.vote(said(rating="up", **{field: "a secret"}))
        assert kept.vote(said(rating="up")).result == "created"
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_feedback_without_a_database_is_a_503_that_tells_nothing_of_it(tmp_path):
    folder = tmp_path / "there"
    log = RequestLog(f"sqlite:///{folder / 'r.db'}")
    log.start()
    folder.rename(tmp_path / "away")
    with pytest.raises(ApiError) as caught:
        FeedbackStore(log).vote(said(rating="up"))
    assert (caught.value.status, caught.value.code) == (503, "log_unavailable")
    assert str(tmp_path) not in json.dumps(caught.value.body())
    assert "Retry-After" in caught.value.headers
    log.close(0)


def test_there_is_nothing_to_read_before_the_first_start(tmp_path):
    with pytest.raises(UserError, match="no request log"):
        list(corrections(f"sqlite:///{tmp_path / 'r.db'}"))
