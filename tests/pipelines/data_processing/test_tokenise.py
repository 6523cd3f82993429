"""Every conversation becomes an example or is counted with the reason."""

import json
import shutil
from dataclasses import replace

import pytest
from sharp import THINKS, with_template
from tables import record, serial, split_records

from luthier.artefacts import MANIFEST
from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import load_tokenizer, resolve_base
from luthier.pipelines.data_processing.nodes import ingest_rows
from luthier.pipelines.data_processing.parameters import DataProcessingParameters, Tokenise
from luthier.pipelines.data_processing.tokenise import tokenise
from luthier.pipelines.training.nodes import plan_training
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.records import EXAMPLE
from luthier.text.chat import encode, encode_prompt, writes_calls


@pytest.fixture
def base(tmp_path):
    """Return the tiny base model."""
    folders = FolderParameters(root=str(tmp_path), base_models=str(tmp_path), shards=str(tmp_path), work=str(tmp_path))
    return resolve_base(ModelParameters(base="tiny:llama"), folders)


@pytest.fixture
def tokenizer(base):
    """Return its tokenizer."""
    return load_tokenizer(base)


def records(lengths, sides=("train", "test"), rows_per_shard=50_000):
    """Return records whose messages have these lengths."""
    return split_records([record("x" * n, f"answer {i}", f"id-{i}") for i, n in enumerate(lengths)], sides, rows_per_shard)


def run(table, base, **settings):
    """Tokenise; return examples and what was dropped."""
    examples, dropped = tokenise(table, base, Tokenise(**settings), serial())
    assert examples.schema == EXAMPLE
    return list(examples.iter_rows()), list(dropped.iter_rows())


def test_every_record_is_an_example_or_dropped_with_the_reason(tokenizer, base):
    table = records(range(1, 90), rows_per_shard=20)
    examples, dropped = run(table, base, max_tokens=100)
    long = {row["id"] for row in dropped}
    assert sorted([row["id"] for row in examples] + list(long)) == sorted(row["id"] for row in table.iter_rows())
    assert {row["reason"] for row in dropped} == {"longer than 100 tokens"}
    for row in table.iter_rows():
        assert (len(encode(tokenizer, row["messages"]).input_ids) > 100) == (row["id"] in long)


def test_an_example_is_its_prompt_and_a_supervised_answer(tokenizer, base):
    table = records([3, 40])
    examples, _ = run(table, base)
    for row, example in zip(table.iter_rows(), examples, strict=True):
        prompt = encode_prompt(tokenizer, row["messages"][:-1])
        assert example["input_ids"][: len(prompt)] == prompt
        assert example["supervised"] == [False] * len(prompt) + [True] * (len(example["input_ids"]) - len(prompt))
        assert tokenizer.decode(example["input_ids"][len(prompt) :]) == row["messages"][-1]["content"] + "<|im_end|>"
        assert (example["split"], example["weight"]) == (row["split"], row["weight"])


def test_an_example_does_not_depend_on_the_others(base):
    together = {row["id"]: row for row in run(records([5, 30, 9]), base)[0]}
    alone = {row["id"]: row for row in run(records([5, 30]), base)[0]}
    assert all(together[name] == row for name, row in alone.items())


def test_nothing_left_to_train_or_to_test_on_is_told(base):
    with pytest.raises(
        UserError, match=r"No (train|test) example is left of 2 conversations: 2 are left out: longer than 20 tokens.*max_tokens"
    ):
        run(records([50, 50]), base, max_tokens=20)
    with pytest.raises(UserError, match=r"No test example is left of 2 .* 1 are left out: longer than 100 tokens"):
        run(records([5, 500]), base, max_tokens=100)


