"""What clients should not send: each gets an answer that says so, none takes anything from the others, and all are counted."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from luthier.serving import limits
from luthier.serving.api.chat import UNSUPPORTED
from luthier.serving.api.errors import CODES
from tests.serving.gateways import ALICE, CHAT, CONTEXT, HELLO, KEY, ROOT, Running, eventually, gateway_of
from tests.serving.scripted import scripted

LIMITS = {"body_bytes": 20_000, "json_depth": 20, "messages": 6, "characters": 5_000, "first_token_seconds": 1.0}

NO_TEXT: list[Any] = [7, 0.5, True, ["x"], {"a": 1}]
NO_NUMBER: list[Any] = ["7", "x", True, [1], {"a": 1}]
NO_FLAG: list[Any] = ["true", 1, 0, [True], {}]
NO_LIST: list[Any] = ["x", 7, True, {"a": 1}]
WRONG: dict[str, list[Any]] = {
    "model": [None, "", "m" * 257, *NO_TEXT],
    "messages": [None, [], *NO_LIST, [None], ["x"], [7], [[]], [{}], HELLO["messages"] * 7],
    "max_tokens": [0, -1, 1.5, 2**31, 10**30, -(10**30), *NO_NUMBER],
    "max_completion_tokens": [0, -1, 1.5, 10**12, CONTEXT, *NO_NUMBER],
    "temperature": [-0.1, 2.1, 1e300, -1e300, *NO_NUMBER],
    "top_p": [-0.1, 1.1, *NO_NUMBER],
    "stop": ["", [""], ["a", "b", "c", "d", "e"], [1], 7, True, {"a": 1}],
    "logprobs": NO_FLAG,
    "top_logprobs": [-1, 21, 1, *NO_NUMBER],
    "response_format": [
        "json", 7, [], {}, {"type": "xml"}, {"type": None}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
        {"type": "text", "json_schema": {}},
    ],
    "stream": NO_FLAG,
    "stream_options": [{"include_usage": True}, "x", 7, [], {"include_usage": "yes"}, {"other": True}],
    "n": [0, 2, -1, *NO_NUMBER],
    "seed": [1, 1.5, *NO_NUMBER],
    "user": ["x" * 513, *NO_TEXT],
    "safety_identifier": ["x" * 513, *NO_TEXT],
    "metadata": [*NO_LIST[:3], {"a": 1}, {str(number): "x" for number in range(17)}],
    "unheard_of": [1, {}, "x"],
    "": ["x"],
    "__proto__": [{}],
}  # fmt: skip
TURNS: list[Any] = [
    {"role": "user"},
    {"role": "user", "content": None},
    {"role": "user", "content": ""},
    {"role": "user", "content": " \u200b\n"},
    {"role": "user", "content": 7},
    {"role": "user", "content": {}},
    {"role": "user", "content": []},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://example.org/x.png"}}]},
    {"role": "user", "content": [{"type": "text"}]},
    {"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]},
    {"role": "user", "content": "x" * 5_001},
    {"role": "nobody", "content": "x"},
    {"role": None, "content": "x"},
    {"role": "system", "content": "x"},
    {"role": "assistant", "content": "x"},
    {"role": "tool", "content": "x"},
    {
        "role": "user",
        "content": "x",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "user", "content": "x", "weight": 1},
]
RAW: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n ",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"7",
    "cut off": json.dumps(HELLO).encode()[:-5],
    "two values": json.dumps(HELLO).encode() * 2,
    "a comma too many": b'{"model": "luthier",}',
    "single quotes": b"{'model': 'luthier'}",
    "a form": b"model=luthier&messages=x",
    "broken UTF-8": b'{"model": "\xff\xfe"}',
    "half a character": b'{"model": "\xe2\x82"}',
    "a surrogate in UTF-8": b'{"model": "\xed\xa0\x80"}',
    "half a surrogate pair": b'{"model": "luthier", "messages": [{"role": "user", "content": "\\ud83d"}]}',
    "half a pair as a name": b'{"\\ud83d": 1}',
    "UTF-16": json.dumps(HELLO).encode("utf-16"),
    "gzip's first bytes": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "NUL": b"\0" * 100,
    "a raw line break in a text": b'{"model": "lu\nthier"}',
    "NaN": b'{"model": "luthier", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinity": b'{"model": "luthier", "messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
    "a number beyond all": b'{"model": "luthier", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "10,000 digits": b'{"model": "luthier", "seed": ' + b"9" * 10_000 + b"}",
    "21 lists": b'{"a": ' + b"[" * 21 + b"]" * 21 + b"}",
    "5,000 lists": b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "5,000 lists that do not end": b'{"a": ' + b"[" * 5_000,
    "2,000 objects": b'{"a": ' * 2_000 + b"1" + b"}" * 2_000,
}
MODELS = ["gpt-4o", "Luthier", "luthier@9", "luthier@", "luthier@-1", "luthier@3.0", "luthier@" + "9" * 99, "../luthier", "luthier\0", "challenger", "x" * 256]  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    with scripted() as script:
        yield script


@pytest.fixture(scope="module")
def running(tmp_path_factory, engine):
    with gateway_of(tmp_path_factory.mktemp("log"), {3: [engine.url]}, limits=LIMITS) as found:
        yield found


def refused(running: Running, status: int, path: str = CHAT, headers=ALICE, **what) -> dict[str, Any]:
    """Send what is to be refused; check the answer's shape and that it tells nothing of the inside; return the error."""
    answer = running.post(CHAT, headers, extensions={"target": path.encode()}, **what)  # nobody tidies the path
    assert answer.status_code == status, (path, what, answer.text)
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] in CODES
    assert len(answer.content) < 4_000
    assert not re.search(r"Traceback|File \"|site-packages|luthier/serving|/work|/tmp|sk-|127\.0\.0\.1", answer.text)
    return error


