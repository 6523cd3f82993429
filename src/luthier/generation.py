"""Greedy answers to many prompts, as fast as the machine allows.

    prompts, longest first -> [ admit -> draft -> one forward pass -> accept -> leave ] until none is left

What this saves against a padded batch that goes on until its longest answer has ended:

- What all prompts begin with (the system prompt) goes through the model once, and its keys and values are attended to by
  all rows in one product, as in Hydragen (arXiv:2402.05099).
- A forward pass holds the new tokens of its rows one after another, so no layer but attention works on padding.
- A row that has ended leaves, and a waiting prompt takes its place (continuous batching: Orca, OSDI 2022).
- Answers to one task share long pieces, such as the keys of JSON. What nearly always followed in the answers so far is
  proposed, and one pass checks several tokens (speculative decoding, arXiv:2211.17192, with counts for a draft model).
  A proposal is accepted only where it is the model's own likeliest token: answers are greedy, up to rounding.

Models that this does not fit (sliding windows, state spaces) answer through `generate` of transformers.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from luthier.likelihood import SHARED_AT_LEAST, micro_batches
from luthier.ragged import NAME, Cache, fits, forward
from luthier.text.chat import end_tokens

PASS_TOKENS = 512  # read in one pass, prompts or drafts: more are no faster, and take more memory
REFILL = 0.25  # share of the rows that must be free before waiting prompts come in: the fewer passes, the fuller they are
CONTEXT = 4  # tokens that decide what is proposed to follow them
SURE = 0.7  # how often a proposal must have been right

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """What a model wrote after one prompt."""

    text: str
    """Without special tokens, stripped."""
    tokens: int
    """How many were generated, without the end marker."""
    finish: Literal["stop", "length"]
    """Whether the model ended the answer, or it was cut."""
    log_probability: float
    """Of the generated tokens, the end marker included, summed, in nats: the model's own, also where a constraint chose."""
    seconds: float
    """From when the prompt entered a batch to the answer's last token."""


class Matcher(Protocol):
    """Follows one answer and says what may come next."""

    def take(self, token: int) -> None:
        """Go on by a token of the answer, which must be allowed."""

    def forced(self) -> list[int]:
        """Return the tokens that come next in any case, as far as that is known."""

    def allowed(self, draft: list[int]) -> tuple[list[int], torch.Tensor]:
        """Cut a draft where it is not allowed; return the rest, and the tokens allowed at each place of it and after it.

        The second is boolean, of shape (draft + 1, vocabulary).
        """


class Constraint(Protocol):
    """What every answer must satisfy, such as `luthier.constrained.JsonConstraint`."""

    def matcher(self) -> Matcher:
        """Return a matcher for a new answer."""


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_tokens: int,
    progress: Progress = lambda _: None,
    constraint: Constraint | None = None,
) -> list[Answer]:
    """Return the greedy answer to each prompt, in their order.

    On one machine and in as many threads, the same list of prompts has the same answers to the last bit; among other prompts
    an answer differs by rounding alone.

    Args:
        model: a causal language model of transformers, or one of peft's, in evaluation mode; one call at a time.
        tokenizer: its tokenizer.
        prompts: token ids, at least one each.
        max_new_tokens: where an answer is cut.
        batch_tokens: prompt and answer tokens held at once, beside the shared beginning; at least one prompt is held.
        progress: called with the number of answers that came in.
        constraint: what answers must satisfy. One that is cut does not.
    """
    if not prompts:
        return []
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not fits(inner):
        return _by_transformers(inner, tokenizer, prompts, max_new_tokens, batch_tokens, progress, constraint)
    usual = inner.config._attn_implementation
    inner.set_attn_implementation(NAME)
    try:
        return _Writer(inner, tokenizer, prompts, max_new_tokens, batch_tokens, constraint).write(progress)
    finally:
        inner.set_attn_implementation(usual)


@dataclass
class _Row:
    """A prompt and the answer to it that is being written; its place in the list of rows is its slot in the cache."""

    number: int
    tokens: list[int]
    """The prompt, without what all share, then the answer."""
    asked: int
    """How many of the tokens are the prompt's."""
    matcher: Matcher | None
    began: float = field(default_factory=time.perf_counter)
    kept: int = 0
    """How many of the tokens have their keys and values in the cache."""
    log_probability: float = 0.0
    ended: Literal["stop", "length"] | None = None

    def answer(self) -> list[int]:
        """Return the tokens written so far."""
        return self.tokens[self.asked :]


