"""What a client of `POST /v1/chat/completions` gets: OpenAI's completion, or its chunks as server-sent events.

    chunk(role) -> chunk(text) ... -> chunk(finish_reason) -> [chunk(usage)] -> [DONE]

Chunks are plain dictionaries: one is made for every token.
"""

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from luthier.serving.api.errors import ApiError

Finish = Literal["stop", "length"]
DONE = b"data: [DONE]\n\n"
"""What ends a stream of events."""
LOWEST_LOGPROB = -9999.0
"""OpenAI's value for a token that is as good as impossible; JSON has no infinity."""


class TopLogprob(TypedDict):
    """A token that could have stood in a place."""

    token: str
    logprob: float
    bytes: list[int] | None
    """UTF-8 of the token: a character may be spread over several tokens."""


class TokenLogprob(TopLogprob):
    """The token that stands in a place."""

    top_logprobs: list[TopLogprob]


class Logprobs(TypedDict):
    """Log-probabilities of an answer, token by token."""

    content: list[TokenLogprob]
    refusal: None


class Usage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(TypedDict):
    """The answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class Completion(TypedDict):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[Choice]
    usage: Usage


class Delta(TypedDict, total=False):
    """A piece of the assistant's turn."""

    role: Literal["assistant"]
    content: str


class ChunkChoice(TypedDict):
    """A piece of the answer."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: Finish | None


class Chunk(TypedDict):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


def new_id() -> str:
    """Return an id that no other request has."""
    return f"chatcmpl-{secrets.token_hex(16)}"


def usage(prompt: int, completion: int) -> Usage:
    """Return the count of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def token_logprob(token: str, logprob: float, top: Sequence[tuple[str, float]] = ()) -> TokenLogprob:
    """Return a token with its log-probability and the likeliest tokens in its place."""
    return {**_logprob(token, logprob), "top_logprobs": [_logprob(*other) for other in top]}


def _logprob(token: str, logprob: float) -> TopLogprob:
    # half of a character decodes to the replacement sign, or is a half surrogate: neither is what its bytes are
    known = "\ufffd" not in token and token == token.encode(errors="replace").decode()
    # rounding may put it a little above 0
    value = LOWEST_LOGPROB if math.isnan(logprob) else min(max(logprob, LOWEST_LOGPROB), 0.0)
    return {"token": token, "logprob": value, "bytes": list(token.encode()) if known else None}


@dataclass(frozen=True)
class Envelope:
    """What the completion of a request, or each of its chunks, begins with."""

    model: str
    """The version that answers, such as `luthier@3`."""
    id: str = field(default_factory=new_id)
    """Of the request; feedback names it."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    fingerprint: str | None = None
    """The beginning of the manifest's hash: the same weights and settings."""
    counts_tokens: bool = False
    """Whether chunks have a field of usage, and the last one fills it."""

    def completion(self, text: str, finish: Finish, used: Usage, logprobs: Sequence[TokenLogprob] | None = None) -> Completion:
        """Return a whole answer."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": _logprobs(logprobs),
                    "finish_reason": finish,
                }
            ],
            "usage": used,
        }

    def opening(self) -> Chunk:
        """Return the first chunk: who speaks."""
        return self._chunk([_piece({"role": "assistant", "content": ""})])

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] | None = None) -> Chunk:
        """Return a chunk of text."""
        return self._chunk([_piece({"content": text}, logprobs)])

    def ending(self, finish: Finish) -> Chunk:
        """Return the chunk that says why the answer ends."""
        return self._chunk([_piece({}, finish=finish)])

    def tally(self, used: Usage) -> Chunk:
        """Return the chunk after the ending, if the client asked for the count of tokens."""
        return {**self._chunk([]), "usage": used}

    def _chunk(self, choices: list[ChunkChoice]) -> Chunk:
        chunk: Chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if self.counts_tokens:
            chunk["usage"] = None
        return chunk


def _logprobs(content: Sequence[TokenLogprob] | None) -> Logprobs | None:
    return None if content is None else {"content": list(content), "refusal": None}


def _piece(delta: Delta, logprobs: Sequence[TokenLogprob] | None = None, finish: Finish | None = None) -> ChunkChoice:
    return {"index": 0, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": finish}


# No line breaks to the standard of server-sent events, but to clients that split with Python's splitlines.
_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def event(data: Mapping[str, Any]) -> bytes:
    """Return a chunk, or the body of an error, as a server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_BREAKS)
    return b"data: " + text.encode(errors="replace") + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """Return an error for a stream that has begun: the status 200 is sent already, and OpenAI's clients raise on this.

    No `[DONE]` follows it: the answer is not done.
    """
    return event(error.body())
