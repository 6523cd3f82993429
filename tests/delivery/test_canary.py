"""A canary waits for what is shown, and for no more."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.watching import canary
from luthier.watching.canary import check_candidate, plan, share_of, watch
from luthier.watching.loop import News

OPEN = {"experiment": "mine", "decision": "keep collecting", "why": "too few"}


def told(decision, name="mine"):
    return {"experiment": name, "decision": decision, "why": f"it is {decision}"}


def watched(looks, seconds=60.0):
    """Return the verdict, and how often was looked; each look has news."""
    left, count = list(looks), [0]

    def look():
        count[0] += 1
        found = left.pop(0) if left else [OPEN]
        if isinstance(found, Exception):
            raise found
        return found

    requests = iter(range(1, 10**6))
    verdict = watch(look, lambda: News(next(requests), 0, ""), "mine", 0, time.monotonic() + seconds)
    return verdict, count[0]


@given(st.integers(0, 20), st.sampled_from(["promote", "roll back", "no difference", "blocked"]))
def test_only_what_is_shown_to_be_better_is_promoted(before, decision):
    verdict, looks = watched([[OPEN]] * before + [[told(decision)]])
    assert verdict.outcome == ("promote" if decision == "promote" else "roll back")
    assert verdict.why == f"it is {decision}"
    assert looks == before + 1


def test_other_experiments_and_looks_that_fail_decide_nothing():
    verdict, looks = watched([[told("promote", "another")], UserError("the database is away"), [], [told("promote")]])
    assert (verdict.outcome, looks) == ("promote", 4)


def test_what_is_not_decided_in_time_is_taken_back():
    verdict, _ = watched([], 0.2)
    assert verdict.outcome == "roll back"
    assert verdict.why == "The time is up and nothing is shown: too few"


def test_without_news_nobody_looks():
    def look():
        raise AssertionError("there was nothing to see")

    verdict = watch(look, lambda: None, "mine", 0.01, time.monotonic() + 0.1)
    assert verdict.why.endswith("no request has come")
    looks = []
    same = News(1, 0, "")
    watch(lambda: looks.append(1) or [OPEN], lambda: same, "mine", 0.01, time.monotonic() + 0.1)
    assert len(looks) == 1


class Gateway:
    """One that deals what it is told, while it is there."""

    def __init__(self):
        self.runs = {"id": "none", "variants": [{"name": "champion", "version": "champion", "weight": 1.0}], "shadow": None}
        self.asked, self.away = [], []

    def ask(self, method, url, key, whom, body=None, **_):
        self.asked.append(url.rpartition("/")[2])
        if self.away and (trouble := self.away.pop()):
            raise trouble
        self.runs = body or self.runs
        return {"experiment": self.runs}


@pytest.fixture
def gateway(monkeypatch):
    made = Gateway()
    monkeypatch.setattr(canary, "ask", made.ask)
    monkeypatch.setattr(canary.time, "sleep", lambda _: None)
    return made


EXPERIMENT = plan(3, 0.1, datetime(2026, 1, 2, tzinfo=UTC))


def test_a_share_ends_however_often_the_gateway_is_away_and_if_it_cannot_that_is_told(gateway):
    kept = []
    with share_of("http://gateway", "key", EXPERIMENT, kept.append):
        gateway.away += [UserError("it is away")] * 3
    assert gateway.asked == ["reload", "experiment", *["reload"] * 4, "experiment"]
    assert [one.id for one in kept] == [EXPERIMENT.id, f"{EXPERIMENT.id}-ended"]
    stays_away = pytest.raises(UserError, match="is not ended: POST http://gateway/admin/experiment")
    with stays_away, share_of("http://gateway", "key", EXPERIMENT, kept.append):
        gateway.away += [UserError("it is away")] * 99


def test_what_somebody_else_began_meanwhile_goes_on(gateway, caplog):
    kept = []
    theirs = {**gateway.runs, "id": "shorter-answers"}
    with share_of("http://gateway", "key", EXPERIMENT, kept.append):
        gateway.runs = theirs
    assert gateway.runs == theirs
    assert [one.id for one in kept] == [EXPERIMENT.id]
    assert "shorter-answers runs by now" in caplog.text


def test_a_share_ends_also_if_the_gateway_was_still_about_to_deal_it(gateway):
    gateway.away += [KeyboardInterrupt(), None]  # it is stopped before the gateway says that it deals the share
    with pytest.raises(KeyboardInterrupt), share_of("http://gateway", "key", EXPERIMENT, lambda _: None):
        pass
    assert gateway.runs["id"] == f"{EXPERIMENT.id}-ended"


@given(st.floats(0.0001, 0.9999))
def test_every_share_can_be_dealt(share):
    experiment = plan(3, share, datetime(2026, 1, 2, tzinfo=UTC))
    weights = [variant.weight for variant in experiment.variants]
    assert abs(weights[1] - share) <= 0.00005
    assert round(sum(weights), 9) == 1


def test_what_the_gate_did_not_pass_gets_no_users(home):
    registry = home.registry()
    assert check_candidate(registry, "2") is None
    registry.promote(1)
    assert check_candidate(registry, "2").number == 2
    registry.client.set_model_version_tag("luthier", "2", "luthier.gate", "undecided")
    with pytest.raises(UserError, match="the gate said 'undecided'"):
        check_candidate(registry, "2")
