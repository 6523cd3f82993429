"""What a model answers, and how likely it finds the right answer, does not depend on who else is in its batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.configuration import FolderParameters, ModelParameters
from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, make_examples, micro_batches
from luthier.models import load_model, load_tokenizer, resolve_base
from luthier.pipelines.evaluation.answer import encode_prompts, generate, negative_log_likelihoods
from luthier.shards import write_shards
from luthier.text.chat import encode
from luthier.text.prepare import PromptSettings, conversation

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
    """Return the tiny model in fp32 and its tokenizer; sharper than as built, so that answers differ."""
    folder = str(tmp_path_factory.mktemp("models"))
    base = resolve_base(
        ModelParameters(base="tiny:llama"), FolderParameters(root=folder, base_models=folder, shards="", work=folder)
    )
    model = load_model(base, torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model, load_tokenizer(base)


@pytest.fixture(scope="module")
def prompts(tiny):
    """Return prompts of several lengths."""
    return encode_prompts(tiny[1], [conversation({"body": text, "answer": "x"}, PROMPT) for text in TEXTS])


def answer(tiny, prompts, batch_tokens=8192, length=12):
    """Generate, and count the answers that were reported."""
    done = []
    answers = generate(*tiny, prompts, length, batch_tokens, done.append)
    assert sum(done) == len(prompts)
    return answers


def test_answers_in_batches_equal_those_one_at_a_time(tiny, prompts):
    alone = [answer(tiny, [prompt])[0] for prompt in prompts]
    assert len(set(alone)) > 1
    for batch_tokens in (1, 200, 500, 8192):
        assert answer(tiny, prompts, batch_tokens) == alone
    assert answer(tiny, prompts[::-1]) == alone[::-1]
    assert answer(tiny, [prompts[2], *prompts]) == [alone[2], *alone]


def test_an_answer_ends_at_the_end_marker_and_not_later(tiny, prompts):
    model, tokenizer = tiny
    before = tokenizer.eos_token
    answers = answer(tiny, prompts, length=16)
    # make a token end answers that the model does write: what stands before it stays, what follows is gone
    written = model.generate(torch.tensor([prompts[1]]), max_new_tokens=16, do_sample=False)[0, len(prompts[1]) :].tolist()
    end = written[5]
    try:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        for batch_tokens in (1, 8192):
            cut = answer(tiny, prompts, batch_tokens, length=16)
            assert cut[1] == tokenizer.decode(written[: written.index(end)], skip_special_tokens=True).strip()
    finally:
        tokenizer.eos_token = before
    assert answer(tiny, prompts, length=16) == answers


def test_no_prompts_have_no_answers(tiny):
    assert answer(tiny, []) == []
    assert negative_log_likelihoods(tiny[0], [], 100) == []


def test_prompts_are_those_of_training(tiny):
    for text in TEXTS:
        messages = conversation({"body": text, "answer": "yes"}, PROMPT)
        example = encode(tiny[1], messages)
        (prompt,) = encode_prompts(tiny[1], [messages])
        assert example.input_ids[: len(prompt)] == prompt
        assert example.supervised.index(True) == len(prompt)


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


def test_examples_read_from_shards_predict_the_next_token(tmp_path):
    import pyarrow as pa

    rows = [
        {"id": "a", "split": "test", "weight": 1.0, "input_ids": [5, 6, 7, 8], "supervised": [False, False, True, True]},
        {"id": "b", "split": "train", "weight": 1.0, "input_ids": [5, 6], "supervised": [False, True]},
        {"id": "c", "split": "test", "weight": 1.0, "input_ids": [5, 6], "supervised": [True, False]},
    ]
    one, other = make_examples(write_shards(pa.Table.from_pylist(rows), tmp_path / "examples"), "test")
    assert (one.id, other.id) == ("a", "c")
    assert one.labels.tolist() == [IGNORED, 7, 8, IGNORED]
    assert other.labels.tolist() == [IGNORED, IGNORED]
