"""Sharing what conversations begin with saves work and changes nothing: losses, gradients, batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import likelihood
from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, shared_prefix
from luthier.models import load_model
from tests.pipelines.training import jobs

TOKENS = st.integers(3, 250)


@st.composite
def batches(draw):
    """Draw conversations with a common beginning of any length, each with at least one supervised token."""
    prefix = draw(st.lists(TOKENS, max_size=20))
    examples = []
    for number in range(draw(st.integers(1, 4))):
        rest = draw(st.lists(TOKENS, min_size=2, max_size=15))
        ids = torch.tensor(prefix + rest)
        labels = torch.full_like(ids, IGNORED)
        first = draw(st.integers(1, len(rest) - 1)) + len(prefix)
        labels[first - 1 : -1] = ids[first:]
        examples.append(Example(str(number), ids, labels))
    return examples


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_model(jobs.tiny_base(tmp_path_factory.mktemp("tiny")), torch.float32)


def losses_and_gradient(model, examples):
    model.zero_grad()
    losses = SupervisedNll(model)(*collate(examples))
    losses.sum().backward()
    return losses.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


@given(batches())
@settings(max_examples=60, deadline=None)
def test_shared_beginnings_give_the_same_losses_and_gradients(tiny, examples):
    each = [losses_and_gradient(tiny, [example]) for example in examples]
    losses, gradient = losses_and_gradient(tiny, examples)
    torch.testing.assert_close(losses, torch.cat([loss for loss, _ in each]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, sum(gradient for _, gradient in each), rtol=1e-3, atol=1e-4)


@given(batches())
@settings(max_examples=100, deadline=None)
def test_the_prefix_is_common_unsupervised_and_leaves_a_token(examples):
    ids, labels = collate(examples)
    prefix = shared_prefix(ids, labels != IGNORED)
    assert (ids[:, :prefix] == ids[:1, :prefix]).all()
    assert (labels[:, :prefix] == IGNORED).all()
    assert prefix < ids.shape[1]
    saved = prefix * (len(examples) - 1)
    assert prefix == 0 or saved >= likelihood.SHARED_AT_LEAST * ids.numel()


def test_a_long_common_beginning_goes_through_the_model_once(tiny, monkeypatch):
    prompt = torch.arange(3, 103)
    examples = []
    for number in range(4):
        ids = torch.cat([prompt, torch.tensor([150 + number, 160, 170])])
        labels = torch.full_like(ids, IGNORED)
        labels[-2:-1] = ids[-1:]
        examples.append(Example(str(number), ids, labels))
    seen = []
    decoder = tiny.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda **given: (seen.append(given["input_ids"].shape), forward(**given))[1])
    SupervisedNll(tiny)(*collate(examples))
    assert seen == [(1, 100), (4, 3)]


def test_dropout_is_never_shared(tiny):
    assert SupervisedNll(tiny).shares_prefix
    tiny.add_module("dropout", torch.nn.Dropout(0.1))
    try:
        assert not SupervisedNll(tiny).shares_prefix
    finally:
        del tiny.dropout
