"""A row of a known shape becomes its conversation, or is refused with a reason; shapes are recognised from many rows."""

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import configuration
from luthier.errors import UserError
from luthier.pipelines.data_processing.shapes import (
    Conversation,
    Shape,
    columns_of,
    recognise,
    to_conversation,
)
from luthier.text.prepare import RowError, has_content
from luthier.text.turns import ROLES

SHAPES = [shape for shape in get_args(Shape) if shape != "template"]
NO_TEMPLATE = frozenset()


def say(*contents, system=None):
    """Return turns of user and assistant, alternately."""
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def reason(row, shape):
    """Return why a row is refused."""
    with pytest.raises(RowError) as caught:
        to_conversation(row, shape)
    return str(caught.value)


# One row of each shape as its convention writes it, what it says, and the columns it takes.
HELLO = say("hi", "hello")
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
CALLS = '[{"function":{"arguments":"{\\"a\\":1}","name":"f"},"type":"function"}]'
TOOLED = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "it is 42"},
]
CONVENTIONS = {
    "openai": ("messages", {"messages": HELLO}, HELLO),
    "openai, json text": ("messages", {"messages": json.dumps(HELLO)}, HELLO),
    "chat": ("messages", {"chat": HELLO, "messages": None}, HELLO),
    "developer": ("messages", {"messages": [{"role": "developer", "content": "s"}, *HELLO]}, say("hi", "hello", system="s")),
    "text parts": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, HELLO[1]]},
        say("a\nb", "hello"),
    ),
    "parquet's nulls": (
        "messages",
        {"messages": [turn | {"name": None, "tool_calls": None, "tool_call_id": None, "from": None} for turn in HELLO]},
        HELLO,
    ),
    "tools": (
        "messages",
        {
            "messages": [
                HELLO[0],
                {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "c1"}]},
                {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"},
                {"role": "assistant", "content": "it is 42"},
            ]
        },
        [
            HELLO[0],
            {"role": "assistant", "content": "", "tool_calls": CALLS.replace('"type"', '"id":"c1","type"')},
            {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "it is 42"},
        ],
    ),
    "older function_call": (
        "messages",
        {
            "messages": [
                HELLO[0],
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}},
                {"role": "function", "content": "42"},
                {"role": "assistant", "content": "it is 42"},
            ]
        },
        TOOLED,
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "system": "s"},
        say("hi", "hello", system="s"),
    ),
    "sharegpt's empty system": (
        "sharegpt",
        {"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        HELLO,
    ),
    "sharegpt, its own system wins": (
        "sharegpt",
        {"conversations": say("hi", "hello", system="own"), "system": "column"},
        say("hi", "hello", system="own"),
    ),
    "sharegpt's tools": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "it is 42"},
            ]
        },
        TOOLED,
    ),
    "pygmalion": (
        "sharegpt",
        {"conversations": [{"role": "user", "value": "hi"}, {"role": "assistant", "value": "hello"}]},
        HELLO,
    ),
    "alpaca": ("alpaca", {"instruction": "translate", "input": "hi", "output": "hello"}, say("translate\nhi", "hello")),
    "alpaca without input": ("alpaca", {"instruction": "hi", "input": "", "output": "hello"}, HELLO),
    "alpaca's history": (
        "alpaca",
        {"instruction": "hi", "output": "hello", "system": "s", "history": [["a", "b"], ["c", "d"]]},
        say("a", "b", "c", "d", "hi", "hello", system="s"),
    ),
    "dolly": (
        "alpaca",
        {"instruction": "translate", "context": "hi", "response": "hello", "category": "qa"},
        say("translate\nhi", "hello"),
    ),
    "trl": ("prompt_completion", {"prompt": "hi", "completion": "hello"}, HELLO),
    "trl, conversational": ("prompt_completion", {"prompt": HELLO[:1], "completion": HELLO[1:]}, HELLO),
    "trl, conversational, from csv": (
        "prompt_completion",
        {"prompt": json.dumps(HELLO[:1], indent=1), "completion": json.dumps(HELLO[1:])},
        HELLO,
    ),
    "an answer that is a json list": (
        "prompt_completion",
        {"prompt": "hi", "completion": '[{"name": "Ada"}]'},
        say("hi", '[{"name": "Ada"}]'),
    ),
    "orca": (
        "prompt_completion",
        {"system_prompt": "s", "question": "hi", "response": "hello"},
        say("hi", "hello", system="s"),
    ),
    "kto, liked": ("prompt_completion", {"prompt": "hi", "completion": "hello", "label": True}, HELLO),
    "trl's preference": ("preference", {"prompt": "hi", "chosen": "hello", "rejected": "no"}, HELLO),
    "trl's preference, conversational": (
        "preference",
        {"prompt": HELLO[:1], "chosen": HELLO[1:], "rejected": say("hi", "no")[1:]},
        HELLO,
    ),
    "trl's implicit prompt": ("preference", {"chosen": HELLO, "rejected": say("hi", "no")}, HELLO),
    "trl's implicit prompt, text": (
        "preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        say("The sky is", " blue."),
    ),
    "ultrafeedback": (
        "preference",
        {"prompt": "hi", "messages": HELLO, "chosen": HELLO, "rejected": say("hi", "no"), "score_chosen": 8.5},
        HELLO,
    ),
    "orca pairs": (
        "preference",
        {"system": "s", "question": "hi", "chosen": "hello", "rejected": "no"},
        say("hi", "hello", system="s"),
    ),
    "llama-factory's alpaca preference": (
        "preference",
        {"instruction": "translate", "input": "hi", "chosen": "hello", "rejected": "no"},
        say("translate\nhi", "hello"),
    ),
    "llama-factory's sharegpt preference": (
        "preference",
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "hello"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        HELLO,
    ),
    "hh-rlhf": (
        "preference",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: hi\n\nAssistant: hello",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: hi\n\nAssistant: no",
        },
        say("a", "b", "hi", "hello"),
    ),
    "banking77": ("labelled_text", {"text": "hi", "label": 3, "label_text": "greeting"}, say("hi", "greeting")),
    "numbered labels": ("labelled_text", {"utterance": "hi", "intent": 3}, say("hi", "3")),
    "numbers that pandas made floats": ("labelled_text", {"sentence": "hi", "label": 3.0}, say("hi", "3")),
    "stars": ("labelled_text", {"sentence": "hi", "label": 4.5}, say("hi", "4.5")),
    "yes or no": ("labelled_text", {"query": "hi", "class": False}, say("hi", "false")),
    "fineweb": (
        "text",
        {"text": "Once upon a time", "id": "x", "url": "https://x", "language_score": 0.9, "label": None},
        [{"role": "assistant", "content": "Once upon a time"}],
    ),
}
TAKEN = {
    "openai": {"messages"},
    "chat": {"chat"},
    "sharegpt": {"conversations", "system"},
    "alpaca's history": {"instruction", "output", "system", "history"},
    "dolly": {"instruction", "context", "response"},
    "orca": {"system_prompt", "question", "response"},
    "kto, liked": {"prompt", "completion"},
    "ultrafeedback": {"prompt", "chosen", "rejected"},
    "llama-factory's alpaca preference": {"instruction", "input", "chosen", "rejected"},
    "banking77": {"text", "label_text"},
    "fineweb": {"text"},
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_conventions_of_known_data_sets_are_recognised_and_read(name):
    shape, row, messages = CONVENTIONS[name]
    assert recognise([row], NO_TEMPLATE) == shape
    told = to_conversation(row, shape)
    assert told.messages == messages
    assert (told.label is not None) == (shape == "labelled_text")
    if shape == "preference":
        assert told.rejected == [{"role": "assistant", "content": " black." if "sky" in messages[0]["content"] else "no"}]
    else:
        assert told.rejected is None


@pytest.mark.parametrize("name", TAKEN)
def test_the_columns_that_a_conversation_takes_are_known(name):
    shape, row, _ = CONVENTIONS[name]
    assert columns_of(shape, row) == TAKEN[name]


def test_an_input_without_an_instruction_is_no_part_of_a_pair():
    row = {"prompt": "hi", "input": "x", "chosen": "hello", "rejected": "no"}
    assert columns_of("preference", row) == {"prompt", "chosen", "rejected"}
    assert columns_of("preference", row | {"prompt": None}) == {"input", "chosen", "rejected"}
    assert to_conversation(row, "preference").messages == HELLO


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "messages"),
    [
        ("Hi.", HELLO, say("hi", "no"), HELLO),  # TRL: a prompt of text is not put before a conversation
        (say("a", "b", "hi"), say("a", "b", "hi", "yes"), say("a", "b", "hi", "no"), say("a", "b", "hi", "yes")),
        (say(system="s"), HELLO, say("hi", "no"), say("hi", "hello", system="s")),
        (None, "The skyline", "The sky is", say("The", " skyline")),  # never within a word of either
        (None, "The sky is", "The skyline", say("The", " sky is")),
        (
            None,
            "See:\n\nHuman: a\n\nAssistant: b c",
            "See:\n\nHuman: a\n\nAssistant: b d",
            say("See:\n\nHuman: a\n\nAssistant: b", " c"),
        ),
    ],
)
def test_a_prompt_stands_once_before_both_answers(prompt, chosen, rejected, messages):
    told = to_conversation({"prompt": prompt, "chosen": chosen, "rejected": rejected}, "preference")
    assert told.messages == messages
    assert len(told.rejected) == 1
    assert told.rejected != messages[-1:]


