"""The order of the data: every example once, decided by seed and epoch alone, within the token budget."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, micro_batches
from luthier.models import load_model
from luthier.pipelines.training import batches
from luthier.pipelines.training.batches import WINDOW, Order, epoch_batches, steps_per_epoch
from tests.pipelines.training import jobs

lengths_of_examples = st.lists(st.integers(1, 500), min_size=1, max_size=300)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)


@given(lengths_of_examples, sizes, seeds, st.integers(0, 5))
def test_every_example_stands_once_in_an_epoch(lengths, batch_size, seed, epoch):
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(example for batch in batches for example in batch) == list(range(len(lengths)))
    assert len(batches) == steps_per_epoch(len(lengths), batch_size)
    # all are full but one at most, so a step means the same amount of data throughout
    assert [len(batch) for batch in batches if len(batch) != batch_size] in ([], [len(lengths) % batch_size])


@given(lengths_of_examples, sizes, seeds, st.integers(0, 5))
def test_the_order_is_decided_by_seed_and_epoch_alone(lengths, batch_size, seed, epoch):
    first = epoch_batches(lengths, batch_size, seed, epoch)
    random.seed(0)
    torch.manual_seed(0)
    assert epoch_batches(tuple(lengths), batch_size, seed, epoch) == first


def test_other_seeds_and_epochs_give_other_orders():
    lengths = [1 + i % 17 for i in range(500)]
    orders = [tuple(map(tuple, epoch_batches(lengths, 4, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


weights_of_examples = st.lists(st.one_of(st.sampled_from([0.2, 1.0, 2.0, 2.5]), st.floats(0.01, 6)), min_size=1, max_size=60)


def order_of(weights, batch_size=8, seed=0):
    lengths = [1 + number * 7 % 50 for number in range(len(weights))]
    return Order([f"id-{number}" for number in range(len(weights))], weights, lengths, batch_size, seed)


@given(lengths_of_examples, sizes, seeds, st.data())
def test_steps_walk_through_the_epochs_one_after_the_other(lengths, batch_size, seed, data):
    per_epoch = steps_per_epoch(len(lengths), batch_size)
    step = data.draw(st.integers(0, 3 * per_epoch))
    expected = [batch for epoch in range(4) for batch in epoch_batches(lengths, batch_size, seed, epoch)][step]
    ids = [f"id-{number}" for number in range(len(lengths))]
    assert Order(ids, [1.0] * len(lengths), lengths, batch_size, seed).batch(step) == expected


@given(weights_of_examples, sizes, seeds, st.integers(1, 12))
def test_over_the_epochs_an_example_is_taken_as_often_as_its_weight_says(weights, batch_size, seed, epochs):
    order = order_of(weights, batch_size, seed)
    steps = sum(order.steps(epoch) for epoch in range(epochs))
    taken = Counter(example for step in range(steps) for example in order.batch(step))
    assert all(abs(taken[number] - weight * epochs) < 1 for number, weight in enumerate(weights))
    for epoch in range(epochs):
        assert all(abs(times - weight) < 1 for times, weight in zip(order.times(epoch), weights, strict=True))


def test_a_fifth_of_the_examples_is_taken_in_each_epoch_and_all_in_five():
    times = [order_of([0.2] * 4000).times(epoch) for epoch in range(5)]
    assert sum(times).tolist() == [1] * 4000
    assert [taken.sum() / 4000 for taken in times] == pytest.approx([0.2] * 5, abs=0.02)


@given(weights_of_examples, sizes, seeds, st.data())
def test_a_run_that_begins_at_any_step_takes_what_an_uninterrupted_one_does(weights, batch_size, seed, data):
    whole = order_of(weights, batch_size, seed)
    steps = sum(whole.steps(epoch) for epoch in range(4))
    batches = [whole.batch(step) for step in range(steps)]
    begin = data.draw(st.integers(0, steps))
    again = order_of(weights, batch_size, seed)
    assert [again.batch(step) for step in range(begin, steps)] == batches[begin:]


def test_an_epoch_is_put_into_order_once_whatever_its_steps(monkeypatch):
    ordered = []
    monkeypatch.setattr(batches, "epoch_batches", lambda *arguments: ordered.append(arguments[-1]) or epoch_batches(*arguments))
    order = order_of([1.0] * 400, batch_size=4)
    for step in range(300):
        order.batch(step)
    assert ordered == [0, 1, 2]


def test_examples_of_a_batch_are_of_similar_length():
    chance = random.Random(0)
    lengths = [chance.randint(1, 1000) for _ in range(WINDOW * 8)]
    batches = epoch_batches(lengths, 8, seed=0, epoch=0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)  # unsorted it is about 1.8


@given(st.data(), lengths_of_examples, st.integers(1, 2000))
def test_micro_batches_hold_the_batch_within_the_token_budget(data, lengths, budget):
    batch = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True))
    pieces = micro_batches(batch, lengths, budget)
    assert sorted(example for piece in pieces for example in piece) == sorted(batch)
    for piece in pieces:
        assert len(piece) == 1 or max(lengths[i] for i in piece) * len(piece) <= budget


@given(lengths_of_examples)
def test_a_budget_for_all_gives_one_micro_batch(lengths):
    assert len(micro_batches(range(len(lengths)), lengths, max(lengths) * len(lengths))) == 1


@pytest.fixture(scope="module")
def nll(tmp_path_factory):
    torch.set_num_threads(1)  # for so small a model more threads only wait for each other
    return SupervisedNll(load_model(jobs.tiny_base(tmp_path_factory.mktemp("tiny")), torch.float32).eval())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 60), st.integers(0, 2**31)), min_size=1, max_size=6))
def test_neighbours_and_padding_do_not_change_the_loss_of_an_example(nll, drawn):
    examples = []
    for length, seed in drawn:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 250, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.5, ids.roll(-1), IGNORED)
        labels[-1], labels[0] = IGNORED, ids[1]
        examples.append(Example(str(seed), ids, labels))
    with torch.no_grad():
        together = nll(*collate(examples))
        alone = torch.cat([nll(*collate([example])) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    assert (together > 0).all()
