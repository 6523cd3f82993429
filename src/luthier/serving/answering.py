"""How a client gets what an exchange brings: a whole completion, a stream of events, or an error."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from luthier.serving.api.completion import DONE, TokenLogprob, error_event, event
from luthier.serving.api.errors import ApiError, internal, unavailable
from luthier.serving.engines.engine import Piece
from luthier.serving.exchange import Begun, Exchange
from luthier.serving.limits import read_body, while_connected
from luthier.serving.live import Gateway

logger = logging.getLogger(__name__)

GONE = 499
"""What the log has as the status where nobody waited for one; nginx began it."""
_WENT = ApiError(GONE, "The client went away.", "client_disconnected")
LAST_WORD_SECONDS = 5.0
"""How long a client whose time is over may take to read that."""


async def answer_chat(gateway: Gateway, request: Request) -> Response:
    """Answer a chat request, whatever it is."""
    exchange = Exchange(gateway, request.state.client)
    try:
        route = await exchange.understand(await read_body(request, exchange.limits), request.headers)
        begun = await while_connected(request.receive, exchange.begin(route))
        if begun.chunks is not None:
            return _Events(exchange, begun)
        response = _whole(exchange, begun)
    except ClientDisconnect:
        await _ended(exchange, GONE, _WENT)
        return Response(status_code=GONE)
    except asyncio.CancelledError:
        exchange.record(503, "draining")
        raise
    except Exception as error:
        told = failure(error)
        await _ended(exchange, told.status, told)
        return refusal(told, exchange.headers())
    await _ended(exchange, 200)
    return response


def refusal(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as an answer."""
    return JSONResponse(error.body(), error.status, {**error.headers, **(headers or {})})


def failure(error: BaseException) -> ApiError:
    """Return what a client is told of an error: what is none of its business stands in the gateway's own log."""
    if isinstance(error, ApiError):
        return error
    logger.error("A request failed.", exc_info=error)
    return internal()


async def _ended(exchange: Exchange, status: int, error: ApiError | None = None) -> None:
    """Record an exchange, also where its text cannot be scrubbed: then without it."""
    code = error.code if error else None
    try:
        await exchange.end(status, code)
    except asyncio.CancelledError:
        exchange.record(status, code)
        raise
    except Exception as trouble:
        failure(trouble)
        exchange.record(status, code)


def _whole(exchange: Exchange, begun: Begun) -> Response:
    piece = begun.first
    assert piece.finish is not None
    assert piece.used is not None
    text = begun.restorer.feed(piece.text) + begun.restorer.end()
    completion = begun.envelope.completion(text, piece.finish, piece.used, _logprobs(exchange, piece))
    written = json.dumps(completion, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(written.encode(errors="replace"), media_type="application/json", headers=exchange.headers())


class _Events(Response):
    """A stream: what is sent ends with `[DONE]`, or with an error."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, begun: Begun) -> None:
        super().__init__(headers={**exchange.headers(), "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._exchange, self._begun = exchange, begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the engine's call ends with it."""
        try:
            async with self._begun.held:
                await while_connected(receive, self._send_all(send))
        except (ClientDisconnect, OSError):
            await _ended(self._exchange, 200, _WENT)
        except asyncio.CancelledError:
            self._exchange.record(200, "draining")
            raise

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        error: ApiError | None = None
        try:
            async with self._exchange.in_time(), aclosing(_events(self._exchange, self._begun)) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as trouble:
            error = failure(trouble)
        # before the last word: who has read it may send feedback at once
        await _ended(self._exchange, 200, error)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                last = DONE if error is None else error_event(error)
                await send({"type": "http.response.body", "body": last, "more_body": False})


async def _events(exchange: Exchange, begun: Begun) -> AsyncGenerator[bytes, None]:
    """Yield the answer as it comes, but for the end of the stream.

    Raises:
        ApiError: if the engine breaks off.
    """
    envelope = begun.envelope
    yield event(envelope.opening())
    async for piece in exchange.pieces(begun):
        text, logprobs = begun.restorer.feed(piece.text), _logprobs(exchange, piece)
        if text or logprobs:
            yield event(envelope.piece(text, logprobs))
    if rest := begun.restorer.end():
        yield event(envelope.piece(rest))
    if exchange.finish is None:
        raise unavailable("The engine broke off.")
    yield event(envelope.ending(exchange.finish))
    if envelope.counts_tokens and exchange.used is not None:
        yield event(envelope.tally(exchange.used))


def _logprobs(exchange: Exchange, piece: Piece) -> list[TokenLogprob] | None:
    """Return the log-probabilities of a piece, if they are asked for, with as many others as are asked for."""
    asked = exchange.asked
    if not asked.logprobs or piece.logprobs is None:
        return None
    most = asked.top_logprobs or 0
    return [{**told, "top_logprobs": told["top_logprobs"][:most]} for told in piece.logprobs]
