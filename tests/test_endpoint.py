"""A real server of the OpenAI API, with the tiny model behind it, is asked; what ails it is got over, or told in the user's words."""

import json
import logging
import math
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import KEY, openai_server
from pydantic import ValidationError
from sharp import ASKED, sharp_tiny

from luthier import endpoint as module
from luthier.answers import LocalAnswerer, Refusal
from luthier.configuration import Parameters, validate_parameters
from luthier.endpoint import Endpoint, EndpointAnswerer
from luthier.errors import UserError

LENGTH = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the tiny model and its tokenizer; one thread is enough for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield sharp_tiny(tmp_path_factory.mktemp("models"))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local(tiny):
    """Return what the same model answers here."""
    answerer = LocalAnswerer("local", "local", lambda: tiny, LENGTH, 8192)
    return answerer.answer(ASKED, lambda _: None)


@pytest.fixture
def server(tiny, monkeypatch):
    """Return a server; proxies of this machine are not asked for it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with openai_server(*tiny) as started:
        yield started


def asker(server, **settings):
    """Return what asks the server."""
    chosen = {"url": server.url, "model": "tiny-llama", "timeout_seconds": 1.0} | settings
    return EndpointAnswerer("hosted", Endpoint(**chosen), LENGTH, "inference.endpoint")


def ask(server, asked=ASKED, **settings):
    """Ask, and count the answers that were reported."""
    came = []
    replies = asker(server, **settings).answer(asked, came.append)
    assert sum(came) == len(asked) == len(replies)
    return replies


def mistake(server, **settings):
    """Return what the user is told; it is told before anything but the probe is sent, and never holds the key."""
    with pytest.raises(UserError) as caught:
        ask(server, **settings)
    assert server.asked() == []
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_answers_equal_those_of_the_same_model_here(server, local):
    replies = ask(server)
    assert len({reply.text for reply in replies}) > 3
    assert {reply.finish for reply in replies} <= {"stop", "length"}
    for reply, own in zip(replies, local, strict=True):
        assert (reply.text, reply.finish) == (own.text, own.finish)
        assert reply.tokens - (reply.finish == "stop") == own.tokens  # the API counts the end marker
        assert reply.log_probability == pytest.approx(own.log_probability, abs=1e-3)
        assert reply.seconds > 0
    sent = server.seen[-1]
    assert (sent["temperature"], sent["max_tokens"], sent["logprobs"]) == (0, LENGTH, True)
    assert sorted(server.asked()) == sorted(turns[-1]["content"] for turns in ASKED)


@pytest.mark.parametrize("trouble", ["429", "500", "503", "529", "slow", "drop", "half"])
def test_what_passes_is_got_over_and_changes_no_answer(server, local, trouble):
    server.troubles = ["", trouble, trouble, "", trouble, "", "", trouble]
    replies = ask(server)
    assert [reply.text for reply in replies] == [own.text for own in local]
    assert len(server.asked()) == len(ASKED) + 4


def test_requests_go_out_side_by_side_and_no_more_than_asked_for(server):
    server.delay = 0.05
    ask(server, concurrency=3)
    assert 2 <= server.most_under_way <= 3


def test_a_server_that_stays_down_is_asked_so_often_and_no_more(server):
    server.troubles = ["", *["503"] * 50]
    with pytest.raises(UserError, match=r"asked 3 times .503: Try again later.*What was answered before is kept"):
        ask(server, retries=2, concurrency=1)
    assert len(server.asked()) == 3


@pytest.mark.parametrize(("trouble", "as_date"), [("429", False), ("503", False), ("429", True)])
def test_a_server_that_says_when_is_not_asked_before(server, trouble, as_date):
    server.wait = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if as_date else "0.4"
    server.troubles = ["", trouble]
    ask(server, concurrency=1, asked=ASKED[:2])
    waited = server.times[2] - server.times[1]
    assert (0.8 if as_date else 0.4) <= waited < 4


def test_nobody_waits_for_tomorrow(server):
    server.wait, server.troubles = "86400", ["", "429"]
    with pytest.raises(UserError, match="asks to wait for 86400 s"):
        ask(server, concurrency=1)


def test_a_used_up_quota_is_told_at_once(server):
    server.troubles = ["quota"]
    assert "You exceeded your current quota" in mistake(server)
    assert len(server.seen) == 1


def test_mistakes_are_told_before_anything_is_sent(server, monkeypatch):
    assert "inference.endpoint.model: " in (told := mistake(server, model="tiny-lama"))
    assert "did you mean 'tiny-llama'?" in told
    assert "there is no " in (told := mistake(server, url=server.address))
    assert "Most addresses end in /v1" in told
    server.key = KEY
    assert "asks for a key" in (told := mistake(server))
    assert "Set OPENAI_API_KEY" in told
    assert "the environment variable MY_KEY is not set" in mistake(server, key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "sk-wrong-key")
    assert "refuses the key in MY_KEY" in (told := mistake(server, key_variable="MY_KEY"))
    assert "sk-wrong-key" not in told
    monkeypatch.setenv("MY_KEY", "ключ")
    assert "cannot be a key" in mistake(server, key_variable="MY_KEY")
    server.key, server.troubles = None, ["<html>Welcome</html>"]
    assert "does not answer as OpenAI's API does: '<html>Welcome</html>'" in mistake(server)
    server.troubles = ["moved"]
    assert "sends on to https://elsewhere.example/v1" in mistake(server)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert "cannot be reached" in mistake(server, url=nobody)


@pytest.mark.parametrize("variable", [None, "MY_KEY"])
def test_the_key_goes_to_the_server_and_nowhere_else(server, monkeypatch, caplog, variable):
    server.key, server.troubles = KEY, ["", "500", KEY]
    monkeypatch.setenv(variable or "OPENAI_API_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    asking = asker(server, key_variable=variable, concurrency=1)
    with pytest.raises(UserError) as caught:  # a server that answers with nothing but the key
        asking.answer(ASKED, lambda _: None)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    shown = [str(caught.value), caplog.text, asking.identity, json.dumps(asking.facts()), repr(asking.endpoint)]
    assert not any(KEY in text for text in shown)
    assert f"with the key in {variable or 'OPENAI_API_KEY'}" in caplog.text


@pytest.mark.parametrize("unknown", [("max_tokens",), ("logprobs",), ("temperature",), ("max_tokens", "logprobs", "temperature")])
def test_what_a_server_does_not_understand_is_left_out(server, local, unknown):
    server.unknown = unknown
    replies = ask(server)
    assert [reply.text for reply in replies] == [own.text for own in local]
    assert all(math.isnan(reply.log_probability) == ("logprobs" in unknown) for reply in replies)
    assert len(server.seen) == len(ASKED) + len(unknown) + 1


def test_what_the_user_asked_for_is_never_left_out(server):
    server.unknown = ("temperature",)
    assert "refuses the request (400: Unsupported parameter: 'temperature'" in mistake(server, extra={"temperature": 0.5})


def test_a_conversation_that_is_refused_harms_no_other(server, local):
    server.context = 1000
    asked = [*ASKED[:2], [{"role": "user", "content": "x" * 2000}], *ASKED[2:4], [{"role": "user", "content": "forbidden"}]]
    replies = ask(server, asked)
    refused = {number for number, reply in enumerate(replies) if isinstance(reply, Refusal)}
    assert refused == {2, 5}
    assert "(400): This model's maximum context length is 1000 tokens" in replies[2].error
    assert "filter" in replies[5].error
    assert [replies[number].text for number in (0, 1, 3, 4)] == [own.text for own in local[:4]]


def test_calls_go_out_as_the_api_has_them(server):
    calls = '[{"function":{"arguments":"{}","name":"f"},"id":"c1","type":"function"}]'
    turns = [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    ask(server, [turns])
    sent = server.seen[-1]["messages"]
    assert sent[0] == {"role": "user", "content": "hi"}
    assert sent[1]["tool_calls"] == json.loads(calls)
    assert sent[2]["tool_call_id"] == "c1"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["content", "logprob", "x"]), inner, max_size=3),
    max_leaves=5,
)
CHOICE = st.fixed_dictionaries({}, optional={"message": JSON, "finish_reason": JSON, "logprobs": JSON})
BODY = JSON | st.fixed_dictionaries({}, optional={"choices": st.lists(CHOICE, max_size=2) | JSON, "usage": JSON, "model": JSON})


@given(body=BODY)
@settings(max_examples=60)
def test_any_answer_is_understood_or_told(body):
    class Response:
        text = json.dumps(body)

        def json(self):
            return json.loads(self.text)

    asking = EndpointAnswerer("x", Endpoint(url="http://localhost/v1", model="x"), LENGTH)
    try:
        reply = asking._read(Response(), 0.1)
    except UserError as error:
        assert "does not answer as OpenAI's API does" in str(error)
    else:
        assert isinstance(reply, Refusal) or isinstance(reply.text.encode(), bytes)


class _Block(Parameters):
    endpoint: Endpoint


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"url": "ftp://host/v1"}, "must begin with http:// or https://"),
        ({"url": "localhost:8000/v1"}, "must begin with http:// or https://"),
        ({"url": f"https://user:{KEY}@host/v1"}, "must end with its path"),
        ({"url": "https://host/v1?api-version=1"}, "must end with its path"),
        ({"key_variable": KEY}, "belongs here, never a key"),
        ({"extra": {"messages": []}}, "messages cannot be set here"),
        ({"modle": "x"}, "did you mean 'model'"),
        ({"concurrency": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_told_and_a_key_is_not_repeated(values, expected):
    block = {"endpoint": {"url": "https://host/v1", "model": "m"} | values}
    with pytest.raises(UserError) as caught:
        validate_parameters({"seed": 0, "inference": block}, {"inference": _Block}, [])
    assert expected in str(caught.value)
    if "key_variable" in values:
        assert KEY not in str(caught.value)


def test_the_address_may_be_given_whole():
    whole = Endpoint(url="https://host/v1/chat/completions/", model="m")
    assert whole.url == "https://host/v1"
    with pytest.raises(ValidationError):
        Endpoint(url="https://host/v1", model="")


def test_what_changes_answers_changes_the_identity():
    def identity(length=LENGTH, **settings):
        return EndpointAnswerer("x", Endpoint(**{"url": "https://host/v1", "model": "m"} | settings), length).identity

    same = [identity(), identity(concurrency=9), identity(retries=1), identity(timeout_seconds=3), identity(key_variable="K")]
    assert len(set(same)) == 1
    others = [identity(model="n"), identity(url="https://host/v2"), identity(extra={"seed": 1}), identity(length=9)]
    assert len({same[0], *others}) == 5
