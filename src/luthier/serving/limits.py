"""What keeps one client, or all of them together, from taking more than there is: of bytes, of requests, of an engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from prometheus_client import Gauge
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serving.api.errors import ApiError, busy, timed_out, too_large
from luthier.serving.parameters import LimitParameters

Result = TypeVar("Result")

HEAD_SECONDS = 10.0
"""How long the line and the headers of a request may take to come."""


class PromptHead(H11Protocol):
    """HTTP as uvicorn speaks it, but that a connection without a request is closed in time, whatever it sends.

    Uvicorn waits without end, and there are only so many connections.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Wait on if nothing is being answered: not all of a head has come, or more of a body whose answer is given already."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._expect_no_more()
        elif self._late is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._expect_no_more()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _expect_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class RateLimit:
    """A bucket of tokens for each key: full at first, one token a request, filled again evenly over a minute."""

    def __init__(self, per_minute: int | None, now: Callable[[], float] = time.monotonic) -> None:
        """Fill the buckets.

        Args:
            per_minute: requests of one key; None sets no limit.
            now: tells the time in seconds.
        """
        self._per_minute, self._now = per_minute, now
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens that were left, and when

    def take(self, client: str) -> None:
        """Take a token.

        Args:
            client: name of the key.

        Raises:
            ApiError: 429 if the bucket is empty, with the seconds after which it is not.
        """
        if self._per_minute is None:
            return
        now, per_second = self._now(), self._per_minute / 60
        left, then = self._buckets.get(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - then) * per_second)
        if left < 1:
            self._buckets[client] = (left, now)
            raise busy(f"This key may ask {self._per_minute} times a minute: wait.", (1 - left) / per_second)
        self._buckets[client] = (left - 1, now)


class Slots:
    """Places of an engine, and the queue before them: first come, first served."""

    def __init__(self, number: int | None = None) -> None:
        """Free all places.

        Args:
            number: requests that the engine answers at a time; None leaves that to the engine.
        """
        self._free = None if number is None else asyncio.Semaphore(number)
        self._waiting = 0

    @asynccontextmanager
    async def one(self, limits: LimitParameters, running: Gauge, queued: Gauge) -> AsyncIterator[None]:
        """Hold a place while the context lasts.

        Args:
            limits: how many may wait, and how long.
            running: counts who holds a place.
            queued: counts who waits.

        Raises:
            ApiError: 429 if too many wait already, 503 if it takes too long.
        """
        if self._free is not None:
            await self._wait(self._free, limits, queued)
        running.inc()
        try:
            yield
        finally:
            running.dec()
            if self._free is not None:
                self._free.release()

    async def _wait(self, free: asyncio.Semaphore, limits: LimitParameters, queued: Gauge) -> None:
        if free.locked() and self._waiting >= limits.queue:
            raise busy(f"{self._waiting} requests wait already: try again later.", 1.0, "queue_full")
        self._waiting += 1
        queued.inc()
        try:
            async with asyncio.timeout(limits.queue_seconds):
                await free.acquire()
        except TimeoutError:
            raise timed_out("a free place", limits.queue_seconds, "queue_timeout") from None
        finally:
            self._waiting -= 1
            queued.dec()


async def read_body(request: Request, limits: LimitParameters) -> bytes:
    """Return the body, of which no more is read than is allowed.

    Raises:
        ApiError: 413 if it is larger, 408 if it takes longer than a first token may.
        ClientDisconnect: if the client went away.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > limits.body_bytes:
        raise too_large(limits.body_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.first_token_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body_bytes:
                    raise too_large(limits.body_bytes)
    except TimeoutError:
        message = f"The body did not come whole within {limits.first_token_seconds:g} s."
        raise ApiError(408, message, "timeout", headers={"Connection": "close"}) from None
    return bytes(body)


async def while_connected(receive: Receive, doing: Coroutine[Any, Any, Result]) -> Result:
    """Return what a coroutine returns, unless the client goes away first: then it is cancelled.

    Args:
        receive: of the request, whose body is read.
        doing: the coroutine; it has ended when this returns or raises.

    Raises:
        ClientDisconnect: if the client went away.
    """
    work = asyncio.ensure_future(doing)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
