"""What a row asks is what training reads of it before the answer, whether it has one or not."""

import pytest

from luthier.pipelines.data_processing.shapes import to_conversation
from luthier.text.prepare import RowError
from luthier.text.rows import asked

ROWS = {
    "messages": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "system": "s"},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    "alpaca": {"instruction": "add", "input": "1 2", "output": "3", "history": '[["hi", "hello"]]', "system": "s"},
    "prompt_completion": {"question": "hi", "answer": "hello"},
    "labelled_text": {"sentence": "good", "label": 1},
}
ANSWERS = ("output", "answer", "label")


@pytest.mark.parametrize("shape", sorted(ROWS))
def test_training_and_inference_read_the_same(shape):
    row = ROWS[shape]
    taught = to_conversation(row, shape).messages
    assert taught[-1]["role"] == "assistant"
    assert asked(row) == taught[:-1]
    without = {name: value for name, value in row.items() if name not in ANSWERS}
    assert asked(without) == taught[:-1]


def test_the_turns_up_to_the_last_answer_are_asked():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert asked({"messages": turns}) == turns
    assert asked({"messages": [*turns, {"role": "assistant", "content": "d"}]}) == turns
    assert asked({"chat": None, "messages": "", "prompt": "x"}) == [{"role": "user", "content": "x"}]
    assert asked({"mine": turns, "prompt": "x"}, "mine") == turns
    assert asked({"mine": "text", "prompt": "x"}, "mine") == [{"role": "user", "content": "text"}]


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"body": "hi"}, None, "no column is known to hold what is asked, such as messages, .*; it has body"),
        ({}, None, "it has none"),
        ({"prompt": None}, None, "prompt is empty"),
        ({"prompt": " \u200b"}, None, "the user's message is empty"),
        ({"prompt": 7}, None, "prompt must be text, not a number"),
        ({"messages": []}, None, "nothing is asked"),
        ({"messages": [{"role": "system", "content": "s"}]}, None, "nothing is asked"),
        ({"messages": [{"role": "assistant", "content": "s"}]}, None, "nothing is asked"),
        ({"messages": [{"role": "usr", "content": "s"}]}, None, "did you mean 'user'"),
        ({"bodi": "hi"}, "body", "has no column 'body' .did you mean 'bodi'"),
    ],
)
def test_why_nothing_can_be_asked_is_told(row, column, reason):
    with pytest.raises(RowError, match=reason):
        asked(row, column)
