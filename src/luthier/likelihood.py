"""The loss of a language model on the answers that it should give: one forward pass for training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from luthier.shards import Shards

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Tokens of one conversation; `labels[i]` is the token to predict at position `i`, or IGNORED."""

    id: str
    input_ids: torch.Tensor
    labels: torch.Tensor


def make_examples(shards: Shards, split: str) -> list[Example]:
    """Read the examples of a split, in the order of the shards."""
    examples = []
    for row in shards.iter_rows():
        if row["split"] != split:
            continue
        ids = torch.tensor(row["input_ids"])
        labels = torch.full_like(ids, IGNORED)
        # the token at position i + 1 is predicted at position i
        labels[:-1] = torch.where(torch.tensor(row["supervised"])[1:], ids[1:], IGNORED)
        examples.append(Example(row["id"], ids, labels))
    return examples


def micro_batches(batch: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
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

    The vocabulary's logits are computed at supervised positions alone: they are most of the memory and, for small
    models, a fifth of the work.
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
            hidden = inner.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
            logits = inner.get_output_embeddings()(hidden[keep])
        else:
            logits = inner(input_ids=input_ids, use_cache=False).logits[keep]
        losses = cross_entropy(logits.float(), labels[keep], reduction="none")
        return torch.zeros(len(labels), device=losses.device).index_add(0, keep.nonzero()[:, 0], losses)