def test_what_is_no_request_is_a_400_that_names_the_field(running, engine):
    bodies = [(field, HELLO | {field: value}) for field, values in WRONG.items() for value in values]
    bodies += [("messages", HELLO | {"messages": [turn]}) for turn in TURNS]
    bodies += [(name, HELLO | {name: {"much": 1}}) for name in UNSUPPORTED]
    assert len(bodies) + len(RAW) + len(MODELS) > 200
    asked = len(engine.seen)
    with running.all_is_counted():
        for field, body in bodies:
            error = refused(running, 400, json=body)
            assert (error["param"] or "").startswith(field), (field, body, error)
        for what, raw in RAW.items():
            error = refused(running, 400, content=raw)
            assert error["code"] in ("invalid_json", "invalid_value"), (what, error)
        for model in MODELS:
            assert refused(running, 404, json=HELLO | {"model": model})["code"] == "model_not_found"
    assert len(engine.seen) == asked + 1  # of all that, the engine has seen the good request alone


def test_all_mistakes_are_told_at_once(running):
    error = refused(running, 400, json={"messages": [{"role": "usr"}], "temprature": 0, "top_p": 7, "tools": [1]})
    for field in ("model", "messages[0].role", "temprature", "top_p", "tools"):
        assert field in error["message"]
    assert "did you mean 'temperature'" in error["message"]


