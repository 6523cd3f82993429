"""Copies deserve their parent's answer, come from the training split only, and do not depend on the order of rows."""

import copy
import hashlib
import json
import random

import pytest
import tables
from hypothesis import given, settings
from hypothesis import strategies as st
from sharp import folders_in

from luthier.errors import UserError
from luthier.pipelines.data_processing.augment import Augment, augment, load_paraphrases, paraphrase
from luthier.pipelines.data_processing.nodes import augment_records
from luthier.pipelines.data_processing.parameters import DataProcessingParameters
from luthier.text.noise import Noise
from luthier.text.prepare import PromptSettings

WORDS = ["my", "steam", "wand", "is", "leaking", "please", "send", "another", "machine", "before", "Monday", "order", "thanks"]
STRONG = Noise(neighbour=0.1, dropped=0.1, doubled=0.1, swapped=0.1, lower=0.3, upper=0.2, unpunctuated=0.5)
PHRASES = {"steam wand": ["frother", "milk pipe"], "please": ["pls"], "another": ["a new"]}


def content_hash(messages):
    return hashlib.sha256(json.dumps([m["content"] for m in messages]).encode()).hexdigest()[:32]


def message(role, content):
    return {"role": role, "content": content, "name": None, "tool_calls": None, "tool_call_id": None}


def record(number, text, answer="{}", split="train", label="a", rejected=None):
    messages = [message("system", "Sort please the steam wand."), message("user", text), message("assistant", answer)]
    return {
        "key": hashlib.sha256(str(number).encode()).hexdigest()[:32],
        "id": f"m-{number}",
        "messages": messages,
        "rejected": rejected,
        "label": label,
        "meta": "{}",
        "source": "support",
        "weight": 2.0,
        "content_hash": content_hash(messages),
        "cluster": f"c{number}",
        "split": split,
        "provenance": None,
    }


def records(size=60):
    draw = random.Random(7)
    made = []
    for number in range(size):
        order = f"QF-{draw.randrange(10**6):06}"
        text = " ".join(draw.choices(WORDS, k=draw.randrange(3, 15))) + f" {order}, regards Anna"
        answer = json.dumps({"order": order, "name": "Anna", "n": 3}) if number % 2 else '{"order":null}'
        made.append(record(number, text, answer, ["train", "train", "validation", "test"][number % 4], "ab"[number % 2]))
    return sorted(made, key=lambda row: row["key"])


def run(rows, seed=1, counts=None, phrases=PHRASES, held_out=lambda _: False, **parameters):
    return augment(rows, Augment(**parameters), seed, phrases, counts or {}, content_hash, held_out)


def user(row):
    return row["messages"][1]["content"]


def copies_of(rows):
    return [row for row in rows if row["provenance"]]


def test_off_by_default():
    rows = records()
    assert run(rows) == rows


def test_only_training_records_have_copies_and_all_records_stay_as_they_were():
    rows = records()
    before = copy.deepcopy(rows)
    after = run(rows, copies=2, noise=STRONG, mix=0.5)
    assert rows == before
    assert [row for row in after if not row["provenance"]] == before
    parents = {row["key"]: row for row in rows}
    made = copies_of(after)
    assert len(made) > len([row for row in rows if row["split"] == "train"])
    for row in made:
        parent = parents[json.loads(row["provenance"])["from"]]
        assert parent["split"] == "train"
        changed = {name for name in row if row[name] != parent[name]}
        assert changed == {"key", "id", "messages", "provenance", "content_hash"}
        assert [m for m in row["messages"] if m["role"] != "user"] == [m for m in parent["messages"] if m["role"] != "user"]
        assert row["content_hash"] == content_hash(row["messages"])
        assert set(row) == set(parent)
    assert [row["key"] for row in after] == sorted({row["key"] for row in after})


def test_a_copy_says_what_it_is():
    (made,) = copies_of(run([record(1, "the steam wand leaks")], copies=1, noise=None, paraphrase=1.0, seed=5))
    parent = record(1, "")["key"]
    assert made["id"] == "m-1~1"
    assert made["key"] == hashlib.sha256(f"{parent}~1".encode()).hexdigest()[:32]
    assert made["provenance"] == f'{{"from":"{parent}","by":["paraphrases"],"seed":5}}'
    assert user(made) in ("the frother leaks", "the milk pipe leaks")


@given(order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=10)
def test_the_order_of_rows_does_not_matter(order):
    rows = records(24)
    shuffled = list(rows)
    order.shuffle(shuffled)
    parameters = {"copies": 1.5, "noise": STRONG, "mix": 0.3, "rebalance": "weight", "counts": {"a": 20, "b": 4}}
    assert run(shuffled, **parameters) == run(rows, **parameters)


