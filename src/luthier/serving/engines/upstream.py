"""An engine by URL: one or several replicas of any server that speaks OpenAI's API, such as vLLM.

    body -> the replica with the fewest requests under way -> answer
            could it not begin? it rests, and the next one is asked

Who fails rests, twice as long each time, and is then tried again by a client's request. Once a replica has begun to write, nobody
takes over: the client has read the beginning already.
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from luthier.serving.api.errors import ApiError, busy, invalid, unavailable, without_places
from luthier.serving.engines.engine import Status, begins, part_of
from luthier.serving.keys import is_loopback

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
FIRST_REST, LONGEST_REST = 0.5, 30.0
"""Seconds that a replica rests after its first failure in a row, and at most."""
LAST_SECONDS = 0.05
"""How long a body may take to end after its last event."""
LONGEST_MESSAGE = 500
"""Characters of a refusal that are passed on."""
_MISTAKES = (400, 413, 422)


@dataclass
class Replica:
    """One server, and how it is."""

    url: str
    """What stands before `/chat/completions`."""
    client: httpx.AsyncClient
    running: int = 0
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0


class _BrokenError(Exception):
    """A replica failed, not the request: another one may do."""


class Upstream:
    """Answers by servers that somebody else runs.

    >>> upstream = Upstream(["http://localhost:8000/v1"], model="smollm2")    # doctest: +SKIP
    >>> completion = await upstream.chat({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64})
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        key: str | None = None,
        token_seconds: float = 20.0,
        total_seconds: float = 300.0,
        longest_rest: float = LONGEST_REST,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name the servers; nothing is sent yet.

        Args:
            urls: what stands before `/chat/completions`, one for each replica.
            model: what the servers call the model.
            key: that they ask for.
            token_seconds: a replica that is silent for longer, in a stream, is stuck; less than a client waits for its first
                token, so that another replica can take over in time.
            total_seconds: a replica that takes longer for a whole completion is stuck.
            longest_rest: seconds that a replica rests at most after a failure; 0 where somebody else watches it.
            now: tells the time in seconds.
        """
        self._model, self._now = model, now
        self._token_seconds, self._total_seconds, self._longest_rest = token_seconds, total_seconds, longest_rest
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._replicas = [Replica(url.rstrip("/"), _client(url, headers)) for url in urls]
        hosts = {text for url in map(urlsplit, urls) for text in (url.netloc, url.hostname) if text}
        # the longest first: a host stands in its host and port
        self._unsaid = sorted(hosts | ({key} if key else set()), key=len, reverse=True)
        self._tokens_total = 0
        self._last_progress: float | None = None

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole completion, as the interface `Engine` has it."""
        sent = {**body, "model": self._model}
        refusal: ApiError | None = None
        for replica in self._by_load():
            try:
                with self._watched(replica, self._total_seconds):
                    response = await replica.client.post(
                        f"{replica.url}/chat/completions", json=sent, timeout=_timeout(self._total_seconds)
                    )
                    self._check(response.status_code, response.content, response.headers)
                    completion = _object(response.content)
                    if part_of(completion, "message") is None or not isinstance(completion.get("usage"), dict):
                        raise _BrokenError("its answer is no completion with usage")
            except _BrokenError:
                continue
            except ApiError as error:
                if error.status == 400:
                    raise
                refusal = error  # it is busy: another one may not be
                continue
            self._progress(completion["usage"].get("completion_tokens"))
            return completion
        raise refusal or unavailable("No engine can answer now.")

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a completion, as the interface `Engine` has it."""
        sent = {**body, "model": self._model, "stream": True}
        refusal: ApiError | None = None
        for replica in self._by_load():
            begun = False
            try:
                with self._watched(replica, self._token_seconds):
                    async with aclosing(self._chunks(replica, sent)) as chunks:
                        async for chunk in chunks:
                            begun = begun or begins(chunk)
                            self._progress(int(_writes(chunk)))
                            yield chunk
            except _BrokenError:
                if begun:
                    raise unavailable("The engine broke off.") from None
                continue
            except ApiError as error:
                if begun or error.status == 400:
                    raise
                refusal = error
                continue
            return
        raise refusal or unavailable("No engine can answer now.")

    def status(self) -> Status:
        """Return how the replicas are, together."""
        now = self._now()
        return Status(
            alive=any(replica.rests_until <= now for replica in self._replicas),
            running=sum(replica.running for replica in self._replicas),
            queued=0,
            tokens_total=self._tokens_total,
            last_progress=self._last_progress,
        )

    async def close(self) -> None:
        """Close the connections."""
        for replica in self._replicas:
            await replica.client.aclose()

    # --- which replica

    def _by_load(self) -> Iterator[Replica]:
        """Yield the replicas that do not rest, each time the one that has the fewest requests at that moment."""
        asked: list[Replica] = []
        while True:
            now = self._now()
            awake = [replica for replica in self._replicas if replica.rests_until <= now and replica not in asked]
            if not awake:
                return
            asked.append(min(awake, key=lambda replica: replica.running))
            yield asked[-1]

    @contextmanager
    def _watched(self, replica: Replica, seconds: float) -> Iterator[None]:
        """Count a request of a replica, and let the replica rest if it fails.

        Raises:
            _BrokenError: for all that is the replica's failure.
        """
        if not any(other.running for other in self._replicas):
            self._last_progress = self._now()
        replica.running += 1
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, _BrokenError) as error:
            what = f"it was silent for {seconds:g} s" if isinstance(error, httpx.ReadTimeout) else str(error)
            self._rest(replica, what or type(error).__name__)
            raise _BrokenError(what) from error
        else:
            replica.failures = 0
        finally:
            replica.running -= 1

    def _rest(self, replica: Replica, why: str) -> None:
        now = self._now()
        if replica.rests_until > now:
            return  # others failed with it: that is one failure
        pause = min(FIRST_REST * 2**replica.failures, self._longest_rest)
        replica.failures += 1
        replica.rests_until = now + pause
        logger.warning("Engine %s failed and rests for %g s: %s", urlsplit(replica.url).netloc, pause, self._told(why))

    def _progress(self, tokens: Any) -> None:
        self._last_progress = self._now()
        self._tokens_total += tokens if isinstance(tokens, int) else 0

    # --- what it says

    async def _chunks(self, replica: Replica, sent: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what one replica streams.

        Raises:
            ApiError: if it refuses the request.
            _BrokenError: if it fails, or stops before the end.
        """
        url, timeout = f"{replica.url}/chat/completions", _timeout(self._token_seconds)
        async with replica.client.stream("POST", url, json=sent, timeout=timeout) as response:
            if response.status_code != 200:
                self._check(response.status_code, await response.aread(), response.headers)
            finished = False
            events = _events(response)
            async for data in events:
                if data == b"[DONE]":
                    await _read_out(events)
                    break
                chunk = _object(data)
                if isinstance(chunk.get("error"), dict):
                    code = chunk["error"].get("code")
                    self._check(code if isinstance(code, int) and code >= 400 else 500, data, response.headers)
                finished = finished or (
                    part_of(chunk, "delta") is not None and chunk["choices"][0].get("finish_reason") is not None
                )
                yield chunk
            if not finished:
                raise _BrokenError("it stopped in the middle of an answer")

    def _check(self, status: int, content: bytes, headers: httpx.Headers) -> None:
        """Pass an answer that is one.

        Raises:
            ApiError: 400 for a client's mistake, 429 if the replica is busy.
            _BrokenError: for everything else.
        """
        if status == 200:
            return
        error = _error(content)
        message = self._told(str(error.get("message") or "The engine refuses the request."))
        if status in _MISTAKES:
            if error.get("code") == "context_length_exceeded" or "context length" in message:
                raise invalid(message, "messages", "context_length_exceeded")
            raise invalid(message, error["param"] if isinstance(error.get("param"), str) else None)
        if status == 429:
            after = headers.get("Retry-After", "")
            raise busy("The engine is busy: try again later.", float(after) if after.isdecimal() else 1.0, "queue_full")
        raise _BrokenError(f"it answers {status}: {message}")

    def _told(self, message: str) -> str:
        """Return what a server says, on one line, without hosts, keys and paths."""
        for text in self._unsaid:
            message = message.replace(text, "...")
        message = without_places(message.partition("Traceback")[0])
        return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."


