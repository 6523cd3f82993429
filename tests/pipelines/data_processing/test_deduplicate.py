"""One of each group of like conversations stays, the same one in whatever order the rows come."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import RECORD, record, serial, split_records
from tables import records as table_of

from luthier.pipelines.data_processing.deduplicate import content_hash, deduplicate
from luthier.pipelines.data_processing.parameters import Deduplicate, Split
from luthier.pipelines.data_processing.previous import PreviousSplits
from luthier.pipelines.data_processing.shingles import fold, jaccard, shingle_hashes
from luthier.pipelines.data_processing.split import split
from luthier.records import CLUSTERED, DUPLICATE, user_text

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
    """Return records of messages."""
    return [record(body, name=ids[n] if ids else f"id-{n}") for n, body in enumerate(bodies)]


def run(rows, rows_per_shard=50_000, **parameters):
    """De-duplicate and return lists."""
    kept, dropped, clusters = deduplicate(table_of(rows, rows_per_shard=rows_per_shard), Deduplicate(**parameters), serial())
    assert (kept.schema, dropped.schema) == (CLUSTERED, DUPLICATE)
    assert len(clusters) == len(rows)
    return list(kept.iter_rows()), list(dropped.iter_rows())


def shingles(text):
    """Return the set of 5-grams of a text as sorted hashes."""
    return np.unique(shingle_hashes([fold(text)])[0])


@given(BODIES)
@settings(deadline=None, max_examples=12)
def test_every_row_stays_or_is_dropped_for_one_that_stays(bodies):
    kept, dropped = run(records(bodies))
    assert sorted(row["id"] for row in kept + dropped) == sorted(f"id-{n}" for n in range(len(bodies)))
    # the survivor of an exact duplicate may itself be dropped as a near one
    names = {row["id"] for row in kept} | {row["id"] for row in dropped if row["kind"] == "near"}
    assert all(row["survivor"] in names and 0 <= row["similarity"] <= 1 for row in dropped)
    assert all(row["similarity"] == 1 for row in dropped if row["kind"] == "exact")


@given(BODIES, st.integers(1, 5))
@settings(deadline=None, max_examples=10)
def test_how_the_table_is_cut_does_not_matter(bodies, rows_per_shard):
    assert run(records(bodies)) == run(records(bodies), rows_per_shard)


@given(BODIES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=10)
def test_which_message_survives_does_not_depend_on_ids(bodies, order):
    names = [f"id-{n}" for n in range(len(bodies))]
    order.shuffle(names)

    def texts(found):
        return sorted(fold(row["messages"][0]["content"]) for row in found[0])

    assert texts(run(records(bodies))) == texts(run(records(bodies, names)))


@given(BODIES)
@settings(deadline=None, max_examples=10)
def test_survivors_survive_again(bodies):
    kept, _ = run(records(bodies))
    again, dropped = run([{name: row[name] for name in RECORD.names} for row in kept])
    assert again == kept
    assert dropped == []


@given(BODIES)
@settings(deadline=None, max_examples=12)
def test_no_two_survivors_are_alike(bodies):
    kept, _ = run(records(bodies), near_threshold=0.7)
    sets = [shingles(user_text(row["messages"])) for row in kept]
    assert all(jaccard(a, b) < 0.7 for at, a in enumerate(sets) for b in sets[:at])


@given(BODIES)
@settings(deadline=None, max_examples=12)
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


def test_thousands_of_equal_messages_are_one_cluster_at_once():
    message = "thanks, that is all that I wanted to know"
    rows = [record(message, f"answer {n}", label=f"{n}") for n in range(5000)]
    kept, dropped = run(rows, rows_per_shard=2000)
    assert (len(kept), len(dropped)) == (1, 4999)
    unlike = [record(message, f"{n * 7919:x}") for n in range(5000)]
    kept, dropped = run(unlike, rows_per_shard=2000)
    assert (len(kept), len(dropped)) == (5000, 0)
    assert len({row["cluster"] for row in kept}) == 1


ANSWERS = ["a cup of tea", "A cup of  TEA!", "nothing at all for me", "no", "yes", ""]
CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from(WORDS[:4]).map(lambda word: f"what does {word} mean to you"), st.sampled_from(ANSWERS)), max_size=10
)


@given(CONVERSATIONS)
@settings(deadline=None, max_examples=40)
def test_of_like_messages_one_stays_for_each_unlike_answer(said):
    rows = [record(body, answer, f"id-{n}") for n, (body, answer) in enumerate(said)]
    kept, dropped = run(rows)
    assert sorted(row["id"] for row in kept + dropped) == sorted(row["id"] for row in rows)

    def of(row):
        return shingles(user_text(row["messages"])), shingles(row["messages"][-1]["content"])

    def alike(row, other):
        return all(jaccard(a, b) >= 0.7 for a, b in zip(of(row), of(other), strict=True))

    assert not any(alike(row, other) for at, row in enumerate(kept) for other in kept[:at])
    by_id = {row["id"]: row for row in rows}
    for gone in dropped:  # a message goes only for one that is alike, or for one that such a one went for
        assert any(alike(by_id[gone["id"]], other) for other in rows if other["id"] != gone["id"])
    for at, row in enumerate(kept):
        for other in kept[:at]:
            if jaccard(of(row)[0], of(other)[0]) >= 0.7:
                assert row["cluster"] == other["cluster"]


@given(CONVERSATIONS)
@settings(deadline=None, max_examples=20)
def test_two_labels_of_one_message_contradict_each_other(said):
    labelled, alone = (
        [record(body, answer, f"id-{n}", label=label) for n, (body, answer) in enumerate(said)] for label in ("l", None)
    )
    same = [record(body, "the same", row["id"]) for row, (body, _) in zip(alone, said, strict=True)]
    assert len(run(labelled)[0]) == len(run(same)[0]) <= len(run(alone)[0])


def test_like_answers_in_a_crowd_of_answers_to_one_message_are_found():
    draw = random.Random(7)
    answers = ["".join(draw.choices("abcdefghij ", k=60)) for _ in range(300)]
    copies = [answer[:-4] + "".join(draw.choices("klmno", k=4)) for answer in answers[::3]]
    _, dropped = run([record("Tell me a joke", answer) for answer in answers + copies])
    assert len(dropped) >= 0.75 * len(copies)
    assert {row["kind"] for row in dropped} == {"near"}


def test_what_the_assistant_calls_and_what_was_not_preferred_are_part_of_the_answer():
    def calling(words):
        call = [{"type": "function", "function": {"name": words[0], "arguments": json.dumps({"in": " ".join(words)})}}]
        return {"role": "assistant", "content": "", "tool_calls": json.dumps(call)}

    asked = {"role": "user", "content": "How is the weather?"}
    calls = [record("x", words[0]) | {"messages": [asked, calling(words)]} for words in (WORDS[:11], WORDS[11:])]
    pairs = [
        record("And tomorrow?", "fine") | {"rejected": [{"role": "assistant", "content": text}]}
        for text in ("bad " * 9, "no " * 9)
    ]
    keys = [{"key": f"{n:032x}", "id": f"id-{n}"} for n in range(4)]
    kept, _ = run([row | key for row, key in zip(calls + pairs, keys, strict=True)])
    assert len(kept) == 4
    assert len({row["cluster"] for row in kept}) == 2


@given(CONVERSATIONS, CONVERSATIONS, st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_like_messages_stay_on_one_side_whatever_answers_come_later(tmp_path_factory, said, more, seed):
    def divided(said, seed, shares, previous=None):
        rows = [record(body, answer, f"{body} {answer}") for body, answer in sorted(set(said))]
        rows += [record(f"unrelated number {n} about {hash((n, 1))}", "ok", f"more-{n}") for n in range(60)]
        executor = serial()
        parameters = Split(**shares, previous=str(previous) if previous else None)
        kept, _, clusters = deduplicate(
            table_of(rows), Deduplicate(), executor, PreviousSplits.read(str(previous)) if previous else None
        )
        found, table = split(kept, clusters, parameters, seed, executor)
        return list(found.iter_rows()), table.folder

    first, table = divided(said, seed, {"validation": 0.2, "test": 0.4})
    then, _ = divided(said + more, seed + 1, {"validation": 0.3, "test": 0.3}, table)
    before = {row["id"]: row["split"] for row in first}
    assert {row["id"]: row["split"] for row in then if row["id"] in before} == before
    for rows in (first, then):
        told = [(shingles(user_text(row["messages"])), row["split"]) for row in rows]
        assert all(side == other for at, (a, side) in enumerate(told) for b, other in told[:at] if jaccard(a, b) >= 0.7)


def test_a_pair_in_a_crowd_of_form_letters_is_found():
    draw = random.Random(5)
    form = "Dear team, my order {} of {} has not come. It was promised for {}. Please tell me where it is, and when I can expect it. {}"
    crowd = [form.format(*("".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=40)) for _ in range(4))) for _ in range(400)]
    pairs = [(n, crowd[n][:-30] + "".join(draw.choices("abcdefghij", k=30))) for n in range(0, 400, 8)]
    near = [(n, copy) for n, copy in pairs if jaccard(shingles(crowd[n]), shingles(copy)) >= 0.7]
    assert len(near) >= 40
    bodies = crowd + [copy for _, copy in near]
    assert max(jaccard(shingles(crowd[0]), shingles(other)) for other in crowd[1:]) < 0.7
    _, dropped = run(records(bodies))
    assert len(dropped) >= 0.95 * len(near)


def test_no_records_give_no_records():
    assert run([]) == ([], [])


def test_short_texts_are_compared_as_they_are():
    kept, dropped = run(records(["hi", "ho", "ok", "OK", "1", ""]))
    assert len(kept) == 5
    assert [row["kind"] for row in dropped] == ["exact"]


def test_shingles_are_those_of_a_plain_loop():
    texts = ["", "abc", "abcde", "Ünï cödé\n 中文字符测试", "x" * 9, "the quick  brown fox"]
    hashes, offsets = shingle_hashes([fold(text) for text in texts])
    for number, text in enumerate(texts):
        folded = fold(text)
        grams = [folded[at : at + 5] for at in range(max(1, len(folded) - 4))]
        own = hashes[offsets[number] : offsets[number + 1]]
        assert len(own) == len(grams)
        same = {(a, b): grams[a] == grams[b] for a in range(len(grams)) for b in range(a)}
        assert all((own[a] == own[b]) == equal for (a, b), equal in same.items())
        assert list(own) == list(shingle_hashes([folded])[0])


@given(st.text(max_size=30), st.text(max_size=30))
@settings(deadline=None, max_examples=100)
def test_similarity_is_symmetric_and_one_only_for_equal_sets(a, b):
    one, other = shingles(a), shingles(b)
    assert len(one)
    assert jaccard(one, other) == jaccard(other, one)
    assert (jaccard(one, other) == 1) == np.array_equal(one, other)
    assert np.array_equal(shingles(f" {a.upper()}\n".casefold()), shingles(a.upper()))


@pytest.mark.parametrize("permutations", [16, 128])
def test_more_bands_never_find_less(permutations):
    order = random.Random(2)
    bodies = []
    for _ in range(30):
        words = order.choices(WORDS, k=12)
        bodies += [" ".join(words), " ".join([*words[:-2], *order.choices(WORDS, k=2)])]
    few, many = (len(run(records(bodies), permutations=permutations, bands=bands)[1]) for bands in (2, 16))
    assert few <= many


WORD_LISTS = st.lists(st.text("abcXYZ019äß", min_size=1, max_size=4), min_size=1, max_size=5)


@given(words=WORD_LISTS, others=WORD_LISTS)
@settings(deadline=None, max_examples=100)
def test_the_content_hash_sees_words_and_digits_but_not_case_and_white_space(words, others):
    def digest(text):
        return content_hash([{"role": "user", "content": text}])

    assert digest(" ".join(words)) == digest("  " + "\n ".join(words).upper().replace("SS", "ß") + "\t")
    same = " ".join(words).casefold() == " ".join(others).casefold()
    assert (digest(" ".join(words)) == digest(" ".join(others))) == same


def test_the_content_hash_sees_who_said_what():
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    other = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]
    hashes = [
        content_hash(one),
        content_hash(other),
        content_hash([*one, *other]),
        content_hash(one[:1]),
        content_hash(one, other),
    ]
    assert len(set(hashes)) == len(hashes)


def text_of(words):
    return " ".join(words)


def test_of_an_earlier_version_no_record_moves_and_a_bridge_is_dropped(tmp_path):
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(60)]
    old = [record(text_of(words[start : start + 20]), name=f"old-{start}") for start in (0, 6, 30)]
    old += [record(f"unrelated message number {n} about {draw.random()}", name=f"more-{n}") for n in range(40)]
    executor = serial()
    kept, dropped, clusters = deduplicate(table_of(old), Deduplicate(), executor)
    assert len(dropped) == 0
    for seed in range(50):
        divided, table = split(kept, clusters, Split(validation=0.2, test=0.4), seed, executor)
        before = {row["id"]: row["split"] for row in divided.iter_rows(["id", "split"])}
        if before["old-0"] != before["old-6"]:
            break
    bridge = record(text_of(words[3:23]), name="bridge")
    copy = record(text_of([*words[30:49], "changed"]), name="copy")
    fresh = record("nothing that anybody has said before in this data set", name="fresh")
    previous = PreviousSplits.read(str(table.folder))
    more = table_of([*old, bridge, copy, fresh])
    kept, dropped, clusters = deduplicate(more, Deduplicate(), executor, previous)
    assert {row["id"]: row["kind"] for row in dropped.iter_rows()} == {"bridge": "bridge", "copy": "near"}
    settings_of = Split(validation=0.1, test=0.1, previous=str(table.folder))
    divided, again = split(kept, clusters, settings_of, seed + 1, executor)
    after = {row["id"]: row["split"] for row in divided.iter_rows(["id", "split"])}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"fresh"}
    assert [row["split"] for row in again.iter_rows() if not row["kept"]] == [None, None]


def test_a_table_of_another_kind_is_no_split_table():
    from luthier.errors import UserError

    with pytest.raises(UserError, match="is no split table"):
        PreviousSplits.read(str(split_records([record("a"), record("b")]).folder))
