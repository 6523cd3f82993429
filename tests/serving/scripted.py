"""A real HTTP server of OpenAI's chat completions that writes what a test tells it to, in pieces, and with whatever ails real ones."""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from luthier.serving.gateway import SERVER


def echo(body: dict[str, Any]) -> str:
    """Answer what the user said."""
    return body["messages"][-1]["content"]


@dataclass
class Script:
    """What the server does, and what it saw."""

    says: Callable[[dict[str, Any]], str] = echo
    size: int = 4
    """Characters of a piece, which stands for a token."""
    before: float = 0.0
    """Seconds before the first token."""
    between: float = 0.0
    """Seconds between two tokens."""
    troubles: list[str] = field(default_factory=list)
    """What happens to the next requests, in turn; an empty string is no trouble."""
    refusal: dict[str, Any] = field(default_factory=lambda: {"message": "no"})
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    under_way: int = 0
    cancelled: int = 0
    address: str = ""

    @property
    def url(self) -> str:
        """Return what stands before `/chat/completions`."""
        return f"{self.address}/v1"

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.connections.add(request.client)
        trouble = self.troubles.pop(0) if self.troubles else ""
        self.under_way += 1
        if trouble.isdecimal():
            self.under_way -= 1
            return JSONResponse({"error": self.refusal}, int(trouble), {"Retry-After": "7"})
        if trouble and not trouble.startswith("stream"):
            self.under_way -= 1
            return Response(trouble)
        if body.get("stream"):
            return StreamingResponse(self.chunks(body, trouble), media_type="text/event-stream")
        return await self.whole(body, request)

    async def whole(self, body: dict[str, Any], request: Request) -> Response:
        text = self.says(body)
        pieces = self.pieces(text)
        waits, passed = self.before + self.between * len(pieces), 0.0
        try:
            while passed < waits:
                await asyncio.sleep(0.01)
                passed += 0.01
                if await request.is_disconnected():
                    self.cancelled += 1
                    return Response()
        finally:
            self.under_way -= 1
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [self.logprob(piece, body) for piece in pieces]}
        return JSONResponse({"id": "theirs", "model": "theirs", "choices": [choice], "usage": self.usage(body, pieces)})

    async def chunks(self, body: dict[str, Any], trouble: str) -> AsyncIterator[str]:
        done = False
        try:
            yield ": hello\r\n\r\n"
            yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            await asyncio.sleep(self.before)
            pieces = self.pieces(self.says(body))
            for number, piece in enumerate(pieces):
                if trouble == "stream breaks" and number == 2:
                    return
                if trouble == "stream error" and number == 2:
                    yield event({"error": {"message": "out of memory at /opt/engine/core.py", "code": 500}})
                    return
                choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                if body.get("logprobs"):
                    choice["logprobs"] = {"content": [self.logprob(piece, body)]}
                yield event({"choices": [choice]})
                await asyncio.sleep(self.between)
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield event({"choices": [], "usage": self.usage(body, pieces)})
            yield "data: [DONE]\n\n"
            done = True
        finally:
            self.under_way -= 1
            self.cancelled += not done and not trouble

    def pieces(self, text: str) -> list[str]:
        return [text[start : start + self.size] for start in range(0, len(text), self.size)]

    def logprob(self, piece: str, body: dict[str, Any]) -> dict[str, Any]:
        others = [{"token": piece, "logprob": -0.5, "bytes": [1]}, {"token": "other", "logprob": -1.5, "bytes": None}]
        return {"token": piece, "logprob": -0.5, "bytes": [1], "top_logprobs": others, "theirs": True}

    def usage(self, body: dict[str, Any], pieces: list[str]) -> dict[str, int]:
        prompt = sum(len(turn["content"]) for turn in body["messages"])
        return {"prompt_tokens": prompt, "completion_tokens": len(pieces), "total_tokens": prompt + len(pieces)}


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\r\n\r\n"


class Scripts:
    """All scripts of a process behind one server, which is kept: to start one for each test takes longer than the tests."""

    def __init__(self) -> None:
        self.by_name: dict[str, Script] = {}
        self._kept = ExitStack()  # the process ends it
        routes = [Route("/{name}/v1/chat/completions", self.chat, methods=["POST"])]
        self.address = self._kept.enter_context(listening(Starlette(routes=routes)))

    async def chat(self, request: Request) -> Response:
        script = self.by_name.get(request.path_params["name"])
        return Response(status_code=404) if script is None else await script.chat(request)


the_scripts = cache(Scripts)


@contextmanager
def scripted(**settings: Any) -> Iterator[Script]:
    """Let a server follow a script; yield what it does and saw."""
    scripts, name = the_scripts(), secrets.token_hex(4)
    scripts.by_name[name] = script = Script(**settings, address=f"{scripts.address}/{name}")
    try:
        yield script
    finally:
        del scripts.by_name[name]


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Let an application listen on a free port of this machine; yield its address."""
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=2, **SERVER)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