def test_without_mixing_the_shards_do_not_matter_either():
    rows = records()
    whole = run(rows, copies=1.5, noise=STRONG)
    parts = run(rows[:20], copies=1.5, noise=STRONG) + run(rows[20:], copies=1.5, noise=STRONG)
    assert sorted(parts, key=lambda row: row["key"]) == whole


def test_seeds_differ():
    rows = records()
    assert run(rows, copies=1, seed=1) != run(rows, copies=1, seed=2)
    assert run(rows, copies=1, seed=1) == run(rows, copies=1, seed=1)


@pytest.mark.parametrize("expected", [0.0, 0.3, 1.0, 2.6])
def test_as_many_copies_as_expected(expected):
    rows = [record(n, " ".join(WORDS)) for n in range(400)]
    made = copies_of(run(rows, copies=expected, noise=STRONG))
    assert len(made) / 400 == pytest.approx(expected, abs=0.08)
    numbers = [row["id"].rpartition("~") for row in made]
    assert max((int(number) for *_, number in numbers), default=0) == -int(-expected // 1)


def test_every_value_of_the_answer_survives_or_the_copy_goes():
    rows = [
        record(n, f"Anna Liebermann wants {n} rollers now", json.dumps({"who": {"name": "Anna Liebermann"}})) for n in range(80)
    ]
    made = copies_of(run(rows, copies=2, noise=STRONG))
    assert made
    assert all("Anna Liebermann" in user(row) for row in made)
    free = copies_of(run(rows, copies=2, noise=STRONG, protect=["who.street"]))
    assert any("Anna Liebermann" not in user(row) for row in free)
    named = copies_of(run(rows, copies=2, noise=STRONG, protect=["who.name"]))
    assert all("Anna Liebermann" in user(row) for row in named)


def test_an_answer_in_plain_text_is_one_value():
    rows = [record(n, f"where did the {n} grinders go", "grinders") for n in range(50)]
    made = copies_of(run(rows, copies=1, noise=STRONG))
    assert made
    assert all("grinders" in user(row) for row in made)


def test_a_copy_equal_to_its_parent_or_to_another_copy_is_none():
    assert copies_of(run([record(1, "QF-1")], copies=5)) == []
    texts = [user(row) for row in run([record(1, "the steam wand")], copies=9, noise=None, paraphrase=1.0)]
    assert sorted(texts) == ["the frother", "the milk pipe", "the steam wand"]


def test_a_copy_that_says_what_is_held_out_is_drawn_again_and_then_given_up():
    rows = [record(n, f"{n}: the steam wand") for n in range(20)]
    free = {"copies": 2, "noise": None, "paraphrase": 1.0}
    assert {user(row).partition(": ")[2] for row in copies_of(run(rows, **free))} == {"the frother", "the milk pipe"}
    others = copies_of(run(rows, held_out=lambda text: text.endswith("frother"), **free))
    assert [user(row).partition(": ")[2] for row in others] == ["the milk pipe"] * 20
    assert copies_of(run(rows, held_out=lambda _: True, **free)) == []


STOP, CANCEL = "I want to stop it now.", "I want to cancel it now."
LONG = "please cancel the subscription that I took out last year in May since I have moved to a house without a kitchen of my own"


@pytest.mark.parametrize("drop_from", [0.5, 2.0])
@pytest.mark.parametrize("rows_per_shard", [50_000, 1])
def test_nothing_that_is_held_out_comes_back_as_a_copy(tmp_path, caplog, drop_from, rows_per_shard):
    caplog.set_level("INFO")
    phrases, bench = tmp_path / "phrases.yml", tmp_path / "bench.csv"
    phrases.write_text("stop: [cancel]\nhalt: [end]\nquit: [cancel]\nleave: [pause]\n")
    bench.write_text("text,label\nyou may END it,x\n")
    said = {STOP: "train", CANCEL.upper(): "test", "Halt it": "train", "you may halt it": "train", "leave it": "train"}
    said |= {"pause   it": "validation", LONG.replace("cancel", "quit"): "train", f"{LONG} And what then?": "test"}
    rows = [tables.record(text, "ok", str(n)) for n, text in enumerate(said)]
    parameters = DataProcessingParameters.model_validate(
        {
            "executor": {"backend": "serial"},
            "decontaminate": {"benchmarks": ["bench.csv"], "drop_from": drop_from},
            "augment": {"copies": 1, "noise": None, "paraphrase": 1.0, "paraphrases": str(phrases)},
        }
    )
    before = tables.split_records(rows, tuple(said.values()), rows_per_shard)
    grown = augment_records(before, PromptSettings().model_dump(), parameters, 0, folders_in(tmp_path))
    copies = [row["messages"][0]["content"] for row in grown.iter_rows() if row["provenance"]]
    assert copies == ["End it"]
    assert "1 copies; 4 others say what is held out, and were not made" in caplog.text


def test_messages_are_joined_only_where_the_whole_answer_is_the_same():
    rows = [record(n, f"text{n}", f'{{"kind":{n % 3}}}', ["train", "test"][n % 10 == 0], "ab"[n % 2]) for n in range(60)]
    rows.append(record(61, "x" * 300, '{"kind":0}'))
    by_key = {row["key"]: row for row in rows}
    made = copies_of(run(rows, copies=1, noise=None, mix=1.0))
    assert len(made) == len([row for row in rows if row["split"] == "train"]) - 1
    for row in made:
        provenance = json.loads(row["provenance"])
        parent, partner = by_key[provenance["from"]], by_key[provenance["with"]]
        assert provenance["by"] == ["mix"]
        assert parent is not partner
        assert partner["split"] == "train"
        assert (parent["label"], parent["messages"][2]) == (partner["label"], partner["messages"][2])
        assert user(row) == f"{user(parent)}\n{user(partner)}"


def test_the_rejected_conversation_changes_along():
    text = "the steam wand leaks"
    rejected = [message("user", text), message("assistant", "the steam wand")]
    (made,) = copies_of(run([record(1, text, rejected=rejected)], copies=1, noise=None, paraphrase=1.0))
    assert made["rejected"] == [message("user", user(made)), message("assistant", "the steam wand")]


def test_weights_are_the_inverse_of_frequency_within_the_cap():
    rows = [
        record(1, "x", label="often"),
        record(2, "x", label="seldom"),
        record(3, "x", label="rare"),
        record(4, "x", label=None),
    ]
    rows.append(record(5, "x", label="rare", split="test"))
    counts = {"often": 70, "seldom": 19, "rare": 1}
    weights = {row["id"]: row["weight"] for row in run(rows, rebalance="weight", counts=counts, max_weight=4)}
    assert weights == {"m-1": 2 * 30 / 70, "m-2": 2 * 30 / 19, "m-3": 8.0, "m-4": 2.0, "m-5": 2.0}
    made = run([record(2, " ".join(WORDS), label="seldom")], rebalance="weight", counts=counts, copies=1, noise=STRONG)
    assert [row["weight"] for row in made] == [2 * 30 / 19] * 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Please, a steam wand", "Pls, a frother"),
        ("pleased STEAM WANDS", "pleased Vapour WANDS"),
        ("STEAM WAND.", "Frother."),
        ("<EMAIL_please>", "<EMAIL_please>"),
    ],
)
def test_phrases_are_whole_words(text, wanted):
    phrases = {"steam wand": ["frother"], "please": ["pls"], "steam": ["vapour"]}
    assert paraphrase(text, phrases, 1.0, "k") == wanted
    assert paraphrase(text, phrases, 0.0, "k") == paraphrase(text, {}, 1.0, "k") == text


