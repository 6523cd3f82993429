"""Let a model behind an OpenAI-compatible endpoint answer: vLLM, llama.cpp, Ollama, a hosted model.

One request at first shows whether address, key and model are right, and what the server understands: some want
`max_completion_tokens`, some know no `logprobs`, some take no `temperature`. Then requests go out side by side. What a server may
get over is asked again, later and later; what it will not is told at once, or kept as the refusal of this one conversation.

The key stands in an environment variable. It is in no log, no error, no identity.
"""

import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from luthier.answers import Progress, Refusal
from luthier.artefacts import canonical_json
from luthier.configuration import Parameters
from luthier.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from typing import TypeAlias

    import requests

    from luthier.generation import Answer
    from luthier.text.prepare import Message

    Reply: TypeAlias = "Answer | Refusal"

logger = logging.getLogger(__name__)
KEY_VARIABLE = "OPENAI_API_KEY"
"""Where the key is if no other variable is named: what OpenAI's own clients read."""
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for more is not waited for."""
FIRST_WAIT, LONGEST_STEP = 0.5, 30.0
_OURS = ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Busy, overloaded, gone for a moment: RFC 9110, and 529 of Anthropic's servers.
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Endpoint(Parameters):
    """A server that speaks OpenAI's chat completions, and the model to ask for."""

    url: str
    """What stands before `/chat/completions`, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: str = Field(min_length=1)
    """The model, as the server calls it."""
    key_variable: str | None = Field(default=None, pattern=f"^{_VARIABLE.pattern}$")
    """Environment variable that holds the key; null takes OPENAI_API_KEY where it is set. Never the key itself."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests under way at a time."""
    timeout_seconds: float = Field(default=120, gt=0)
    """How long to wait for an answer."""
    retries: int = Field(default=6, ge=0)
    """How often to ask again when the server is busy, fails, or breaks off; the waits double from half a second."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as `{seed: 7, reasoning_effort: low}`."""

    @model_validator(mode="before")
    @classmethod
    def _show_no_key(cls, values: Any) -> Any:
        # a key written where its variable belongs must not be repeated by the error about it
        name = values.get("key_variable") if isinstance(values, Mapping) else None
        if isinstance(name, str) and not _VARIABLE.fullmatch(name):
            return {**values, "key_variable": "(the name of an environment variable belongs here, never a key)"}
        return values

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and name a host, such as https://api.openai.com/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must end with its path: a key goes into the variable of key_variable, other fields into extra")
        return url.rstrip("/").removesuffix("/chat/completions")

    @field_validator("extra")
    @classmethod
    def _leaves_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(set(extra) & set(_OURS)):
            raise ValueError(f"{', '.join(ours)} cannot be set here")
        return extra

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


class _StoppedError(Exception):
    """Another request has failed: this one is not sent."""


