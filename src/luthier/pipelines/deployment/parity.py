"""Is the packaged model the one that was evaluated? Same log-probabilities, same texts but for near ties."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import UserError
from luthier.packages.load import greedy_tokens
from luthier.text.chat import encode, encode_prompt, end_tokens
from luthier.text.prepare import Message

BATCH_TOKENS = 2048
Written = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Answer:
    """What a model does with one conversation."""

    id: str
    tokens: tuple[int, ...]
    """The conversation as tokens."""
    supervised: int
    log_probability: float
    """Of the supervised tokens, summed, in nats."""
    written: tuple[int, ...]
    """The model's own greedy answer."""
    runner_up: tuple[int, ...]
    """The second likeliest token at each place of it."""
    lead: tuple[float, ...]
    """By how many nats the first was likelier than the second."""


def measure(
    model: Any, tokenizer: Any, conversations: Sequence[tuple[str, Sequence[Message]]], max_new_tokens: int
) -> list[Answer]:
    """Return the log-probability of each right answer (the last turn) and the greedy answer to what stands before it.

    One model at a time, so that two need not fit into memory together.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        conversations: name and turns, prepared as in training; the last turn is the assistant's.
        max_new_tokens: where an answer is cut.
    """

    prompts = [encode_prompt(tokenizer, messages[:-1]) for _, messages in conversations]
    whole = [encode(tokenizer, messages).input_ids for _, messages in conversations]
    model.eval()
    logs = _log_probabilities(model, prompts, whole)
    return [
        Answer(name, tuple(tokens), len(tokens) - len(prompt), log, *written)
        for (name, _), prompt, tokens, log, written in zip(
            conversations, prompts, whole, logs, _write(model, tokenizer, prompts, max_new_tokens), strict=True
        )
    ]


def _log_probabilities(model: Any, prompts: Sequence[list[int]], whole: Sequence[list[int]]) -> list[float]:
    """Return the summed log-probability of what follows each prompt, as evaluation measures it."""
    import torch

    from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, micro_batches

    examples = []
    for prompt, tokens in zip(prompts, whole, strict=True):
        ids = torch.tensor(tokens)
        labels = torch.full_like(ids, IGNORED)
        # the token at position i + 1 is predicted at position i
        labels[len(prompt) - 1 : -1] = ids[len(prompt) :]
        examples.append(Example("", ids, labels))
    sums = [0.0] * len(examples)
    loss = SupervisedNll(model)
    with torch.inference_mode():
        for batch in micro_batches(range(len(examples)), list(map(len, whole)), BATCH_TOKENS):
            ids, labels = collate([examples[number] for number in batch])
            for number, value in zip(batch, loss(ids.to(model.device), labels.to(model.device)).tolist(), strict=True):
                sums[number] = -value
    return sums


def _write(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Written]:
    """Return the greedy answer to each prompt, up to and with its end marker, the runner-up at each place, and the lead."""
    from luthier.likelihood import micro_batches

    ends = end_tokens(tokenizer)
    found: dict[int, Written] = {}
    options = {"max_new_tokens": max_new_tokens, "output_logits": True, "return_dict_in_generate": True}
    for batch in micro_batches(range(len(prompts)), [len(prompt) + max_new_tokens for prompt in prompts], BATCH_TOKENS):
        output = greedy_tokens(model, tokenizer, [prompts[number] for number in batch], **options)
        # each step: the two likeliest tokens of every row
        steps = [logits.float().log_softmax(-1).topk(2) for logits in output.logits]
        for row, number in enumerate(batch):
            tokens = output.sequences[row, -len(steps) :].tolist()
            length = next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))
            second = [int(step.indices[row, 1]) for step in steps[:length]]
            lead = [float(step.values[row, 0] - step.values[row, 1]) for step in steps[:length]]
            found[number] = (tuple(tokens[:length]), tuple(second), tuple(lead))
    return [found[number] for number in range(len(prompts))]


def compare(evaluated: Sequence[Answer], packaged: Sequence[Answer], tolerance: float) -> dict[str, Any]:
    """Compare what two models did with the same conversations.

    Args:
        evaluated: by the model that was evaluated.
        packaged: by the packaged one.
        tolerance: nats; see `Parity`.

    Returns:
        `conversations`, `supervised_tokens`, `largest_difference` and `mean_difference` (nats per token), `tolerance`,
        `equal_texts` and `near_ties` (texts that part at two tokens closer than the tolerance).

    Raises:
        UserError: naming each conversation on which the two are not the same model.
    """
    problems, differences, near_ties = [], [], 0
    for one, other in zip(evaluated, packaged, strict=True):
        if one.tokens != other.tokens:
            problems.append(f"{one.id}: other tokens: the tokenizer or the chat template differs")
            continue
        differences.append(abs(one.log_probability - other.log_probability) / max(one.supervised, 1))
        # not "greater": a NaN must not pass
        if not differences[-1] <= tolerance:
            problems.append(f"{one.id}: the right answer's log-probability differs by {differences[-1]:.4f} nats per token")
        if one.written == other.written:
            continue
        if _is_near_tie(one, other, tolerance):
            near_ties += 1
        else:
            problems.append(f"{one.id}: another text, and not for a near tie")
    if problems:
        shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise UserError(
            f"The packaged model is not the evaluated one (tolerance {tolerance} nats per token).\n  " + "\n  ".join(shown)
        )
    return {
        "conversations": len(evaluated),
        "supervised_tokens": sum(answer.supervised for answer in evaluated),
        "largest_difference": max(differences, default=0.0),
        "mean_difference": sum(differences) / max(len(differences), 1),
        "tolerance": tolerance,
        "equal_texts": len(evaluated) - near_ties,
        "near_ties": near_ties,
    }


def _is_near_tie(one: Answer, other: Answer, tolerance: float) -> bool:
    """Tell whether the texts part where the first model's two likeliest tokens are closer than the tolerance."""
    at = next((at for at, (a, b) in enumerate(zip(one.written, other.written, strict=False)) if a != b), None)
    if at is None:  # one is the other's beginning: it was cut, not ended
        return False
    return one.lead[at] <= tolerance and other.written[at] == one.runner_up[at]
