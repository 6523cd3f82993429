"""What a version's engine looks like to the gateway: a server of OpenAI's chat completions, wherever it runs."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.serving.api.completion import Finish, TokenLogprob, Usage, token_logprob, usage


@dataclass(frozen=True)
class Status:
    """How an engine is."""

    alive: bool
    """Whether a request would be tried."""
    running: int
    """Requests that it is answering."""
    queued: int
    """Requests that wait in it, as far as it says."""
    tokens_total: int
    """Tokens of answers since it started."""
    last_progress: float | None
    """`time.monotonic()` of the last token, or of the first request after a time without any; None before it."""
    cached: int | None = None
    """Tokens whose keys and values it holds, as far as it says."""


class Engine(Protocol):
    """Answers the bodies that `chat.engine_request` makes. Cancelling a call ends the generation behind it."""

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole completion.

        Raises:
            ApiError: if it cannot answer, as the client is to be told.
        """

    def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a completion, to its end.

        Raises:
            ApiError: if it cannot answer, or not to the end, as the client is to be told.
        """

    def status(self) -> Status:
        """Return how it is, at once."""

    async def close(self) -> None:
        """End it, and the calls under way."""


@dataclass(frozen=True)
class Piece:
    """What a completion says, or one of its chunks."""

    text: str = ""
    logprobs: list[TokenLogprob] | None = None
    finish: Finish | None = None
    used: Usage | None = None

    @property
    def shows(self) -> bool:
        """Whether a client sees any of it."""
        return bool(self.text or self.logprobs or self.finish)


def part_of(said: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    """Return the `message` of a completion's choice or the `delta` of a chunk's; None if there is none."""
    choices = said.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    found = choice.get(part) if isinstance(choice, dict) else None
    return found if isinstance(found, dict) else None


def begins(chunk: Mapping[str, Any]) -> bool:
    """Tell whether a client has seen something of the answer after this chunk, as it came; who speaks is nothing yet."""
    delta = part_of(chunk, "delta")
    if delta is None:
        return False
    choice = chunk["choices"][0]
    return bool(delta.get("content") or choice.get("logprobs") or choice.get("finish_reason"))


def read_piece(said: Mapping[str, Any]) -> Piece:
    """Return what a completion or a chunk says; engines differ in what else stands in one.

    Raises:
        ValueError: if it is neither.
    """
    try:
        choice = said["choices"][0] if said["choices"] else {}
        text = (choice.get("message") or choice.get("delta") or {}).get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        listed = (choice.get("logprobs") or {}).get("content")
        counted = said.get("usage")
        return Piece(
            text,
            None if listed is None else [_logprob(entry) for entry in listed],
            # some engines tell more reasons; only a cut is none of the model's own
            choice.get("finish_reason") and ("length" if choice["finish_reason"] == "length" else "stop"),
            usage(int(counted["prompt_tokens"]), int(counted["completion_tokens"])) if counted else None,
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"an engine says what is no completion: {error!r}") from error


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    others = entry.get("top_logprobs") or []
    told = token_logprob(entry["token"], entry["logprob"], [(other["token"], other["logprob"]) for other in others])
    # the engine knows the bytes of half a character; its text does not
    for ours, theirs in ((told, entry), *zip(told["top_logprobs"], others, strict=True)):
        ours["bytes"] = theirs["bytes"] if isinstance(theirs.get("bytes"), list) else ours["bytes"]
    return told
