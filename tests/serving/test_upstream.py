"""The engine by URL: replicas, their failures, and what of these a client is told."""

import asyncio
import json
from contextlib import aclosing
from urllib.parse import urlsplit

import pytest

from luthier.serving.api.errors import ApiError
from luthier.serving.engines.upstream import FIRST_REST, LONGEST_MESSAGE, Upstream
from tests.serving.gateways import eventually
from tests.serving.scripted import scripted

KEY = "sk-upstream-0123456789"
DEAD = "http://127.0.0.1:9/v1"
BODY = {"model": "luthier@3", "messages": [{"role": "user", "content": "Hello there, engine"}], "max_tokens": 8}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def text_of(upstream: Upstream) -> str:
    chunks = [chunk async for chunk in upstream.stream(BODY)]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


async def failure_of(upstream: Upstream, stream: bool) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await (text_of(upstream) if stream else upstream.chat(BODY))
    return caught.value


def test_an_answer_is_passed_on_whole_and_in_chunks():
    async def both(url: str) -> tuple[dict, str]:
        upstream = Upstream([url], "theirs", KEY)
        whole, streamed = await upstream.chat(BODY), await text_of(upstream)
        status = upstream.status()
        assert (status.alive, status.running, status.tokens_total) == (True, 0, 10)
        assert status.last_progress is not None
        await upstream.close()
        return whole, streamed

    with scripted() as script:
        whole, streamed = asyncio.run(both(script.url))
    assert whole["choices"][0]["message"]["content"] == streamed == "Hello there, engine"
    assert [body["model"] for body in script.seen] == ["theirs", "theirs"]
    assert script.keys == [f"Bearer {KEY}"] * 2


def test_one_connection_takes_one_request_after_the_other():
    async def ask(url: str) -> None:
        upstream = Upstream([url], "theirs")
        for _ in range(3):
            await text_of(upstream)
            await upstream.chat(BODY)
        await upstream.close()

    with scripted() as script:
        asyncio.run(ask(script.url))
    assert len(script.seen) == 6
    assert len(script.connections) == 1


def test_line_breaks_of_other_alphabets_end_no_event():
    text = "a\u2028b\u0085c\u2029d\x0be"
    with scripted(says=lambda body: text, size=99) as script:
        assert asyncio.run(text_of(Upstream([script.url], "theirs"))) == text


