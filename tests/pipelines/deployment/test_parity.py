"""Parity holds for the same model, is broken by any other one, and forgives near ties only."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.models import load_model, load_tokenizer, load_tuned
from luthier.packages import load_package
from luthier.pipelines.deployment.parity import Answer, compare, measure
from luthier.text.prepare import conversation
from tests.pipelines.deployment.tiny_packages import MAX_NEW_TOKENS, PROMPT, make, random_adapter

TEXTS = ["where is my parcel", "the kettle leaks", "x" * 60, "Ü?", "no"]
CONVERSATIONS = [(text[:8], conversation({"body": text, "answer": f"{text} yes"}, PROMPT)) for text in TEXTS]


@pytest.fixture(scope="module")
def evaluated(base, tuned):
    return measure(load_tuned(base, tuned, torch.float32), load_tokenizer(base), CONVERSATIONS, MAX_NEW_TOKENS)


def of_package(folder, base=None):
    model, tokenizer, _ = load_package(folder, torch.float32, base=base)
    return measure(model, tokenizer, CONVERSATIONS, MAX_NEW_TOKENS)


def test_the_log_probability_is_that_of_the_last_turn_by_hand(base, evaluated):
    model = load_model(base, torch.float32)
    tokenizer = load_tokenizer(base)
    two = [*CONVERSATIONS[0][1], {"role": "user", "content": "and?"}, {"role": "assistant", "content": "later"}]
    (found,) = measure(model, tokenizer, [("two turns", two)], 4)
    ids = torch.tensor(found.tokens)
    assert tokenizer.decode(ids[-found.supervised :]) == "later<|im_end|>"
    with torch.inference_mode():
        logs = model(ids[None]).logits[0].log_softmax(-1)
    by_hand = sum(logs[at - 1, ids[at]].item() for at in range(len(ids) - found.supervised, len(ids)))
    assert found.log_probability == pytest.approx(by_hand, rel=1e-5)


def test_what_a_model_writes_and_its_runner_up_are_those_of_its_logits(base, tuned, evaluated):
    model = load_tuned(base, tuned, torch.float32).eval()
    for one in evaluated:
        prompt = one.tokens[: len(one.tokens) - one.supervised]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + one.written])).logits[0, len(prompt) - 1 : -1]
        best = logits.log_softmax(-1).topk(2)
        assert best.indices[:, 0].tolist() == list(one.written)
        assert best.indices[:, 1].tolist() == list(one.runner_up)
        assert (best.values[:, 0] - best.values[:, 1]).tolist() == pytest.approx(one.lead, abs=1e-4)
    assert len({answer.written for answer in evaluated}) > 1


def test_a_package_in_the_evaluated_precision_is_the_evaluated_model_exactly(base, tuned, evaluated, tmp_path):
    merged, adapter = make(tmp_path / "merged", base, tuned), make(tmp_path / "adapter", base, tuned, kind="adapter")
    for found in (of_package(merged.folder), of_package(adapter.folder, base)):
        figures = compare(evaluated, found, 1e-6)
        assert figures["conversations"] == figures["equal_texts"] == len(TEXTS)
        assert figures["supervised_tokens"] == sum(answer.supervised for answer in evaluated)
        assert figures["near_ties"] == figures["largest_difference"] == figures["mean_difference"] == 0


def test_rounding_is_within_a_tolerance_that_fits_and_not_within_a_smaller_one(base, tuned, evaluated, tmp_path):
    rounded = of_package(make(tmp_path / "package", base, tuned, precision="bf16").folder)
    differences = [
        abs(one.log_probability - other.log_probability) / one.supervised for one, other in zip(evaluated, rounded, strict=True)
    ]
    largest = max(differences)
    assert 0 < largest < 0.5
    with pytest.raises(UserError, match="log-probability differs by"):
        compare(evaluated, rounded, largest / 2)
    same_texts = [replace(other, written=one.written) for one, other in zip(evaluated, rounded, strict=True)]
    figures = compare(evaluated, same_texts, largest)
    assert figures["largest_difference"] == largest
    assert figures["mean_difference"] == pytest.approx(sum(differences) / len(differences))


def test_a_model_without_its_adapter_or_with_another_one_is_told(base, tuned, evaluated, tmp_path):
    forgotten = measure(load_model(base, torch.float32), load_tokenizer(base), CONVERSATIONS, MAX_NEW_TOKENS)
    other = of_package(make(tmp_path / "package", base, random_adapter(tmp_path / "tuned", base, seed=1)).folder)
    for wrong in (forgotten, other):
        with pytest.raises(UserError, match="is not the evaluated one") as told:
            compare(evaluated, wrong, 0.02)
        assert all(name in str(told.value) for name, _ in CONVERSATIONS)


def test_another_template_or_tokenizer_is_told(base, tuned, evaluated):
    model, tokenizer = load_tuned(base, tuned, torch.float32), load_tokenizer(base)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_end|> ")
    with pytest.raises(UserError, match="the tokenizer or the chat template differs"):
        compare(evaluated, measure(model, tokenizer, CONVERSATIONS, MAX_NEW_TOKENS), 10.0)


ONE = Answer("a", (1, 2, 3), 2, -4.0, written=(5, 6, 7), runner_up=(8, 9, 10), lead=(1.0, 0.01, 2.0))


@given(difference=st.floats(-1, 1), tolerance=st.floats(1e-6, 1))
def test_the_tolerance_is_per_token(difference, tolerance):
    other = replace(ONE, log_probability=ONE.log_probability + 2 * difference)
    found = abs(ONE.log_probability - other.log_probability) / 2
    if found <= tolerance:
        assert compare([ONE], [other], tolerance)["largest_difference"] == found
    else:
        with pytest.raises(UserError):
            compare([ONE], [other], tolerance)


@pytest.mark.parametrize(
    ("written", "tolerance", "forgiven"),
    [
        ((5, 9, 1, 2), 0.02, True),  # parts where the first two are close, and takes the second
        ((5, 9, 1, 2), 0.005, False),  # they are not that close
        ((5, 4, 7), 0.02, False),  # close, but takes a third
        ((8, 6, 7), 0.02, False),  # takes the second where the first leads clearly
        ((5, 6), 0.02, False),  # the same, but cut
        ((5, 6, 7, 8), 0.02, False),  # the same, but not ended
    ],
)
def test_only_a_near_tie_is_forgiven(written, tolerance, forgiven):
    other = replace(ONE, written=written)
    if forgiven:
        figures = compare([ONE, ONE], [other, ONE], tolerance)
        assert (figures["equal_texts"], figures["near_ties"]) == (1, 1)
    else:
        with pytest.raises(UserError, match="another text, and not for a near tie"):
            compare([ONE, ONE], [other, ONE], tolerance)


def test_a_model_that_computes_nan_never_passes():
    with pytest.raises(UserError, match="differs by nan"):
        compare([ONE], [replace(ONE, log_probability=float("nan"))], 1e9)


def test_many_problems_are_told_as_the_first_ten_and_a_count():
    wrong = replace(ONE, written=(1,))
    with pytest.raises(UserError, match="and 15 more") as told:
        compare([ONE] * 25, [wrong] * 25, 0.02)
    assert str(told.value).count("another text") == 10
