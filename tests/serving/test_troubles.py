"""What goes wrong behind the gateway, and limits: what the client is told, who answers instead, what is recorded."""

import json
import socket
import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from openai import APIError

from luthier.serving.engines.upstream import Upstream
from tests.serving.gateways import CHAT, HELLO, KEY, Running, eventually, gateway_of
from tests.serving.scripted import scripted

BY_CHANCE = HELLO | {"user": "somebody"}
HALF = json.dumps({
    "choices": [{"message": {"content": "half an answer"}, "finish_reason": None}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
})  # fmt: skip


@pytest.fixture
def engine():
    with scripted() as script:
        yield script


@pytest.fixture
def other():
    with scripted() as script:
        yield script


def told(running: Running, **request) -> tuple[int, str]:
    """Send a request that fails; return its status and code."""
    answer = running.post(CHAT, json=HELLO | request)
    assert answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return answer.status_code, answer.json()["error"]["code"]


def streamed(running: Running, **request) -> tuple[str, str | None]:
    """Read a stream with OpenAI's client; return its text, and the code of the error that ended it."""
    text = ""
    try:
        for chunk in running.client.chat.completions.create(**HELLO | request, stream=True):
            text += chunk.choices[0].delta.content or ""
    except APIError as error:
        return text, error.code
    return text, None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("trouble", ["500", "429", "{", HALF])
def test_where_a_challenger_cannot_begin_the_control_answers(tmp_path, engine, other, trouble, stream):
    other.troubles = [trouble]
    with gateway_of(tmp_path, {3: [engine.url], 4: [other.url]}, weights=(0.0, 1.0)) as running, running.all_is_counted():
        answer = running.post(CHAT, json=BY_CHANCE | {"stream": stream})
        assert (answer.status_code, "Hell" in answer.text, "half" in answer.text) == (200, True, False)
        assert (answer.headers["x-luthier-version"], answer.headers["x-luthier-variant"]) == ("3", "champion")
        assert running.post(CHAT, json=BY_CHANCE | {"model": "luthier@3"}).status_code == 200
        (row,) = running.rows().query("assigned == 'challenger'").itertuples()
        assert (row.version, row.served, row.status, row.answer) == (3, "champion", 200, "Hello")
        if trouble == "500":  # it rests: whoever is assigned to it now goes to the control at once, and its own name is refused
            assert running.post(CHAT, json=BY_CHANCE).headers["x-luthier-version"] == "3"
            assert told(running, model="luthier@4") == (503, "engine_unavailable")
            assert len(other.seen) == 1


@pytest.mark.parametrize("trouble", ["stream breaks", "stream error"])
def test_after_the_first_token_an_error_event_ends_a_stream(tmp_path, engine, other, trouble):
    engine.troubles = [trouble]
    with gateway_of(tmp_path, {3: [engine.url], 4: [other.url]}) as running:
        messages = [{"role": "user", "content": "Hello there, engine"}]
        answer = running.post(CHAT, json=HELLO | {"messages": messages, "stream": True})
        *events, last = answer.text.strip().split("\n\n")
        assert answer.status_code == 200
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert "[DONE]" not in answer.text
        assert "/opt" not in answer.text
        assert not other.seen
        row = running.rows().iloc[0]
        assert (row.status, row.error, row.answer, row.version) == (200, "engine_unavailable", "Hello th", 3)
        assert eventually(lambda: running.gateway.is_ready)
        with running.all_is_counted():
            engine.troubles = [trouble]
            assert streamed(running, messages=messages) == ("Hello th", "engine_unavailable")
            assert eventually(lambda: running.gateway.is_ready)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_as_nobody_foresaw_is_a_500_that_tells_nothing(tmp_path, engine, caplog, stream):
    class Failing(Upstream):
        async def chat(self, body):
            raise RuntimeError(f"out of luck at /opt/engine/core.py with {KEY}")

        async def stream(self, body):
            raise RuntimeError(f"out of luck at /opt/engine/core.py with {KEY}")
            yield {}

    with gateway_of(tmp_path, {3: [engine.url], 4: Failing([engine.url], "theirs")}) as running, running.all_is_counted():
        answer = running.post(CHAT, json=HELLO | {"model": "luthier@4", "stream": stream})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert not any(secret in answer.text for secret in ("luck", "/opt", KEY, "Traceback"))
    assert "out of luck" in caplog.text


def test_whatever_takes_too_long_is_told_by_what_it_waited_for(tmp_path, engine, other):
    limits = {"queue": 1, "queue_seconds": 0.2, "first_token_seconds": 0.4, "total_seconds": 0.8}
    words = [{"role": "user", "content": "Hello there, engine " * 5}]
    with gateway_of(tmp_path, {3: [engine.url], 4: [other.url]}, limits=limits, slots=1) as running, running.all_is_counted():
        other.before = 2.0
        assert told(running, model="luthier@4", stream=True) == (503, "first_token_timeout")
        assert told(running, model="luthier@4") == (503, "timeout")
        other.before, other.between = 0.0, 0.1
        text, error = streamed(running, model="luthier@4", messages=words)
        assert (text, error) == (words[0]["content"].strip()[: len(text)], "timeout")
        assert 4 <= len(text) < 80
        assert eventually(lambda: other.under_way == 0)

        other.before = 0.6
        holder = threading.Thread(target=told, args=(running,), kwargs={"model": "luthier@4", "messages": words})
        holder.start()
        assert eventually(lambda: other.under_way == 1)
        found: list[tuple[int, str]] = []
        waiters = [threading.Thread(target=lambda: found.append(told(running, model="luthier@4"))) for _ in range(2)]
        for waiter in waiters:
            waiter.start()
        for thread in (*waiters, holder):
            thread.join()
        assert sorted(found) == [(429, "queue_full"), (503, "queue_timeout")]
    assert running.counted(error_type="timeout") == 3


def test_who_does_not_read_holds_no_place_for_ever(tmp_path, engine):
    engine.says, engine.size = lambda body: "x" * 8_000_000 if "much" in json.dumps(body) else "Hello", 400_000
    with gateway_of(tmp_path, {3: [engine.url]}, limits={"total_seconds": 0.5, "queue_seconds": 0.5, "first_token_seconds": 0.5}, slots=1) as running:  # fmt: skip
        body = json.dumps({"model": "luthier", "messages": [{"role": "user", "content": "much"}], "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with running.all_is_counted(), socket.create_connection(("127.0.0.1", urlsplit(running.address).port), 10) as said:
            said.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            said.sendall(head + body)
            assert eventually(lambda: running.counted(error_type="timeout") == 1)
            assert eventually(lambda: engine.under_way == 0)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tmp_path, engine):
    with gateway_of(tmp_path, {3: [engine.url]}, limits={"rate_per_minute": 5}) as running:
        for _ in range(5):
            assert running.post(CHAT, json=HELLO).status_code == 200
        answer = running.post(CHAT, json=HELLO)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert running.post("/v1/feedback", json={"request_id": "x", "rating": "up"}).status_code == 429
        assert running.get("/readyz").status_code == running.get("/v1/models").status_code == 200
        assert (len(running.rows()), running.counted(), len(engine.seen)) == (6, 6, 5)


def test_a_gateway_that_stops_ends_what_it_has_begun_and_begins_nothing(tmp_path, engine):
    engine.between = 0.05
    with gateway_of(tmp_path, {3: [engine.url]}) as running, running.all_is_counted():
        found: list[tuple[str, str | None]] = []
        reader = threading.Thread(
            target=lambda: found.append(streamed(running, messages=[{"role": "user", "content": "word " * 8}]))
        )
        reader.start()
        assert eventually(lambda: engine.under_way == 1)
        running.gateway.draining = True
        assert told(running) == (503, "draining")
        assert (running.get("/readyz").status_code, running.get("/healthz").status_code) == (503, 200)
        reader.join()
        assert found == [("word " * 7 + "word", None)]
        running.gateway.draining = False


def test_a_shadow_that_fails_is_nobodys_trouble(tmp_path, engine, other):
    other.troubles = ["500"]
    with gateway_of(tmp_path, {3: [engine.url], 4: [other.url]}, shadow=4) as running, running.all_is_counted():
        assert running.post(CHAT, json=HELLO).status_code == 200
        assert eventually(lambda: running.counted("shadow", error_type="engine_unavailable") == 1)
        assert running.counted(error_type="none") == 1


@pytest.mark.parametrize(("silence", "running_now", "status"), [(400.0, 1, 503), (200.0, 1, 200), (400.0, 0, 200)])
def test_ready_is_who_makes_progress(tmp_path, engine, silence, running_now, status):
    class Silent(Upstream):
        def status(self):
            return replace(super().status(), running=running_now, last_progress=time.monotonic() - silence)

    with gateway_of(tmp_path, {3: Silent([engine.url], "theirs")}) as running:
        assert running.get("/readyz", {}).status_code == status
        assert running.get("/healthz", {}).status_code == 200
