"""Requests of clients, and the shape that a refusal has."""

import json
from typing import Any

import pytest

from luthier.serving.api.chat import ChatRequest, parse_chat
from luthier.serving.api.errors import CODES, ApiError
from luthier.serving.parameters import LimitParameters

LIMITS = LimitParameters(body_bytes=20_000, json_depth=20, messages=6, characters=1_000)
HELLO = {"model": "luthier", "messages": [{"role": "user", "content": "Hello"}]}
FULL = HELLO | {
    "messages": [
        {"role": "developer", "content": "Triage."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "ada"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"id": 3}'}}],
        },
        {"role": "tool", "content": "found", "tool_call_id": "c1"},
        {"role": "user", "content": "And now?"},
    ],
    "max_completion_tokens": 32,
    "temperature": 0.7,
    "top_p": 0.9,
    "stop": ["\n\n", "END"],
    "logprobs": True,
    "top_logprobs": 3,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object", "properties": {"b": {}, "a": {}}}},
    },
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 1,
    "user": "user-17",
    "metadata": {"ticket": "4711"},
}


def parse(value: Any) -> ChatRequest:
    return parse_chat(value if isinstance(value, bytes) else json.dumps(value).encode(), LIMITS)


def refusal(value: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(value)
    check(caught.value)
    return caught.value


def check(error: ApiError) -> None:
    """Check that an error has the shape of OpenAI's, is short, and can be sent."""
    assert error.status in (400, 413)
    assert error.code in CODES
    body = error.body()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["type"] == "invalid_request_error"
    text = json.dumps(body, ensure_ascii=False).encode()
    assert len(text) < 4_000
    assert b"Traceback" not in text
