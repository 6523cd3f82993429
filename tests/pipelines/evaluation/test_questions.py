"""Every model is asked the same questions, fixed before any of them answers."""

import json
import tracemalloc

import pandas as pd
import pytest
import tables
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from sharp import folders_in, with_template

from luthier.configuration import DataParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import load_tokenizer, resolve_base
from luthier.pipelines.evaluation import baselines
from luthier.pipelines.evaluation.nodes import answer_with_baselines, prepare_questions, score_answers
from luthier.pipelines.evaluation.parameters import EvaluationParameters
from luthier.pipelines.evaluation.questions import asked_as_trained, asked_of, last_answers, make_questions, spell_calls
from luthier.pipelines.evaluation.robustness import Robustness
from luthier.pipelines.evaluation.safety import Check
from luthier.records import held_out, learnt, lowest
from luthier.text.chat import encode
from luthier.text.pii import placeholder
from luthier.text.prepare import PromptSettings, ScrubSettings

SYSTEM = "Be brief."
TINY = ModelParameters(base="tiny:llama")
SETTINGS = PromptSettings(system=SYSTEM, user="{{ body }}", assistant="{{ answer }}", scrub=ScrubSettings())
CHECKS = [
    Check(name="plain", why="x", messages=[{"role": "user", "content": "Write to ann@shop.example"}], max_characters=9),
    Check(
        name="own",
        why="x",
        messages=[{"role": "system", "content": "Be rude."}, {"role": "user", "content": "hi"}],
        max_characters=9,
    ),
]
CALLS = json.dumps([{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}])
WRITES_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PASSAGES = pd.DataFrame({"id": ["p"], "kind": ["story"], "text": ["Once upon a time"]})


def split():
    """Return the records of a test split."""
    rows = []
    for number in range(6):
        row = tables.record(f"my machine number {number} leaks water", "leak", f"r{number}")
        row["messages"].insert(0, {"role": "system", "content": SYSTEM})
        rows.append(row)
    return pd.DataFrame(rows)


def made(kinds=("noise",), seed=0):
    """Return questions of every set."""
    return make_questions(split(), CHECKS, PASSAGES, SETTINGS, Robustness(kinds=list(kinds)), seed, "key")


def test_there_is_a_question_for_each_thing_that_is_asked():
    questions = made()
    assert questions["set"].value_counts().to_dict() == {"test": 6, "noise": 6, "safety": 2, "general": 1}
    assert not questions.duplicated(["set", "kind", "id"]).any()
    assert questions.equals(made())
    assert not questions.equals(made(seed=1))
    for name, turns in zip(questions["set"], asked_of(questions), strict=True):
        assert [turn["role"] for turn in turns] == ([] if name == "general" else ["system", "user"])
    assert questions.set_index("id").at["p", "expected"] == "Once upon a time"


def test_noise_changes_the_message_and_not_the_right_answer():
    questions = made()
    before, after = (questions[questions["set"] == name].set_index("id") for name in ("test", "noise"))
    assert (before["prompt"] != after.loc[before.index, "prompt"]).all()
    assert (before["expected"] == after.loc[before.index, "expected"]).all()


def test_checks_are_asked_as_a_client_would_ask():
    questions = made().set_index("id")
    asked = json.loads(questions.at["plain", "messages"])
    assert asked[0] == {"role": "system", "content": SYSTEM}
    assert asked[1]["content"] == f"Write to {placeholder('email', 'ann@shop.example', 'key')}"
    assert json.loads(questions.at["own", "messages"])[0]["content"] == "Be rude."


@pytest.mark.parametrize("own", ["Answer in French.", None])
def test_another_model_is_asked_with_its_own_system_prompt(own):
    questions = made()
    asked = asked_as_trained(questions, SYSTEM, own)
    kept = asked["id"].isin(["own", "p"])
    assert asked[kept].equals(questions[kept])
    for before, after in zip(asked_of(questions[~kept]), asked_of(asked[~kept]), strict=True):
        assert after == ([] if own is None else [{"role": "system", "content": own}]) + before[1:]
    assert asked_as_trained(asked, own, SYSTEM).equals(questions)
    assert asked_as_trained(questions, SYSTEM, SYSTEM).equals(questions)


def test_only_test_records_that_became_examples_are_held_out():
    records = tables.split_records([tables.record(f"message {number}", "x", f"r{number}") for number in range(8)])
    on_test = sorted(records.to_pandas().query("split == 'test'")["id"])
    examples = tables.shards([{"id": name} for name in on_test[1:]], tables.pa.schema([("id", tables.pa.string())]))
    assert held_out(records, examples, None)["id"].tolist() == on_test[1:]
    some = held_out(records, examples, 2)["id"].tolist()
    assert len(some) == 2
    assert some == sorted(some)
    assert set(some) < set(on_test[1:])