def test_paraphrases_are_read_from_yaml_and_jsonl(tmp_path):
    (tmp_path / "p.yml").write_text("Steam wand: [frother, ' milk pipe ']\nplease: [pls]\n")
    lines = [{"phrase": "steam wand", "alternatives": ["frother"]}, {"phrase": "Steam Wand", "alternatives": ["milk pipe"]}]
    (tmp_path / "p.jsonl").write_text(
        "\n\n".join(json.dumps(line) for line in lines) + '\n{"phrase":"please","alternatives":["pls"]}\n'
    )
    wanted = {"steam wand": ["frother", "milk pipe"], "please": ["pls"]}
    assert load_paraphrases(str(tmp_path / "p.yml")) == wanted == load_paraphrases(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.yml", "- a\n", "must map phrases to lists"),
        ("p.yml", "a: [", "is not YAML"),
        ("p.yml", "a: b", "'a' needs a list of texts, not 'b'"),
        ("p.yml", "a: []", "needs a list of texts"),
        ("p.yml", "no: [nope]", "the phrase must be text, not False"),
        ("p.jsonl", "\n{", r"p\.jsonl:2 is not JSON"),
        ("p.jsonl", '{"phrase": "a"}', r"p\.jsonl:1 must be"),
        ("p.jsonl", '{"phrase": "", "alternatives": ["b"]}', r"p\.jsonl:1: the phrase must be text"),
    ],
)
def test_what_is_wrong_with_the_paraphrases_is_told(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"augment.paraphrases: .*{told}"):
        load_paraphrases(str(tmp_path / name))


def test_missing_paraphrases_are_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_paraphrases(str(tmp_path / "none.yml"))
