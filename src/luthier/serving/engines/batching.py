"""The embedded engine: answers that come and go one by one, written together in one thread.

    submit -> queue -> [ batch: a slot, the prompt in pieces, a token a pass ] -> events

What a client asks for that cannot be fails its own request alone. A forward pass that the model raises in fails the rows that
were in it, and the engine goes on.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from luthier.errors import UserError
from luthier.ragged import NAME, fits
from luthier.serving.api.completion import Finish, TokenLogprob
from luthier.serving.api.errors import ApiError, busy, context_exceeded, internal, invalid, unavailable
from luthier.serving.engines.batch import Batch
from luthier.serving.engines.detokenise import Spelling
from luthier.serving.engines.engine import Status
from luthier.serving.engines.sampling import Sampling
from luthier.serving.engines.writing import Row
from luthier.text.chat import end_tokens

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class TextPiece:
    """A piece of an answer."""

    text: str
    tokens: list[TokenLogprob]
    """Those whose text has come out, if the request asked for log-probabilities."""


@dataclass(frozen=True)
class Done:
    """An answer is complete."""

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    """Without the end marker."""


@dataclass(frozen=True)
class Failed:
    """An answer will not be completed."""

    error: ApiError


Event = TextPiece | Done | Failed


@dataclass(eq=False)
class Ticket:
    """A request that was submitted."""

    prompt: list[int] = field(repr=False)
    sampling: Sampling
    on_event: Callable[[Event], None] = field(repr=False)
    cancelled: bool = False
    """Whether nobody waits for the answer any more."""

    def cancel(self) -> None:
        """Leave at the next pass. No event comes any more, but for one that is being told."""
        self.cancelled = True


class BatchingEngine:
    """Answers requests with one model, in a thread of its own.

    Events are told in that thread: who is told must not block it.
    """

    def __init__(self, model: Any, tokenizer: Any, *, slots: int, cache_tokens: int, waiting: int) -> None:
        """Take over a model: nobody else may use it until `close`.

        Args:
            model: a causal language model of transformers, or one of peft's, in evaluation mode.
            tokenizer: its tokenizer.
            slots: requests that are answered at a time.
            cache_tokens: tokens whose keys and values are held, of all slots together.
            waiting: requests that may wait for a slot.

        Raises:
            UserError: if the model does not fit, or the cache is too small.
        """
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not fits(self._model):
            raise UserError(
                f"serving.engine.kind: the embedded engine cannot serve a {type(self._model).__name__}, which remembers more, or "
                "something else, than a key and a value of each token. Serve it with vLLM, and write kind: upstream and its urls."
            )
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or cache_tokens
        self._context = min(cache_tokens // slots, longest)
        if self._context < 2:
            raise UserError(f"serving.engine.cache_tokens: {cache_tokens:,} are too few for {slots} slots: write more of them.")
        self._tokenizer = deepcopy(tokenizer)  # who encodes prompts meanwhile may change settings of theirs
        self._ends = set(end_tokens(tokenizer))
        self._spelling = Spelling(self._tokenizer)
        self._batch = Batch(self._model, slots, self._context, self._ends)
        self._most = slots + waiting
        self._queue: deque[Ticket] = deque()
        self._tickets: dict[Row, Ticket] = {}  # of the rows in the batch
        self._tokens_total = 0
        self._last_progress: float | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer; once."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the pass under way. Requests that are not answered by then fail."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def context(self) -> int:
        """Tokens of prompt and answer that one request may hold."""
        return self._context

    def status(self) -> Status:
        """Return how it is, at once."""
        with self._changed:
            running, queued = len(self._tickets), len(self._queue)
        return Status(self._is_alive(), running, queued, self._tokens_total, self._last_progress, self._batch.cached)

    def submit(self, prompt: list[int], sampling: Sampling, on_event: Callable[[Event], None]) -> Ticket:
        """Take a request.

        Args:
            prompt: token ids.
            sampling: what is asked of the answer.
            on_event: told what comes of it, in the engine's thread: pieces, and at last that it is done or has failed.

        Raises:
            ApiError: 400 if there is nothing to do or it does not fit the context, 429 if too many wait, 503 if the engine has
                stopped.
        """
        if not prompt:
            raise invalid("messages: they hold no tokens.", "messages")
        if sampling.max_tokens < 1:
            raise invalid("max_tokens: must be at least 1.", "max_tokens")
        if len(prompt) + sampling.max_tokens > self._context:
            raise context_exceeded(len(prompt), sampling.max_tokens, self._context)
        ticket = Ticket(prompt, sampling, on_event)
        with self._changed:
            if not self._is_alive():
                raise unavailable("The engine has stopped.")
            inside = len(self._tickets) + len(self._queue)
            if inside >= self._most:
                raise busy("Too many requests are waiting already: try again later.", RETRY_SECONDS, "queue_full")
            if not inside:
                self._last_progress = time.monotonic()
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def _is_alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    # --- the engine's thread

    def _work(self) -> None:
        usual = self._model.config._attn_implementation
        self._model.set_attn_implementation(NAME)
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._dismiss()
                    self._admit()
                    if self._tickets:
                        self._advance()
        except Exception:
            logger.exception("The engine has ended.")
        finally:
            self._model.set_attn_implementation(usual)
            self._give_up()

    def _has_work(self) -> bool:
        """Wait for a request; False if there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets or self._queue or self._closing)
            return not self._closing

    def _dismiss(self) -> None:
        """Let go of those that are cancelled."""
        for row in [row for row, ticket in self._tickets.items() if ticket.cancelled]:
            self._batch.remove(row)
            self._leave(row)
        with self._changed:
            self._queue = deque(ticket for ticket in self._queue if not ticket.cancelled)

    def _admit(self) -> None:
        """Take in those that wait, as long as there are free slots."""
        while not self._batch.is_full:
            with self._changed:
                if not self._queue:
                    break
                ticket = self._queue[0]
            try:
                row = Row(ticket.prompt, ticket.sampling, self._tokenizer, self._spelling, self._ends)
            except Exception as error:
                logger.exception("A request cannot be begun.")
                with self._changed:
                    self._queue.popleft()
                _tell(ticket, _failure(error))
                continue
            self._batch.admit(row)
            with self._changed:
                self._tickets[row] = self._queue.popleft()

    def _advance(self) -> None:
        """Make one forward pass, and tell what came of it."""
        outcomes = self._batch.advance()
        self._last_progress = time.monotonic()
        for row, outcome in outcomes:
            if isinstance(outcome, Exception):
                _tell(self._leave(row), _failure(outcome))
                continue
            self._tokens_total += outcome.count
            ticket = self._tickets[row]
            if row.finish:
                self._batch.remove(row)
                self._leave(row)
            if outcome.text or outcome.tokens:
                _tell(ticket, TextPiece(outcome.text, outcome.tokens))
            if row.finish:
                _tell(ticket, Done(row.finish, row.prompt_tokens, row.completion_tokens))

    def _leave(self, row: Row) -> Ticket:
        with self._changed:
            return self._tickets.pop(row)

    def _give_up(self) -> None:
        """Fail all requests: nobody answers them any more."""
        with self._changed:
            self._closing = True
            tickets = [*self._tickets.values(), *self._queue]
            self._tickets.clear()
            self._queue.clear()
        for ticket in tickets:
            _tell(ticket, Failed(unavailable("The engine has stopped.")))


def _tell(ticket: Ticket, event: Event) -> None:
    if ticket.cancelled:
        return
    try:
        ticket.on_event(event)
    except Exception:
        logger.exception("An answer is given up: its event could not be told.")
        ticket.cancel()


def _failure(error: Exception) -> Failed:
    """Return what the client is told: what it asked for that cannot be, or that the failure is ours."""
    return Failed(invalid(f"response_format: {error}", "response_format") if isinstance(error, UserError) else internal())