def _client(url: str, headers: Mapping[str, str]) -> httpx.AsyncClient:
    # a proxy that the environment names cannot reach this machine's own servers; how many connections there are, clients decide
    alone = is_loopback(urlsplit(url).hostname or "")
    return httpx.AsyncClient(
        headers=headers,
        verify=_authorities(),
        trust_env=not alone,
        # shorter than the 5 s after which uvicorn, and so vLLM, closes what is idle: a request would meet the closing
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0),
    )


@cache
def _authorities() -> ssl.SSLContext:
    """Return whom to trust, which takes longer to read than to keep for all replicas."""
    return httpx.create_ssl_context()


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=CONNECT_SECONDS)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events of one line each.

    Lines end at line feeds only: `aiter_lines` would also cut JSON at U+2028 and its like.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


async def _read_out(rest: AsyncIterator[bytes]) -> None:
    """Read to the end of a body whose last event was read: its connection can then take the next request."""
    with suppress(TimeoutError, httpx.HTTPError):  # who says more is not listened to, and loses the connection
        async with asyncio.timeout(LAST_SECONDS):
            async for _ in rest:
                pass


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _BrokenError("it answers what is no JSON") from error
    if not isinstance(value, dict):
        raise _BrokenError("it answers what is no JSON object")
    return value


def _error(content: bytes) -> dict[str, Any]:
    """Return the error in a body: of OpenAI's shape, of FastAPI's, or what else it is."""
    try:
        body = _object(content)
    except _BrokenError:
        return {"message": content[:LONGEST_MESSAGE].decode(errors="replace")} if not content.lstrip().startswith(b"<") else {}
    error = body.get("error", body)
    return error if isinstance(error, dict) else {"message": error}


def _writes(chunk: Mapping[str, Any]) -> bool:
    return bool((part_of(chunk, "delta") or {}).get("content"))
