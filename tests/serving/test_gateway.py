"""The gateway with OpenAI's own client: answers, streams, variants, feedback, administration."""

import json

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai_server import openai_server
from sharp import sharp_tiny

from luthier.serving.api.chat import UNSUPPORTED
from luthier.serving.engines.upstream import Upstream
from luthier.text.prepare import PromptSettings
from tests.serving.gateways import ADMIN, ALICE, CONTEXT, KEY, ROOT, eventually, gateway_of
from tests.serving.scripted import scripted

HELLO = [{"role": "user", "content": "Hello there"}]
MAIL = "Write to ada@example.org or bob@example.org, please"


@pytest.fixture(scope="module")
def echo():
    with scripted() as script:
        yield script


@pytest.fixture(scope="module")
def running(tmp_path_factory, echo):
    with gateway_of(tmp_path_factory.mktemp("log"), {3: [echo.url]}) as found:
        yield found


def streamed(client: OpenAI, **request) -> tuple[str, list]:
    chunks = list(client.chat.completions.create(model="luthier", stream=True, **request))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


# --- answers


def test_a_plain_answer(running, echo):
    got = running.client.chat.completions.with_raw_response.create(model="luthier", messages=HELLO, max_tokens=9, stop="X")
    answer = got.parse()
    assert answer.choices[0].message.content == "Hello there"
    assert (answer.choices[0].finish_reason, answer.model, answer.system_fingerprint) == ("stop", "luthier@3", "fp3")
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (3, answer.usage.prompt_tokens + 3)
    assert got.headers["x-request-id"] == answer.id
    assert (got.headers["x-luthier-version"], got.headers["x-luthier-variant"]) == ("3", "champion")
    sent = echo.seen[-1]
    assert (sent["messages"][0], sent["max_tokens"]) == ({"role": "system", "content": "Answer briefly."}, 9)
    assert (sent["stop"], sent["temperature"], "stream" in sent) == (["X"], 1.0, False)
    row = running.rows().set_index("request").loc[answer.id]
    assert (row.status, row.version, row.served, row.client, row.finish) == (200, 3, "champion", "alice", "stop")
    assert (row.answer, row.prompt_tokens, row.completion_tokens) == ("Hello there", answer.usage.prompt_tokens, 3)


def test_a_streamed_answer_with_usage(running):
    text, chunks = streamed(running.client, messages=HELLO, stream_options={"include_usage": True})
    assert text == "Hello there"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.model for chunk in chunks} == {"luthier@3"}
    assert (chunks[0].choices[0].delta.role, chunks[-2].choices[0].finish_reason) == ("assistant", "stop")
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    row = running.rows().set_index("request").loc[chunks[0].id]
    assert (row.streamed, row.answer, row.error is None or row.isna().error) == (True, "Hello there", True)
    assert 0 < row.first_token_seconds <= row.seconds


def test_usage_is_counted_though_the_client_does_not_ask(running):
    _, chunks = streamed(running.client, messages=HELLO)
    assert all(chunk.choices for chunk in chunks)
    assert running.rows().set_index("request").loc[chunks[0].id].completion_tokens == 3


@pytest.mark.parametrize("top", [0, 1, 2])
def test_logprobs_are_passed_on(running, top):
    request = {"messages": HELLO, "logprobs": True, "top_logprobs": top}
    plain = running.client.chat.completions.create(model="luthier", **request).choices[0].logprobs.content
    _, chunks = streamed(running.client, **request)
    pieces = [
        entry for chunk in chunks if chunk.choices and chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content
    ]
    assert plain == pieces
    assert [(entry.token, entry.logprob, entry.bytes) for entry in plain] == [
        (token, -0.5, [1]) for token in ("Hell", "o th", "ere")
    ]
    assert all(len(entry.top_logprobs) == top for entry in plain)


def test_a_real_model_answers_as_it_does_without_the_gateway(tmp_path):
    request = {"messages": HELLO, "max_tokens": 6, "temperature": 0, "logprobs": True}
    with openai_server(*sharp_tiny(tmp_path)) as server:
        bare = OpenAI(base_url=server.url, api_key="k").chat.completions.create(model="tiny-llama", **request)
        with gateway_of(tmp_path, {3: Upstream([server.url], "tiny-llama")}, prompts=PromptSettings()) as running:
            ours = running.client.chat.completions.create(model="luthier", **request)
    assert ours.choices[0].message.content == bare.choices[0].message.content
    told = [[entry.logprob for entry in answer.choices[0].logprobs.content] for answer in (ours, bare)]
    assert told[0] == told[1]
    assert ours.usage.completion_tokens == bare.usage.completion_tokens


