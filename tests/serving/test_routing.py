"""Routing: a subject keeps its variant, shares are what was asked for, and a change of weights moves no more than it must."""

import json
import random
import subprocess
import sys
from collections import Counter
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from luthier.serving.api.errors import ApiError
from luthier.serving.routing import (
    BUCKETS,
    Experiment,
    RouteTable,
    Variant,
    bucket,
    hash_subject,
    ranges,
    resolve_experiment,
    widths,
)

SUBJECTS = [f"user-{number}" for number in range(100_000)]


def experiment(weights: dict[str, float], salt: str = "e1", shadow: int | None = None) -> Experiment:
    return Experiment(
        salt, tuple(Variant(name, number, weight) for number, (name, weight) in enumerate(weights.items(), 1)), shadow
    )


def moved(before: Experiment, after: Experiment) -> float:
    """Return the share of subjects that have another variant of the same names after a change of the weights."""
    pairs = [(before.ranges[name], after.ranges[name]) for name in before.ranges]
    return 1 - sum(max(0, min(one[1], other[1]) - max(one[0], other[0])) for one, other in pairs) / BUCKETS


@lru_cache
def two(share: float, salt: str = "e1") -> Experiment:
    return experiment({"champion": 1 - share, "challenger": share}, salt)


@lru_cache
def challenged(share: float, salt: str = "e1") -> frozenset[str]:
    """Return the subjects that the challenger has."""
    assign = two(share, salt).assign
    return frozenset(subject for subject in SUBJECTS if assign(subject).name == "challenger")


@st.composite
def weights(draw, least: int = 1, most: int = 3):
    """Draw weights of variants that always have the same names in the same order."""
    count = draw(st.integers(least, most))
    cuts = sorted(draw(st.lists(st.integers(0, BUCKETS), min_size=count - 1, max_size=count - 1)))
    found = [(after - before) / BUCKETS for before, after in zip([0, *cuts], [*cuts, BUCKETS], strict=True)]
    return dict(zip("abcdefgh", found, strict=False))


@given(weights(most=6))
def test_every_bucket_has_one_variant_and_every_weight_its_buckets_exactly(drawn):
    held = ranges(drawn)
    assert list(held) == list(drawn)
    taken = sorted(place for first, end in held.values() for place in range(first, end))
    assert taken == list(range(BUCKETS))
    assert {name: (end - first) / BUCKETS for name, (first, end) in held.items()} == drawn


@given(weights(least=2), weights(least=2))
def test_no_subject_leaves_a_challenger_that_grew(before, after):
    if len(before) != len(after):
        return
    held, then = ranges(before), ranges(after)
    for name in list(before)[1:]:
        small, large = sorted((held[name], then[name]), key=lambda range_: range_[1] - range_[0])
        assert small[0] == small[1] or (large[0] <= small[0] and small[1] <= large[1])


@given(weights(least=2), weights(least=2))
def test_as_few_subjects_move_as_can_where_challengers_grow_or_shrink_together(before, after):
    if len(before) != len(after):
        return
    changes = [after[name] - before[name] for name in list(before)[1:]]
    if any(one > 0 for one in changes) and any(one < 0 for one in changes):
        return  # what one challenger gives another passes through the control, which stands between them
    least = sum(abs(after[name] - before[name]) for name in before) / 2
    assert moved(experiment(before), experiment(after)) == pytest.approx(least, abs=1e-9)


def test_raising_a_challenger_moves_nobody_out_of_it_and_lowering_brings_nobody_in():
    assert challenged(0.1) < challenged(0.3)
    assert moved(two(0.1), two(0.3)) == pytest.approx(0.2)
    assert abs(len(challenged(0.3) - challenged(0.1)) / len(SUBJECTS) - 0.2) < 0.006


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.3])
def test_shares_of_100_000_subjects_are_within_exact_binomial_bounds(share):
    low, high = binom.ppf([0.0005, 0.9995], len(SUBJECTS), share)
    assert low <= len(challenged(share)) <= high


def test_buckets_are_as_even_as_chance_makes_them():
    counts = Counter(bucket("e1", subject) // 100 for subject in SUBJECTS)
    expected = len(SUBJECTS) / 100
    statistic = sum((counts[place] - expected) ** 2 / expected for place in range(100))
    assert chi2.ppf(0.0005, 99) < statistic < chi2.ppf(0.9995, 99)


def test_another_experiment_deals_anew():
    # who is in the challenger of one experiment is in that of the next as often as anybody
    first, both = challenged(0.3), challenged(0.3) & challenged(0.3, "second")
    low, high = binom.ppf([0.0005, 0.9995], len(first), 0.3)
    assert low <= len(both) <= high


def test_the_variant_of_a_subject_is_the_same_in_every_process_and_order():
    subjects = SUBJECTS[:500] + ["", "é", "用户", "a" * 10_000, "half \ud83d"]
    random.Random(0).shuffle(subjects)
    script = (
        "import json, sys\nfrom luthier.serving.routing import *\n"
        "e = Experiment('e1', (Variant('champion', 1, 0.7), Variant('challenger', 2, 0.3)))\n"
        "print(json.dumps({s: e.assign(s).name for s in json.load(sys.stdin)}))"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(subjects), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {subject: two(0.3).assign(subject).name for subject in sorted(subjects)}


def test_the_deal_is_pinned():
    # a change of the hash would deal a running experiment anew; the first 16 digits of `printf e1:user-0 | sha256sum`, mod 10000
    assert [bucket("e1", f"user-{number}") for number in range(4)] == [4185, 3299, 5724, 6150]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"a": 0.5, "b": 0.4}, "add up to 0.9"),
        ({"a": 0.33333, "b": 0.66667}, "the weight of a must be a share"),
        ({"a": 1.5, "b": -0.5}, "the weight of b must be a share"),
        ({"a": 0.7, "b": 0.4}, "add up to 1.1"),
    ],
)
def test_weights_that_cannot_be_dealt_exactly_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        widths(wrong)
    with pytest.raises(ValueError, match=told):
        experiment(wrong)


