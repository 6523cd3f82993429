"""What is done without a person is done once, within its limits, and stands in the deployment log."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from luthier.errors import UserError
from luthier.registry import Registry
from luthier.serving.records.feedback import FeedbackRequest, FeedbackStore
from luthier.serving.records.log import RequestLog
from luthier.watching.acts import WHO, Actor, HeldBackError, Limits
from tests.pipelines.monitoring.test_nodes import logged_messages, message

FREE = Limits(timedelta(0), 1000)
RETRAIN = {"decision": "retrain", "why": ["Requests differ."], "version": None}


@pytest.fixture
def actor(home, tmp_path):
    """Return an actor on the registry of a test, with versions 1 and 3, the second one in production over the first."""
    registry = Registry("luthier", home.uri, who=f"{WHO}, somebody@here")
    registry.promote(1)
    registry.promote(3)
    return Actor(
        registry,
        gateway="http://127.0.0.1:9",
        log_uri=logged_messages(tmp_path, [message("hello", answer="a"), message("again", answer="b")]),
        folder=tmp_path / "corrections",
        project=tmp_path,
        retraining_log=tmp_path / "retraining.log",
        env=None,
        parameters={},
        labels=None,
        workflow=None,
    )


def rollback_of(version):
    return {
        "decision": "roll back",
        "why": ["It is worse.", "Much."],
        "experiment": "e",
        "version": version,
        "variant": "challenger",
    }


def correct(actor, request, text):
    with RequestLog(actor.log_uri) as log:
        FeedbackStore(log).vote(FeedbackRequest(request_id=request, name="helpful", correction=text))


@pytest.mark.parametrize("decision", ["keep", "promote", "check"])
def test_other_decisions_are_a_persons(actor, decision):
    assert actor.plan({"decision": decision, "why": [], "version": 3}) is None


def test_a_champion_that_lost_is_rolled_back_and_the_log_says_who_and_why(actor):
    assert actor.plan(rollback_of(3)) == "rollback"
    line = actor.act(rollback_of(3), FREE)
    assert (line.action, line.version, line.reason) == ("rollback", 1, "It is worse. Much.")
    assert line.who.startswith(WHO)
    assert actor.registry.standing().aliases["champion"] == 1


def test_retraining_starts_a_run_with_new_corrections_and_the_champion_stays(actor, tmp_path, monkeypatch):
    correct(actor, "r000000", "better")
    (tmp_path / "pyproject.toml").touch()
    line = actor.act(RETRAIN, FREE)
    assert (line.action, line.version, line.from_version) == ("retrain", 3, 3)
    (file,) = actor.folder.glob("*.jsonl")
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row["messages"][-1] == {"role": "assistant", "content": "better"}
    assert row["meta"]["request"] == "r000000"
    assert " run" in actor.retraining_log.read_text()
    # what was written before is not written again, and is never lost
    assert actor.write_rows() is None
    correct(actor, "r000001", "best")
    second = actor.write_rows()
    assert file.exists()
    assert "best" in second.read_text()
    assert "better" not in second.read_text()
    # and so are messages whose labels came
    (tmp_path / "labels.jsonl").write_text(
        '{"request": "r000001", "answer": {"intent": "x"}}\n{"request": "r9", "answer": "y"}\n'
    )
    (row,) = map(json.loads, changed(actor, labels=str(tmp_path / "labels.jsonl")).write_rows().read_text().splitlines())
    assert row["messages"][-2:] == [{"role": "user", "content": "again"}, {"role": "assistant", "content": '{"intent":"x"}'}]
    assert (row["meta"]["request"], row["meta"]["version"], row["meta"]["answer"]) == ("r000001", 1, "b")
    # a rollback still goes back to the champion before
    assert actor.registry.rollback().version == 1


def test_a_training_that_did_not_start_pauses_nothing(actor, server, monkeypatch, tmp_path):
    url, _ = server
    limits = Limits(timedelta(hours=1), 1)
    (tmp_path / "labels.jsonl").write_text("nonsense")
    with pytest.raises(UserError, match="has bad lines"):
        changed(actor, labels=str(tmp_path / "labels.jsonl")).act(RETRAIN, limits)
    assert [line.action for line in actor.registry.log.lines()] == ["promote", "promote"]
    monkeypatch.setenv("A_TOKEN", "ghp_0123")
    workflow = {"repository": "team/models", "workflow": "train.yml", "ref": "main", "token_variable": "A_TOKEN"}
    with pytest.raises(UserError, match="GitHub"):
        changed(actor, workflow={**workflow, "api": "http://127.0.0.1:9"}).act(RETRAIN, limits)
    assert [line.action for line in actor.registry.log.lines()][2:] == ["retrain", "retrain failed"]
    assert changed(actor, workflow={**workflow, "api": url}).act(RETRAIN, limits).action == "retrain"
    with pytest.raises(HeldBackError):
        changed(actor, workflow={**workflow, "api": url}).act(RETRAIN, limits)


def test_a_version_that_somebody_put_there_meanwhile_is_not_taken_back(actor, monkeypatch):
    decided = rollback_of(3)
    monkeypatch.setattr(Actor, "plan", lambda self, _: "rollback")  # it was the champion a moment ago
    Registry("luthier", actor.registry.tracking_uri, who="ada@desk").rollback()
    with pytest.raises(HeldBackError, match="version 3 is no longer the champion"):
        actor.act(decided, FREE)
    assert actor.registry.standing().aliases["champion"] == 1


def test_a_correction_that_was_corrected_is_learnt_once(actor):
    correct(actor, "r000000", "wrong, sent by mistake")
    actor.write_rows()
    correct(actor, "r000000", "right")
    actor.write_rows()
    with RequestLog(actor.log_uri) as log:
        FeedbackStore(log).vote(FeedbackRequest(request_id="r000000", name="helpful", correction="right", rating="down"))
    assert actor.write_rows() is None
    rows = [json.loads(line) for file in actor.folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == ["right"]


class _Requests(BaseHTTPRequestHandler):
    seen: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        self.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(200)
        self.end_headers()
        variants = [{"name": "champion", "version": 3, "weight": 0.5}, {"name": "challenger", "version": 4, "weight": 0.5}]
        self.wfile.write(json.dumps({"experiment": {"id": "e", "variants": variants}}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    _Requests.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Requests) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", _Requests.seen
        server.shutdown()


def changed(actor, **facts):
    return Actor(**{**vars(actor), **facts})


def test_a_challenger_that_lost_loses_its_share(actor, server, monkeypatch):
    url, seen = server
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", "sk-admin-0123456789")
    line = changed(actor, gateway=url).act(rollback_of(4), FREE)
    assert (line.action, line.version) == ("end experiment", 3)
    path, key, body = seen[-1]
    assert (path, key) == ("/admin/experiment", "Bearer sk-admin-0123456789")
    assert body == {"id": "e-ended", "variants": [{"name": "champion", "version": 3, "weight": 1.0}], "shadow": None}


def test_another_experiment_than_the_one_that_was_lost_goes_on(actor, server, monkeypatch):
    url, seen = server
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", "sk-admin-0123456789")
    before = actor.registry.log.lines()
    with pytest.raises(HeldBackError, match="the experiment older was decided, and e runs"):
        changed(actor, gateway=url).act(rollback_of(4) | {"experiment": "older"}, FREE)
    assert [path for path, _, _ in seen] == ["/admin/reload"]
    assert actor.registry.log.lines() == before


def test_a_workflow_trains_elsewhere(actor, server, monkeypatch):
    url, seen = server
    workflow = {"repository": "team/models", "workflow": "train.yml", "ref": "main", "token_variable": "A_TOKEN", "api": url}
    elsewhere = changed(actor, workflow=workflow)
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(UserError, match="A_TOKEN is not set"):
        elsewhere.act(RETRAIN, FREE)
    monkeypatch.setenv("A_TOKEN", "ghp_0123")
    elsewhere.act(RETRAIN, FREE)
    assert seen[-1] == ("/repos/team/models/actions/workflows/train.yml/dispatches", "Bearer ghp_0123", {"ref": "main"})
    assert not actor.retraining_log.exists()


def test_who_cannot_be_reached_is_told_without_the_key(actor, monkeypatch):
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", "sk-admin-0123456789")
    with pytest.raises(UserError, match=r"The gateway does not answer at 127\.0\.0\.1:9: ConnectionError$"):
        actor.act(rollback_of(4), FREE)
    assert [line.action for line in actor.registry.log.lines()] == ["promote", "promote"]


def test_what_is_missing_is_told_before_the_log_says_that_anything_was_done(actor, monkeypatch):
    monkeypatch.delenv("LUTHIER_ADMIN_KEY", raising=False)
    with pytest.raises(UserError, match="LUTHIER_ADMIN_KEY is not set"):
        actor.act(rollback_of(4), FREE)
    workflow = {
        "repository": "a/b",
        "workflow": "train.yml",
        "ref": "main",
        "token_variable": "NO_TOKEN",
        "api": "http://127.0.0.1:9",
    }
    with pytest.raises(UserError, match="NO_TOKEN is not set"):
        changed(actor, workflow=workflow).act(RETRAIN, FREE)
    assert [line.action for line in actor.registry.log.lines()] == ["promote", "promote"]


def test_acts_are_rare_whoever_acts(actor):
    limits = Limits(timedelta(hours=1), 2)
    assert limits.why_not("rollback", actor.registry.log.lines(), datetime.now(UTC)) is None
    actor.act(rollback_of(3), limits)
    # another monitor, on another machine, at the same moment
    other = changed(actor, registry=Registry("luthier", actor.registry.tracking_uri, who=f"{WHO}, other@there"))
    with pytest.raises(HeldBackError, match="the last such act was at"):
        other.act(rollback_of(1), limits)
    lines = actor.registry.log.lines()
    assert [line.action for line in lines] == ["promote", "promote", "rollback"]
    now = datetime.now(UTC)
    for planned in ("rollback", "end experiment"):
        assert limits.why_not(planned, lines, now + timedelta(hours=2)) is None
        assert "2 such acts within a day" in limits.why_not(planned, [*lines, lines[-1]], now + timedelta(hours=2))
        assert limits.why_not(planned, [*lines, lines[-1]], now + timedelta(hours=25)) is None


def test_taking_back_does_not_wait_for_the_pause_after_a_retraining(actor):
    limits = Limits(timedelta(hours=1), 1)
    actor.act(RETRAIN, limits)
    with pytest.raises(HeldBackError, match="the last such act was at"):
        actor.act(RETRAIN, limits)
    assert actor.act(rollback_of(3), limits).action == "rollback"


def test_what_people_do_is_no_act_of_the_monitor(actor):
    Registry("luthier", actor.registry.tracking_uri, who="ada@desk").rollback()
    assert Limits(timedelta(hours=1), 1).why_not("rollback", actor.registry.log.lines(), datetime.now(UTC)) is None