def test_calls_without_arguments_have_none():
    for arguments in (None, {}, "{}"):
        turn = {"role": "assistant", "tool_calls": [{"id": None, "function": {"name": "f", "arguments": arguments}}]}
        (said,) = to_conversation({"messages": [turn]}, "messages").messages
        assert said["tool_calls"] == '[{"function":{"arguments":"{}","name":"f"},"type":"function"}]'


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_other_columns_decide_nothing(name):
    shape, row, _ = CONVENTIONS[name]
    taken = {column: row[column] for column in columns_of(shape, row)}
    assert to_conversation(taken, shape) == to_conversation(row, shape)


@pytest.mark.parametrize(
    ("shape", "row", "told"),
    [
        ("messages", {"mesages": HELLO}, "has no column 'messages' (nor 'conversation', 'chat') (did you mean 'mesages'?)"),
        ("messages", {"messages": None}, "messages must be a list, not null"),
        ("messages", {"messages": []}, "there are no messages"),
        ("messages", {"messages": "hi"}, "messages is text that is not JSON"),
        ("messages", {"messages": str(HELLO)}, "write it with json.dumps"),
        ("messages", {"messages": ["hi"]}, "turn 1 of messages must be an object with role and content, not text"),
        ("messages", {"messages": [{"rol": "user", "content": "x"}]}, "turn 1 of messages has no role (did you mean 'rol'?)"),
        ("messages", {"messages": [*HELLO, {"role": "usr", "content": "x"}]}, "role 'usr' is unknown (did you mean 'user'?)"),
        ("messages", {"messages": [{"role": 3, "content": "x"}]}, "role must be text, not a number"),
        ("messages", {"messages": [{"role": "user"}]}, "turn 1 of messages: content must be text, not null"),
        ("messages", {"messages": [{"role": "user", "content": {"a": 1}}]}, "content must be text, not an object"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "a part of type 'image_url', and only text can be read",
        ),
        ("messages", {"messages": say("hi", "hello", "and?")}, "ends with a turn of the user: there is no answer to learn"),
        ("messages", {"messages": TOOLED[:3]}, "ends with a turn of the tool"),
        ("messages", {"messages": say("hi", " \u200b")}, "the answer is empty (turn 2)"),
        ("messages", {"messages": say("", "hello")}, "the user's message is empty (turn 1)"),
        ("messages", {"messages": [HELLO[0], HELLO[1] | {"tool_calls": {"a": 1}}]}, "tool_calls must be a list, not an object"),
        ("messages", {"messages": [HELLO[0], HELLO[1] | {"tool_calls": ["f"]}]}, "must hold objects with a name"),
        ("messages", {"messages": [HELLO[0], HELLO[1] | {"tool_calls": [{"id": "c"}]}]}, "without the name of its function"),
        ("messages", {"messages": [HELLO[0], HELLO[1] | {"tool_calls": "f("}]}, "tool_calls is not JSON"),
        ("messages", {"messages": [HELLO[1] | {"tool_calls": [{"name": "f", "arguments": {"a": float("nan")}}]}]}, "tool_calls is not JSON"),
        ("messages", {"messages": [HELLO[0], HELLO[1] | {"name": 3}]}, "name must be text, not a number"),
        ("sharegpt", {"conversations": HELLO, "system": 3}, "system must be text, not a number"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "f(1)"}]}, "function_call is not JSON"),
        ("alpaca", {"instruction": "hi"}, "has no column 'output' (nor 'response')"),
        ("alpaca", {"instruction": None, "output": "hello"}, "the user's message is empty"),
        ("alpaca", {"instruction": "hi", "output": ""}, "the answer is empty"),
        ("alpaca", {"instruction": "hi", "output": "hello", "history": [["a"]]}, "entry 1 must be a pair of texts"),
        ("alpaca", {"instruction": "hi", "output": "hello", "kto_tag": False}, "the answer is marked as one not to learn"),
        ("prompt_completion", {"prompt": "hi", "completion": {"a": 1}}, "not an object (a template of `data` can write it: {{ completion | json }})"),
        ("prompt_completion", {"question": "1+1", "answer": 2}, "answer must be text, not a number (a template of `data` can write it: {{ answer | string }})"),
        ("prompt_completion", {"prompt": "hi", "completion": "hello", "label": "False"}, "the answer is marked as one not to learn"),
        ("prompt_completion", {"prompt": [], "completion": "hello"}, "prompt is an empty list"),
        ("prompt_completion", {"prompt": str(HELLO[:1]), "completion": "hello"}, "write it with json.dumps"),
        ("preference", {"prompt": "hi", "chosen": "no", "rejected": "no"}, "chosen and rejected are the same"),
        ("preference", {"prompt": "hi", "chosen": "yes", "rejected": ""}, "rejected: the answer is empty"),
        ("preference", {"chosen": "yes", "rejected": "no"}, "has no prompt"),
        ("preference", {"chosen": HELLO[1:], "rejected": say("hi", "no")[1:]}, "has no prompt"),
        ("preference", {"chosen": HELLO, "rejected": say("ho", "no")}, "differ before the last answer"),
        ("preference", {"chosen": HELLO, "rejected": say("hi", "no", "why?", "so")}, "differ before the last answer"),
        ("labelled_text", {"text": "hi", "label": None}, "label must be text, a number, true or false, not null"),
        ("labelled_text", {"text": "hi", "label": float("nan")}, "not NaN"),
        ("labelled_text", {"text": "hi", "label": ["a", "b"]}, "not a list"),
        ("labelled_text", {"text": "hi", "lable": "a"}, "has no column 'label_text'"),
        ("text", {"text": "\n"}, "the text is empty"),
    ],
)  # fmt: skip
def test_the_reason_says_what_is_wrong(shape, row, told):
    assert told in reason(row, shape)


