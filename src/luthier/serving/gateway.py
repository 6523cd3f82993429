"""The gateway as an application: its routes, and who may use them.

/ (the page) /healthz /readyz                           anybody
/v1/chat/completions /v1/models /v1/feedback            a client's key
/admin/...                                              the administrator's key
everything else, whether it exists or not               either
"""

import asyncio
import time
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.serving.admin import ExperimentRequest, RollbackRequest, admin_routes
from luthier.serving.answering import GONE, answer_chat, failure, refusal
from luthier.serving.api.bodies import read_json, validated
from luthier.serving.api.chat import ChatRequest
from luthier.serving.api.errors import ApiError, bad_key, unavailable, unknown_model
from luthier.serving.api.openapi import COMPLETIONS, body_of, describe
from luthier.serving.exchange import off_loop
from luthier.serving.keys import Keys
from luthier.serving.limits import PromptHead, read_body
from luthier.serving.live import Gateway
from luthier.serving.page import answer_page
from luthier.serving.records.feedback import FeedbackRequest
from luthier.text.prepare import ScrubSettings, scrub_text

SERVER: dict[str, Any] = {
    "http": PromptHead,  # reads 64 KiB of a line and headers at most; httptools, uvicorn's first choice, reads without end
    "ws": "none",
    "lifespan": "off",
    "server_header": False,
    "limit_concurrency": 1000,  # connections; each takes a file
    "access_log": False,
    "log_config": None,
}
"""Settings of uvicorn's that the gateway relies on."""
_OPEN = ("/", "/healthz", "/readyz")


class KeyCheck:
    """Lets through what carries the key that its path asks for; says 401 before anything else is said."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        """Stand before an application."""
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization")
        client, admin = self._keys.client(given), self._keys.is_admin(given)
        first = scope["path"].split("/")[1:2]
        allowed = admin if first == ["admin"] else client is not None if first == ["v1"] else admin or client is not None
        if not allowed:
            await refusal(bad_key())(scope, receive, send)
            return
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)


def create_app(gateway: Gateway) -> FastAPI:
    """Return the application.

    >>> uvicorn.run(create_app(gateway), **SERVER)    # doctest: +SKIP
    """
    app = FastAPI(
        title="Luthier",
        version=version("luthier"),
        description="OpenAI's chat completions, answered by registered versions of one model.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere, and a browser sends no key with a page
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(KeyCheck, keys=gateway.keys)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    app.add_exception_handler(Exception, _told)
    _client_routes(app, gateway)
    _health_routes(app, gateway)
    app.include_router(admin_routes(gateway))
    app.add_api_route("/", answer_page, include_in_schema=False)
    bodies = (ChatRequest, FeedbackRequest, RollbackRequest, ExperimentRequest)
    app.openapi = lambda: describe(app, bodies, _OPEN)  # type: ignore[method-assign]
    return app


def _client_routes(app: FastAPI, gateway: Gateway) -> None:
    limits, started = gateway.parameters.limits, int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": gateway.parameters.model}

    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest), response_class=Response, responses=COMPLETIONS)
    async def chat_completions(request: Request) -> Response:
        """Continue a conversation; as OpenAI's API has it, plain or as server-sent events."""
        return await answer_chat(gateway, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the names that `model` may be."""
        return {"object": "list", "data": [model(name) for name in gateway.live.table.models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Return one of the names that `model` may be."""
        if name not in gateway.live.table.models:
            raise unknown_model(name, gateway.live.table.models)
        return model(name)

    @app.post("/v1/feedback", openapi_extra=body_of(FeedbackRequest))
    async def feedback(request: Request) -> dict[str, Any]:
        """Keep what a user says of an answer."""
        try:
            gateway.rate.take(request.state.client)
            body = await read_body(request, limits)
            said = validated(FeedbackRequest, read_json(body, limits.body_bytes, limits.json_depth))
            scrubbed = await off_loop(len(body), _scrubbed, gateway, said)
            vote = await asyncio.get_running_loop().run_in_executor(gateway.votes, gateway.feedback.vote, scrubbed)
        except ApiError:
            gateway.metrics.feedback("refused")
            raise
        gateway.metrics.feedback(vote.result, vote.served, said.rating)
        return {"request_id": said.request_id, "name": said.name, "result": vote.result}


def _health_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Tell that the gateway lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Tell whether a request would be answered now: not while the gateway drains, or its engine is dead or stuck."""
        if not gateway.is_ready:
            raise unavailable("Not ready.", "draining" if gateway.draining else "engine_unavailable")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Return what Prometheus scrapes."""
        gateway.metrics.log_waiting.set(gateway.log.waiting)
        content, media_type = gateway.metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})


def _scrubbed(gateway: Gateway, said: FeedbackRequest) -> FeedbackRequest:
    """Return a vote without personal data; the same value has the placeholder that it has in the request."""
    live = gateway.live
    settings = live.engines[live.table.experiment.control.version].prompts.scrub or ScrubSettings()
    texts = {name: getattr(said, name) for name in ("correction", "comment")}
    return said.model_copy(
        update={name: scrub_text(text, settings, gateway.pii_key)[0] for name, text in texts.items() if text is not None}
    )


async def _told(_: Request, error: Exception) -> Response:
    return refusal(failure(error))


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)


async def _not_here(_: Request, error: Exception) -> Response:
    """Return Starlette's own refusals in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return refusal(ApiError(405, "This path does not take this method.", "method_not_allowed", headers=allowed))
    return refusal(ApiError(error.status_code, "There is nothing at this path.", "not_found"))