def test_a_tokenizer_without_a_template_is_told(base, tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        run(records([5, 5]), with_template(base, tmp_path / "none", None))


def test_training_refuses_tokens_of_another_vocabulary_or_template(base, tmp_path):
    examples, _ = tokenise(records([3, 40]), base, Tokenise(), serial())
    home = FolderParameters(root=str(tmp_path), base_models=str(tmp_path), shards="", work=str(tmp_path / "work"))

    def plan(model):
        return plan_training(examples, ModelParameters(base=str(model.folder)), TrainingParameters(), home, seed=1)

    same = tmp_path / "other weights"
    shutil.copytree(base.folder, same)
    assert plan(replace(base, folder=same))["examples"] == 1  # whose weights they are does not matter
    template = load_tokenizer(base).chat_template.replace("<|im_start|>", "<|im_start|>the ")
    other = with_template(base, tmp_path / "other template", template)
    (other.folder / "manifest.json").unlink()  # a folder of a user's
    with pytest.raises(UserError, match=r"are tokens of tiny:llama@\w+, whose vocabulary or chat template is another: run data"):
        plan(other)


def test_examples_beyond_the_context_of_the_base_are_refused_before_the_first_row(base, tmp_path):
    config = json.loads((base.folder / "config.json").read_text())
    narrow = with_template(base, tmp_path / "narrow", "{{ messages[0].content }}")
    (narrow.folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    (narrow.folder / MANIFEST).unlink()
    told = r"tokenise\.max_tokens is 65.*write 64 at most"
    with pytest.raises(UserError, match=told):
        run(records([5, 5]), narrow, max_tokens=65)
    folders = FolderParameters(root=str(tmp_path), base_models=str(tmp_path), shards=str(tmp_path / "shards"), work=str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match=told):
        ingest_rows(
            DataParameters(path="rows.jsonl"),
            ModelParameters(base="narrow"),
            DataProcessingParameters(tokenise=Tokenise(max_tokens=65)),
            folders,
        )
    assert run(records([5, 5]), base, max_tokens=config["max_position_embeddings"])[0]


CALLS = json.dumps([{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}])


def calling(number):
    """Return a record whose answer is a tool call."""
    row = record(f"question {number}", "", f"call-{number}")
    row["messages"][-1]["tool_calls"] = CALLS
    return row


def test_rows_whose_calls_the_template_leaves_out_teach_nothing_and_are_counted(tokenizer, base):
    assert not writes_calls(tokenizer)
    rows = [*(calling(n) for n in range(4)), *(record(f"question {n}", "sunny", f"said-{n}") for n in range(4))]
    examples, dropped = run(split_records(rows), base)
    assert {row["id"] for row in examples} == {f"said-{n}" for n in range(4)}
    assert {row["id"] for row in dropped} == {f"call-{n}" for n in range(4)}
    assert {row["reason"] for row in dropped} == {"the base model's chat template leaves out tool calls"}
    with pytest.raises(UserError, match=r"leaves out tool calls.*model\.base"):
        run(split_records([calling(n) for n in range(4)]), base)


def test_rows_that_the_template_refuses_are_counted_with_its_words(base, tmp_path):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    )
    refusing = with_template(base, tmp_path / "refusing", template)
    rows = [record(f"question {n}", "sunny", f"r{n}") for n in range(8)]
    for row in rows[:2]:
        row["messages"].insert(0, {"role": "system", "content": "Be kind."})
    examples, dropped = run(split_records(rows), refusing)
    assert {row["id"] for row in examples} == {f"r{n}" for n in range(2, 8)}
    assert {row["reason"] for row in dropped} == {"the base model's chat template refuses it: System role not supported"}


def test_answers_with_thoughts_of_their_own_are_counted_where_prompts_end_with_empty_ones(base, tmp_path):
    thinks = with_template(base, tmp_path / "thinks", THINKS.replace("loop.last", "loop.last and '</think>' not in m.content"))
    rows = [record(f"question {n}", "<think>\nhm\n</think>\n\nsunny" if n < 2 else "sunny", f"r{n}") for n in range(8)]
    examples, dropped = run(split_records(rows), thinks)
    assert {row["id"] for row in examples} == {f"r{n}" for n in range(2, 8)}
    assert all("thoughts of its own" in row["reason"] for row in dropped)
    assert len(dropped) == 2


def test_what_a_template_leaves_out_is_counted_and_dropped(base, tmp_path):
    # a template that drops every answer to a message of five characters
    template = (
        "{% for m in messages %}{% if m.role == 'user' or messages[0].content | length != 5 %}<|im_start|>{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    odd = with_template(base, tmp_path / "odd", template)
    examples, dropped = run(records([5, 6, 7, 8]), odd)
    assert [row["reason"] for row in dropped] == ["no token of an answer to learn"]
    assert len(examples) == 3


def long_conversation():
    turns = [{"role": "system", "content": "s"}]
    for number in range(6):
        turns += [
            {"role": "user", "content": f"question {number} " + "x" * 20},
            {"role": "assistant", "content": f"answer {number}"},
        ]
    return turns


def test_the_oldest_turns_go_until_the_rest_fits(tokenizer, base):
    row = record("a", "b", "long") | {"messages": long_conversation()}
    table = split_records([row, record("x", "y", "short")])
    examples, dropped = run(table, base, max_tokens=150, too_long="drop_oldest_turns")
    assert dropped == []
    example = next(e for e in examples if e["id"] == "long")
    text = tokenizer.decode(example["input_ids"])
    assert len(example["input_ids"]) <= 150
    assert "question 5" in text
    assert "question 0" not in text
    expected = [turn for turn in long_conversation() if turn["role"] == "system" or turn["content"] in text]
    assert encode(tokenizer, expected).input_ids == example["input_ids"]


def test_the_end_is_cut_if_asked(tokenizer, base):
    row = record("a", "b", "long") | {"messages": long_conversation()}
    examples, dropped = run(split_records([row, record("x", "y", "short")]), base, max_tokens=150, too_long="cut_end")
    example = next(e for e in examples if e["id"] == "long")
    assert example["input_ids"] == encode(tokenizer, long_conversation()).input_ids[:150]
    assert dropped == []
