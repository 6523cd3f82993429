"""One of each group of like conversations stays, the same one in whatever order the rows come."""

import json
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.pipelines.data_processing.deduplicate import deduplicate, jaccard, shingles
from luthier.pipelines.data_processing.parameters import Deduplicate
from luthier.pipelines.data_processing.validate import content_hash
from luthier.records import DUPLICATE, RECORD

WORDS = [
    "the",
    "grinder",
    "of",
    "my",
    "order",
    "came",
    "late",
    "and",
    "broken",
    "please",
    "send",
    "another",
    "one",
    "soon",
    "or",
    "call",
    "me",
    "back",
    "today",
    "thanks",
    "kettle",
    "jug",
]
BODIES = st.lists(st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=12)


def records(bodies, ids=None):
    """Return records of messages, each with its own answer."""
    rows = []
    for number, body in enumerate(bodies):
        messages = [{"role": "user", "content": body}, {"role": "assistant", "content": "ok"}]
        name = ids[number] if ids else f"id-{number}"
        row = {"id": name, "messages": messages, "row": json.dumps({"body": body}), "source": f"x:{number}"}
        rows.append(row | {"content_hash": content_hash(messages)})
    return pa.Table.from_pylist(rows, schema=RECORD)


def run(table, **parameters):
    """De-duplicate and return lists."""
    kept, dropped = deduplicate(table, Deduplicate(**parameters))
    assert kept.schema == RECORD
    assert dropped.schema == DUPLICATE
    return kept.to_pylist(), dropped.to_pylist()


def shuffled(table, order):
    """Return the rows of a table in another order."""
    places = list(range(table.num_rows))
    order.shuffle(places)
    return table.take(pa.array(places, pa.int64()))


@given(BODIES)
@settings(deadline=None, max_examples=60)
def test_every_row_stays_or_is_dropped_for_one_that_stays(bodies):
    kept, dropped = run(records(bodies))
    assert sorted(row["id"] for row in kept + dropped) == sorted(f"id-{n}" for n in range(len(bodies)))
    # the survivor of an exact duplicate may itself be dropped as a near one
    names = {row["id"] for row in kept} | {row["id"] for row in dropped if row["kind"] == "near"}
    assert all(row["survivor"] in names and 0 <= row["similarity"] <= 1 for row in dropped)
    assert all(row["similarity"] == 1 for row in dropped if row["kind"] == "exact")


@given(BODIES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_rows_does_not_matter(bodies, order):
    table = records(bodies)
    assert run(table) == run(shuffled(table, order))


@given(BODIES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_without_ids_of_their_own_the_order_of_rows_does_not_matter_either(bodies, order):
    # exact duplicates then share an id, but one of them may be in capitals
    bodies = [body.upper() if order.random() < 0.5 else body for body in bodies]
    plain = records(bodies)
    table = plain.set_column(0, "id", plain.column("content_hash"))

    def texts(found):
        return [row["messages"][0]["content"] for row in found[0]]

    assert texts(run(table)) == texts(run(shuffled(table, order)))


@given(BODIES)
@settings(deadline=None, max_examples=60)
def test_survivors_survive_again(bodies):
    kept, _ = run(records(bodies))
    again, dropped = run(pa.Table.from_pylist(kept, schema=RECORD))
    assert again == kept
    assert dropped == []


@given(BODIES)
@settings(deadline=None, max_examples=60)
def test_no_two_survivors_are_alike(bodies):
    kept, _ = run(records(bodies), near_threshold=0.7)
    sets = [shingles(row["messages"][0]["content"]) for row in kept]
    assert all(jaccard(a, b) < 0.7 for at, a in enumerate(sets) for b in sets[:at])


@given(BODIES)
@settings(deadline=None, max_examples=60)
def test_threshold_one_drops_exact_duplicates_alone(bodies):
    kept, dropped = run(records(bodies), near_threshold=1)
    assert len(kept) == len(set(bodies))
    assert all(row["kind"] == "exact" for row in dropped)


def test_unlike_messages_stay_and_like_ones_go():
    like = "My grinder makes a terrible noise since yesterday, what can I do about it?"
    bodies = [
        like,
        like.replace("terrible", "horrible"),
        like.upper(),
        "Where is my order QF-123456?",
        "Where is my order QF-999999?",
    ]
    kept, dropped = run(records(bodies))
    assert len(kept) == 3
    assert sorted(row["kind"] for row in dropped) == ["exact", "near"]
    assert {"id-3", "id-4"} <= {row["id"] for row in kept}


def test_a_chain_of_like_messages_is_one_group():
    words = random.Random(1).choices(WORDS, k=30)
    steps = [" ".join(words[n : n + 20]) for n in range(0, 10, 2)]
    assert jaccard(shingles(steps[0]), shingles(steps[-1])) < 0.7
    kept, dropped = run(records(steps))
    assert len(kept) == 1
    assert {row["survivor"] for row in dropped} == {kept[0]["id"]}


def test_thousands_of_equal_messages_with_different_answers_are_one_group_at_once():
    table = records(["thanks, that is all that I wanted to know"] * 5000)
    rows = [row | {"content_hash": content_hash([{"role": "user", "content": row["id"]}])} for row in table.to_pylist()]
    kept, dropped = run(pa.Table.from_pylist(rows, schema=RECORD))
    assert (len(kept), len(dropped)) == (1, 4999)


def test_no_records_give_no_records():
    assert run(records([])) == ([], [])


def test_short_texts_are_compared_as_they_are():
    kept, _ = run(records(["hi", "ho", "ok", "OK", ""]))
    assert len(kept) == 4


@given(st.text(max_size=30), st.text(max_size=30))
@settings(deadline=None, max_examples=100)
def test_similarity_is_symmetric_and_one_only_for_equal_sets(a, b):
    one, other = shingles(a), shingles(b)
    assert one
    assert jaccard(one, other) == jaccard(other, one)
    assert (jaccard(one, other) == 1) == (one == other)
    assert shingles(f" {a.upper()}\n".casefold()) == shingles(a.upper())


@pytest.mark.parametrize("permutations", [16, 128])
def test_more_bands_never_find_less(permutations):
    order = random.Random(2)
    bodies = []
    for _ in range(30):
        words = order.choices(WORDS, k=12)
        bodies += [" ".join(words), " ".join([*words[:-2], *order.choices(WORDS, k=2)])]
    few, many = (len(run(records(bodies), permutations=permutations, bands=bands)[1]) for bands in (2, 16))
    assert few <= many