def test_the_shapes_are_those_of_the_configuration():
    assert {"auto", *get_args(Shape)} == set(configuration.SHAPES)


# Any row is read or refused

NAMES = sorted({name for _, row, _ in CONVENTIONS.values() for name in row})
KEYS = [
    "role",
    "content",
    "from",
    "value",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "function",
    "arguments",
    "type",
    "text",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        sorted(ROLES) + ["hi", "[{", '[{"role": "user", "content": "a"}]', str(HELLO), "{}", "[]", "\n\nHuman: a\n\nAssistant: b"]
    ),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=12
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(sorted(ROLES)), "content": VALUES}, optional={"tool_calls": VALUES}),
    max_size=3,
)
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES | TURNS, max_size=6)


@given(row=ROWS, shape=st.sampled_from(SHAPES))
@settings(deadline=None, max_examples=600)
def test_any_row_becomes_something_to_learn_or_is_refused_with_a_reason(row, shape):
    try:
        told = to_conversation(row, shape)
    except RowError as error:
        assert str(error)
        return
    assert isinstance(told, Conversation)
    for turns in [told.messages] + ([told.rejected] if told.rejected is not None else []):
        assert turns[-1]["role"] == "assistant"
        for turn in turns:
            assert turn["role"] in {"system", "user", "assistant", "tool"}
            assert set(turn) <= {"role", "content", "name", "tool_calls", "tool_call_id"}
            assert all(isinstance(value, str) for value in turn.values())
            assert has_content(turn["content"]) or "tool_calls" in turn or turn["role"] == "tool"
            assert all(call["function"]["name"] is not None for call in json.loads(turn.get("tool_calls", "[]")))
    assert columns_of(shape, row) <= row.keys()
    # what was read once reads the same again: the canonical form is a shape of its own
    assert to_conversation({"messages": told.messages}, "messages").messages == told.messages


