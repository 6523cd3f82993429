"""A process that answers with one version of the model.

    kedro serve ---- one line of JSON: what to load ----> stdin
                <--- one line of JSON: where it listens -- stdout
                ---- OpenAI's chat completions, on loopback, with a key made for this process

It ends when its stdin does, so no worker outlives who started it, however that one ended.
"""

import asyncio
import hmac
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from luthier.constrained import JsonConstraint
from luthier.errors import UserError
from luthier.serving.api.chat import ChatRequest, parse_chat
from luthier.serving.api.completion import DONE, Envelope, TokenLogprob, error_event, event, usage
from luthier.serving.api.errors import ApiError, bad_key, internal, invalid, without_places
from luthier.serving.engines.batching import BatchingEngine, Event, Failed, TextPiece, Ticket
from luthier.serving.engines.sampling import Sampling
from luthier.serving.engines.schemas import Schemas
from luthier.serving.engines.worker_protocol import Failure, Progress, Ready, WorkerSettings
from luthier.serving.limits import read_body, while_connected


@dataclass(frozen=True)
class Loaded:
    """What the routes share."""

    settings: WorkerSettings
    engine: BatchingEngine
    tokenizer: Any
    max_new_tokens: int
    schemas: Schemas


def load(settings: WorkerSettings) -> Loaded:
    """Check and load a package, and start its engine.

    Raises:
        UserError: if the package is refused, or its model cannot be served so.
    """
    import torch

    from luthier.packages import load_package
    from luthier.quiet import quiet_libraries

    quiet_libraries()
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model, tokenizer, _ = load_package(settings.package, dtype, settings.manifest, base=settings.base)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    # who waits here has a place already, and goes on as soon as one that was given up has left it
    engine = BatchingEngine(
        model, tokenizer, slots=settings.slots, cache_tokens=settings.cache_tokens, waiting=settings.limits.queue
    )
    cut = settings.max_new_tokens or model.generation_config.max_new_tokens or engine.context // 2

    def compiled(schema: Mapping[str, Any]) -> JsonConstraint:
        return JsonConstraint(tokenizer, schema)

    engine.start()
    return Loaded(settings, engine, tokenizer, cut, Schemas(compiled))


