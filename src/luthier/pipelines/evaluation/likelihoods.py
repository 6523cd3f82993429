"""How likely a model finds texts that it did not choose: the right answers, general texts, each label in turn."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, micro_batches
from luthier.text.chat import encode, encode_all
from luthier.text.prepare import Message, compact_json


def right_answers(tokenizer: Any, asked: Sequence[Sequence[Message]], expected: Sequence[str]) -> list[Example]:
    """Turn questions and their right answers into examples in which the answer and its end marker are to be predicted."""
    conversations: list[Sequence[Message]] = [
        [*turns, {"role": "assistant", "content": answer}] for turns, answer in zip(asked, expected, strict=True)
    ]
    examples = []
    for encoded in encode_all(tokenizer, conversations):
        ids = torch.tensor(encoded.input_ids)
        labels = torch.full_like(ids, IGNORED)
        begin, end = encoded.answers[-1]
        # the token at position i + 1 is predicted at position i
        labels[begin - 1 : end - 1] = ids[begin:end]
        examples.append(Example("", ids, labels))
    return examples


def passage_examples(tokenizer: Any, _: Sequence[Any], passages: Sequence[str]) -> list[Example]:
    """Make an example of each passage in which every token is to be predicted but the first, which nothing precedes.

    A passage is tokenised as training tokenises a text without turns, less the end of the sequence: where a passage ends
    is not knowledge.
    """
    conversations: Any = [[{"role": "assistant", "content": text}] for text in passages]
    examples = []
    for encoded in encode_all(tokenizer, conversations):
        ids = torch.tensor(encoded.input_ids)
        ids = ids[:-1] if len(ids) and ids[-1] == tokenizer.eos_token_id else ids
        labels = torch.full_like(ids, IGNORED)
        labels[:-1] = ids[1:]
        examples.append(Example("", ids, labels))
    return examples


def losses_of(model: Any, examples: Sequence[Example], batch_tokens: int) -> list[list[float]]:
    """Return, for each example, its summed loss in nats and the number of its supervised tokens."""
    losses = negative_log_likelihoods(model, examples, batch_tokens)
    return [[loss, int((example.labels != IGNORED).sum())] for loss, example in zip(losses, examples, strict=True)]


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


@torch.inference_mode()
def label_log_likelihoods(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Sequence[Message]],
    expected: Sequence[str],
    labels: Sequence[str],
    field: str | None,
    batch_tokens: int,
) -> list[list[float]]:
    """Return the log-likelihood of every label after every question, in nats, shape (questions, labels).

    Of an answer that is a label it is that of the label and the end marker. Of a JSON answer it is that of the answer's
    beginning up to and with the label; fields that stand before it have their right values.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, a fast one.
        asked: the turns before the answer.
        expected: the right answers.
        labels: as `tasks.label_of` spells them.
        field: of the JSON answer; None if the answer is the label.
        batch_tokens: tokens that go through the model at once.
    """
    loss = SupervisedNll(model).eval()
    found = []
    for turns, answer in zip(asked, expected, strict=True):
        # all labels of a question in one batch: what they share, which is nearly all, goes through the model once
        examples = [_until_label(tokenizer, turns, *answer_with_label(answer, label, field)) for label in labels]
        sums = [0.0] * len(labels)
        for batch in micro_batches(range(len(labels)), [len(example.input_ids) for example in examples], batch_tokens):
            ids, wanted = collate([examples[number] for number in batch])
            for number, value in zip(batch, loss(ids.to(model.device), wanted.to(model.device)).tolist(), strict=True):
                sums[number] = -value
        found.append(sums)
    return found


def answer_with_label(answer: str, label: str, field: str | None) -> tuple[str, int | None]:
    """Return an answer in which the label is another one, and where the label ends; None if it ends with the answer.

    >>> answer_with_label('{"intent":"praise","order":null}', '"refund"', "intent")
    ('{"intent":"refund","order":null}', 18)
    """
    if field is None:
        return label, None
    changed = json.loads(answer) | {field: json.loads(label)}
    names = list(changed)
    up_to_it = {name: changed[name] for name in names[: names.index(field) + 1]}
    return compact_json(changed), len(compact_json(up_to_it)) - 1


def _until_label(tokenizer: Any, turns: Sequence[Message], answer: str, end: int | None) -> Example:
    encoded = encode(tokenizer, [*turns, {"role": "assistant", "content": answer}])
    begin, stop = encoded.answers[-1]
    if end is not None:
        # tokens that begin before the label's end: the last one may hold more than the label, the same for all labels
        spoken = str(tokenizer.decode(encoded.input_ids[begin:stop]))
        before = max(0, spoken.find(answer))  # a space that the template writes in front of every answer
        text = spoken[: before + len(answer)]
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        stop = begin + sum(start < before + end for start, _ in places)
    ids = torch.tensor(encoded.input_ids[:stop])
    labels = torch.full_like(ids, IGNORED)
    labels[begin - 1 : -1] = ids[begin:]
    return Example("", ids, labels)
