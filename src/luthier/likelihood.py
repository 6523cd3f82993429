"""The loss of a language model on the answers that it should give: one forward pass for training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer

IGNORED = -100
SHARED_AT_LEAST = 0.1  # of a batch's tokens


@dataclass(frozen=True)
class Example:
    """Tokens of one conversation; `labels[i]` is the token to predict at position `i`, or IGNORED."""

    id: str
    input_ids: torch.Tensor
    labels: torch.Tensor


def micro_batches(batch: Sequence[int], lengths: Sequence[int] | NDArray[np.int64], max_tokens: int) -> list[list[int]]:
    """Cut a batch, longest first, into pieces of at most `max_tokens` padded tokens, at least one example each."""
    pieces: list[list[int]] = []
    for example in sorted(batch, key=lambda i: -lengths[i]):
        if pieces and (len(pieces[-1]) + 1) * lengths[pieces[-1][0]] <= max_tokens:
            pieces[-1].append(example)
        else:
            pieces.append([example])
    return pieces


def collate(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right to the longest; the padding token is 0, which nothing looks at."""
    ids = pad_sequence([example.input_ids for example in examples], batch_first=True, padding_value=0)
    labels = pad_sequence([example.labels for example in examples], batch_first=True, padding_value=IGNORED)
    return ids, labels


class SupervisedNll(torch.nn.Module):
    """Negative log-likelihood of the supervised tokens, summed over each conversation.

    Two things make it cheaper than a model's own loss, and change it by rounding only. The vocabulary's logits are
    computed at supervised positions alone: they are most of the memory and, for small models, a fifth of the work. And
    what all conversations of a batch begin with (the system prompt) goes through the model once: its keys and values are
    then attended to by every conversation, with their gradients (shared-prefix batching, as in Hydragen,
    arXiv:2402.05099, but for training).
    """

    def __init__(self, model: Any) -> None:
        """Wrap a causal language model of transformers or peft."""
        super().__init__()
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = inner.config.get_text_config()
        # these models do more between the hidden states and the logits than one matrix product
        scaled = ("final_logit_softcapping", "logits_scaling", "logit_scale")
        self.plain_head = not any(getattr(config, name, None) for name in scaled)
        # keys and values can be shared where a layer keeps them all, and where dropout does not make them differ
        plain_cache = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
        random = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
        self.shares_prefix = self.plain_head and plain_cache and not random

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return a sum for each conversation, float32, shape (batch,).

        Args:
            input_ids: tokens, shape (batch, length), padded on the right. Causal attention never looks to the right,
                so the padding needs no attention mask.
            labels: the same shape; IGNORED where nothing is to be learnt.
        """
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        keep = labels != IGNORED
        if self.plain_head:
            shared = shared_prefix(input_ids, keep) if self.shares_prefix else 0
            hidden = self._hidden(inner.get_decoder(), input_ids, shared)
            logits = inner.get_output_embeddings()(hidden[keep[:, shared:]])
        else:
            logits = inner(input_ids=input_ids, use_cache=False).logits[keep]
        losses = cross_entropy(logits.float(), labels[keep], reduction="none")
        return torch.zeros(len(labels), device=losses.device).index_add(0, keep.nonzero()[:, 0], losses)

    @staticmethod
    def _hidden(decoder: Any, input_ids: torch.Tensor, shared: int) -> torch.Tensor:
        """Return the last hidden states from position `shared` on, shape (batch, length - shared, width)."""
        if not shared:
            return decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        cache = decoder(input_ids=input_ids[:1, :shared], past_key_values=DynamicCache(), use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(input_ids))
        return decoder(input_ids=input_ids[:, shared:], past_key_values=cache, use_cache=True).last_hidden_state


def shared_prefix(input_ids: torch.Tensor, supervised: torch.Tensor) -> int:
    """Return how many first tokens all rows share and nobody predicts from; 0 if sharing them would save too little.

    Args:
        input_ids: tokens, shape (batch, length).
        supervised: where a token is predicted, the same shape.
    """
    rows, length = input_ids.shape
    same = ((input_ids == input_ids[:1]).all(0) & ~supervised.any(0)).long().cumprod(0)
    prefix = min(int(same.sum()), length - 1)
    # a second pass through the layers costs something too
    return prefix if prefix * (rows - 1) >= rows * length * SHARED_AT_LEAST else 0