@pytest.mark.parametrize("shape", SHAPES)
def test_deep_nesting_is_refused_and_does_not_crash(shape):
    deep = "[" * 100_000
    row = dict.fromkeys(NAMES, deep) | {"label_text": None, "label": None, "class": None, "intent": None, "category": None}
    calls = {"role": "assistant", "content": None, "tool_calls": deep}
    for bad in (row, row | {"messages": [calls], "conversations": [calls], "chosen": [calls], "completion": [calls]}):
        try:
            assert to_conversation(bad, shape).messages  # a text or an answer may be of brackets
        except RowError as error:
            assert len(str(error)) < 500


def test_deep_arguments_are_refused():
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    call = {"name": "f", "arguments": deep}
    assert "nested too deeply" in reason({"messages": [{"role": "assistant", "tool_calls": [call]}]}, "messages")


# Round trips

SAID = st.text(min_size=1, max_size=12).filter(has_content).filter(lambda text: not text.lstrip().startswith("["))
ARGUMENTS = st.dictionaries(st.sampled_from("ab"), st.integers() | st.text(max_size=3), max_size=2)
CALL_LISTS = st.lists(
    st.builds(lambda name, arguments: {"name": name, "arguments": arguments}, SAID, ARGUMENTS), min_size=1, max_size=2
)


