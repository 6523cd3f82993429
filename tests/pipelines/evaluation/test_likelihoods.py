"""How likely a model finds an answer or a label does not depend on who else is in its batch."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharp import THINKS, sharp_tiny

from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, micro_batches
from luthier.pipelines.evaluation.likelihoods import (
    answer_with_label,
    label_log_likelihoods,
    negative_log_likelihoods,
    right_answers,
)
from luthier.text.chat import encode
from luthier.text.prepare import PromptSettings, compact_json, conversation

PROMPT = PromptSettings(system="Be brief.", user="{{ body }}", assistant="{{ answer }}")
TEXTS = [
    "hi",
    "where is my parcel",
    "x" * 120,
    "Ü" * 9,
    "the kettle leaks at the bottom and the lid is loose",
    "no",
    "?",
    "a b c d e f g",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return sharp_tiny(tmp_path_factory.mktemp("models"))


def asked(texts=TEXTS):
    """Return the turns before the answer, and the answers."""
    made = [conversation({"body": text, "answer": f"yes, {text}"}, PROMPT) for text in texts]
    return [messages[:-1] for messages in made], [messages[-1]["content"] for messages in made]


def test_right_answers_are_learnt_as_in_training(tiny):
    turns, answers = asked()
    for found, before, answer in zip(right_answers(tiny[1], turns, answers), turns, answers, strict=True):
        encoded = encode(tiny[1], [*before, {"role": "assistant", "content": answer}])
        learnt = [-100, *found.labels[:-1].tolist()]
        assert found.input_ids.tolist() == encoded.input_ids
        assert [token if yes else -100 for token, yes in zip(encoded.input_ids, encoded.supervised, strict=True)] == learnt


def test_only_the_last_answer_of_a_conversation_is_judged(tiny):
    before = [*asked(["hi"])[0][0], {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and now?"}]
    (found,) = right_answers(tiny[1], [before], ["no"])
    assert tiny[1].decode(found.labels[found.labels != IGNORED]) == "no<|im_end|>"


LABELS = ['"refund"', '"refund_status"', '"praise"', "null", '"Ü"']


def test_the_likelihood_of_labels_is_that_of_their_tokens(tiny):
    turns, _ = asked(["where is it", "thanks"])
    answers = ['{"urgency":"low","intent":"praise","order":null}', '{"urgency":"high","intent":"refund","order":"QF-1"}']
    for budget in (1, 4096):
        found = label_log_likelihoods(*tiny, turns, answers, LABELS, "intent", budget)
        for row, before, urgency in zip(found, turns, ("low", "high"), strict=True):
            for value, label in zip(row, LABELS, strict=True):
                text = f'{{"urgency":"{urgency}","intent":{label}'  # the tiny tokenizer has a token a byte
                (whole,) = right_answers(tiny[1], [before], [text])
                whole.labels[(whole.labels == tiny[1].eos_token_id).nonzero()[-1]] = IGNORED
                assert value == pytest.approx(-by_hand(tiny[0], whole), rel=1e-3, abs=1e-2)


SPACED = "{% for m in messages %}{{ '[/INST] ' if m.role == 'assistant' else '[INST] ' }}{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("template", [THINKS, SPACED])
def test_a_label_ends_where_it_ends_whatever_the_template_writes_before_an_answer(tiny, template, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(tokenizer, "chat_template", template)
    turns, _ = asked(["where is it"])
    begins = '{"urgency":"low","intent":'
    (found,) = label_log_likelihoods(*tiny, turns, [begins + '"praise","order":null}'], LABELS, "intent", 4096)
    for value, label in zip(found, LABELS, strict=True):
        (whole,) = right_answers(tokenizer, turns, [begins + label])
        whole.labels[(whole.labels == tokenizer.eos_token_id).nonzero()[-1]] = IGNORED
        assert value == pytest.approx(-by_hand(model, whole), rel=1e-3, abs=1e-2)


def test_a_label_that_is_the_answer_is_told_from_one_that_goes_on(tiny):
    turns, answers = asked(["hi"])
    (found,) = label_log_likelihoods(*tiny, turns, answers, ["refund", "refund_status"], None, 4096)
    for value, label in zip(found, ["refund", "refund_status"], strict=True):
        assert value == pytest.approx(-by_hand(tiny[0], right_answers(tiny[1], turns, [label])[0]), rel=1e-3, abs=1e-2)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.text(max_size=4), st.integers()), min_size=1),
    st.one_of(st.none(), st.text(max_size=4)),
    st.data(),
)
def test_another_label_changes_nothing_else_in_an_answer(fields, label, data):
    field = data.draw(st.sampled_from(sorted(fields)))
    changed, end = answer_with_label(compact_json(fields), compact_json(label), field)
    assert json.loads(changed) == {**fields, field: label}
    assert list(json.loads(changed)) == list(fields)
    assert changed[:end].endswith(f'"{field}":{compact_json(label)}')


EXAMPLES = st.lists(st.tuples(st.integers(2, 40), st.integers(0, 2**16)), min_size=1, max_size=6)


def example(length, seed, name=""):
    """Return random tokens of which the last few, and some others, are supervised."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 259, (length,), generator=random)
    labels = torch.full_like(ids, IGNORED)
    supervised = torch.rand(length - 1, generator=random) < 0.4
    labels[:-1] = torch.where(supervised, ids[1:], IGNORED)
    return Example(name, ids, labels)