def test_what_is_not_supported_is_refused_by_name(running):
    for name in UNSUPPORTED:
        with pytest.raises(BadRequestError) as caught:
            running.client.chat.completions.create(model="luthier", messages=HELLO, extra_body={name: {"asks": "much"}})
        assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("default", "words", "asked", "sent"),
    [
        (16, 1, None, 16),  # the upstream does not know the default
        (16, 1, 9, 9),
        (16, 200, None, None),  # 1,200 bytes: whether the default fits, only the upstream can tell
        (16, 200, 9, 9),
        (None, 1, None, None),  # an engine of ours knows it
        (None, 1, 9, 9),
    ],
)
def test_a_client_is_not_refused_for_a_default_that_it_has_not_asked_for(tmp_path, echo, default, words, asked, sent):
    with gateway_of(tmp_path, {3: [echo.url]}, max_new_tokens=default) as running:
        messages = [{"role": "user", "content": "hello " * words}]
        assert running.client.chat.completions.create(model="luthier", messages=messages, max_tokens=asked).choices
        assert echo.seen[-1].get("max_tokens") == sent
        with pytest.raises(BadRequestError) as caught:
            running.client.chat.completions.create(model="luthier", messages=messages, max_completion_tokens=CONTEXT)
        assert (caught.value.param, caught.value.code) == ("max_completion_tokens", "context_length_exceeded")


# --- personal data


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 13, 999])
def test_the_model_sees_placeholders_and_the_client_its_own_values(running, echo, size):
    echo.size = size
    request = {"messages": [{"role": "user", "content": MAIL}]}
    assert streamed(running.client, **request)[0] == MAIL
    answer = running.client.chat.completions.create(model="luthier", **request)
    assert answer.choices[0].message.content == MAIL
    echo.size = 4
    assert "example.org" not in json.dumps(echo.seen[-2:])
    row = running.rows().set_index("request").loc[answer.id]
    assert "example.org" not in row.prompt + row.answer
    assert json.loads(row.pii) == {"email": 2}


def test_the_log_knows_the_language_of_what_the_user_says(running):
    spanish = [{"role": "user", "content": "hola, donde esta mi pedido? lo necesito para el lunes"}]
    for messages, language in ((spanish, "es"), ([{"role": "user", "content": "??"}], None)):
        answer = running.client.chat.completions.create(model="luthier", messages=messages)
        told = running.rows().set_index("request").loc[answer.id].language
        assert (told if isinstance(told, str) else None) == language


def test_the_log_is_scrubbed_also_where_the_model_is_shown_everything(tmp_path, echo):
    with gateway_of(tmp_path, {3: [echo.url]}, prompts=PromptSettings()) as running:
        text, _ = streamed(running.client, messages=[{"role": "user", "content": MAIL}])
        assert text == echo.seen[-1]["messages"][-1]["content"] == MAIL
        row = running.rows().iloc[0]
        assert "example.org" not in row.prompt + row.answer
    with gateway_of(tmp_path / "none", {3: [echo.url]}, text="none") as running:
        streamed(running.client, messages=HELLO)
        row = running.rows().iloc[0]
        assert row.isna()[["prompt", "answer"]].all()
        assert row.answer_characters == len("Hello there")


# --- variants


def test_a_subject_keeps_its_variant_by_header_and_by_user(tmp_path, echo):
    with gateway_of(tmp_path, {3: [echo.url], 4: [echo.url]}, weights=(0.5, 0.5)) as running:

        def variant(headers: dict[str, str] | None = None, **request) -> str:
            body = {"model": "luthier", "messages": HELLO, **request}
            return running.post("/v1/chat/completions", ALICE | (headers or {}), json=body).headers["x-luthier-variant"]

        names = [f"user-{number}" for number in range(12)]
        wanted = [running.gateway.live.table.experiment.assign(name).name for name in names]
        assert set(wanted) == {"champion", "challenger"}
        assert [variant({"x-luthier-subject": name}, user="somebody") for name in names] == wanted
        assert [variant(user=name) for name in names] == wanted
        answer = running.post("/v1/chat/completions", json={"model": "luthier@4", "messages": HELLO})
        assert (answer.headers["x-luthier-version"], "x-luthier-variant" in answer.headers) == ("4", False)
        rows = running.rows()
        assert (rows.assigned.dropna() == rows.served.dropna()).all()
        assert rows.subject.nunique() == len(names) + 1
        assert not rows.subject.str.contains("user").any()


