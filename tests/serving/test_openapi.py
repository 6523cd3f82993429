"""The description of the API holds: schemathesis asks what it allows, and what it does not, and compares the answers with it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.gateways import ADMIN, KEY, Running, gateway_of
from tests.serving.scripted import scripted

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, negative_data_rejection,
]  # fmt: skip
# operation -> whether it has a body, which can be wrong
OPERATIONS = {
    ("/v1/chat/completions", "POST"): True, ("/v1/models", "GET"): False, ("/v1/models/{name}", "GET"): False,
    ("/v1/feedback", "POST"): True, ("/healthz", "GET"): False, ("/readyz", "GET"): False, ("/metrics", "GET"): False,
    ("/admin/reload", "POST"): False, ("/admin/rollback", "POST"): True, ("/admin/experiment", "POST"): True,
}  # fmt: skip
HELLO = {"model": "luthier", "messages": [{"role": "user", "content": "Hello"}]}
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with scripted() as script, gateway_of(tmp_path_factory.mktemp("log"), {3: [script.url]}) as found:
        yield found


@pytest.fixture(scope="module")
def described(running: Running):
    page = running.get("/openapi.json").json()
    del page["security"]  # left out, the key would count as a mistake: whoever asks here has one
    found = schemathesis.openapi.from_dict(page)
    found.config.update(base_url=running.address)
    return found


def test_every_route_is_described_and_the_description_is_sound(described):
    described.validate()
    found = {(result.ok().path, result.ok().method.upper()) for result in described.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [(*one, RIGHT) for one in OPERATIONS] + [(*one, WRONG) for one, has_body in OPERATIONS.items() if has_body],
)
def test_whatever_is_asked_the_server_answers_as_described(running, described, path, method, mode):
    operation = described[path][method]
    headers = {"Authorization": f"Bearer {ADMIN if path.startswith('/admin') else KEY}"}
    found = set()

    @settings(max_examples=10 if operation.body else 5, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        found.add(case.call_and_validate(headers=headers, checks=CHECKS).status_code)

    ask()
    if mode == WRONG:
        assert found
        assert all(400 <= status < 500 for status in found)
    elif not operation.body and not operation.path_parameters:
        assert found == {200}
    assert running.get("/readyz").status_code == 200


def test_what_the_description_allows_of_a_field_is_answered(running, described):
    operation, statuses = described["/v1/chat/completions"]["POST"], {}

    @settings(max_examples=25, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=RIGHT), number=st.integers(0, 99))
    def ask(case, number):
        name = sorted(case.body)[number % len(case.body)]
        case.body = HELLO | ({name: case.body[name]} if name not in HELLO else {})
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)
        statuses.setdefault(answer.status_code, set()).add(name)

    ask()
    assert statuses.keys() <= {200, 400}
    rules = {"max_tokens", "max_completion_tokens", "top_logprobs", "seed", "stream_options", "stop", "response_format"}
    assert statuses.get(400, set()) <= rules  # that go beyond a type and a range
    assert len(statuses[200]) > 5


def test_without_a_key_nothing_is_answered(running):
    for path, method in OPERATIONS:
        if path not in ("/healthz", "/readyz"):
            assert running.http.request(method, path.format(name="luthier"), json={}).status_code == 401
