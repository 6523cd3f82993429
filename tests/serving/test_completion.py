"""Answers: the official client reads what was written, token by token, whole or streamed, and raises where an error stands."""

import json

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from luthier.serving.api.completion import DONE, LOWEST_LOGPROB, Envelope, error_event, event, new_id, token_logprob, usage
from luthier.serving.api.errors import (
    ApiError,
    bad_key,
    busy,
    context_exceeded,
    internal,
    invalid,
    timed_out,
    too_large,
    unavailable,
    unknown_model,
)
from tests.serving.canned import canned

HELLO = {"model": "luthier", "messages": [{"role": "user", "content": "Hello"}]}
PIECES = ["Grü", "ße", " \u2028", '"{}\n\n', "data: [DONE]", "用户", "😀", "\x85\r\n"]
LOGPROBS = [token_logprob(piece, -0.25, [(piece, -0.25), ("other", -1.5)]) for piece in PIECES]


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="k", max_retries=0)


def test_the_official_client_reads_a_whole_answer():
    envelope = Envelope("luthier@3", fingerprint="abc123")
    body = json.dumps(envelope.completion("".join(PIECES), "length", usage(12, 8), LOGPROBS)).encode()
    with canned(body) as (url, _):
        got = client(url).chat.completions.create(**HELLO)
    ChatCompletion.model_validate(json.loads(body), strict=True)
    choice = got.choices[0]
    assert (got.id, got.model, got.object, got.system_fingerprint) == (envelope.id, "luthier@3", "chat.completion", "abc123")
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("".join(PIECES), "assistant", "length")
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (12, 8, 20)
    assert [token.token for token in choice.logprobs.content] == PIECES
    assert all(bytes(token.bytes).decode() == token.token for token in choice.logprobs.content)
    assert choice.logprobs.content[0].top_logprobs[1].logprob == -1.5


@pytest.mark.parametrize("counts_tokens", [False, True])
def test_the_official_client_reads_a_stream(counts_tokens):
    envelope = Envelope("luthier@3", counts_tokens=counts_tokens)
    chunks = [envelope.opening()]
    chunks += [envelope.piece(piece, [logprob]) for piece, logprob in zip(PIECES, LOGPROBS, strict=True)]
    chunks += [envelope.ending("stop")]
    chunks += [envelope.tally(usage(12, 8))] if counts_tokens else []
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    body = b"".join(map(event, chunks)) + DONE
    with canned(body, media_type="text/event-stream") as (url, _):
        got = list(client(url).chat.completions.create(**HELLO, stream=True))
    assert len(got) == len(chunks)
    said = [chunk.choices[0] for chunk in got if chunk.choices]
    assert said[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in said) == "".join(PIECES)
    assert [choice.finish_reason for choice in said] == [None] * (len(said) - 1) + ["stop"]
    assert [chunk.usage.total_tokens for chunk in got if chunk.usage] == ([20] if counts_tokens else [])
    assert {chunk.id for chunk in got} == {envelope.id}


def test_an_error_after_the_stream_began_is_raised_by_the_official_client():
    envelope = Envelope("luthier@3")
    body = event(envelope.opening()) + event(envelope.piece("half an ")) + error_event(timed_out("the answer", 30))
    with canned(body, media_type="text/event-stream") as (url, _):
        said = []
        with pytest.raises(openai.APIError, match="took longer than 30 s") as caught:
            for chunk in client(url).chat.completions.create(**HELLO, stream=True):
                said.append(chunk.choices[0].delta.content)
    assert said == ["", "half an "]
    assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (invalid("temperature: no.", "temperature"), openai.BadRequestError),
        (context_exceeded(4000, 200, 4096), openai.BadRequestError),
        (bad_key(), openai.AuthenticationError),
        (unknown_model("gpt", ["luthier"]), openai.NotFoundError),
        (too_large(100), openai.APIStatusError),
        (busy("Too many requests.", 2.2), openai.RateLimitError),
        (unavailable("No engine."), openai.InternalServerError),
        (internal(), openai.InternalServerError),
    ],
)
def test_the_official_client_raises_its_own_error_for_each_of_ours(error: ApiError, raised):
    body = json.dumps(error.body()).encode()
    with canned(body, error.status, **error.headers) as (url, _), pytest.raises(raised) as caught:
        client(url).chat.completions.create(**HELLO)
    assert caught.value.status_code == error.status
    assert (caught.value.code, caught.value.param, caught.value.type) == (error.code, error.param, error.kind)
    assert error.message in str(caught.value)
    if error.status in (429, 503):
        assert int(caught.value.response.headers["Retry-After"]) >= 1


def test_a_busy_server_asks_to_wait_no_less_than_it_takes():
    assert busy("x", 2.2).headers["Retry-After"] == "3"
    assert busy("x", 0.0).headers["Retry-After"] == "1"


@given(st.text(st.characters(codec=None)), st.floats())
def test_any_text_and_number_makes_one_event_on_one_line(text, logprob):
    envelope = Envelope("m", id="i", created=1)
    sent = event(envelope.piece(text, [token_logprob(text, logprob)]))
    assert sent.endswith(b"\n\n")
    line = sent.decode()[:-2]
    assert line.splitlines() == [line]
    content = json.loads(line.removeprefix("data: "))["choices"][0]
    assert content["delta"]["content"] == text.encode(errors="replace").decode()
    assert content["logprobs"]["content"][0]["logprob"] >= LOWEST_LOGPROB


def test_a_piece_of_a_character_has_no_bytes_that_would_be_wrong():
    assert token_logprob("\ufffd", -1.0)["bytes"] is None
    assert token_logprob("é", float("-inf"))["logprob"] == LOWEST_LOGPROB


def test_no_two_requests_have_one_id():
    ids = {new_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(name) <= 64 for name in ids)
