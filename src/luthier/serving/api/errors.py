"""What a client is told when its request fails: status and body as OpenAI's API has them.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Messages are written for the client: no path, key, stack trace or host of ours stands in them.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict, get_args

from luthier.errors import did_you_mean

ClientsCode = Literal[
    "invalid_json",
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
    "context_length_exceeded",
    "request_too_large",
    "invalid_api_key",
    "model_not_found",
    "request_not_found",
    "not_found",
    "method_not_allowed",
    "conflict",
    "rate_limit_exceeded",
    "client_disconnected",
]
"""What a client brings about: it says nothing of the model that was to answer."""
OurCode = Literal[
    "queue_full",
    "queue_timeout",
    "first_token_timeout",
    "timeout",
    "engine_unavailable",
    "draining",
    "log_unavailable",
    "internal_error",
]
Code = Literal[ClientsCode, OurCode]
"""Why a request failed: the closed set that answers, the request log and the metrics share."""
_PLACE = re.compile(r"\w+://\S+|(?<![\w.])/(?:[\w.@-]+/)+[\w.@-]*|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
CODES: tuple[Code, ...] = get_args(Code)


class ErrorDetails(TypedDict):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(TypedDict):
    """Body of every answer that is none."""

    error: ErrorDetails


class ApiError(Exception):
    """A request that fails, as its client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        code: Code,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what is wrong.

        Args:
            status: of HTTP.
            message: what is wrong and what to do instead, for the client's eyes.
            code: why, for programs.
            param: the field of the request, such as `messages[0].content`.
            kind: OpenAI's `type`.
            headers: of the answer.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.kind = status, message, code, param, kind
        self.headers = dict(headers or {})

    def body(self) -> ErrorBody:
        """Return the body of the answer, or of the event in a stream that has begun."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def without_places(text: str) -> str:
    """Return a text on one line without addresses and paths of a server: they are none of a client's business."""
    return " ".join(_PLACE.sub("...", text).split())


def invalid(message: str, param: str | None = None, code: Code = "invalid_value") -> ApiError:
    """Return a 400: the request as it stands will never be answered."""
    return ApiError(400, message, code, param)


def too_large(limit: int) -> ApiError:
    """Return a 413 for a body of more bytes than the limit."""
    return ApiError(413, f"The body is larger than {limit:,} bytes.", "request_too_large")


def context_exceeded(prompt: int, asked: int, context: int) -> ApiError:
    """Return a 400 for tokens of prompt and answer that do not fit the context together."""
    return ApiError(
        400,
        f"This model's context holds {context:,} tokens, and the request needs {prompt + asked:,}: {prompt:,} in the messages "
        f"and {asked:,} for the answer. Shorten the messages or lower max_completion_tokens.",
        "context_length_exceeded",
        "messages",
    )


def bad_key() -> ApiError:
    """Return a 401, which does not tell whether a key was missing or wrong."""
    message = "No valid API key: send it in the header `Authorization: Bearer KEY`."
    return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def unknown_model(asked: str, known: Iterable[str]) -> ApiError:
    """Return a 404 that lists the models that are served."""
    names = list(known)
    shown = asked if len(asked) <= 80 else f"{asked[:80]}..."
    return ApiError(
        404,
        f"There is no model {shown!r}{did_you_mean(shown, names)}. This server has {', '.join(names)}.",
        "model_not_found",
        "model",
    )


def busy(message: str, retry_after: float, code: Code = "rate_limit_exceeded") -> ApiError:
    """Return a 429 that says after how many seconds to try again."""
    return ApiError(429, message, code, kind="rate_limit_error", headers=_retry(retry_after))


def unavailable(message: str, code: Code = "engine_unavailable", retry_after: float = 1.0) -> ApiError:
    """Return a 503: the request was fine, and nothing can answer it now."""
    return ApiError(503, message, code, kind="server_error", headers=_retry(retry_after))


def timed_out(what: str, seconds: float, code: Code = "timeout") -> ApiError:
    """Return a 503 for what took longer than it may, such as `the first token`."""
    return unavailable(f"Waiting for {what} took longer than {seconds:g} s.", code)


def internal() -> ApiError:
    """Return a 500 that says nothing of the reason: the gateway's own log has it."""
    return ApiError(500, "The server failed. Its log has the details.", "internal_error", kind="server_error")


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
