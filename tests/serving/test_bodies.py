"""Bodies of requests: no bytes whatever cause anything but a 4xx."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.serving.api.chat import ChatRequest, engine_request, parse_chat
from luthier.serving.api.errors import ApiError
from tests.serving.chats import FULL, HELLO, LIMITS, check, refusal

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "text", "json_schema", "luthier"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(ChatRequest.model_fields)) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def accepted_or_refused(body: bytes) -> None:
    try:
        request = parse_chat(body, LIMITS)
    except ApiError as error:
        check(error)
    else:
        sent = engine_request(request, request.turns(), "m", 5)
        assert json.loads(json.dumps(sent, allow_nan=False).encode()) == sent


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body):
    accepted_or_refused(body)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_any_json_is_accepted_or_refused(value):
    accepted_or_refused(json.dumps(value).encode())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([path for path in places(FULL) if path]), JSON)
def test_any_value_in_any_place_of_a_good_request_is_accepted_or_refused(path, value):
    changed = copy.deepcopy(FULL)
    holder: Any = changed
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    accepted_or_refused(json.dumps(changed).encode())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b"null", "must be a JSON object"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (json.dumps(HELLO).encode("utf-16"), "not UTF-8"),
        (b'{"temperature": NaN}', "no number of JSON"),
        (b'{"temperature": 1e999}', "no number of JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (json.dumps(HELLO | {"user": "\ud83d"}).encode(), "surrogate"),
        (json.dumps(HELLO | {"\udc00": 1}).encode(), "surrogate"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, "nested deeper than 20"),
    ],
)
def test_what_is_no_json_is_told(body, told):
    error = refusal(body)
    assert told in error.message
    assert (error.status, error.code) == (400, "invalid_json")


def test_a_large_body_is_a_413_whatever_is_in_it():
    error = refusal(b"x" * 20_001)
    assert (error.status, error.code) == (413, "request_too_large")
    assert refusal(b"x" * 20_000).status == 400