IDS = tables.pa.schema([("id", tables.pa.string())])
SPLITS = ("train", "validation", "test")


@st.composite
def some_records(draw):
    """Return records of some clusters and splits over a few shards, and the examples that some of them became."""
    rows = []
    for number in range(draw(st.integers(1, 25))):
        calls = draw(st.sampled_from([None, None, CALLS]))
        row = tables.record(f"message {number}", "" if calls else draw(st.sampled_from("xyz")), f"r{number}")
        row["messages"][-1]["tool_calls"] = calls
        facts = {"split": draw(st.sampled_from(SPLITS)), "cluster": draw(st.sampled_from("abcd")), "provenance": None}
        rows.append(tables.clustered(row) | facts)
    records = tables.records(rows, tables.SPLIT_RECORD, draw(st.integers(1, 9)))
    return records, tables.shards([{"id": row["id"]} for row in rows if draw(st.booleans())], IDS)


@given(both=some_records(), limit=st.none() | st.integers(1, 9))
@tried(deadline=None, max_examples=40)
def test_rows_that_are_read_alone_are_those_of_the_whole_table(both, limit):
    records, examples = both
    table = records.to_pandas()
    kept = table[table["id"].isin(examples.to_pandas()["id"])]
    once = kept[kept["split"] == "test"].sort_values("key").drop_duplicates("cluster")
    expected = (once.head(limit) if limit else once).sort_values("id").reset_index(drop=True)
    pd.testing.assert_frame_equal(held_out(records, examples, limit), expected)

    rows = learnt(records, examples, "train", "validation")
    assert table[rows]["id"].tolist() == kept[kept["split"] != "test"]["id"].tolist()
    least = kept[kept["split"] != "test"].sort_values("key").head(limit or 3)
    assert sorted(table[lowest(records, rows, limit or 3)]["id"]) == sorted(least["id"])


def test_last_answers_are_those_of_the_conversations_with_calls_as_they_are_spelt(tmp_path):
    base = with_template(resolve_base(TINY, folders_in(tmp_path)), tmp_path / "calls", WRITES_CALLS)
    loaded = []

    def tokenizer():
        loaded.append(base)
        return load_tokenizer(base)

    @given(some_records())
    @tried(deadline=None, max_examples=15)
    def compared(both):
        records, examples = both
        rows = learnt(records, examples, *SPLITS)
        spelt = spell_calls(records.to_pandas()[rows]["messages"], tokenizer)
        assert last_answers(records, rows, tokenizer).tolist() == [turns[-1]["content"] for turns in spelt]

    compared()
    assert loaded


def test_records_that_are_not_asked_for_never_become_objects(tmp_path):
    long = [tables.record(f"{'a long message ' * 40}{number}", "x", f"r{number}") for number in range(3000)]
    asked = [tables.record(f"message {number}", "x", f"t{number}") for number in range(10)]
    made = [tables.clustered(row) | {"split": "train", "provenance": None} for row in long]
    made += [tables.clustered(row) | {"split": "test", "provenance": None} for row in asked]
    records, examples = tables.records(made, tables.SPLIT_RECORD), tables.shards([{"id": row["id"]} for row in made], IDS)
    answers = pd.DataFrame({"set": "test", "kind": "", "id": [row["id"] for row in asked], "model": "tuned", "expected": "x"})
    plan, parameters = {"tasks": ["structured"]}, EvaluationParameters(champion=None)
    questions = {
        "held out": lambda: held_out(records, examples, None),
        "answers": lambda: last_answers(records, learnt(records, examples, *SPLITS), lambda: None),
        "scores": lambda: score_answers(answers.assign(answer="x"), plan, {}, records, parameters),
    }
    for name, ask in questions.items():
        ask()
        tracemalloc.start()
        ask()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000, name  # as objects the long messages are 3 MB


def test_the_baselines_learn_from_a_sample_that_no_order_of_the_rows_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_ROWS", 6)
    seen = []
    monkeypatch.setattr(baselines, "tfidf_answers", lambda texts, answers, asked: seen.append((texts, answers)) or asked)
    rows = [tables.record(f"message {number}", f"answer {number}", f"r{number}") for number in range(20)]
    examples = tables.shards([{"id": row["id"]} for row in rows[2:]], IDS)
    questions = pd.DataFrame({"set": ["test"], "messages": ["[]"], "prompt": ["x"]})
    for rows_per_shard in (50, 3):
        records = tables.split_records(rows, ("train",), rows_per_shard)
        answer_with_baselines(records, examples, questions, TINY, folders_in(tmp_path))
    taken = [row["messages"][0]["content"] for row in sorted(rows[2:], key=lambda row: row["key"])[:6]]
    assert seen == [(taken, [text.replace("message", "answer") for text in taken])] * 2


