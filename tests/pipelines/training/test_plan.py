"""The plan: what a run will do, told before it starts."""

import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import machine
from luthier.errors import UserError
from luthier.models import Base, load_model
from luthier.pipelines.training import plan as planning
from luthier.pipelines.training.batches import Order, steps_per_epoch
from luthier.pipelines.training.examples import Measures
from luthier.pipelines.training.lora import use_low_rank_linear
from luthier.pipelines.training.parameters import TrainingParameters
from tests.pipelines.training import jobs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return jobs.tiny_base(tmp_path_factory.mktemp("tiny"))


def measures(lengths, weight=1.0):
    """Return what is known of examples of these lengths, of which a third is learnt."""
    lengths = np.asarray(lengths, np.int64)
    ids = pa.chunked_array([[f"id-{number}" for number in range(len(lengths))]])
    return Measures(ids, np.full(len(lengths), weight), lengths, np.maximum(1, lengths // 3))


def plan(base, lengths=(20, 30, 40), weight=1.0, held_out=(), **settings):
    parameters = TrainingParameters(precision="fp32", **settings)
    train = measures(lengths, weight)
    order = Order(train.names(), train.weights, train.lengths, parameters.batch_size, 3)
    return planning.make_plan(order, train, measures(held_out), base, parameters, seed=3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 400)))
