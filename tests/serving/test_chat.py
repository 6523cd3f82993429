"""Requests: what OpenAI's client can send is answered, or refused by its name."""

import json

import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from luthier.pipelines.data_processing.shapes import to_conversation
from luthier.serving.api.bodies import MOST_TOLD
from luthier.serving.api.chat import LONGEST_SCHEMA, UNSUPPORTED, ChatRequest, StreamOptions, engine_request, parse_chat
from luthier.serving.api.errors import ApiError
from luthier.serving.api.messages import ChatMessage
from tests.serving.canned import canned
from tests.serving.chats import FULL, HELLO, LIMITS, check, parse, refusal

# --- what OpenAI's client sends


def test_every_field_of_openais_api_works_or_is_refused_by_name():
    known = set(CompletionCreateParamsStreaming.__annotations__) | {
        name for base in CompletionCreateParamsStreaming.__orig_bases__ for name in base.__annotations__
    }
    assert known - ChatRequest.model_fields.keys() == UNSUPPORTED.keys()
    assert ChatRequest.model_fields.keys() <= known
    assert set(ChatCompletionStreamOptionsParam.__annotations__) == StreamOptions.model_fields.keys()
    turns = (
        ChatCompletionAssistantMessageParam, ChatCompletionDeveloperMessageParam, ChatCompletionSystemMessageParam,
        ChatCompletionToolMessageParam, ChatCompletionUserMessageParam,
    )  # fmt: skip
    assert {name for turn in turns for name in turn.__annotations__} <= ChatMessage.model_fields.keys()


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_supported_is_refused_by_name_and_a_value_that_asks_for_nothing_passes(name):
    error = refusal(HELLO | {name: {"asks": "for something"}})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert error.message.startswith(f"{name}: is not supported: ")
    for neutral in (None, *UNSUPPORTED[name][1]):
        assert parse(HELLO | {name: neutral}) == parse(HELLO)


def test_what_the_official_client_sends_is_what_was_asked():
    with canned(b'{"error": {"message": "seen"}}', 400) as (url, asked), pytest.raises(BadRequestError, match="seen"):
        OpenAI(base_url=url, api_key="k", max_retries=0).chat.completions.create(**FULL)
    request = parse(asked[0])
    assert request == parse(FULL)
    assert (request.limit, request.stops, request.subject, request.counts_tokens) == (32, ["\n\n", "END"], "user-17", True)


def test_an_answer_of_openais_can_be_sent_back_as_a_turn():
    # clients append `response.choices[0].message`, with all its nulls
    turn = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    request = parse(HELLO | {"messages": [*HELLO["messages"], turn, *HELLO["messages"]]})
    assert request.turns()[1] == {"role": "assistant", "content": "Hi"}
    assert refusal(HELLO | {"messages": [turn | {"refusal": "no"}, *HELLO["messages"]]}).param == "messages[0].refusal"


def test_a_conversation_is_read_as_training_reads_one():
    answer = {"role": "assistant", "content": "Yes"}
    trained = to_conversation({"messages": [*FULL["messages"], answer]}, "messages").messages
    assert parse(FULL).turns() == trained[:-1]


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"model": None}, "model", "valid string, not null"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hello"}, "messages", "valid list, not 'Hello'"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role", "did you mean 'user'?"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": " \u200b"}]}, "messages[0].content", "is empty"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "not a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "has no text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", "no object with type"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": FULL["messages"][2]["tool_calls"]}]},
            "messages[0].tool_calls",
            "assistant",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "is missing"),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 1}]},
            "messages[0].weight",
            "is unknown; known are role, content",
        ),
        ({"messages": [*HELLO["messages"], {"role": "assistant", "content": "x"}]}, "messages", "nothing to answer"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "nothing is asked"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, not 0"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer, not 1.5"),
        ({"max_tokens": True}, "max_tokens", "valid integer, not true"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "give one of them"),
        ({"temperature": -0.1}, "temperature", "not -0.1"),
        ({"temperature": 2.1}, "temperature", "not 2.1"),
        ({"temperature": "0.5"}, "temperature", "valid number, not '0.5'"),
        ({"top_p": 1.1}, "top_p", "not 1.1"),
        ({"stop": ["a"] * 5}, "stop", "holds 5 texts, and 4 are allowed"),
        ({"stop": ["a", ""]}, "stop", "empty text"),
        ({"stop": 3}, "stop", "not a number"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "not 21"),
        ({"n": 2}, "n", "not 2"),
        ({"seed": 7}, "seed", "set temperature to 0"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "not supported",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "'json_object'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "is missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"x": "y" * LONGEST_SCHEMA}}}},
            "response_format.json_schema.schema",
            "is longer than",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
            "not 'a b'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "stric": True}}},
            "response_format.json_schema.stric",
            "did you mean 'strict'?",
        ),
        ({"metadata": {"a": 1}}, "metadata.a", "valid string, not 1"),
        ({"temprature": 0}, "temprature", "did you mean 'temperature'?"),
        ({"top_k": 5}, "top_k", "is unknown"),
    ],
)
def test_a_mistake_is_told_with_its_field(changes, param, told):
    limits = LIMITS.model_copy(update={"body_bytes": 100_000})
    with pytest.raises(ApiError) as caught:
        parse_chat(json.dumps(HELLO | changes).encode(), limits)
    check(caught.value)
    assert caught.value.param == param
    assert told in caught.value.message