def table(**changes) -> RouteTable:
    known = {
        "versions": {3: "c" * 64, 4: "d" * 64, 5: "e" * 64},
        "aliases": {"champion": 3, "candidate": 4, "previous": 5},
        "experiment": Experiment("e1", (Variant("champion", 3, 0.5), Variant("challenger", 4, 0.5))),
        "sequence": 7,
    }
    return RouteTable(**known | changes)


def someone(variant: str) -> str:
    return next(subject for subject in SUBJECTS if table().experiment.assign(subject).name == variant)


def test_the_plain_name_is_what_the_experiment_assigns():
    for subject in SUBJECTS[:200]:
        route = table().route("luthier", subject)
        variant = table().experiment.assign(subject)
        assert (route.assigned, route.served, route.version, route.experiment) == (
            variant.name,
            variant.name,
            variant.version,
            "e1",
        )
        assert route.manifest == table().versions[variant.version]


@pytest.mark.parametrize(
    ("asked", "version"),
    [("champion", 3), ("challenger", 4), ("candidate", 4), ("previous", 5), ("luthier@3", 3), ("luthier@5", 5)],
)
def test_who_asks_for_a_version_gets_it_and_is_counted_in_no_variant(asked, version):
    assert asked in table().models
    route = table().route(asked, "anybody")
    assert (route.version, route.assigned, route.served, route.experiment) == (version, None, None, None)
    assert table().fallback(route) is None  # and nothing else in its place


@pytest.mark.parametrize("asked", ["gpt-4", "champoin", "luthier@6", "luthier@", "luthier@03", "luthier@3 ", "", "x" * 5000, "3"])
def test_an_unknown_name_is_a_404_that_lists_the_known_ones(asked):
    with pytest.raises(ApiError) as caught:
        table().route(asked, "anybody")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert all(name in caught.value.message for name in table().models)
    assert len(caught.value.message) < 500
    if asked == "champoin":
        assert "did you mean 'champion'?" in caught.value.message


def test_a_fallback_serves_the_control_and_leaves_the_assignment():
    subject = someone("challenger")
    route = table().route("luthier", subject, ready=lambda version: version != 4)
    assert (route.assigned, route.served, route.version) == ("challenger", "champion", 3)
    later = table().fallback(table().route("luthier", subject))
    assert later is not None
    assert (later.assigned, later.served, later.version, later.manifest) == ("challenger", "champion", 3, "c" * 64)
    assert table().fallback(later) is None  # there is nobody after the control
    # where nothing is ready, nothing is pretended: the gateway finds the engine dead
    assert table().route("luthier", subject, ready=lambda version: False).served == "challenger"


def test_a_variant_and_a_shadow_without_an_engine_leave_their_users_to_the_control():
    experiment = Experiment("e1", table().experiment.variants, shadow=8)
    without = table(versions={3: "c" * 64}, aliases={"champion": 3}, experiment=experiment)
    for able in (True, False):
        route = without.route("luthier", someone("challenger"), ready=lambda version, able=able: able)
        assert (route.assigned, route.served, route.version, route.shadow) == ("challenger", "champion", 3, None)
    # who asks for it is told that it is not there
    assert "challenger" not in without.models
    with pytest.raises(ApiError):
        without.route("challenger", "anybody")


def test_the_shadow_answers_beside_all_but_itself():
    shadowed = table(experiment=Experiment("e1", table().experiment.variants, shadow=4))
    assert shadowed.route("luthier", someone("champion")).shadow == 4
    assert shadowed.route("luthier", someone("challenger")).shadow is None
    assert shadowed.route("champion", someone("champion")).shadow is None


def test_a_table_does_not_change():
    versions = {3: "c" * 64, 4: "d" * 64, 5: "e" * 64}
    one = table(versions=versions)
    versions.clear()
    assert one.route("luthier@3", "anybody").version == 3
    with pytest.raises(TypeError):
        one.versions[9] = "x"  # type: ignore[index]
    with pytest.raises(AttributeError):
        one.sequence = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"versions": {3: "c" * 64}}, "which has no engine"),
        ({"versions": {4: "d" * 64}, "aliases": {"candidate": 4}}, "champion is version 3, which has no engine"),
        ({"aliases": {"champion": 9}}, "give the variant another name"),
    ],
)
def test_a_table_that_leads_nowhere_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        table(**changes)


def test_aliases_are_resolved_once():
    aliases = {"champion": 3, "candidate": 4}
    found = resolve_experiment("e", {"champion": ("champion", 0.9), "b": ("candidate", 0.1)}, "4", aliases)
    assert found == Experiment("e", (Variant("champion", 3, 0.9), Variant("b", 4, 0.1)), shadow=4)
    with pytest.raises(ValueError, match=r"no alias candidat \(did you mean 'candidate'\?\)"):
        resolve_experiment("e", {"a": ("candidat", 1.0)}, None, aliases)


def test_a_subject_cannot_be_read_from_its_hash():
    assert hash_subject("ada@example.org", "key") == hash_subject("ada@example.org", "key")
    assert len({hash_subject(s, k) for s in ("ada", "bob") for k in ("key", "other")}) == 4
    assert "ada" not in hash_subject("ada", "key")
    hash_subject("half \ud83d", "key")
