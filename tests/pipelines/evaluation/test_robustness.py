"""Perturbed messages keep what their answers need, are the same for the same seed, and drops are paired."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.pipelines.evaluation.robustness import KINDS, Robustness, drops, perturb
from luthier.records import user_text
from luthier.stats import mean_of
from luthier.text.noise import Noise
from luthier.text.prepare import compact_json

ROOT = Path(__file__).resolve().parents[3]
ALL = Robustness(kinds=["typos", "casing", "noise"])
WORDS = ["where", "Kettle", "machine", "order", "leaking,", "QF-863149", "please!", "Anna", "not", "日本"]
MESSAGES = st.lists(
    st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), st.sampled_from(WORDS)),
    min_size=1,
    max_size=6,
)


def record(name, text, answer, system="Triage this Message Exactly."):
    """Return a record of one turn."""
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    ]
    return {"id": name, "messages": messages, "label": "x"}


@given(MESSAGES, st.integers(0, 5), st.booleans())
@settings(deadline=None, max_examples=60)
def test_values_survive_and_nothing_but_the_users_turn_changes(made, seed, plain):
    records = [
        record(str(n), text, word if plain else compact_json({"deep": [{"word": word}], "n": 1}))
        for n, (text, word) in enumerate(made)
    ]
    found = perturb(records, ALL, seed)
    assert list(found) == list(KINDS)
    by_id = {one["id"]: one for one in records}
    for kind, changed in found.items():
        for one in changed:
            before = by_id[one["id"]]
            assert user_text(one["messages"]) != user_text(before["messages"])
            assert [m for m in one["messages"] if m["role"] != "user"] == [m for m in before["messages"] if m["role"] != "user"]
            word = made[int(one["id"])][1]
            assert (word in user_text(one["messages"])) or word not in user_text(before["messages"])
            assert {key: value for key, value in one.items() if key != "messages"} == {
                key: value for key, value in before.items() if key != "messages"
            }
            if kind == "casing":
                assert user_text(one["messages"]).casefold() == user_text(before["messages"]).casefold()
    # neither the order of records nor who else is there matters
    assert perturb(records[::-1], ALL, seed) == {kind: changed[::-1] for kind, changed in found.items()}
    assert perturb(records[:1], ALL, seed) == {
        kind: [one for one in changed if one["id"] == "0"] for kind, changed in found.items()
    }


def shipped():
    """Return records of the shipped messages."""
    rows = []
    for line in (ROOT / "data/01_raw/support_messages.jsonl").read_text(encoding="utf-8").split("\n")[:300]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(row.get("body"), str)
            and len(row["body"]) > 40
            and isinstance(row.get("answer"), dict)
            and len(row["body"]) < 2_000
        ):
            rows.append(record(row["id"], row["body"], compact_json(row["answer"])))
    return rows


def test_most_of_the_shipped_messages_can_be_perturbed_and_seeds_differ():
    rows = shipped()
    assert len(rows) > 150
    found = perturb(rows, ALL, 0)
    for changed in found.values():
        assert len(changed) > 0.9 * len(rows)
    assert perturb(rows[:20], ALL, 0) == {
        kind: [one for one in changed if one["id"] in {row["id"] for row in rows[:20]}] for kind, changed in found.items()
    }
    assert perturb(rows[:20], ALL, 1)["typos"] != perturb(rows[:20], ALL, 0)["typos"]


def test_records_of_the_same_text_are_perturbed_each_in_its_own_way():
    text = "the machine leaks water everywhere since yesterday morning and nobody answers my calls"
    found = perturb([record(str(n), text, "x") for n in range(8)], ALL, 0)
    assert len({user_text(one["messages"]) for one in found["typos"]}) == 8


def test_what_is_protected_is_what_the_parameters_say():
    shout = {"shout": Noise(neighbour=0, dropped=0, doubled=0, swapped=0, lower=0, upper=1, unpunctuated=0)}
    one = record("a", "My kettle leaks", '{"product":"kettle","order":null}')

    def texts(**more):
        return [user_text(row["messages"]) for row in perturb([one], Robustness(kinds=shout, **more), 0)["shout"]]

    assert texts() == []  # the word would be lost every time
    assert texts(protect=("order",)) == ["MY KETTLE LEAKS"]
    assert texts(protect=()) == ["MY KETTLE LEAKS"]
    plain = {"kinds": shout, "protect": ()}
    assert perturb([record("a", "I want a refund", "refund")], Robustness(kinds=shout), 0)["shout"] == []
    assert len(perturb([record("a", "I want a refund", "refund")], Robustness(**plain), 0)["shout"]) == 1


def test_no_kinds_perturb_nothing():
    assert perturb(shipped()[:5], Robustness(kinds={}), 0) == {}
    assert drops(scores([True]), {}, 0).empty


def scores(right, model="tuned", f1=None):
    """Return scores of one model."""
    table = pd.DataFrame({"model": model, "id": [f"{n:03}" for n in range(len(right))], "right_kind": right, "answer": "text"})
    return table.assign(token_f1=np.linspace(0, 1, len(right)) if f1 is None else f1, nll=1.0, supervised_tokens=2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=20), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_a_drop_is_that_of_the_same_messages(pairs, seed):
    before, after = map(list, zip(*pairs, strict=True))
    clean, noisy = scores(before), scores(after).iloc[1:]
    found = drops(clean, {"typos": noisy.sample(frac=1, random_state=seed)}, seed).set_index("metric")
    pd.testing.assert_frame_equal(
        found, drops(clean.sample(frac=1, random_state=seed), {"typos": noisy}, seed).set_index("metric")
    )
    row = found.loc["accuracy_kind"]
    assert row["examples"] == len(pairs) - 1
    assert row["drop"] == pytest.approx(row["clean"] - row["noisy"])
    wanted = mean_of(np.array(before[1:], float) - np.array(after[1:], float), seed)
    assert tuple(row[["drop", "low", "high"]]) == tuple(wanted.as_dict().values())
    assert set(found.index) == {"accuracy_kind", "token_f1"}
    # what did not change costs nothing
    assert tuple(found.loc["token_f1", ["drop", "low", "high"]]) == (0, 0, 0)


def test_kinds_and_models_are_told_apart():
    clean = pd.concat([scores([True] * 6), scores([False] * 6, "base")])
    worse = pd.concat([scores([False] * 6), scores([False] * 6, "base")])
    found = drops(clean, {"typos": worse, "casing": clean}, 0)
    found = found[found["metric"] == "accuracy_kind"].set_index(["kind", "model"])["drop"]
    assert found.to_dict() == {("typos", "tuned"): 1, ("typos", "base"): 0, ("casing", "tuned"): 0, ("casing", "base"): 0}


def test_messages_that_were_never_answered_unchanged_are_told():
    with pytest.raises(UserError, match="2 messages changed by typos were not answered unchanged by tuned"):
        drops(scores([True] * 3), {"typos": scores([True] * 5)}, 0)


def test_kinds_are_known_by_name_or_written_down():
    assert ALL.kinds == dict(KINDS)
    assert Robustness().kinds == {}
    with pytest.raises(ValueError, match=r"no kind of noise 'typo' \(did you mean 'typos'\?\); known: typos, casing, noise"):
        Robustness(kinds=["typo"])
