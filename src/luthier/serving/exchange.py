"""One chat request, from its body to its row in the log.

    body -> parsed -> routed -> prepared -> a place -> the engine -> values put back -> answer
                        ^                                 |
                        +--- the control, if the engine of another variant could not begin

However it ends, it is recorded once: one row, one observation of each metric.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from luthier.serving.api.chat import ChatRequest, engine_request, parse_chat
from luthier.serving.api.completion import Envelope, Finish, Usage, new_id
from luthier.serving.api.errors import ApiError, Code, invalid, timed_out, unavailable
from luthier.serving.engines.engine import Piece, read_piece
from luthier.serving.live import Gateway, Served
from luthier.serving.placeholders import Restorer
from luthier.serving.records.logged import LoggedRequest
from luthier.serving.routing import Route, hash_subject
from luthier.text.language import language_of
from luthier.text.prepare import Message, PromptSettings, ScrubSettings, prepare, scrub_messages, scrub_text

logger = logging.getLogger(__name__)

LONG = 20_000
"""Characters of text from which on cleaning and scrubbing leave the event loop: below, a thread costs more than it spares."""
Result = TypeVar("Result")


@dataclass
class Begun:
    """An answer that has begun: all of it, or of a stream the first piece."""

    envelope: Envelope
    restorer: Restorer
    """Puts the client's values back."""
    first: Piece = field(default_factory=Piece)
    chunks: AsyncIterator[dict[str, Any]] | None = None
    """Of a stream, the rest."""
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Closing it frees the engine's place, and ends the engine's call."""


class Exchange:
    """A request under way, and what is known of it."""

    def __init__(self, gateway: Gateway, client: str | None, shadow_of: str | None = None) -> None:
        """Begin to count the time.

        Args:
            gateway: what is served; the exchange keeps what is live now to its end.
            client: name of the key.
            shadow_of: the request that this one stands beside.
        """
        self.gateway, self.live, self.limits = gateway, gateway.live, gateway.parameters.limits
        self.id, self.client, self.shadow_of = new_id(), client, shadow_of
        self.at, self._began = datetime.now(UTC), time.monotonic()
        self.asked: ChatRequest
        self.model = ""
        self.subject: str | None = None
        self.raw: list[Message] = []
        self.turns: list[Message] | None = None
        self.route: Route | None = None
        self.answered = False
        """Whether the engine has said anything."""
        self.said: list[str] = []
        self.finish: Finish | None = None
        self.used: Usage | None = None
        self.first_token_seconds: float | None = None
        self._recorded = False

    # --- what is asked

    async def understand(self, body: bytes, headers: Mapping[str, str]) -> Route:
        """Read the body, and return which version is to answer.

        Raises:
            ApiError: if the request is wrong, too early, or too late.
        """
        if self.gateway.draining:
            raise unavailable("This server is about to stop: try again.", "draining")
        self.gateway.rate.take(self.client or "")
        self.live = self.gateway.live
        self.asked = await off_loop(len(body), parse_chat, body, self.limits)
        self.model, self.raw = self.asked.model, self.asked.turns()
        subject = headers.get(self.gateway.parameters.subject_header) or self.asked.subject or self.id
        self.subject = hash_subject(subject, self.gateway.subject_key)
        self.route = route = self.live.table.route(
            self.model, subject, lambda version: self.live.ready(version, self.limits.total_seconds)
        )
        return route

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        found = {"x-request-id": self.id}
        if self.answered and self.route is not None:
            found["x-luthier-version"] = str(self.route.version)
            if self.route.served is not None:
                found["x-luthier-variant"] = self.route.served
        return found

    # --- what is answered

    async def begin(self, route: Route) -> Begun:
        """Return the answer, or the beginning of a stream: the control's, where the engine on the route could not begin.

        Raises:
            ApiError: if nothing answers.
        """
        try:
            return await self._ask(route)
        except ApiError as error:
            control = self.live.table.fallback(route)
            if control is None or error.status not in (429, 503):
                raise
            logger.warning("Version %d could not begin (%s): the control answers.", route.version, error.code)
        self.route = control
        return await self._ask(control)

    async def _ask(self, route: Route) -> Begun:
        served = self.live.engines[route.version]
        self.turns, values = await self._prepared(served.prompts)
        self.said, self.finish, self.used = [], None, None  # of an engine that could not go on
        body = engine_request(self.asked, self.turns, self.live.table.model_of(route.version), self._limit(served, self.turns))
        restorer = Restorer(values, in_json=self.asked.response_format is not None and self.asked.response_format.type != "text")
        metrics, model = self.gateway.metrics, self.live.table.model_of(route.version)
        begun = Begun(Envelope(model, self.id, fingerprint=served.fingerprint, counts_tokens=self.asked.counts_tokens), restorer)
        async with AsyncExitStack() as held:
            await held.enter_async_context(served.slots.one(self.limits, metrics.running, metrics.queued))
            if self.asked.stream:
                chunks = await held.enter_async_context(aclosing(served.engine.stream(body)))
                begun.chunks, begun.first = chunks, await self._first(chunks)
                begun.held = held.pop_all()
            else:
                async with self.in_time():
                    begun.first = self._heard(await served.engine.chat(body))
                if begun.first.finish is None or begun.first.used is None:
                    raise unavailable("The engine broke off.")
        self.answered = True
        return begun

    async def _prepared(self, prompts: PromptSettings) -> tuple[list[Message], dict[str, str]]:
        turns = self.raw
        if prompts.system and not any(turn["role"] == "system" for turn in turns):
            turns = [{"role": "system", "content": prompts.system}, *turns]
        return await off_loop(_work(turns, prompts.scrub), prepare, turns, prompts, self.gateway.pii_key)

    def _limit(self, served: Served, turns: Sequence[Message]) -> int | None:
        """Return the tokens at which the answer is cut; None leaves that to the engine, which alone can count the prompt.

        Raises:
            ApiError: 400 if the client asks for more than there ever is.
        """
        limit = self.asked.limit
        if limit is not None and limit >= served.context:
            field = "max_completion_tokens" if self.asked.max_completion_tokens else "max_tokens"
            told = f"{field}: the context holds {served.context:,} tokens, with the messages; {limit:,} do not fit."
            raise invalid(told, field, "context_length_exceeded")
        if limit is not None or served.max_new_tokens is None:
            return limit
        # a default that does not fit would be refused though the client has not asked for it. No token has less than a byte, and
        # JSON writes no less around a turn than a chat template
        prompt = len(json.dumps(turns, ensure_ascii=False).encode(errors="replace"))
        return served.max_new_tokens if prompt + served.max_new_tokens <= served.context else None

    async def _first(self, chunks: AsyncIterator[dict[str, Any]]) -> Piece:
        """Return the first piece that says anything."""
        seconds = self.limits.first_token_seconds
        try:
            async with self.in_time(), asyncio.timeout(seconds):
                async for chunk in chunks:
                    if (piece := self._heard(chunk)).shows:
                        self.first_token_seconds = time.monotonic() - self._began
                        return piece
        except TimeoutError:
            raise timed_out("the first token", seconds, "first_token_timeout") from None
        raise unavailable("The engine broke off.")

    async def pieces(self, begun: Begun) -> AsyncIterator[Piece]:
        """Yield what the engine says, from the first piece on.

        Raises:
            ApiError: if it breaks off.
        """
        yield begun.first
        if begun.chunks is not None:
            async for chunk in begun.chunks:
                yield self._heard(chunk)

    def _heard(self, said: Mapping[str, Any]) -> Piece:
        try:
            piece = read_piece(said)
        except ValueError as error:
            logger.warning("%s", error)
            raise unavailable("The engine broke off.") from None
        self.said.append(piece.text)
        self.finish, self.used = piece.finish or self.finish, piece.used or self.used
        return piece

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Bound what is done by the time that is left to the whole answer.

        Raises:
            ApiError: 503 if it is over.
        """
        left = self.limits.total_seconds - (time.monotonic() - self._began)
        whole = asyncio.timeout(left)
        try:
            async with whole:
                yield
        except TimeoutError:
            if not whole.expired():
                raise
            raise timed_out("the answer", self.limits.total_seconds) from None

    # --- how it ended

    async def end(self, status: int, error: Code | None = None) -> None:
        """Record the request; what is kept of its text is scrubbed. A shadow begins now, where nobody waits any more."""
        turns, answer, language = self.turns, "".join(self.said) if self.answered else None, None
        if turns is not None and self.route is not None:
            prompts = self.live.engines[self.route.version].prompts
            turns, answer, language = await off_loop(
                _work(turns, prompts.scrub, answer), _known, turns, answer, prompts, self.gateway.pii_key
            )
        self.record(status, error, turns, answer, language)
        if error is None and self.shadow_of is None and self.route is not None and self.route.shadow is not None:
            self.gateway.do_behind(self._shadow(self.route.shadow))

    def record(
        self,
        status: int,
        error: Code | None = None,
        turns: Sequence[Message] | None = None,
        answer: str | None = None,
        language: str | None = None,
    ) -> None:
        """Count the request and log it, once."""
        if self._recorded:
            return
        self._recorded = True
        seconds = time.monotonic() - self._began
        route, answered = self.route, self.route if self.answered else None
        version, served = (answered.version, answered.served) if answered else (None, None)
        prompt, completion = (self.used["prompt_tokens"], self.used["completion_tokens"]) if self.used else (None, None)
        self.gateway.metrics.request(
            self.model,
            None if version is None else self.live.table.model_of(version),
            version,
            served,
            seconds,
            self.first_token_seconds,
            prompt,
            completion,
            error,
            self.finish,
            operation="shadow" if self.shadow_of else "chat",
        )
        row = LoggedRequest(
            request=self.id,
            at=self.at,
            asked=self.model,
            status=status,
            seconds=seconds,
            streamed=bool(self.model and self.asked.stream),
            client=self.client,
            experiment=route.experiment if route else None,
            assigned=route.assigned if route else None,
            served=served,
            version=version,
            manifest=answered.manifest if answered else None,
            shadow_of=self.shadow_of,
            subject=self.subject,
            error=error,
            finish=self.finish,
            first_token_seconds=self.first_token_seconds,
            prompt_tokens=prompt,
            completion_tokens=completion,
            language=language,
            messages=turns,
            answer=answer,
        )
        if turns is not None and self.shadow_of is None:
            self.gateway.metrics.asked(sum(len(turn["content"]) for turn in turns), language, row.findings)
        self.gateway.log.put(row)

    async def _shadow(self, version: int) -> None:
        """Let another version answer the same; nobody is shown what it says."""
        other = Exchange(self.gateway, self.client, shadow_of=self.id)
        other.asked = self.asked.model_copy(update={"stream": None, "stream_options": None})
        other.live, other.model, other.raw, other.subject = self.live, self.model, self.raw, self.subject
        try:
            experiment = self.route.experiment if self.route else None
            other.route = Route(version, self.live.table.versions[version], experiment=experiment)
            await other.begin(other.route)
        except ApiError as error:
            await other.end(error.status, error.code)
        except asyncio.CancelledError:
            other.record(503, "draining")
            raise
        except Exception:
            logger.exception("A shadow failed.")
            other.record(500, "internal_error")
        else:
            await other.end(200)


async def off_loop(size: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function, in a thread if what it works on is large."""
    return await asyncio.to_thread(function, *arguments) if size >= LONG else function(*arguments)


def _work(turns: Sequence[Message], scrub: ScrubSettings | None, answer: str | None = None) -> int:
    """Return how much there is to clean and scrub, in characters; a model that finds names is slow on any text."""
    if scrub is not None and scrub.presidio is not None:
        return LONG
    return sum(len(turn["content"]) for turn in turns) + len(answer or "")


def _known(
    turns: list[Message], answer: str | None, prompts: PromptSettings, key: str
) -> tuple[list[Message], str | None, str | None]:
    """Return what the log may keep, scrubbed as the prompts are (by all patterns where those are not), and the language."""
    settings = prompts.scrub or ScrubSettings()
    if prompts.scrub is None:
        turns = [turn for turn, _ in scrub_messages(turns, prompts.model_copy(update={"scrub": settings}), key)]
    language = language_of("\n".join(turn["content"] for turn in turns if turn["role"] == "user"))
    return turns, None if answer is None else scrub_text(answer, settings, key)[0], language