class _Writer:
    """One call of `generate`: rows come in, grow by a few tokens a pass, and leave."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        batch_tokens: int,
        constraint: Constraint | None,
    ) -> None:
        """Read what all prompts begin with; the arguments are those of `generate`."""
        self.model, self.tokenizer, self.constraint = model, tokenizer, constraint
        self.max_new_tokens, self.batch_tokens = max_new_tokens, batch_tokens
        self.ends = set(end_tokens(tokenizer))
        shared = _shared_beginning(prompts)
        self.own = [prompt[shared:] for prompt in prompts]
        # the longest first: whoever comes later fits where they were, and rows of like length share a pass
        self.waiting = deque(sorted(range(len(prompts)), key=lambda number: -len(prompts[number])))
        self.rows: list[_Row] = []
        self.drafts = Drafts(self.ends)
        self.cache = Cache(slots=1, capacity=shared)
        self._read(0, prompts[0][:shared])
        self.cache = Cache(shared=self.cache.of_row(0, shared))

    def write(self, progress: Progress) -> list[Answer]:
        """Return all answers in the order of the prompts."""
        answers: dict[int, Answer] = {}
        while self.waiting or self.rows:
            first = self._admit()
            self._advance(first)
            come = self._leave()
            answers |= come
            if come:
                progress(len(come))
        return [answers[number] for number in range(len(self.own))]

    def _admit(self) -> int:
        """Take in prompts if there is room; return the first row that is to go on now: a new one, or 0 for all."""
        if not self.waiting:
            return 0
        longest = max([row.asked for row in self.rows], default=len(self.own[self.waiting[0]])) + self.max_new_tokens
        slots = max(1, min(self.batch_tokens // longest, len(self.rows) + len(self.waiting)))
        if slots >= 2 * self.cache.slots:  # at first, and where what waits is much shorter than what was
            self.cache = self.cache.resized(slots, longest, len(self.rows))
        first, tokens = len(self.rows), 0
        if first and self.cache.slots - first < REFILL * self.cache.slots:
            return 0
        while self.waiting and len(self.rows) < self.cache.slots:
            own = self.own[self.waiting[0]]
            if tokens and tokens + len(own) > PASS_TOKENS:
                break
            tokens += len(own)
            matcher = self.constraint.matcher() if self.constraint else None
            self.rows.append(_Row(self.waiting.popleft(), list(own), len(own), matcher))
        row = self.rows[first]
        row.kept = max(0, row.asked - PASS_TOKENS)  # more than nothing only where it came in alone
        self._read(first, row.tokens[: row.kept])
        return first

    def _read(self, slot: int, tokens: list[int]) -> None:
        """Let the model read the first tokens of a row, a piece at a time, without a word about what follows."""
        for begin in range(0, len(tokens), PASS_TOKENS):
            forward(self.model, self.cache, slot, [tokens[begin : begin + PASS_TOKENS]], [begin], [0])

    def _advance(self, first: int) -> None:
        """Write the next tokens of the rows from `first` on: at least one each, and as many more as were foreseen."""
        rows = self.rows[first:]
        longest = PASS_TOKENS // len(rows) - 1
        proposed = [self._propose(row, longest) for row in rows]
        drafts = [draft for draft, _ in proposed]
        fed = [row.tokens[row.kept :] + draft for row, draft in zip(rows, drafts, strict=True)]
        logits = forward(self.model, self.cache, first, fed, [row.kept for row in rows], [len(draft) + 1 for draft in drafts])
        logs = logits.float()
        best = _masked(logs, [allowed for _, allowed in proposed if allowed is not None]).argmax(1)
        chosen = zip(best.tolist(), (logs.gather(1, best[:, None])[:, 0] - logs.logsumexp(1)).tolist(), strict=True)
        for row, draft in zip(rows, drafts, strict=True):
            self._accept(row, draft, [next(chosen) for _ in range(len(draft) + 1)])

    def _propose(self, row: _Row, longest: int) -> tuple[list[int], torch.Tensor | None]:
        """Return what probably comes next, and the tokens that a constraint allows there."""
        answer = row.answer()
        room = max(0, min(longest, self.max_new_tokens - len(answer) - 1))
        draft = self.drafts.propose(answer, room)
        if row.matcher is None:
            return draft, None
        return row.matcher.allowed(draft or row.matcher.forced()[:room])

    def _accept(self, row: _Row, draft: list[int], chosen: list[tuple[int, float]]) -> None:
        """Add the chosen tokens up to the first one that the draft did not foresee: those after it followed something else."""
        for foreseen, (token, log) in zip([*draft, None], chosen, strict=True):
            row.tokens.append(token)
            row.log_probability += log
            self.drafts.learn(row.answer())
            if token in self.ends:
                row.ended = "stop"
            elif len(row.tokens) - row.asked == self.max_new_tokens:
                row.ended = "length"
            elif row.matcher is not None:
                row.matcher.take(token)
            if row.ended or token != foreseen:
                break
        row.kept = len(row.tokens) - 1

    def _leave(self) -> dict[int, Answer]:
        """Take out the rows that have ended; return their answers. The last row moves into a slot that becomes free."""
        answers = {}
        for slot in reversed([slot for slot, row in enumerate(self.rows) if row.ended]):
            row, last = self.rows[slot], self.rows.pop()
            if last is not row:
                self.rows[slot] = last
                self.cache.move(len(self.rows), slot, last.kept)
            assert row.ended
            tokens = row.answer()[:-1] if row.ended == "stop" else row.answer()
            seconds = time.perf_counter() - row.began
            answers[row.number] = Answer(_text(self.tokenizer, tokens), len(tokens), row.ended, row.log_probability, seconds)
        return answers


def _shared_beginning(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, but not a whole prompt; 0 if sharing them would save too little."""
    shortest = min(map(len, prompts))
    differ = (at for at, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    shared = min(next(differ, shortest), shortest - 1)
    return shared if shared * (len(prompts) - 1) >= sum(map(len, prompts)) * SHARED_AT_LEAST else 0


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _masked(logits: torch.Tensor, allowed: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits of one row after another, minus infinity for tokens that are not allowed."""
    if not allowed:
        return logits
    mask = torch.cat(list(allowed)).to(logits.device)
    # the model may know more tokens than the tokenizer: those are never allowed
    mask = torch.nn.functional.pad(mask, (0, logits.shape[1] - mask.shape[1]))
    return logits.masked_fill(~mask, -torch.inf)


class Drafts:
    """Counts what followed each few tokens in the answers so far, and proposes what nearly always did."""

    def __init__(self, ends: set[int]) -> None:
        """Start with nothing counted; `ends` are never proposed."""
        self.ends = ends
        self.followed: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def learn(self, answer: list[int]) -> None:
        """Count the newest token of an answer."""
        self.followed[tuple(answer[-CONTEXT - 1 : -1])][answer[-1]] += 1

    def propose(self, answer: list[int], limit: int) -> list[int]:
        """Return what probably follows, at most `limit` tokens, and no end marker: after it nothing is to be checked."""
        draft: list[int] = []
        while len(draft) < limit:
            known = self.followed.get(tuple((answer[-CONTEXT:] + draft)[-CONTEXT:]))
            token, times = known.most_common(1)[0] if known else (-1, 0)
            # one more, as if it had once been something else: what was seen once is no rule
            if known is None or token in self.ends or times < SURE * (known.total() + 1):
                break
            draft.append(token)
        return draft


class _Watch(LogitsProcessor):
    """Sees the logits of every step of transformers' `generate`: masks what is not allowed, and notes what will be chosen."""

    def __init__(self, ends: set[int], matchers: Sequence[Matcher]) -> None:
        """Watch a batch; no matchers, no constraint."""
        self.ends = ends
        self.following = dict(enumerate(matchers))
        self.logs: list[list[float]] = []
        """For each step, the log-probability of the token chosen in each row."""
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, minus infinity for tokens that are not allowed."""
        logs, masked = scores.float().log_softmax(1), scores
        if self.following:
            masked = torch.full_like(scores, -torch.inf)
            for row, token in enumerate(input_ids[:, -1].tolist() if self.logs else []):
                if token in self.ends:
                    self.following.pop(row, None)
                elif row in self.following:
                    self.following[row].take(token)
            for row in range(len(scores)):
                allowed = [self.following[row].allowed([])[1]] if row in self.following else []
                masked[row] = _masked(scores[row : row + 1], allowed)
        self.logs.append(logs.gather(1, masked.argmax(1)[:, None])[:, 0].tolist())
        self.times.append(time.perf_counter())
        return masked


def _by_transformers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_tokens: int,
    progress: Progress,
    constraint: Constraint | None,
) -> list[Answer]:
    """Do what `generate` does for any model: batches by length, padded on the left, each as long as its longest answer."""
    ends = set(end_tokens(tokenizer))
    # instead of the model's own configuration, which may ask for penalties: greedy means the likeliest token
    usual = model.generation_config
    model.generation_config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=0)
    answers: dict[int, Answer] = {}
    try:
        for batch in micro_batches(range(len(prompts)), [len(prompt) + max_new_tokens for prompt in prompts], batch_tokens):
            began = time.perf_counter()
            watch = _Watch(ends, [constraint.matcher() for _ in batch] if constraint else [])
            width = max(len(prompts[number]) for number in batch)
            rows = [[0] * (width - len(prompts[number])) + prompts[number] for number in batch]
            seen = [[0] * (width - len(prompts[number])) + [1] * len(prompts[number]) for number in batch]
            written = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                logits_processor=LogitsProcessorList([watch]),
            )[:, width:].tolist()
            for line, (number, tokens) in enumerate(zip(batch, written, strict=True)):
                # up to the end marker: what follows is padding, which may be the same token
                stop = next((at for at, token in enumerate(tokens) if token in ends), None)
                end = len(tokens) if stop is None else stop
                last = min(end, len(tokens) - 1)
                answers[number] = Answer(
                    _text(tokenizer, tokens[:end]),
                    end,
                    "length" if stop is None else "stop",
                    sum(logs[line] for logs in watch.logs[: last + 1]),
                    watch.times[last] - began,
                )
            progress(len(batch))
    finally:
        model.generation_config = usual
    return [answers[number] for number in range(len(prompts))]