def test_all_mistakes_are_told_at_once_up_to_a_number_of_them():
    error = refusal({"modle": "x", "messages": [{"role": "user", "content": "x", "nam": 1}], "tools": [{}], "top_p": 7})
    for told in (
        "tools: is not supported",
        "top_p: ",
        "modle: is unknown (did you mean 'model'?)",
        "model: is missing",
        "messages[0].nam",
    ):
        assert told in error.message
    many = refusal(HELLO | {f"field{number}": 1 for number in range(100)})
    assert many.message.endswith(f"and {100 - MOST_TOLD} more.")


def test_an_error_repeats_no_long_text_of_the_client():
    secret = "my secret " * 200
    for changes in ({"temperature": secret}, {secret: 1}, {"n": secret}, {"response_format": {"type": secret}}, {"user": secret}):
        assert len(refusal(HELLO | changes).message) < 600


def test_the_conversation_is_limited_in_turns_and_characters():
    turn = {"role": "user", "content": "x" * 150}
    assert len(parse(HELLO | {"messages": [turn] * 6}).messages) == 6
    assert "there are 7 of them, and 6 are allowed" in refusal(HELLO | {"messages": [turn] * 7}).message
    error = refusal(HELLO | {"messages": [{"role": "user", "content": "x" * 1001}]})
    assert (error.param, "1,001 characters, and 1,000 are allowed" in error.message) == ("messages", True)


# --- what the engine is asked


def test_the_engine_is_asked_what_the_client_asked():
    request = parse(FULL)
    turns = request.turns()
    sent = engine_request(request, turns, "v3", 32)
    assert sent == {
        "model": "v3", "messages": [
            {"role": "system", "content": "Triage."},
            {"role": "user", "content": "one\ntwo", "name": "ada"},
            {"role": "assistant", "content": "", "tool_calls": FULL["messages"][2]["tool_calls"]},
            {"role": "tool", "content": "found", "tool_call_id": "c1"},
            {"role": "user", "content": "And now?"},
        ],
        "max_tokens": 32, "temperature": 0.7, "top_p": 0.9, "stop": ["\n\n", "END"], "logprobs": True, "top_logprobs": 3,
        "response_format": FULL["response_format"], "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    # the order of properties is the order in which the answer has them
    assert list(sent["response_format"]["json_schema"]["schema"]["properties"]) == ["b", "a"]
    assert parse(sent) == request.model_copy(
        update={
            "model": "v3",
            "messages": parse(sent).messages,
            "max_completion_tokens": None,
            "max_tokens": 32,
            "n": None,
            "user": None,
            "metadata": None,
        }
    )


@pytest.mark.parametrize(
    "changes", [{"temperature": 0}, {"temperature": 0, "seed": 7}, {"top_p": 0}, {"temperature": 0.0, "top_p": 0.5}]
)
def test_greedy_is_asked_for_in_one_way(changes):
    request = parse(HELLO | changes)
    assert request.is_greedy
    assert engine_request(request, request.turns(), "m", 5) == {
        "model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0.0,
    }  # fmt: skip


def test_what_is_not_said_is_as_openai_has_it():
    sent = engine_request(parse(HELLO), parse(HELLO).turns(), "m", 5)
    assert (sent["temperature"], sent["top_p"]) == (1.0, 1.0)
    assert not {"stop", "stream", "logprobs", "response_format"} & sent.keys()
    assert "max_tokens" not in engine_request(parse(HELLO), parse(HELLO).turns(), "m", None)