def by_hand(model, one):
    """Return the loss of an example from the whole logits, without any of our code."""
    with torch.inference_mode():
        logs = model(one.input_ids[None]).logits[0].log_softmax(-1)
    return -sum(logs[at, label].item() for at, label in enumerate(one.labels.tolist()) if label != IGNORED)


@given(made=EXAMPLES, budget=st.integers(1, 300))
@settings(deadline=None, max_examples=30)
def test_padding_and_the_batch_do_not_change_a_likelihood(tiny, made, budget):
    examples = [example(length, seed) for length, seed in made]
    found = negative_log_likelihoods(tiny[0], examples, budget)
    assert found == pytest.approx([by_hand(tiny[0], one) for one in examples], rel=1e-4, abs=1e-3)


@given(made=EXAMPLES, token=st.integers(0, 258), wider=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_what_stands_in_the_padding_does_not_matter(tiny, made, token, wider):
    examples = [example(length, seed) for length, seed in made]
    ids, labels = collate(examples)
    other = torch.nn.functional.pad(ids, (0, wider), value=token)
    for line, one in enumerate(examples):
        other[line, len(one.input_ids) :] = token
    loss = SupervisedNll(tiny[0])
    with torch.inference_mode():
        there = loss(other, torch.nn.functional.pad(labels, (0, wider), value=IGNORED))
        assert torch.allclose(loss(ids, labels), there, rtol=1e-4, atol=1e-3)


def test_the_gradient_does_not_depend_on_the_batch_either(tiny):
    model = tiny[0]
    examples = [example(length, length) for length in (5, 17, 33)]

    def gradient(batches):
        model.zero_grad()
        for batch in batches:
            SupervisedNll(model)(*collate(batch)).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    together, apart = gradient([examples]), gradient([[one] for one in examples])
    model.zero_grad()
    assert together.norm() > 0
    assert (together - apart).norm() <= 1e-4 * together.norm()


def test_nothing_supervised_has_no_loss(tiny):
    ids = torch.arange(10)
    nothing = Example("", ids, torch.full_like(ids, IGNORED))
    assert negative_log_likelihoods(tiny[0], [nothing, example(9, 1), nothing], 1000)[::2] == [0, 0]


@given(st.lists(st.integers(1, 60), max_size=20), st.integers(1, 200))
@settings(deadline=None, max_examples=100)
def test_micro_batches_take_every_example_once_within_the_budget(lengths, budget):
    pieces = micro_batches(range(len(lengths)), lengths, budget)
    assert sorted(number for piece in pieces for number in piece) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * max(lengths[number] for number in piece) <= budget
