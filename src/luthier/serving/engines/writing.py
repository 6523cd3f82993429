"""One answer that is being written: from the logits of a pass to its next tokens, and what is told of them."""

from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.nn.functional import pad

from luthier.generation import CONTEXT, Drafts, Matcher
from luthier.serving.api.completion import Finish, TokenLogprob
from luthier.serving.engines.detokenise import AnswerText, Spelling
from luthier.serving.engines.sampling import Sampler, Sampling

_NUMBERS = count()

Proposal = tuple[list[int], torch.Tensor | None]
"""What probably comes next; and, of a constraint, the tokens allowed at each place of it and after it."""


@dataclass(frozen=True)
class Written:
    """What became of an answer in one pass."""

    text: str
    """What may be shown now."""
    tokens: list[TokenLogprob]
    """Those whose text has come out, if they are to be told."""
    count: int
    """How many were written."""


class Row:
    """A prompt and the answer to it."""

    def __init__(self, prompt: list[int], sampling: Sampling, tokenizer: Any, spelling: Spelling, ends: Set[int]) -> None:
        """Begin with the prompt.

        Args:
            prompt: its tokens.
            sampling: what is asked of the answer.
            tokenizer: of the model; used by one thread at a time.
            spelling: of the tokenizer.
            ends: tokens that end an answer.
        """
        self.tokens = list(prompt)
        """The prompt, then the answer, its end marker included."""
        self.number = next(_NUMBERS)
        """In the order of coming."""
        self.finish: Finish | None = None
        """Why the answer is complete."""
        self._asked, self._sampling, self._spelling, self._ends = len(prompt), sampling, spelling, ends
        self._matcher: Matcher | None = sampling.constraint.matcher() if sampling.constraint else None
        self._sampler = None if sampling.is_greedy else Sampler(sampling)
        self._text = AnswerText(tokenizer, sampling.stop)
        self._untold: deque[TokenLogprob] = deque()

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return self._asked

    @property
    def completion_tokens(self) -> int:
        """How many tokens of the answer there are, without the end marker."""
        return len(self.tokens) - self._asked - (len(self.tokens) > self._asked and self.tokens[-1] in self._ends)

    def propose(self, drafts: Drafts, most: int) -> Proposal:
        """Return what probably comes next, at most so many tokens.

        Args:
            drafts: what followed in the answers so far.
            most: tokens of the proposal.
        """
        most = min(most, self._sampling.max_tokens - self.completion_tokens - 1)
        draft = drafts.propose(self._newest(CONTEXT), most)
        if self._matcher is None:
            return draft, None
        return self._matcher.allowed(draft or self._matcher.forced()[:most])

    def write(self, drafts: Drafts, proposal: Proposal, logits: torch.Tensor) -> Written:
        """Choose the next tokens, up to the first one that was not foreseen.

        A foreseen one is chosen in no other way than the rest: answers are the same with other proposals, up to rounding.

        Args:
            drafts: is told what came.
            proposal: what was read beyond the tokens so far.
            logits: the model's own, of what follows them and each token of the proposal, shape (proposal + 1, vocabulary).

        Raises:
            UserError: if the constraint cannot be followed any further.
            FloatingPointError: if the model gives no numbers.
        """
        draft, allowed = proposal
        text, told, before = "", 0, self.completion_tokens
        for place, foreseen in enumerate([*draft, None]):
            token = self._choose(logits[place], None if allowed is None else allowed[place])
            more, tokens = self._take(token, logits[place])
            text, told = text + more, told + tokens
            drafts.learn(self._newest(CONTEXT + 1))
            if self.finish or token != foreseen:
                break
        if self.finish:
            rest, tokens = self._text.end()
            text, told = text + rest, told + tokens
        shown = [self._untold.popleft() for _ in range(min(told, len(self._untold)))]
        return Written(text, shown, self.completion_tokens - before)

    def _newest(self, count: int) -> list[int]:
        return self.tokens[max(self._asked, len(self.tokens) - count) :]

    def _choose(self, logits: torch.Tensor, allowed: torch.Tensor | None) -> int:
        if allowed is not None:
            # the model may know more tokens than the tokenizer: those are never allowed
            logits = logits.masked_fill(~pad(allowed, (0, len(logits) - len(allowed))).to(logits.device), -torch.inf)
        best = logits.argmax()
        if not logits[best].isfinite():
            raise FloatingPointError("the model's logits are no numbers")
        return int(best) if self._sampler is None else self._sampler.draw(logits)

    def _take(self, token: int, logits: torch.Tensor) -> tuple[str, int]:
        """Go on by a token; return the text that may be shown by now, and of how many tokens it tells."""
        self.tokens.append(token)
        if token in self._ends:
            self.finish = "stop"
            return "", 0
        if self._sampling.top_logprobs is not None:
            self._untold.append(self._logprob(token, logits, self._sampling.top_logprobs))
        shown = self._text.feed(token)
        if self._text.stopped:
            self.finish = "stop"
        elif self.completion_tokens == self._sampling.max_tokens:
            self.finish = "length"
        elif self._matcher is not None:
            self._matcher.take(token)
        return shown

    def _logprob(self, token: int, logits: torch.Tensor, top: int) -> TokenLogprob:
        logs = logits - logits.logsumexp(0)
        values, tokens = logs.topk(top)
        return self._spelling.logprob(token, logs[token].item(), list(zip(tokens.tolist(), values.tolist(), strict=True)))