def create_app(loaded: Loaded) -> Starlette:
    """Return the application: one route, for who has the key."""
    expected = f"Bearer {loaded.settings.key}".encode()

    def check(request: Request) -> None:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected):
            raise bad_key()

    async def progress(request: Request) -> Response:
        check(request)
        status = loaded.engine.status()
        silent = 0.0 if status.last_progress is None else time.monotonic() - status.last_progress
        return JSONResponse(Progress(running=status.running, silent=silent, cached=status.cached).model_dump())

    async def completions(request: Request) -> Response:
        check(request)
        asked = parse_chat(await read_body(request, loaded.settings.limits), loaded.settings.limits)
        prompt = await asyncio.to_thread(_prompt, loaded, asked)
        constraint = await while_connected(request.receive, _constraint(loaded, asked))
        return _Answer(loaded, asked, prompt, _sampling(loaded, asked, prompt, constraint))

    async def told(_: Request, error: Exception) -> Response:
        known = error if isinstance(error, ApiError) else internal()
        return JSONResponse(known.body(), known.status, known.headers)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    async def not_here(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return Response(status_code=error.status_code)

    handlers: dict[Any, Any] = {ApiError: told, ClientDisconnect: gone, HTTPException: not_here, Exception: told}
    routes = [Route("/v1/chat/completions", completions, methods=["POST"]), Route("/progress", progress)]
    return Starlette(routes=routes, exception_handlers=handlers)


def _prompt(loaded: Loaded, asked: ChatRequest) -> list[int]:
    """Return the tokens of the conversation.

    Raises:
        ApiError: if the chat template refuses it.
    """
    from jinja2 import TemplateError

    from luthier.text.chat import encode_prompt

    try:
        return encode_prompt(loaded.tokenizer, asked.turns())
    except TemplateError as error:  # such as of two turns of the user's in a row
        told = without_places(str(error)).rstrip(".")
        raise invalid(f"messages: the model's chat template refuses them: {told}.", "messages") from None


async def _constraint(loaded: Loaded, asked: ChatRequest) -> JsonConstraint | None:
    """Return what the answer is held to.

    Raises:
        ApiError: if the schema cannot be a constraint.
    """
    schema = _schema(asked)
    try:
        return None if schema is None else await loaded.schemas.constraint(schema)
    except UserError as error:
        raise invalid(f"response_format: {error}", "response_format") from None


def _sampling(loaded: Loaded, asked: ChatRequest, prompt: list[int], constraint: JsonConstraint | None) -> Sampling:
    # a request that says nothing gets what there is room for; one that says a number gets it or an error
    limit = asked.limit or max(1, min(loaded.max_new_tokens, loaded.engine.context - len(prompt)))
    return Sampling(
        max_tokens=limit,
        temperature=0.0 if asked.is_greedy else 1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None or asked.is_greedy else asked.top_p,
        stop=tuple(asked.stops),
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        constraint=constraint,
    )


def _schema(asked: ChatRequest) -> dict[str, Any] | None:
    match asked.response_format:
        case None:
            return None
        case format if format.type == "json_schema":
            return format.json_schema.schema_
        case format if format.type == "json_object":
            return {"type": "object"}
    return None


class _Answer(Response):
    """One request under way, from the engine's thread to the client; who goes away ends it."""

    def __init__(self, loaded: Loaded, asked: ChatRequest, prompt: list[int], sampling: Sampling) -> None:
        """Ask the engine.

        Raises:
            ApiError: if it does not take the request.
        """
        super().__init__(media_type="text/event-stream" if asked.stream else "application/json")
        del self.headers["content-length"]
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._asked = asked
        self._envelope = Envelope(loaded.settings.name, counts_tokens=asked.counts_tokens)

        def heard(what: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, what)

        self._ticket: Ticket = loaded.engine.submit(prompt, sampling, heard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await while_connected(receive, self._stream(send) if self._asked.stream else self._whole(send))
        except ClientDisconnect:
            pass
        finally:
            self._ticket.cancel()

    async def _whole(self, send: Send) -> None:
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        while isinstance(what := await self._events.get(), TextPiece):
            text.append(what.text)
            logprobs += what.tokens
        status, headers, body = 200, self.raw_headers, b""
        if isinstance(what, Failed):
            status, body = what.error.status, json.dumps(what.error.body()).encode()
        else:
            used = usage(what.prompt_tokens, what.completion_tokens)
            told = self._envelope.completion("".join(text), what.finish, used, logprobs if self._asked.logprobs else None)
            body = json.dumps(told, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def say(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await say(event(self._envelope.opening()))
        while isinstance(what := await self._events.get(), TextPiece):
            await say(event(self._envelope.piece(what.text, what.tokens if self._asked.logprobs else None)))
        if isinstance(what, Failed):
            await say(error_event(what.error), more=False)
            return
        await say(event(self._envelope.ending(what.finish)))
        if self._asked.counts_tokens:
            await say(event(self._envelope.tally(usage(what.prompt_tokens, what.completion_tokens))))
        await say(DONE, more=False)


def main() -> None:
    """Load what stdin says, listen, and say where."""
    # what a library prints goes where its warnings go: stdout is for two lines of ours
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _prepare()
    told = sys.stdin.buffer.readline()
    if not told:  # nobody needs it any more
        return
    settings = WorkerSettings.model_validate_json(told)
    threading.Thread(target=_end_with_stdin, name="end-with-stdin", daemon=True).start()
    try:
        loaded = load(settings)
    except UserError as error:
        said.write(Failure(error=str(error)).model_dump_json() + "\n")
        said.close()
        sys.exit(1)
    threading.Thread(target=_end_with_engine, args=(loaded.engine,), name="end-with-engine", daemon=True).start()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        said.write(Ready(port=listener.getsockname()[1], context=loaded.engine.context).model_dump_json() + "\n")
        said.close()
        config = uvicorn.Config(create_app(loaded), log_config=None, access_log=False, lifespan="off", server_header=False)
        uvicorn.Server(config).run(sockets=[listener])
    loaded.engine.close()


def _prepare() -> None:
    """Import what loading a package needs, as long as nobody waits for it."""
    for name in ("luthier.packages", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"):
        import_module(name)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _end_with_engine(engine: BatchingEngine) -> None:
    """End this process once its engine has ended: whoever watches it starts another one."""
    while engine.status().alive:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    main()