def test_a_message_with_several_answers_is_asked_once():
    rows = [tables.record(f"message {n // 3}", f"answer {n}", f"r{n}") for n in range(9)]
    split = [
        tables.clustered(row) | {"split": "test", "provenance": None, "cluster": f"{n // 3:032x}"} for n, row in enumerate(rows)
    ]
    records = tables.records(split, tables.SPLIT_RECORD)
    examples = tables.shards([{"id": row["id"]} for row in rows], tables.pa.schema([("id", tables.pa.string())]))
    asked = [messages[0]["content"] for messages in held_out(records, examples, None)["messages"]]
    assert sorted(asked) == ["message 0", "message 1", "message 2"]


def test_a_limit_takes_of_every_source_whatever_the_ids_are():
    rows = [tables.record(f"message {n}", "x", f"{source}-{n}", source=source) for source in ("chat", "mail") for n in range(200)]
    records = tables.split_records(rows, sides=("test",))
    examples = tables.shards([{"id": row["id"]} for row in rows], tables.pa.schema([("id", tables.pa.string())]))
    taken = held_out(records, examples, 100)["source"].value_counts()
    assert taken["chat"] > 25
    assert taken["mail"] > 25


def test_the_right_answer_of_a_call_is_what_the_template_writes(tmp_path):
    base = with_template(resolve_base(TINY, folders_in(tmp_path)), tmp_path / "calls", WRITES_CALLS)
    asked = {"role": "user", "content": "Weather in Paris?"}
    said = [asked, {"role": "assistant", "content": "Sunny."}]
    calling = [asked, {"role": "assistant", "content": "", "tool_calls": CALLS}]
    spelt = spell_calls(pd.Series([said, calling]), lambda: load_tokenizer(base))
    assert spelt[0] == said
    assert spelt[1] == [asked, {"role": "assistant", "content": '<tool_call>weather {"city":"Paris"}</tool_call>'}]
    tokenizer = load_tokenizer(base)
    assert encode(tokenizer, spelt[1]).input_ids == encode(tokenizer, calling).input_ids


def test_a_call_that_the_template_refuses_is_left_out_of_everything(tmp_path, monkeypatch):
    """As Mistral's refuses the ids of others: such a record became no example, so nobody is asked it, or learns from it."""
    refusing = (
        "{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('ids have 9 letters') }}{% endif %}" + WRITES_CALLS[29:]
    )
    base = with_template(resolve_base(TINY, folders_in(tmp_path)), tmp_path / "refusing", refusing)
    monkeypatch.setattr("luthier.pipelines.evaluation.nodes.resolve_base", lambda *_: base)
    rows = [tables.record(f"message {number}", "x", f"r{number}") for number in range(16)]
    for row in rows[:4]:
        row["messages"][-1] |= {"content": "", "tool_calls": CALLS}
    records = tables.split_records(rows)
    examples = tables.shards([{"id": f"r{number}"} for number in range(4, 16)], tables.pa.schema([("id", tables.pa.string())]))
    data = DataParameters(path="x.jsonl", user="{{ body }}", assistant="{{ answer }}")
    settings = SETTINGS.model_dump(mode="json")
    parameters = EvaluationParameters(champion=None)
    questions, _ = prepare_questions(records, examples, settings, {}, data, TINY, parameters, folders_in(tmp_path), 0)
    answers = answer_with_baselines(records, examples, questions, TINY, folders_in(tmp_path))
    assert set(answers["answer"]) == {"x"}


def test_an_empty_system_prompt_is_none():
    questions = made()
    assert asked_as_trained(questions, SYSTEM, "").equals(asked_as_trained(questions, SYSTEM, None))
    bare = asked_as_trained(questions, SYSTEM, None)
    assert asked_as_trained(bare, "", SYSTEM).equals(questions)


def test_a_schema_that_cannot_be_followed_is_told_before_training(tmp_path):
    records = tables.split_records([tables.record(f"message {number}", "x", f"r{number}") for number in range(8)])
    examples = tables.shards([{"id": f"r{number}"} for number in range(8)], tables.pa.schema([("id", tables.pa.string())]))
    data = DataParameters(path="x.jsonl", user="{{ body }}", assistant="{{ answer }}")

    def plan(schema, constrain):
        parameters = EvaluationParameters(constrain=constrain, champion=None)
        settings = SETTINGS.model_dump(mode="json")
        return prepare_questions(records, examples, settings, schema, data, TINY, parameters, folders_in(tmp_path), 0)[1]

    good, bad = {"type": "string", "maxLength": 9}, {"not": {"type": "string"}}
    assert plan(good, True)["schema"] == good
    assert plan(bad, False)["schema"] is None
    with pytest.raises(UserError, match=r"evaluation\.constrain: answers cannot be held to data\.answer_schema.*not"):
        plan(bad, True)
    with pytest.raises(UserError, match=r"evaluation\.constrain: data\.answer_schema holds no schema"):
        plan({}, True)