def canonical(calls):
    """Write calls as they are kept."""
    functions = [
        call | {"arguments": json.dumps(call["arguments"], separators=(",", ":"), sort_keys=True, ensure_ascii=False)}
        for call in calls
    ]
    return json.dumps(
        [{"type": "function", "function": function} for function in functions],
        separators=(",", ":"),
        sort_keys=True,
        ensure_ascii=False,
    )


@st.composite
def conversations(draw, tools=True):
    """Draw canonical messages, and the calls of their tools as a list."""
    messages = [{"role": "system", "content": draw(SAID)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SAID)})
        if tools and draw(st.booleans()):
            messages.append({"role": "assistant", "content": "", "tool_calls": canonical(draw(CALL_LISTS))})
            messages.append({"role": "tool", "content": draw(SAID)})
        messages.append({"role": "assistant", "content": draw(SAID)})
    return messages


def as_openai(turn):
    calls = {"tool_calls": json.loads(turn["tool_calls"]), "content": None} if "tool_calls" in turn else {}
    return turn | calls


def as_sharegpt(turn):
    if "tool_calls" in turn:
        functions = [call["function"] for call in json.loads(turn["tool_calls"])]
        calls = [function | {"arguments": json.loads(function["arguments"])} for function in functions]
        return {"from": "function_call", "value": json.dumps(calls[0] if len(calls) == 1 else calls)}
    return {
        "from": {"user": "human", "assistant": "gpt", "tool": "observation"}.get(turn["role"], turn["role"]),
        "value": turn["content"],
    }


