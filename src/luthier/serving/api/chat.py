"""What a client of `POST /v1/chat/completions` may ask: OpenAI's request, checked.

What works is a field of `ChatRequest`. What OpenAI knows and this server does not is refused by name, with what to do; only a
value that asks for nothing, such as `frequency_penalty: 0`, passes. Anything else is unknown.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import ConfigDict, Field, field_validator, model_validator

from luthier.artefacts import canonical_json
from luthier.serving.api.bodies import Body, Problem, read_json, together, validated, wrong
from luthier.serving.api.errors import invalid
from luthier.serving.api.messages import ChatMessage
from luthier.text.prepare import Message, RowError
from luthier.text.turns import kind_of, read_turns

MOST_STOPS = 4
MOST_TOP_LOGPROBS = 20
LONGEST_SCHEMA = 32_000
"""Characters of a schema: compiling one takes time by its length."""


class Limits(Protocol):
    """How large a request may be; `parameters.LimitParameters` is one."""

    @property
    def body_bytes(self) -> int:
        """Bytes of the body."""

    @property
    def json_depth(self) -> int:
        """Lists and objects within one another."""

    @property
    def messages(self) -> int:
        """Turns of the conversation."""

    @property
    def characters(self) -> int:
        """Characters of all turns together."""


class JsonSchema(Body):
    """A schema that the answer must satisfy."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    """Of the schema."""
    description: str | None = None
    """What it is for; not shown to the model."""
    schema_: dict[str, Any] = Field(alias="schema")
    """JSON Schema; the engine, which has to compile it, refuses what is none."""
    strict: bool | None = None
    """The answer satisfies the schema either way."""

    @field_validator("schema_")
    @classmethod
    def _is_short(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if len(canonical_json(schema)) > LONGEST_SCHEMA:
            raise ValueError(f"is longer than {LONGEST_SCHEMA:,} characters")
        return schema


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]
    """`text`"""


class JsonFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]
    """`json_object`"""


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    """`json_schema`"""
    json_schema: JsonSchema
    """The schema."""


class StreamOptions(Body):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None
    """Whether a last chunk counts the tokens."""
    include_obfuscation: bool | None = None
    """Padding of chunks is not offered: false or nothing."""

    @field_validator("include_obfuscation")
    @classmethod
    def _is_off(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("is not supported: send false, or leave it out")
        return value


class ChatRequest(Body):
    """A conversation to be continued by one turn of the assistant's."""

    model: str = Field(min_length=1, max_length=256)
    """`luthier` (the running experiment decides), an alias such as `champion`, or a version such as `luthier@3`."""
    messages: list[ChatMessage] = Field(min_length=1)
    """The turns so far."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """Where the answer is cut; null is the server's choice."""
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """The older name of max_completion_tokens."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token each time; null is 1."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Draw from the likeliest tokens that together have this share; null is 1."""
    stop: str | list[str] | None = None
    """Up to 4 texts at which the answer ends; they are not part of it."""
    logprobs: bool | None = None
    """Whether to tell the log-probability of each token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    """How many likely tokens to tell at each place; needs logprobs."""
    response_format: TextFormat | JsonFormat | SchemaFormat | None = Field(default=None, discriminator="type")
    """`text`, `json_object` or `json_schema`."""
    stream: bool | None = None
    """Whether to send the answer as it is written, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Needs stream."""
    n: int | None = Field(default=None, ge=1, le=1)
    """One answer a request."""
    seed: int | None = None
    """Taken with temperature 0, where every answer is the same anyway."""
    user: str | None = Field(default=None, max_length=512)
    """Who asks: the same user keeps the same variant. Only a hash of it is kept."""
    safety_identifier: str | None = Field(default=None, max_length=512)
    """OpenAI's newer name of `user`."""
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    """Taken and not used."""
    prompt_cache_key: str | None = Field(default=None, max_length=512)
    """A hint; taken and not used."""

    @field_validator("stop", mode="before")
    @classmethod
    def _few_stops(cls, stop: Any) -> Any:
        texts = [stop] if isinstance(stop, str) else stop
        if texts is None:
            return None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"must be text or a list of texts, not {kind_of(stop)}{' of other things' * isinstance(stop, list)}")
        if len(texts) > MOST_STOPS:
            raise ValueError(f"holds {len(texts)} texts, and {MOST_STOPS} are allowed")
        if not all(texts):
            raise ValueError("holds an empty text, at which every answer would end before it began")
        return stop

    @model_validator(mode="after")
    def _goes_together(self) -> "ChatRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise wrong("max_tokens", "is another name of max_completion_tokens: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "needs stream: true")
        if self.seed is not None and not self.is_greedy:
            raise wrong("seed", "is not supported where answers are drawn by chance: set temperature to 0, or leave seed out")
        if self.messages[-1].role == "assistant":
            raise wrong("messages", "end with the assistant's turn: there is nothing to answer, and turns are not continued")
        if all(message.role in ("system", "developer") for message in self.messages):
            raise wrong("messages", "hold no turn of the user's: nothing is asked")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens at which the answer is cut, by either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time: at temperature 0, or where only one token is drawn from."""
        return self.temperature == 0 or self.top_p == 0

    @property
    def stops(self) -> list[str]:
        """Texts at which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def subject(self) -> str | None:
        """Who asks, by either name."""
        return self.user or self.safety_identifier

    @property
    def counts_tokens(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def turns(self) -> list[Message]:
        """Return the conversation as data processing reads one."""
        return read_turns("messages", [message.model_dump(exclude_none=True) for message in self.messages])


# What OpenAI knows besides: what to do, and the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "audio": ("only text is written", ()),
    "frequency_penalty": ("leave it out", (0,)),
    "function_call": ("describe the functions in a system message", ("none",)),
    "functions": ("describe them in a system message", ([],)),
    "logit_bias": ("leave it out, or restrict the answer by response_format", ({},)),
    "modalities": ("only text is written", (["text"],)),
    "moderation": ("leave it out", ()),
    "parallel_tool_calls": ("describe the tools in a system message", (True, False)),
    "prediction": ("leave it out: the answer is the same without", ()),
    "presence_penalty": ("leave it out", (0,)),
    "prompt_cache_options": ("leave it out: what is cached is the server's choice", ()),
    "prompt_cache_retention": ("leave it out: what is cached is the server's choice", ()),
    "reasoning_effort": ("leave it out", ("none",)),
    "service_tier": ("leave it out: there is one tier", ("auto", "default")),
    "store": ("answers cannot be fetched again: keep yours", (False,)),
    "tool_choice": ("describe the tools in a system message", ("none", "auto")),
    "tools": ("describe them in a system message, and ask for JSON by response_format", ([],)),
    "verbosity": ("leave it out, or limit max_completion_tokens", ()),
    "web_search_options": ("nothing is searched: put what the answer needs into a message", ()),
}


