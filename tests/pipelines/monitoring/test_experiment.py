"""Experiments end as they should: by subject, by what was assigned, and not at all where subjects are lost."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from luthier.pipelines.monitoring.experiment import MISMATCH, Guardrail, Plan, _p_of_counts, check_assignment, decide
from luthier.pipelines.monitoring.parameters import ExperimentPlanParameters
from luthier.pipelines.monitoring.subjects import OURS, subjects_of

PLAN = Plan("control", "challenger", {"control": 0.5, "challenger": 0.5})


def people(random, size, share=(0.6, 0.6), errors=(0.0, 0.0), seconds=(1.0, 1.0), voted=(1.0, 1.0), weight=0.5):
    """Return subjects who are dealt by chance."""
    arm = (random.random(size) < weight).astype(int)
    rating = (random.random(size) < np.array(share)[arm]).astype(float)
    votes = random.random(size) < np.array(voted)[arm]
    return pd.DataFrame(
        {
            "assigned": np.array(["control", "challenger"])[arm],
            "variants": 1,
            "rating": np.where(votes, rating, np.nan),
            "errors": (random.random(size) < np.array(errors)[arm]).astype(float),
            "log_seconds": np.log(random.lognormal(0, 0.5, size) * np.array(seconds)[arm]),
            "log_characters": random.normal(5, 0.5, size),
            "voted": votes.astype(float),
        }
    )


@pytest.mark.parametrize(
    ("world", "decision", "word"),
    [
        ({"share": (0.6, 0.7)}, "promote", "better"),
        ({"share": (0.7, 0.6)}, "roll back", "worse"),
        ({"share": (0.6, 0.7), "errors": (0.0, 0.04)}, "roll back", "errors"),
        ({"share": (0.6, 0.7), "seconds": (1.0, 1.5)}, "roll back", "log_seconds"),
        ({"share": (0.6, 0.7), "voted": (0.9, 0.7)}, "roll back", "voted"),
        ({"share": (0.6, 0.6)}, "no difference", "alike"),
        ({"share": (0.6, 0.7), "weight": 0.45}, "blocked", "p = "),
    ],
)
def test_each_decision_is_made_where_it_is_due(world, decision, word):
    found = decide(people(np.random.default_rng(1), 20_000, **world), PLAN)
    assert found.decision == decision, found.why
    assert word in found.why
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (told["primary"] is None) == (decision == "blocked")


def test_too_early_nothing_is_said_and_at_the_planned_end_no_difference():
    random = np.random.default_rng(2)
    assert decide(people(random, 90), PLAN).decision == "keep collecting"
    assert json.dumps(decide(people(random, 0), PLAN).as_dict(), allow_nan=False)
    some = people(random, 1_000)
    assert decide(some, PLAN).decision == "keep collecting"
    assert decide(some, replace(PLAN, most_subjects=900)).decision == "no difference"


def test_a_winner_waits_for_its_guardrails():
    strict = replace(PLAN, guardrails=(Guardrail("log_seconds", 0.002),))
    found = decide(people(np.random.default_rng(3), 3_000, share=(0.6, 0.72)), strict)
    assert found.decision == "keep collecting"
    assert "log_seconds" in found.why
    assert found.primary.low > 0


@pytest.mark.parametrize(
    ("metric", "world"),
    [
        ("rating", {"share": (0.6, 0.8)}),
        ("voted", {"voted": (0.6, 0.8)}),
        ("errors", {"errors": (0.2, 0.05)}),
        ("log_seconds", {"seconds": (1.5, 1.0)}),
    ],
)
def test_a_guardrail_is_broken_by_what_is_worse_and_never_by_what_is_better(metric, world):
    given = ExperimentPlanParameters(guardrails=[{"metric": metric, "margin": 0.02}])
    planned = given.plan("control", "challenger", PLAN.weights)
    worse = {what: (after, before) for what, (before, after) in world.items()}
    states = [decide(people(np.random.default_rng(7), 8_000, **one), planned).guardrails[0].state for one in (world, worse)]
    assert states == ["kept", "broken"]


@pytest.mark.slow
def test_null_experiments_seldom_end_with_a_winner_and_kept_guardrails_are_seldom_broken():
    ends, runs = [], 100
    for seed in range(runs):
        crowd = people(np.random.default_rng(seed), 2_000, errors=(0.02, 0.02), voted=(0.5, 0.5))
        looks = [decide(crowd.iloc[:size], PLAN) for size in range(500, 2_001, 500)]
        ends.append(
            (
                any(one.decision == "promote" for one in looks),
                any(kept.state == "broken" for one in looks for kept in one.guardrails),
                looks[-1].decision == "blocked",
            )
        )
    for count, level in zip(np.sum(ends, axis=0), (0.025, 0.05, 0.001), strict=True):
        assert binomtest(int(count), runs, level, alternative="greater").pvalue > 0.001


def test_more_challengers_share_the_level():
    crowd = people(np.random.default_rng(4), 3_000, share=(0.6, 0.66))
    three = replace(PLAN, weights={"control": 0.5, "challenger": 0.5, "third": 0.0})
    assert decide(crowd, three).primary.low < decide(crowd, PLAN).primary.low


def test_sound_assignment_is_blocked_at_no_look_however_often_one_looks():
    random, looks = np.random.default_rng(6), np.arange(50, 5_001, 50)
    blocked = 0
    for _ in range(1_000):
        challenger = np.cumsum(random.random(5_000) < 0.1)[looks - 1]
        both = zip(looks - challenger, challenger, strict=True)
        blocked += any(_p_of_counts(np.array(seen), np.array([0.9, 0.1])) < MISMATCH for seen in both)
    assert binomtest(blocked, 1_000, MISMATCH, alternative="greater").pvalue > 0.001
    assert _p_of_counts(np.array([2_750, 2_250]), np.array([0.5, 0.5])) < MISMATCH
    assert _p_of_counts(np.array([0, 0]), np.array([0.5, 0.5])) == 1


def test_broken_assignment_is_caught_and_sound_assignment_is_not():
    random = np.random.default_rng(5)
    caught = sound = 0
    for _ in range(80):
        crowd = people(random, 10_000)
        sound += check_assignment(crowd, PLAN.weights).broken is None
        # one in eight of the challenger's subjects never reaches the log
        lost = (crowd["assigned"] == "challenger") & (random.random(10_000) < 0.125)
        caught += check_assignment(crowd[~lost], PLAN.weights).broken is not None
    assert caught >= 79
    assert binomtest(80 - sound, 80, 0.001, alternative="greater").pvalue > 0.001
    unsteady = people(random, 1_000).assign(variants=[2] * 20 + [1] * 980)
    assert "more than one" in check_assignment(unsteady, PLAN.weights).broken
    assert "weight is 0" in check_assignment(people(random, 50), {"control": 1.0, "challenger": 0.0}).broken
    with pytest.raises(ValueError, match="'challenger'"):
        check_assignment(people(random, 50), {"control": 1.0})


def requests(*rows):
    """Return a request log: (request, subject, assigned, served, error, shadow_of)."""
    frame = pd.DataFrame(rows, columns=["request", "subject", "assigned", "served", "error", "shadow_of"]).astype("string")
    size = len(frame)
    return frame.assign(
        at=pd.date_range("2026-01-01", periods=size, tz="UTC"),
        experiment=pd.array(["e"] * size, "string"),
        seconds=pd.array([2.0] * size, "Float64"),
        answer_characters=pd.array([100] * size, "Int64"),
    )


def test_a_subject_counts_once_for_what_it_was_assigned():
    log = requests(
        ("r1", "ann", "challenger", "control", None, None),  # the challenger was down: still its subject
        ("r2", "ann", "challenger", "challenger", "internal_error", None),
        ("r3", "bob", "control", "control", "invalid_value", None),  # bob's own mistake
        ("r4", "bob", "control", "control", None, None),
        ("r5", "bob", "control", "challenger", None, "r4"),  # nobody saw it
        ("r6", None, "control", "control", None, None),
        ("r7", "eve", None, "control", None, None),
        ("r8", "cat", "control", "control", None, None),
        ("r9", "cat", "challenger", "challenger", None, None),
    )
    votes = pd.DataFrame(
        {
            "request": ["r4", "r1", "r1", "r9", "r8"],
            "name": ["helpful", "helpful", "tone", "helpful", "helpful"],
            "rating": ["down", "up", "down", "down", None],
            "at": pd.date_range("2026-01-02", periods=5, tz="UTC"),
        }
    ).astype({"request": "string", "name": "string", "rating": "string"})
    found = subjects_of(log, votes, "e")
    assert found["assigned"].to_dict() == {"ann": "challenger", "bob": "control", "cat": "control"}
    assert found["variants"].to_dict() == {"ann": 1, "bob": 1, "cat": 2}
    assert found["errors"].to_dict() == {"ann": 0.5, "bob": 0.0, "cat": 0.0}
    assert found["rating"].to_dict() == {"ann": 1.0, "bob": 0.0, "cat": 0.0}
    assert found["voted"].to_dict() == {"ann": 1.0, "bob": 1.0, "cat": 0.5}
    assert found["log_seconds"].to_numpy() == pytest.approx(np.log(2))
    assert found["log_characters"].to_numpy() == pytest.approx(np.log(100))
    assert subjects_of(log, votes, "another").empty
    assert len(subjects_of(log, votes.head(0), "e")) == 3
    assert "internal_error" in OURS
    assert "client_disconnected" not in OURS
