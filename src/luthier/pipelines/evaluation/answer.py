"""Let a model answer held-out messages, and measure the likelihood that it gives to the right answers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier.likelihood import Example, SupervisedNll, collate, micro_batches
from luthier.text.chat import encode_prompt, end_tokens
from luthier.text.prepare import Message

Progress = Callable[[int], None]


def encode_prompts(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Turn conversations into prompts: all that stands before the last answer."""
    return [encode_prompt(tokenizer, messages[:-1]) for messages in conversations]


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_tokens: int, progress: Progress
) -> list[str]:
    """Return the greedy answer to each prompt, in their order.

    Prompts are batched by length, so that little is padded; padding stands on the left and is masked.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: where an answer is cut.
        batch_tokens: prompt and answer tokens of one batch at most.
        progress: called with the number of answers that came in.
    """
    answers = [""] * len(prompts)
    room = [len(prompt) + max_new_tokens for prompt in prompts]
    ends = end_tokens(tokenizer)
    for batch in micro_batches(range(len(prompts)), room, batch_tokens):
        width = max(len(prompts[i]) for i in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, number in enumerate(batch):
            ids[line, width - len(prompts[number]) :] = torch.tensor(prompts[number])
            mask[line, width - len(prompts[number]) :] = 1
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        for number, tokens in zip(batch, output[:, width:].tolist(), strict=True):
            # cut at the end marker: what follows is padding, which may be the same token
            stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
            answers[number] = tokenizer.decode(tokens[:stop], skip_special_tokens=True).strip()
        progress(len(batch))
    return answers


@torch.inference_mode()
def negative_log_likelihoods(model: Any, examples: Sequence[Example], batch_tokens: int) -> list[float]:
    """Return, for each example, the summed loss of its supervised tokens, in nats."""
    loss = SupervisedNll(model).eval()
    sums = [0.0] * len(examples)
    lengths = [len(example.input_ids) for example in examples]
    for batch in micro_batches(range(len(examples)), lengths, batch_tokens):
        ids, labels = collate([examples[i] for i in batch])
        for number, value in zip(batch, loss(ids.to(model.device), labels.to(model.device)).tolist(), strict=True):
            sums[number] = value
    return sums
