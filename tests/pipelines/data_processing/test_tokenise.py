"""Every conversation becomes an example or is counted as too long; none is cut."""

import pyarrow as pa
import pytest

from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import load_tokenizer, resolve_base
from luthier.pipelines.data_processing.parameters import Tokenise
from luthier.pipelines.data_processing.tokenise import tokenise
from luthier.records import EXAMPLE, SPLIT_RECORD
from luthier.text.chat import encode, encode_prompt


@pytest.fixture
def tokenizer(tmp_path):
    """Return the tiny tokenizer."""
    folders = FolderParameters(root=str(tmp_path), base_models=str(tmp_path), work=str(tmp_path))
    return load_tokenizer(resolve_base(ModelParameters(base="tiny:llama"), folders))


def records(lengths, sides=("train", "test")):
    """Return records whose messages have these lengths."""
    rows = []
    for number, length in enumerate(lengths):
        messages = [{"role": "user", "content": "x" * length}, {"role": "assistant", "content": f"answer {number}"}]
        row = {"id": f"id-{number}", "messages": messages, "row": "{}", "source": "", "content_hash": str(number)}
        rows.append(row | {"split": sides[number % len(sides)]})
    return pa.Table.from_pylist(rows, schema=SPLIT_RECORD)


def test_every_record_is_an_example_or_too_long(tokenizer):
    table = records(range(1, 90))
    examples, too_long = tokenise(table, tokenizer, Tokenise(max_tokens=100))
    assert examples.schema == EXAMPLE
    assert examples.column("id").to_pylist() + too_long == table.column("id").to_pylist()
    assert too_long
    for record in table.to_pylist():
        assert (len(encode(tokenizer, record["messages"]).input_ids) > 100) == (record["id"] in too_long)


def test_an_example_is_its_prompt_and_a_supervised_answer(tokenizer):
    table = records([3, 40])
    examples, _ = tokenise(table, tokenizer, Tokenise())
    for record, example in zip(table.to_pylist(), examples.to_pylist(), strict=True):
        prompt = encode_prompt(tokenizer, record["messages"][:-1])
        assert example["input_ids"][: len(prompt)] == prompt
        assert example["supervised"] == [False] * len(prompt) + [True] * (len(example["input_ids"]) - len(prompt))
        assert tokenizer.decode(example["input_ids"][len(prompt) :]) == record["messages"][-1]["content"] + "<|im_end|>"
        assert example["split"] == record["split"]


def test_an_example_does_not_depend_on_the_others(tokenizer):
    together = tokenise(records([5, 30, 9]), tokenizer, Tokenise())[0].to_pylist()
    alone = tokenise(records([5, 30]), tokenizer, Tokenise())[0].to_pylist()
    assert together[:2] == alone


def test_nothing_left_to_train_or_to_test_on_is_told(tokenizer):
    with pytest.raises(UserError, match="No (train|test) example has at most 20 tokens"):
        tokenise(records([50, 50]), tokenizer, Tokenise(max_tokens=20))
    with pytest.raises(UserError, match="No test example has at most 100 tokens"):
        tokenise(records([5, 500]), tokenizer, Tokenise(max_tokens=100))


def test_a_tokenizer_without_a_template_is_told(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        tokenise(records([5, 5]), tokenizer, Tokenise())


def test_a_template_that_leaves_out_answers_is_told(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(UserError, match="id-0: the chat template leaves no token"):
        tokenise(records([5, 5]), tokenizer, Tokenise())
