"""Whole training runs that must equal one another: over processes, micro-batches, repetitions."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from luthier.errors import UserError
from luthier.likelihood import IGNORED, SupervisedNll, collate
from luthier.models import Base, load_model, load_tuned
from luthier.pipelines.training import launch
from luthier.pipelines.training.batches import Order, epoch_batches
from luthier.pipelines.training.examples import read_examples
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.pipelines.training.worker import learning_rate_factor
from tests.pipelines.training import jobs

ROUNDING = 1e-4
SEED, STEPS, BATCH = 7, 10, 8


class Home:
    """A folder with base model and examples, and the runs that tests share."""

    def __init__(self, folder: Path) -> None:
        jobs.forge()  # begins to import
        self.folder = folder
        self.base = jobs.tiny_base(folder)
        self.examples = jobs.write_examples(folder / "examples", self.base)

    def job(self, **settings):
        return jobs.make_job(self.folder, self.examples, seed=SEED, steps=STEPS, batch_size=BATCH, **settings)

    def examples_of(self, split):
        (examples,) = read_examples(self.examples, split)
        return [examples[number] for number in range(len(examples))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def by_processes(home):
    """Return the folders of the same job on one and on two processes, by the real launcher."""
    with ThreadPoolExecutor() as pool:
        folders = pool.map(lambda n: jobs.run(home.job(processes=n), home.folder / "work"), (1, 2))
    return dict(zip((1, 2), folders, strict=True))


@pytest.fixture(scope="module")
def full(home):
    return jobs.forge().train(home.job(method="full", learning_rate=1e-3), home.folder / "full")


def held_out_loss(model, examples):
    """Return the loss per supervised token, one example at a time."""
    nll = SupervisedNll(model.eval())
    with torch.no_grad():
        total = sum(float(nll(*collate([example])).sum()) for example in examples)
    return total / sum(int((example.labels != IGNORED).sum()) for example in examples)


def test_one_and_two_processes_learn_alike(by_processes, home):
    one, two = by_processes[1], by_processes[2]
    # the epochs have a batch of one example, from which the second process gets none
    assert min(map(len, epoch_batches([1] * jobs.TRAIN, BATCH, SEED, 0))) == 1
    assert jobs.curve(two) == pytest.approx(jobs.curve(one), abs=ROUNDING)
    assert jobs.curve(two, "validation_loss") == pytest.approx(jobs.curve(one, "validation_loss"), abs=ROUNDING)
    # AdamW forgives a wrong scale of the gradients, so the losses alone would not show it
    assert jobs.curve(two, "gradient_norm") == pytest.approx(jobs.curve(one, "gradient_norm"), abs=1e-3)
    for key in ("learning_rate", "tokens", "supervised_tokens"):
        assert jobs.curve(two, key) == jobs.curve(one, key)
    assert len(jobs.curve(one)) == STEPS


def test_a_step_trains_on_what_the_order_says_with_weights_too(home):
    examples = jobs.write_examples(home.folder / "weighted", home.base, weights=(0.4, 1.0, 2.5))
    rows = [row for row in examples.iter_rows() if row["split"] == "train"]
    lengths = [len(row["input_ids"]) for row in rows]
    order = Order([row["id"] for row in rows], [row["weight"] for row in rows], lengths, BATCH, SEED)
    steps = sum(order.steps(epoch) for epoch in range(3))
    job = jobs.make_job(home.folder, examples, seed=SEED, steps=steps, batch_size=BATCH)
    killed = jobs.ready(job, home.folder / "killed")
    assert jobs.forge().work(killed, {"call": "optimiser step", "number": order.steps(0) + 2}) != 0
    folder = jobs.forge().train(job, home.folder / "killed")
    assert jobs.curve(folder, "tokens") == [sum(lengths[i] for i in order.batch(step)) for step in range(steps)]
    assert jobs.history(folder) == jobs.history(jobs.forge().train(job, home.folder / "work"))


def test_the_model_learns(by_processes):
    losses = jobs.curve(by_processes[1])
    assert losses[-1] < losses[0] - 0.05


def test_losses_and_tokens_of_a_step_are_those_of_its_batch(by_processes, home):
    train = home.examples_of("train")
    first = epoch_batches([len(example.input_ids) for example in train], BATCH, SEED, 0)[0]
    batch = [train[i] for i in first]
    metrics = launch.read_metrics(by_processes[1])[0]
    assert metrics["tokens"] == sum(len(example.input_ids) for example in batch)
    # adapters begin at zero: before the first step the model is its base
    base = load_model(home.base, torch.float32)
    assert metrics["loss"] == pytest.approx(held_out_loss(base, batch), abs=ROUNDING)


@pytest.mark.parametrize("tokens", [16, 150, 333])
def test_the_loss_curve_does_not_depend_on_micro_batches(by_processes, home, tokens):
    # 16 tokens: every example alone, so eight times one against once eight
    folder = jobs.forge().train(home.job(micro_batch_tokens=tokens), home.folder / "micro")
    assert jobs.curve(folder) == pytest.approx(jobs.curve(by_processes[1]), abs=ROUNDING)
    assert jobs.curve(folder, "gradient_norm") == pytest.approx(jobs.curve(by_processes[1], "gradient_norm"), abs=1e-3)
    expected = jobs.curve(by_processes[1], "validation_loss")
    assert jobs.curve(folder, "validation_loss") == pytest.approx(expected, abs=ROUNDING)


def test_the_same_seed_gives_the_same_bytes_elsewhere_and_another_seed_others(by_processes, home):
    again = jobs.forge().train(home.job(), home.folder / "another place" / "work")
    assert again.name == by_processes[1].name  # the fingerprint
    assert jobs.result(again).manifest == jobs.result(by_processes[1]).manifest
    assert jobs.history(again) == jobs.history(by_processes[1])
    job = home.job() | {"seed": SEED + 1}
    assert jobs.result(jobs.forge().train(job, home.folder / "work")).sha256 != jobs.result(again).sha256


def test_the_result_says_what_it_is_made_of(by_processes, home):
    job, result = home.job(), jobs.result(by_processes[1])
    manifest = result.manifest
    assert manifest["base"] == {"name": "tiny:llama", "identity": home.base.identity}
    for key in ("parameters", "seed", "steps"):
        assert manifest[key] == job[key]
    assert json.loads((result.folder / "prompt_settings.json").read_text()) == job["prompt_settings"]
    for file in result.folder.glob("*.json"):
        assert str(home.folder) not in file.read_text(), f"{file.name} names a path of this machine"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loaded_result_has_the_recorded_held_out_loss(by_processes, full, home, method):
    folder = full if method == "full" else by_processes[1]
    tuned = load_tuned(home.base, jobs.result(folder), torch.float32)
    recorded = jobs.curve(folder, "validation_loss")[-1]
    assert held_out_loss(tuned, home.examples_of("validation")) == pytest.approx(recorded, abs=1e-5)
    untrained = held_out_loss(load_model(home.base, torch.float32), home.examples_of("validation"))
    assert abs(untrained - recorded) > 1e-3


def test_full_training_changes_all_matrices(full, home):
    tuned = load_tuned(home.base, jobs.result(full), torch.float32)
    before = dict(load_model(home.base, torch.float32).named_parameters())
    assert not [name for name, weight in tuned.named_parameters() if torch.equal(weight, before[name])]


def test_a_result_refuses_another_base(by_processes, full, home):
    other = Base("tiny:llama", home.base.folder, "tiny:llama@another")
    for folder in (by_processes[1], full):
        with pytest.raises(UserError, match="tiny:llama@another"):
            load_tuned(other, jobs.result(folder), torch.float32)


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_examples(home):
    job = home.job(learning_rate=1e30)
    with pytest.raises(UserError) as told:
        jobs.run(job, home.folder / "work")
    message = str(told.value)
    assert "learning_rate" in message
    step = int(message.split("step ")[1].split()[0])
    lengths = [len(example.input_ids) for example in home.examples_of("train")]
    batch = epoch_batches(lengths, BATCH, SEED, 0)[step - 1]
    assert all(home.examples_of("train")[i].id in message for i in batch)
    (folder,) = [path for path in (home.folder / "work").iterdir() if (path / "error.json").exists()]
    assert launch.result_of(folder) is None
    assert len(jobs.curve(folder)) == step - 1
    assert all(map(math.isfinite, jobs.curve(folder)))


def test_layers_that_do_not_exist_are_told(home):
    folder = jobs.ready(home.job(lora={"targets": ["no_such_layer"]}), home.folder / "work")
    assert jobs.forge().work(folder) == 1
    assert "training.lora.targets" in json.loads((folder / "error.json").read_text())["message"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.5), (10, 0.0), (10, 1.0), (200, 0.1)])
def test_the_learning_rate_rises_then_never_rises_again(schedule, steps, warmup):
    parameters = TrainingParameters(schedule=schedule, warmup_fraction=warmup)
    rates = [learning_rate_factor(step, steps, parameters) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == 1
    assert peak == max(0, math.ceil(warmup * steps) - 1)
    assert rates[: peak + 1] == sorted(set(rates[: peak + 1]))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0  # no step is idle


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_one_and_two_gpus_learn_alike(home):
    one, two = (jobs.run(home.job(processes=n, device="cuda"), home.folder / "work") for n in (1, 2))
    assert jobs.curve(two) == pytest.approx(jobs.curve(one), abs=1e-3)
    assert jobs.curve(two, "validation_loss") == pytest.approx(jobs.curve(one, "validation_loss"), abs=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("processes", [1, 2])
def test_gpus_repeat_their_result(home, processes):
    job = home.job(processes=processes, device="cuda")
    one, two = (jobs.run(job, home.folder / work) for work in ("here", "there"))
    assert jobs.result(one).sha256 == jobs.result(two).sha256
