"""How the next token of an answer is chosen: the likeliest one, or one drawn by chance."""

from dataclasses import dataclass

import torch

from luthier.generation import Constraint

LIKELY = 512  # tokens that hold nearly every nucleus: to sort a whole vocabulary takes ten times as long


@dataclass(frozen=True)
class Sampling:
    """What a request asks of its answer."""

    max_tokens: int
    """Where the answer is cut."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the likeliest."""
    top_p: float = 1.0
    """Share of the nucleus: the likeliest tokens that together have it, and at least one, are drawn from."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""
    top_logprobs: int | None = None
    """How many likely tokens to tell at each place, with their log-probabilities and that of the chosen one; None tells none."""
    constraint: Constraint | None = None
    """What the answer must satisfy. One that is cut does not."""
    seed: int | None = None
    """Of the draws; None draws otherwise each time."""

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0 or self.top_p == 0


class Sampler:
    """Draws the tokens of one answer, with one random number for each."""

    def __init__(self, sampling: Sampling) -> None:
        """Seed a generator of its own: what others ask changes no draw."""
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def draw(self, logits: torch.Tensor) -> int:
        """Return a token.

        Args:
            logits: of each token, minus infinity for those that are not allowed, shape (vocabulary,).
        """
        tokens, upto = nucleus(logits, self._temperature, self._top_p)
        goal = torch.rand((), generator=self._generator, dtype=torch.float64).item() * upto[-1]
        # the first one whose running share is greater; rounding may make the goal the whole share
        place = torch.searchsorted(upto, goal, right=True).clamp_(max=len(upto) - 1)
        return int(place if tokens is None else tokens[place])


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the fewest likeliest tokens that together have a share (Holtzman et al. 2020, arXiv:1904.09751).

    Args:
        logits: of each token, shape (vocabulary,).
        temperature: above 0.
        top_p: the share, from 0 to 1.

    Returns:
        the tokens, likeliest first (None for the whole vocabulary, in its own order), and their running shares.
    """
    # the greatest first becomes 0: no temperature is so low that it makes infinity of it
    shares = torch.softmax((logits - logits.max()).double() / temperature, 0)
    if top_p >= 1:
        return None, shares.cumsum(0)
    sorted_, tokens = shares.topk(min(LIKELY, len(shares)))
    if sorted_.sum() < top_p:
        sorted_, tokens = shares.sort(descending=True)
    upto = sorted_.cumsum(0)
    size = int((upto < top_p).sum()) + 1
    return tokens[:size], upto[:size]