def parse_chat(body: bytes, limits: Limits) -> ChatRequest:
    """Read a request.

    Args:
        body: as it came.
        limits: of its size.

    Raises:
        ApiError: 413 if the body is too large, and 400 for everything else, with all that is wrong.
    """
    given = read_json(body, limits.body_bytes, limits.json_depth)
    problems: list[Problem] = []
    for name in [name for name in given if name in UNSUPPORTED]:
        value = given.pop(name)
        instead, neutral = UNSUPPORTED[name]
        if value is not None and value not in neutral:
            problems.append((name, f"is not supported: {instead}", "unsupported_parameter"))
    request = validated(ChatRequest, given, problems)
    if len(request.messages) > limits.messages:
        told = f"there are {len(request.messages)} of them, and {limits.messages} are allowed"
        raise together([("messages", told, "invalid_value")])
    try:
        turns = request.turns()
    except RowError as error:
        raise invalid(f"{error}.", "messages") from None
    characters = sum(len(turn["content"]) + len(turn.get("tool_calls", "")) for turn in turns)
    if characters > limits.characters:
        raise invalid(f"messages: they hold {characters:,} characters, and {limits.characters:,} are allowed.", "messages")
    return request


def engine_request(request: ChatRequest, turns: Sequence[Message], model: str, max_tokens: int | None) -> dict[str, Any]:
    """Return the body to send to the engine that answers.

    Args:
        request: the client's.
        turns: what the model is asked, after `luthier.text.prepare.prepare`.
        model: what the engine calls the model.
        max_tokens: where the answer is cut; None leaves that to the engine.
    """
    body: dict[str, Any] = {"model": model, "messages": [_spelt(turn) for turn in turns]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if request.is_greedy:  # engines differ in whether they take a nucleus of 0
        body["temperature"] = 0.0
    else:
        body |= {"temperature": _or_one(request.temperature), "top_p": _or_one(request.top_p)}
    if request.stops:
        body["stop"] = request.stops
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.response_format is not None and request.response_format.type != "text":
        body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _spelt(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn as the API has it: calls as a list, nothing that is null."""
    turn = {name: value for name, value in message.items() if value is not None}
    return turn | {"tool_calls": json.loads(turn["tool_calls"])} if "tool_calls" in turn else turn