def test_steps_and_tokens_follow_from_epochs_batch_and_limit(base, examples, batch_size, epochs, max_steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_flops_per_second", lambda precision: 1e9)  # measuring takes a quarter of a second
        made = plan(base, [20] * examples, batch_size=batch_size, epochs=epochs, max_steps=max_steps)
    whole = steps_per_epoch(examples, batch_size) * epochs
    assert made["steps"] == (whole if max_steps is None else min(whole, max_steps))
    if made["steps"] == whole:
        assert made["tokens"] == 20 * examples * epochs
        assert made["supervised_tokens"] == 6 * examples * epochs
    assert made["base"] == base.identity
    assert made["seed"] == 3


@given(st.integers(1, 10**6), st.one_of(st.none(), st.integers(1, 500)))
def test_the_held_out_loss_is_measured_at_its_steps_and_without_a_wish_seldom(steps, every):
    at = TrainingParameters(evaluate_every=every).measuring_steps(steps)
    assert all(0 < step < steps for step in (at[:1], at[-1:]) for step in step)
    if every is None:
        assert len(at) < 20
        assert at.step >= 20
    else:
        assert list(at[:3]) == [step for step in (every, 2 * every, 3 * every) if step < steps]


def test_measuring_is_part_of_the_plan_and_does_not_grow_with_the_data(base):
    small, large = (plan(base, [20] * size, held_out=[20] * (size // 20), batch_size=16) for size in (1600, 160_000))
    assert (small["measured_examples"], small["measurements"]) == (80, 5)
    assert (large["measured_examples"], large["measurements"]) == (512, 20)
    assert "the loss of 512 held-out examples is measured 20 times" in planning.describe_plan(large)
    assert plan(base)["measurements"] == 0


@pytest.mark.parametrize("weight", [0.2, 2.5])
def test_weights_count_in_steps_and_tokens(base, weight):
    made = plan(base, [20] * 400, weight, batch_size=4, epochs=10)
    assert made["tokens"] == 20 * 400 * weight * 10
    assert made["steps"] == pytest.approx(400 * weight * 10 / 4, abs=10)  # an epoch's last batch may be smaller


def test_weights_that_leave_nothing_to_train_on_are_refused(base):
    with pytest.raises(UserError, match=r"none is taken in training\.epochs \(2\).*data\.sources\.NAME\.weight"):
        plan(base, weight=1e-9, epochs=2)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"], r".*\.(k|o)_proj"])
@pytest.mark.parametrize("rank", [1, 7])
def test_the_adapters_are_counted_as_peft_makes_them(base, targets, rank):
    from peft import LoraConfig, get_peft_model

    made = plan(base, lora={"rank": rank, "targets": targets})
    config = LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(base, torch.float32), use_low_rank_linear(config))
    assert made["trained_parameters"] == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert made["parameters"] == load_model(base, torch.float32).num_parameters()


@pytest.mark.parametrize("targets", [["qproj"], "q_proj", []])
def test_targets_that_no_layer_has_are_refused_with_the_names_that_there_are(base, targets):
    with pytest.raises(UserError, match=r"training\.lora\.targets.*down_proj, gate_proj, .* q_proj.*'model\.layers\.") as refused:
        plan(base, lora={"targets": targets})
    named = re.search(r"\[([a-z_, ]+)\] in a list", str(refused.value))
    assert named
    assert plan(base, lora={"targets": named[1].split(", ")})["trained_parameters"]


def test_full_training_trains_all(base):
    made = plan(base, method="full")
    assert made["trained_parameters"] == made["parameters"]


def test_a_base_whose_configuration_has_other_names_is_planned_too(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50)).save_pretrained(tmp_path)
    made = plan(Base("gpt", tmp_path, "gpt@1"), method="full")
    assert made["trained_parameters"] == made["parameters"] > 0


@pytest.mark.parametrize(
    ("parameters", "setting"),
    [
        ({"processes": 1_000_000}, "training.processes"),
        ({"micro_batch_tokens": 10**12, "batch_size": 10**10}, "micro_batch_tokens"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_settings_to_lower(base, parameters, setting):
    with pytest.raises(UserError, match=setting) as refused:
        plan(base, **parameters)
    assert str(next(iter(parameters.values()))) in str(refused.value)


def test_what_does_not_fit_into_the_container_is_refused_though_the_machine_has_it(base, tmp_path, monkeypatch):
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(str(2**29))
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    with pytest.raises(UserError, match="0.5 GiB are free"):
        plan(base)


def test_more_memory_is_asked_for_longer_micro_batches_and_more_weights(base):
    lengths = [1000] * 64
    small = plan(base, lengths, micro_batch_tokens=4000)["memory_gib"]
    assert plan(base, lengths, micro_batch_tokens=64_000, batch_size=64)["memory_gib"] > small
    assert plan(base, lengths, micro_batch_tokens=4000, lora={"rank": 1000})["memory_gib"] > small


def test_the_examples_that_each_process_holds_are_counted(base, monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda: 2**50)
    monkeypatch.setattr(planning, "_flops_per_second", lambda precision: 1e9)
    few, many = [1000] * 100, [1000] * 200_000
    tokens = 33 / 8 * 1000 * (len(many) - len(few)) / planning.GIB
    for processes in (1, 2):
        small = plan(base, few, processes=processes)["memory_gib"]
        for lengths, held_out in ((many, few), (few, many)):
            more = plan(base, lengths, held_out=held_out, processes=processes)["memory_gib"] - small
            assert processes * tokens < more < 1.2 * processes * tokens
    monkeypatch.setattr(planning, "available_memory", lambda: 2**29)
    with pytest.raises(UserError, match=r"200,003 examples take about \d+\.\d GiB .* 0\.5 GiB are free.*fewer examples"):
        plan(base, held_out=many)


def test_beside_a_gpu_the_examples_need_the_machines_memory(base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**40, 2**40))
    monkeypatch.setattr(planning, "_flops_per_second", lambda precision: 1e9)
    monkeypatch.setattr(planning, "available_memory", lambda: 2**30)
    many = [1000] * 200_000
    assert plan(base, held_out=many)["memory_gib"] == plan(base)["memory_gib"]
    with pytest.raises(UserError, match=r"training.processes \(2\)"):
        plan(base, held_out=many, processes=2)


def test_the_description_tells_the_figures(base):
    made = plan(base, [50] * 1234, batch_size=4)
    told = planning.describe_plan(made)
    for figure in ("1,234 examples", f"{made['steps']:,} steps of 4 examples", "61,700 tokens", made["base"], "fp32"):
        assert figure in told
    assert f"{made['trained_parameters']:,} of {made['parameters']:,}" in told
    assert re.search(r"about \d+\.\d GiB of \d+\.\d GiB free, about \d+ min \d\d s", told)