def flat(messages):
    """Split messages without tools into a system prompt, earlier pairs, what is asked and what is answered."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    said = [turn["content"] for turn in messages if turn["role"] != "system"]
    pairs = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    return system, pairs[:-1], *pairs[-1]


def check(row, shape, messages, rejected=None):
    """A row, its lists as they are or as JSON text, says what it was made from."""
    as_text = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
    for spelling in (row, as_text):
        assert recognise([spelling], NO_TEMPLATE) == shape
        assert to_conversation(spelling, shape) == Conversation(messages, rejected, None)


@given(messages=conversations())
@settings(deadline=None, max_examples=60)
def test_messages_written_as_messages_and_as_sharegpt_come_back(messages):
    check({"messages": messages}, "messages", messages)
    check({"messages": [as_openai(turn) for turn in messages]}, "messages", messages)
    check({"conversations": [as_sharegpt(turn) for turn in messages]}, "sharegpt", messages)


@given(messages=conversations(), cut=st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_messages_cut_anywhere_into_prompt_and_completion_come_back(messages, cut):
    cut = min(cut, len(messages) - 1)
    check({"prompt": messages[:cut], "completion": messages[cut:]}, "prompt_completion", messages)


@given(messages=conversations(tools=False))
@settings(deadline=None, max_examples=60)
def test_messages_without_tools_written_as_alpaca_come_back(messages):
    system, history, asked, answered = flat(messages)
    check({"instruction": asked, "output": answered, "history": history, "system": system}, "alpaca", messages)
    if not history:
        check({"system_prompt": system, "prompt": asked, "completion": answered}, "prompt_completion", messages)


@given(messages=conversations(), other=SAID)
@settings(deadline=None, max_examples=60)
def test_pairs_written_with_their_prompt_or_without_come_back(messages, other):
    last = max(number for number, turn in enumerate(messages) if turn["role"] == "user") + 1
    prompt, chosen, rejected = messages[:last], messages[last:], [{"role": "assistant", "content": other}]
    if chosen == rejected:
        return
    check({"prompt": prompt, "chosen": chosen, "rejected": rejected}, "preference", messages, rejected)
    check({"chosen": messages, "rejected": prompt + rejected}, "preference", messages, rejected)
    # a prompt that ends later, with what a tool returned, is the same pair: rejected takes the place of all after the user
    late = len(messages) - 1
    told = messages[last:late] + rejected
    if told != chosen:
        check({"prompt": messages[:late], "chosen": messages[late:], "rejected": rejected}, "preference", messages, told)


@given(text=SAID, label=st.one_of(SAID, st.integers(), st.booleans()))
@settings(deadline=None, max_examples=60)
def test_labelled_and_plain_texts_come_back(text, label):
    told = to_conversation({"text": text, "label": label}, "labelled_text")
    written = label if isinstance(label, str) else json.dumps(label)
    assert told == Conversation(say(text, written), None, written)
    assert to_conversation({"text": text}, "text").messages == [{"role": "assistant", "content": text}]


# Recognising


@given(
    rows=st.lists(ROWS, max_size=6),
    template=st.frozensets(st.sampled_from(NAMES), max_size=2),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=150)
def test_the_order_of_rows_decides_nothing(rows, template, order):
    def told(rows):
        try:
            return recognise(rows, template)
        except UserError as error:
            return str(error)

    shuffled = [dict(order.sample(sorted(row.items(), key=lambda item: item[0]), len(row))) for row in rows]
    order.shuffle(shuffled)
    assert told(rows) == told(shuffled)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_bad_rows_up_to_half_of_all_do_not_hide_a_shape(name):
    shape, row, _ = CONVENTIONS[name]
    bad = {"nothing": "known"}
    assert recognise([bad, row], NO_TEMPLATE) == shape
    with pytest.raises(UserError):
        recognise([bad, row, bad], NO_TEMPLATE)


def test_templates_come_first_where_half_of_the_rows_have_their_columns():
    good, other = {"messages": HELLO, "body": "x", "extra": 1}, {"messages": HELLO}
    assert recognise([good, other], frozenset({"body"})) == "template"
    assert recognise([good, other, other], frozenset({"body"})) == "messages"
    assert recognise([good], frozenset({"body", "missing"})) == "messages"


def test_a_text_beside_a_column_that_we_do_not_know_is_not_learnt_by_heart_unless_chosen():
    row = {"text": "a long story", "summary": "short"}
    with pytest.raises(UserError, match="`text` needs choosing"):
        recognise([row], NO_TEMPLATE)
    assert to_conversation(row, "text").messages == [{"role": "assistant", "content": "a long story"}]


def test_what_fits_nothing_is_told_with_its_columns_and_the_way_out():
    rows = [{"Text": "hi", "reply": {"a": 1}}, {"Text": "hi", "reply": None}]
    with pytest.raises(UserError) as caught:
        recognise(rows, frozenset({"Reply"}))
    told = str(caught.value)
    assert "Text (text) (did you mean 'text'?)" in told
    assert "reply (an object or null)" in told
    assert "The templates read 'Reply' (did you mean 'reply'?), which no row has." in told
    assert "data.shape" in told
    assert all(f"  {shape}: " in told for shape in SHAPES)
    with pytest.raises(UserError, match="no row that could be read"):
        recognise([], NO_TEMPLATE)


def test_templates_are_not_for_this_module():
    with pytest.raises(KeyError):
        to_conversation({"messages": HELLO}, "template")
