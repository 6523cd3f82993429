"""A tiny model whose answers end, and somebody who listens to an engine."""

import queue
from collections import Counter
from dataclasses import dataclass, field

import torch
from sharp import sharp_tiny
from transformers import DynamicCache

from luthier.generation import generate
from luthier.serving.api.completion import TokenLogprob
from luthier.serving.engines.batching import BatchingEngine, Done, Event, Failed, TextPiece, Ticket
from luthier.serving.engines.sampling import Sampling

PATIENCE = 60.0  # seconds until a test gives up waiting


def random_tokens(length, seed):
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def ending_tiny(folder):
    """Return the sharp tiny model and its tokenizer; a token that the model does write ends its answers."""
    model, tokenizer = sharp_tiny(folder)
    seen = Counter(token for seed in range(12) for token in written(model, random_tokens(9, seed), 12)[4:])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(seen.most_common(1)[0][0])
    return model, tokenizer


@torch.inference_mode()
def written(model, prompt, length):
    """Return so many of the likeliest tokens after a prompt, with nothing that ends them."""
    tokens, cache = list(prompt), DynamicCache()
    while len(tokens) < len(prompt) + length:
        new = tokens[cache.get_seq_length() :]
        tokens.append(int(model(torch.tensor([new]), past_key_values=cache, use_cache=True).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@dataclass
class Listener:
    """What became of a request."""

    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    pieces: list[TextPiece] = field(default_factory=list)
    end: Done | Failed | None = None
    ticket: Ticket | None = None

    def wait(self) -> "Listener":
        """Wait for the end."""
        while self.end is None:
            self.next()
        return self

    def next(self) -> Event:
        """Wait for the next event."""
        event = self.events.get(timeout=PATIENCE)
        if isinstance(event, TextPiece):
            self.pieces.append(event)
        else:
            self.end = event
        return event

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[TokenLogprob]:
        return [token for piece in self.pieces for token in piece.tokens]


def ask(engine: BatchingEngine, prompt: list[int], max_tokens: int = 12, **sampling) -> Listener:
    """Submit a request."""
    listener = Listener()
    listener.ticket = engine.submit(prompt, Sampling(max_tokens, **sampling), listener.events.put)
    return listener


def expected(model, tokenizer, prompt, max_tokens):
    """Return the answer of `generate` to one prompt alone."""
    return generate(model, tokenizer, [prompt], max_tokens, 10_000)[0]
