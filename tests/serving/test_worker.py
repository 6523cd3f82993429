"""What a worker tells its gateway of a request that it cannot answer."""

from types import SimpleNamespace

import pytest
from sharp import sharp_tiny
from starlette.testclient import TestClient

from luthier.constrained import JsonConstraint
from luthier.serving.engines.schemas import Schemas
from luthier.serving.engines.worker import Loaded, create_app
from luthier.serving.engines.worker_protocol import WorkerSettings
from luthier.serving.parameters import LimitParameters

ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate.') }}{% endif %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
)


@pytest.fixture
def client(tmp_path):
    """Return a client of a worker whose chat template takes turns of user and assistant alone."""
    settings = WorkerSettings(
        package=tmp_path,
        manifest="",
        name="luthier@1",
        precision="fp32",
        slots=1,
        cache_tokens=64,
        limits=LimitParameters(),
        key="k",
    )
    _, tokenizer = sharp_tiny(tmp_path)
    tokenizer.chat_template = ALTERNATES
    app = create_app(
        Loaded(settings, SimpleNamespace(context=64), tokenizer, 8, Schemas(lambda schema: JsonConstraint(tokenizer, schema)))
    )
    return TestClient(app, raise_server_exceptions=False, headers={"Authorization": "Bearer k"})


@pytest.mark.parametrize("roles", [("user", "user"), ("system", "user"), ("assistant", "user")])
def test_a_conversation_that_the_chat_template_refuses_is_the_clients_mistake(client, roles):
    messages = [{"role": role, "content": "hi"} for role in roles]
    answer = client.post("/v1/chat/completions", json={"model": "luthier@1", "messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "messages: the model's chat template refuses them: Conversation roles must alternate.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "invalid_value",
    }