def test_requests_go_to_the_replica_with_the_fewest_under_way():
    async def ask(urls: list[str]) -> None:
        upstream = Upstream(urls, "theirs")
        await asyncio.gather(*(upstream.chat(BODY) for _ in range(8)))
        assert upstream.status().running == 0

    with scripted(before=0.2) as one, scripted(before=0.2) as other:
        asyncio.run(ask([one.url, other.url]))
    assert (len(one.seen), len(other.seen)) == (4, 4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_replica_rests_longer_each_time_and_is_tried_again(stream):
    clock = Clock()

    async def ask(url: str) -> None:
        upstream = Upstream([DEAD, url], "theirs", now=clock)
        dead = upstream._replicas[0]
        for failures in range(4):
            rest = FIRST_REST * 2**failures
            for _ in range(2):  # the second one does not try it
                assert await text_of(upstream) if stream else await upstream.chat(BODY)
                assert (dead.failures, dead.rests_until) == (failures + 1, clock.now + rest)
            clock.now += rest
        dead.url = url  # it is back
        await upstream.chat(BODY)
        assert dead.failures == 0

    with scripted() as script:
        asyncio.run(ask(script.url))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("trouble", ["500", "503", "401", "404", "307", "<html>proxy</html>", "{", "[]", "{}"])
def test_what_is_no_answer_makes_a_replica_rest_and_another_one_take_over(trouble, stream):
    async def ask(upstream: Upstream) -> ApiError | str:
        return await text_of(upstream) if stream else (await upstream.chat(BODY))["choices"][0]["message"]["content"]

    with scripted(troubles=[trouble]) as one, scripted() as other:
        upstream = Upstream([one.url, other.url], "theirs")
        assert asyncio.run(ask(upstream)) == "Hello there, engine"
        assert [replica.failures for replica in upstream._replicas] == [1, 0]
    with scripted(troubles=[trouble]) as one:
        upstream = Upstream([one.url], "theirs")
        error = asyncio.run(failure_of(upstream, stream))
        assert (error.status, error.code) == (503, "engine_unavailable")
        assert not upstream.status().alive


@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_mistake_is_told_without_host_key_and_path_and_nobody_rests(stream):
    with scripted() as script:
        host = urlsplit(script.address).netloc
        told = f"max_tokens is wrong: {script.url}/x, {host}, {KEY}, /opt/engine/api.py line 3\nTraceback (most recent call"
        script.refusal = {"message": told + "x" * 600, "param": "max_tokens"}
        for status in ("400", "422", "413"):
            script.troubles = [status]
            upstream = Upstream([script.url], "theirs", KEY)
            error = asyncio.run(failure_of(upstream, stream))
            assert (error.status, error.code, error.param) == (400, "invalid_value", "max_tokens")
            assert error.message == "max_tokens is wrong: .../v1/x, ..., ..., ... line 3" or "://" not in error.message
            for secret in (host, "127.0.0.1", KEY, "/opt", "Traceback", "\n"):
                assert secret not in error.message
            assert len(error.message) <= LONGEST_MESSAGE + 3
            assert upstream.status().alive


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "This model's maximum context length is 40 tokens."},
        {"message": "too long", "code": "context_length_exceeded", "param": "prompt"},
    ],
)
def test_a_prompt_that_is_too_long_is_told_as_such(refusal):
    with scripted(troubles=["400"], refusal=refusal) as script:
        error = asyncio.run(failure_of(Upstream([script.url], "theirs"), False))
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_replica_does_not_rest_and_where_all_are_busy_the_client_waits(stream):
    with scripted(troubles=["429", "429"]) as one, scripted(troubles=["429"]) as other:
        upstream = Upstream([one.url, other.url], "theirs")
        error = asyncio.run(failure_of(upstream, stream))
        assert (error.status, error.code, error.headers) == (429, "queue_full", {"Retry-After": "7"})
        assert upstream.status().alive
    with scripted(troubles=["429"]) as one, scripted() as other:
        assert asyncio.run(text_of(Upstream([one.url, other.url], "theirs"))) == "Hello there, engine"


@pytest.mark.parametrize("trouble", ["stream breaks", "stream error"])
def test_who_has_begun_is_not_replaced(trouble):
    async def read(upstream: Upstream) -> str:
        heard = ""
        with pytest.raises(ApiError) as caught:
            async for chunk in upstream.stream(BODY):
                heard += chunk["choices"][0]["delta"].get("content", "")
        assert caught.value.status == 503
        assert "/opt" not in caught.value.message
        return heard

    with scripted(troubles=[trouble]) as one, scripted() as other:
        assert asyncio.run(read(Upstream([one.url, other.url], "theirs"))) == "Hello th"
        assert not other.seen


def test_a_silent_replica_rests_and_another_one_takes_over_in_time():
    with scripted(before=5) as one, scripted() as other:
        upstream = Upstream([one.url, other.url], "theirs", token_seconds=0.2)
        assert asyncio.run(text_of(upstream)) == "Hello there, engine"
        assert upstream._replicas[0].failures == 1


def test_who_stops_reading_ends_the_call():
    async def stop_early(upstream: Upstream) -> None:
        async with aclosing(upstream.stream(BODY)) as chunks:
            async for chunk in chunks:
                if chunk["choices"][0]["delta"].get("content"):
                    break
        asking = asyncio.ensure_future(upstream.chat(BODY))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert upstream.status().running == 0
        assert upstream.status().alive

    with scripted(between=0.05) as script:
        asyncio.run(stop_early(Upstream([script.url], "theirs")))
        assert eventually(lambda: script.cancelled == 2)
        assert script.under_way == 0


def test_no_answer_repeats_what_was_sent_to_it(caplog):
    with scripted(troubles=["401"], refusal={"message": f"Incorrect API key provided: {KEY}."}) as script:
        error = asyncio.run(failure_of(Upstream([script.url], "theirs", KEY), False))
    assert KEY not in json.dumps(error.body()) + caplog.text
    assert "it answers 401" in caplog.text