class EndpointAnswerer:
    """Asks an endpoint; see `luthier.answers.Answerer`."""

    def __init__(self, name: str, endpoint: Endpoint, max_new_tokens: int, parameter: str = "endpoint") -> None:
        """Name the endpoint; nothing is sent before `check` or `answer`.

        Args:
            name: what to call the model.
            endpoint: where it is.
            max_new_tokens: where an answer is cut.
            parameter: the block that `endpoint` came from, for errors.
        """
        self.name = name
        self.endpoint = endpoint
        self.max_new_tokens = max_new_tokens
        self._parameter = parameter
        self._fields: dict[str, Any] | None = None
        self._served: set[str] = set()
        self._not_before = 0.0

    @property
    def identity(self) -> str:
        """Address, model and settings. What a server calls by this name may change: that is not ours to know."""
        settings = {"max_tokens": self.max_new_tokens, "temperature": 0, **self.endpoint.extra}
        return f"{self.endpoint.url} {self.endpoint.model} {canonical_json(settings)}"

    def facts(self) -> dict[str, Any]:
        """Return what the server said that it was."""
        return {"served_as": sorted(self._served)}

    def check(self) -> None:
        """Send one request, to find out what this server understands.

        Raises:
            UserError: if address, key or model are wrong, or the server speaks something else.
        """
        if self._fields is not None:
            return
        with_key = f" with the key in {self._variable()}" if self._key() else ""
        logger.info("%s: messages go to %s%s.", self.name, self.endpoint.url, with_key)
        address = urlsplit(self.endpoint.url)
        if with_key and address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
            logger.warning("%s: the key goes to %s unencrypted: https:// would hide it.", self.name, self.endpoint.host)
        fields = {"model": self.endpoint.model, "temperature": 0, "logprobs": True, "max_tokens": self.max_new_tokens}
        fields |= self.endpoint.extra
        with self._session() as session:
            while True:
                asked = {**fields, "messages": [{"role": "user", "content": "Hello"}]}
                response, seconds = self._post(session, asked, Event(), first=True)
                if response.status_code == 200:
                    self._read(response, seconds)
                    break
                adapted = self._adapted(fields, response)
                if adapted is None:
                    raise self._mistake(response)
                fields = adapted
        self._fields = fields

    def answer(self, conversations: Sequence[Sequence["Message"]], progress: Progress) -> list["Reply"]:
        """Ask about each conversation, several at a time, and return the replies in their order.

        Args:
            conversations: the turns before the answer.
            progress: called with the number of answers that came in.

        Raises:
            UserError: if the server cannot be used, or did not get over its trouble.
        """
        self.check()
        stop = Event()
        replies: dict[int, Reply] = {}
        pool = ThreadPoolExecutor(self.endpoint.concurrency)
        with self._session() as session:
            asked = {pool.submit(self._reply, session, turns, stop): number for number, turns in enumerate(conversations)}
            try:
                for done in as_completed(asked):
                    with suppress(_StoppedError):  # the failure that stopped it is still to come
                        replies[asked[done]] = done.result()
                        progress(1)
            finally:
                # after an error nobody waits for his turn any more, and the error does not wait for what is under way
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        return [replies[number] for number in range(len(replies))]

    # --- one request

    def _reply(self, session: "requests.Session", turns: Sequence["Message"], stop: Event) -> "Reply":
        try:
            response, seconds = self._post(session, {**(self._fields or {}), "messages": list(map(_spelt, turns))}, stop)
            if response.status_code == 200:
                return self._read(response, seconds)
            if response.status_code in (400, 413, 422):  # about this conversation: any other was taken as it is
                return Refusal(f"{self.endpoint.host} refuses it ({response.status_code}): {self._told(response)}")
            raise self._mistake(response)
        except UserError:
            stop.set()
            raise

    def _post(
        self, session: "requests.Session", body: Mapping[str, Any], stop: Event, first: bool = False
    ) -> tuple["requests.Response", float]:
        """Send a request until it is answered, and return the answer and how many seconds the last try took.

        Raises:
            UserError: if the trouble does not pass.
        """
        import requests

        for attempt in range(self.endpoint.retries + 1):
            self._wait(stop, self._not_before - time.monotonic())
            began = time.monotonic()
            asked_to_wait: float | None = None
            try:
                response = session.post(
                    f"{self.endpoint.url}/chat/completions",
                    json=body,
                    auth=self._authorise,
                    timeout=(min(10.0, self.endpoint.timeout_seconds), self.endpoint.timeout_seconds),
                    allow_redirects=False,
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                trouble = self._shown(str(_cause(error)))
                if (first and _nobody_there(error)) or isinstance(error, requests.exceptions.SSLError):
                    raise UserError(f"{self._parameter}.url: {self.endpoint.url} cannot be reached: {trouble}") from None
            except requests.RequestException as error:
                raise UserError(f"{self._parameter}.url: {self.endpoint.url}: {self._shown(str(error))}") from None
            else:
                if response.status_code not in _PASSING or self._quota_is_used_up(response):
                    return response, time.monotonic() - began
                trouble = f"{response.status_code}: {self._told(response)}"
                asked_to_wait = _retry_after(response)
                if response.status_code == 429 and asked_to_wait:  # it counts all of ours together
                    self._not_before = max(self._not_before, time.monotonic() + min(asked_to_wait, LONGEST_WAIT))
            if (asked_to_wait or 0) > LONGEST_WAIT:
                trouble += f"; it asks to wait for {asked_to_wait:.0f} s"
                break
            if attempt < self.endpoint.retries:
                step = min(FIRST_WAIT * 2**attempt, LONGEST_STEP) * random.uniform(0.5, 1)
                logger.debug("%s: %s; asking again in %.1f s", self.name, trouble, max(step, asked_to_wait or 0))
                self._wait(stop, max(step, asked_to_wait or 0))
        raise UserError(
            f"{self.endpoint.url} does not answer, asked {attempt + 1} times ({trouble}). What was answered before is kept: "
            f"run again when it does, or change {self._parameter}.timeout_seconds, retries or concurrency."
        )

    @staticmethod
    def _wait(stop: Event, seconds: float) -> None:
        if stop.is_set() or (seconds > 0 and stop.wait(seconds)):
            raise _StoppedError

    @contextmanager
    def _session(self) -> Iterator["requests.Session"]:
        import requests
        from requests.adapters import HTTPAdapter

        with requests.Session() as session:
            pool = HTTPAdapter(pool_maxsize=self.endpoint.concurrency)
            session.mount("http://", pool)
            session.mount("https://", pool)
            yield session

    # --- the key

    def _variable(self) -> str:
        return self.endpoint.key_variable or KEY_VARIABLE

    def _key(self) -> str:
        key = os.environ.get(self._variable(), "").strip()
        if not key and self.endpoint.key_variable:
            raise UserError(f"{self._parameter}.key_variable: the environment variable {self._variable()} is not set.")
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{self._parameter}.key_variable: what {self._variable()} holds cannot be a key.")
        return key

    def _authorise(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        """Put the key on a request. As a function, so that requests does not look into ~/.netrc for another one."""
        if key := self._key():
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _shown(self, text: str) -> str:
        """Return a server's words on one line, short, without the key, which some repeat."""
        key = self._key()
        return " ".join((text.replace(key, "***") if key else text).split())[:300]

    # --- what comes back

    def _read(self, response: "requests.Response", seconds: float) -> "Reply":
        from luthier.generation import Answer

        try:
            body = response.json()
            choice = body["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            text = message.get("content") or message.get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError(type(text))
            told = [float(token["logprob"]) for token in (choice.get("logprobs") or {}).get("content") or []]
            usage = body.get("usage") or {}
            tokens = int(usage.get("completion_tokens") or len(told))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"{self._parameter}.url: {self.endpoint.url}/chat/completions does not answer as OpenAI's API does: "
                f"{self._shown(response.text)!r}"
            ) from None
        self._served.add(" ".join(str(body[name]) for name in ("model", "system_fingerprint") if body.get(name)))
        if finish == "content_filter":
            return Refusal(f"{self.endpoint.host}: its filter kept the answer back")
        text = text.strip().encode(errors="replace").decode()  # half a surrogate pair is no text
        log_probability = math.fsum(told) if told else math.nan
        return Answer(text, tokens, "length" if finish == "length" else "stop", log_probability, seconds)

    def _adapted(self, fields: Mapping[str, Any], response: "requests.Response") -> dict[str, Any] | None:
        """Return other fields if the server complains of one that we chose; None if we cannot help it."""
        told = response.text
        if response.status_code not in (400, 403, 422):
            return None
        if "max_completion_tokens" in told and "max_tokens" in fields:
            kept = {name: value for name, value in fields.items() if name != "max_tokens"}
            return {**kept, "max_completion_tokens": self.max_new_tokens}
        for name, lost in (("logprobs", "no log-probabilities"), ("temperature", "answers that are drawn by chance")):
            if name in told and name in fields and name not in self.endpoint.extra:
                logger.warning("%s: %s takes no %s, so there will be %s.", self.name, self.endpoint.host, name, lost)
                return {kept: value for kept, value in fields.items() if kept != name}
        return None

    def _told(self, response: "requests.Response") -> str:
        """Return what the server says is wrong."""
        try:
            body = response.json()
        except ValueError:
            return self._shown(response.text)
        error = body.get("error", body) if isinstance(body, dict) else body
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or error
        return self._shown(error if isinstance(error, str) else json.dumps(error))

    def _quota_is_used_up(self, response: "requests.Response") -> bool:
        return response.status_code == 429 and "insufficient_quota" in response.text

    def _mistake(self, response: "requests.Response") -> UserError:
        """Return what a user can do about an answer that will not change."""
        status, told = response.status_code, self._told(response)
        here, url = self._parameter, self.endpoint.url
        if status in (401, 403) and not self._key():
            return UserError(
                f"{here}.key_variable: {url} asks for a key ({status}: {told}). Set {KEY_VARIABLE}, or name another variable."
            )
        if status in (401, 403):
            return UserError(f"{here}.key_variable: {url} refuses the key in {self._variable()} ({status}: {told}).")
        if status in (301, 302, 303, 307, 308):
            return UserError(f"{here}.url: {url} sends on to {response.headers.get('Location')}: write where that leads.")
        models = self._models() if status == 404 else []
        if models and self.endpoint.model not in models:
            hint = did_you_mean(self.endpoint.model, models) or f"; it has {', '.join(models[:8])}"
            return UserError(f"{here}.model: {url} has no model {self.endpoint.model!r}{hint} ({told}).")
        if status in (404, 405):
            return UserError(f"{here}.url: there is no {url}/chat/completions ({status}: {told}). Most addresses end in /v1.")
        return UserError(f"{here}: {url} refuses the request ({status}: {told}).")

    def _models(self) -> list[str]:
        """Return the models that the server offers; none if it does not say."""
        import requests

        try:
            with self._session() as session:
                got = session.get(f"{self.endpoint.url}/models", auth=self._authorise, timeout=10, allow_redirects=False)
                return sorted(str(model["id"]) for model in got.json()["data"])
        except (requests.RequestException, ValueError, LookupError, TypeError):
            return []


def _spelt(message: "Message") -> dict[str, Any]:
    """Return a turn as the API has it: calls as a list, nothing that is null."""
    turn: dict[str, Any] = {name: value for name, value in message.items() if value is not None}
    if "tool_calls" in turn:
        turn["tool_calls"] = json.loads(turn["tool_calls"])
    return turn


def _cause(error: BaseException) -> BaseException:
    """Return the innermost reason of requests' and urllib3's errors, which repeat the address around it."""
    inner = error.args[0] if error.args else None
    inner = getattr(inner, "reason", inner)
    return _cause(inner) if isinstance(inner, BaseException) else error


def _nobody_there(error: BaseException) -> bool:
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, ConnectTimeoutError | NewConnectionError)


def _retry_after(response: "requests.Response") -> float | None:
    """Return how many seconds the server asks to wait: RFC 9110, section 10.2.3."""
    asked = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())
