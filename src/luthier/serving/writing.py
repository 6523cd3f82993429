"""One answer that is being written: from the logits of a pass to its next tokens, and what is told of them."""

from collections import deque
from collections.abc import Set
from itertools import count
from typing import Any

import torch
from torch.nn.functional import pad

from luthier.generation import Matcher
from luthier.serving.completion import Finish, TokenLogprob
from luthier.serving.detokenise import AnswerText, Spelling
from luthier.serving.sampling import Sampler, Sampling

_NUMBERS = count()


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

    def write(self, logits: torch.Tensor) -> tuple[str, list[TokenLogprob]]:
        """Choose the next token; return the text that may be shown now, and the tokens that it tells of.

        Args:
            logits: the model's own, of what follows the tokens so far, shape (vocabulary,).

        Raises:
            UserError: if the constraint cannot be followed any further.
            FloatingPointError: if the model gives no numbers.
        """
        token = self._choose(logits)
        self.tokens.append(token)
        text, told = "", 0
        if token in self._ends:
            self.finish = "stop"
        else:
            if self._sampling.top_logprobs is not None:
                self._untold.append(self._logprob(token, logits, self._sampling.top_logprobs))
            text, told = self._text.feed(token)
            if self._text.stopped:
                self.finish = "stop"
            elif self.completion_tokens == self._sampling.max_tokens:
                self.finish = "length"
            elif self._matcher is not None:
                self._matcher.take(token)
        if self.finish:
            rest, more = self._text.end()
            text, told = text + rest, told + more
        return text, [self._untold.popleft() for _ in range(min(told, len(self._untold)))]

    def _choose(self, logits: torch.Tensor) -> int:
        if self._matcher is not None:
            _, allowed = self._matcher.allowed([])
            # the model may know more tokens than the tokenizer: those are never allowed
            logits = logits.masked_fill(~pad(allowed[0], (0, len(logits) - allowed.shape[1])).to(logits.device), -torch.inf)
        best = logits.argmax()
        if not logits[best].isfinite():
            raise FloatingPointError("the model's logits are no numbers")
        return int(best) if self._sampler is None else self._sampler.draw(logits)

    def _logprob(self, token: int, logits: torch.Tensor, top: int) -> TokenLogprob:
        logs = logits - logits.logsumexp(0)
        values, tokens = logs.topk(top)
        return self._spelling.logprob(token, logs[token].item(), list(zip(tokens.tolist(), values.tolist(), strict=True)))