def test_a_shadow_answers_behind_and_is_never_shown(tmp_path):
    with scripted() as one, scripted(says=lambda body: "from the shadow") as other:
        with gateway_of(tmp_path, {3: [one.url], 4: [other.url]}, shadow=4) as running:
            text, chunks = streamed(running.client, messages=HELLO)
            assert text == "Hello there"
            assert eventually(lambda: running.counted("shadow") == 1)
            rows = running.rows().set_index("shadow_of", drop=False)
        row = rows.loc[chunks[0].id]
        assert (row.version, row.answer, row.status) == (4, "from the shadow", 200)
        assert len(rows) == 2
        assert running.counted() == 1


# --- feedback and models


def test_feedback_is_idempotent_and_scrubbed(running):
    answer = running.client.chat.completions.create(model="luthier", messages=HELLO)
    said = {"request_id": answer.id, "rating": "up", "correction": "Ask ada@example.org"}
    results = [running.post("/v1/feedback", json=said | more) for more in ({}, {}, {"rating": "down"})]
    assert [result.json()["result"] for result in results] == ["created", "unchanged", "updated"]
    from luthier.serving.records.feedback import corrections

    kept = next(iter(corrections(running.log_uri)))
    assert "example.org" not in kept["messages"][-1]["content"]
    unknown = running.post("/v1/feedback", json=said | {"request_id": "chatcmpl-0"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")
    named = running.post("/v1/feedback", json=said | {"variant": "champion"})
    assert (named.status_code, named.json()["error"]["param"]) == (400, "variant")


def test_models_are_listed_by_every_name(running):
    names = [model.id for model in running.client.models.list()]
    assert names == ["luthier", "champion", "luthier@3"]
    assert running.client.models.retrieve("luthier@3").id == "luthier@3"
    assert running.get("/v1/models/luthier@9").status_code == 404


# --- who may do what


def test_every_path_but_health_and_the_page_asks_for_its_key(running):
    paths = (
        "/v1/models",
        "/v1/nothing",
        "/index.html",
        "/nothing",
        "/metrics",
        "/openapi.json",
        "/admin/reload",
        "/admin/nothing",
        "/docs",
    )
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer sk-wrong-0123456789"}, {"Authorization": KEY}):
            refused = running.get(path, headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert [running.get(path, {}).status_code for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]
    assert running.get("/admin/reload", ALICE).status_code == running.get("/v1/models", ROOT).status_code == 401
    assert [running.get(path, ALICE).status_code for path in ("/metrics", "/nothing", "/docs")] == [200, 404, 404]
    assert [running.get(path, ROOT).status_code for path in ("/metrics", "/admin/reload", "/admin/x")] == [200, 405, 404]


def test_the_description_names_the_bodies(running):
    page = running.get("/openapi.json").json()
    assert {"ChatRequest", "FeedbackRequest", "ExperimentRequest", "RollbackRequest"} <= page["components"]["schemas"].keys()
    body = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    references = {part.split('"')[0] for part in json.dumps(page).split("#/components/schemas/")[1:]}
    assert references <= page["components"]["schemas"].keys()


def test_an_administrator_changes_what_is_served(tmp_path, echo):
    with gateway_of(tmp_path, {3: [echo.url], 4: [echo.url]}) as running:
        assert running.post("/admin/reload", ROOT).json()["aliases"] == {"champion": 3}
        assert running.post("/admin/rollback", ROOT, json={"reason": "worse"}).status_code == 200
        assert running.calls == [(), ("worse",)]
        variants = [{"name": "champion", "version": 3, "weight": 0}, {"name": "challenger", "version": 4, "weight": 1}]
        changed = running.post("/admin/experiment", ROOT, json={"id": "new", "variants": variants})
        assert changed.json()["experiment"] == {"id": "new", "variants": variants, "shadow": None}
        answer = running.post("/v1/chat/completions", json={"model": "luthier", "messages": HELLO})
        assert answer.headers["x-luthier-variant"] == "challenger"
        for wrong in (
            {"id": "new", "variants": variants[:1]},
            {"id": "a b", "variants": variants},
            {"id": "new", "variants": [variants[0] | {"version": 9, "weight": 1}]},
            {"id": "new", "variants": [variants[0] | {"version": "nobody", "weight": 1}]},
            {"id": "new", "variants": []},
            {"id": "new", "variants": variants, "share": 1},
        ):
            refused = running.post("/admin/experiment", ROOT, json=wrong)
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
        assert running.post("/admin/rollback", ROOT, json={}).json()["error"]["param"] == "reason"


def test_prometheus_reads_the_metrics(running):
    text = httpx.get(f"{running.address}/metrics", headers={"Authorization": f"Bearer {ADMIN}"}).text
    assert "gen_ai_server_request_duration_seconds_count{" in text
    assert 'luthier_model_info{alias="champion"' in text