def test_a_body_that_is_too_large_is_not_read_to_its_end(running):
    def endless(sent: list[int]) -> Iterator[bytes]:
        for _ in range(1_000):
            sent.append(10_000)
            yield b"x" * 10_000

    with running.all_is_counted():
        assert refused(running, 413, content=b"x" * 20_001)["code"] == "request_too_large"
        address, head = urlsplit(running.address), f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        for length in ("20001", "9" * 18):  # nothing of it is sent
            with talking(address.port) as said:
                said.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
                assert said.recv(100).startswith(b"HTTP/1.1 413 ")
        with talking(address.port) as said:
            said.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + (b"1388\r\n" + b"x" * 5_000 + b"\r\n") * 5)
            assert said.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_request_that_does_not_begin_loses_its_connection_and_no_other_one_does(running, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    host, port = running.address.removeprefix("http://").split(":")
    for said in (b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(said)
            began, heard = time.monotonic(), b""
            while piece := connection.recv(65536):
                heard += piece
            # what came with a whole request waits until uvicorn closes what is idle
            assert time.monotonic() - began < (8 if b"\r\n\r\n" in said else 3)
            assert heard.startswith(b"HTTP/1.1 200") == (b"\r\n\r\n" in said)
    # more of a body whose answer is given already is no request
    for path in ("/healthz", CHAT):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 4")
            began = time.monotonic()
            connection.sendall(b"x")
            while connection.recv(65536):
                pass
            assert time.monotonic() - began < 3
    # a body may take longer, and an answer too
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        body = json.dumps(HELLO).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:5])
        time.sleep(0.8)
        connection.sendall(body[5:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_slow_clients_wait_alone(running):
    address, head = urlsplit(running.address), f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with running.all_is_counted():
        beginnings = ("", "POST", head, f"{head}Content-Length: 500\r\n\r\n", f"{head}Content-Length: 500\r\n\r\n" + '{"model"')
        held = [socket.create_connection(("127.0.0.1", address.port), 5) for _ in range(8) for _ in beginnings]
        for one, beginning in zip(held, beginnings * 8, strict=True):
            one.sendall(beginning.encode())
        began = time.monotonic()
        assert running.post(CHAT, json=HELLO).status_code == 200
        assert time.monotonic() - began < LIMITS["first_token_seconds"]
        for one, beginning in zip(held, beginnings * 8, strict=True):
            if "Content-Length" in beginning:
                heard = b"".join(iter(partial(one.recv, 1_000), b""))
                assert heard.startswith(b"HTTP/1.1 408 ")
                assert json.loads(heard.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "timeout"
            one.close()


def test_what_is_no_http_ends_no_server(running):
    lines = (
        b"\0\1\2\3\r\n\r\n",
        b"GET / HTTP/x\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n",
        b"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,  # who speaks TLS to it
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    with running.all_is_counted():
        for line in lines:
            with talking(urlsplit(running.address).port) as said:
                said.sendall(line)
                assert re.match(rb"HTTP/1.1 4\d\d ", said.recv(100)), line[:40]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"bearer  {KEY}x"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Authorization": f"Bearer {'x' * 10_000}"},
        {"X-API-Key": KEY},
        {"Cookie": f"key={KEY}"},
    ],
)
def test_without_a_key_there_is_nothing_not_even_what_is_missing(running, headers):
    paths = (
        CHAT, "/v1/feedback", "/v1/models", "/v1", "/v1/completions", "/v1/embeddings", "/invocations", "/admin", "/admin/reload",
        "/metrics", "/docs", "/openapi.json", "/.env", "/%2e%2e/etc/passwd", "/v1/../healthz", "/healthz/../metrics", "/healthz/", "/healthz/x", "/HEALTHZ",
        "//healthz", "/%68ealthz/..", f"/{'x' * 5_000}",
    )  # fmt: skip
    with running.all_is_counted():
        for path in paths:
            assert refused(running, 401, path, headers, json=HELLO)["code"] == "invalid_api_key"
        for path in (f"{CHAT}?key={KEY}", f"{CHAT}?api_key={KEY}"):
            assert refused(running, 401, path, headers, json=HELLO)["code"] == "invalid_api_key"


def test_paths_and_methods_that_are_not(running):
    with running.all_is_counted():
        for path in ("/v1", "/v1/completions", f"{CHAT}/", "/v1//chat/completions", "/v1/chat/completions/x", "/v1/%00", "/x"):
            assert refused(running, 404, path, json=HELLO)["code"] == "not_found"
        assert refused(running, 404, "/admin/nothing", ROOT, json={})["code"] == "not_found"
        for path in ("/v1/models", "/metrics", "/healthz", "/"):
            assert refused(running, 405, path, json={})["code"] == "method_not_allowed"
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = running.http.request(method, CHAT, headers=ALICE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


def test_wrong_votes_and_orders_change_nothing(running):
    known = running.post(CHAT, json=HELLO).json()["id"]
    vote = {"request_id": known, "rating": "up"}
    wrong = [{}, {"request_id": known}, {"rating": "up"}, *({**vote, **more} for more in (
        {"rating": "good"}, {"rating": 1}, {"name": "A b"}, {"name": ""}, {"name": "x" * 65}, {"request_id": 7}, {"request_id": ""},
        {"request_id": "x" * 65}, {"correction": " "}, {"comment": "x" * 10_001}, {"version": 3}, {"variant": "champion"},
    ))]  # fmt: skip
    with running.all_is_counted():
        for body in wrong:
            assert refused(running, 400, "/v1/feedback", json=body)["param"]
        for raw in RAW.values():
            refused(running, 400, "/v1/feedback", content=raw)
            refused(running, 400, "/admin/rollback", ROOT, content=raw)
            refused(running, 400, "/admin/experiment", ROOT, content=raw)
        refused(running, 404, "/v1/feedback", json=vote | {"request_id": "chatcmpl-nobody"})
        for body in ({}, {"reason": ""}, {"reason": "x" * 501}, {"reason": 7}, {"reason": "x", "to": 3}):
            refused(running, 400, "/admin/rollback", ROOT, json=body)
    assert running.calls == []
    assert running.counted("chat", error_type="none") >= 1


def test_a_header_without_end_is_not_read_for_ever(running):
    with running.all_is_counted(), talking(urlsplit(running.address).port) as said:
        said.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        with pytest.raises(ConnectionError):  # it has hung up
            for _ in range(1_000):
                said.sendall(b"x" * 64_000)


@pytest.mark.parametrize("stream", [False, True])
def test_50_clients_that_go_away_free_their_places(tmp_path, engine, stream):
    """Ten leave before their body is whole, eight while they are answered, the others while they wait for a place."""
    body = json.dumps(HELLO | {"stream": stream, "messages": [{"role": "user", "content": "Hello there, engine " * 10}]}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    engine.between, engine.cancelled = 0.1, 0
    with gateway_of(tmp_path, {3: [engine.url]}, slots=8) as running, running.all_is_counted():
        queued = running.gateway.metrics.queued.collect
        with ExitStack() as held:
            for number in range(50):
                said = held.enter_context(talking(urlsplit(running.address).port))
                said.sendall(head + body[: len(body) // 2 if number < 10 else len(body)])
            assert eventually(lambda: engine.under_way == 8 and queued()[0].samples[0].value == 32)
        assert eventually(lambda: engine.under_way == 0 and running.counted() == 50)
        engine.between = 0.0
        assert set(running.rows().error) == {"client_disconnected"}
        assert engine.cancelled >= 8
        assert queued()[0].samples[0].value == 0


@contextmanager
def talking(port: int | None) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), 10) as said:
        yield said
