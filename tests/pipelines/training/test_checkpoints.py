"""Checkpoints: what is saved comes back, and a damaged one is never loaded."""

import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.artefacts import verify
from luthier.errors import UserError
from luthier.pipelines.training import checkpoints


class Training:
    """A few steps of a small model, half of which is frozen."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 1))
        self.model[0].weight.requires_grad_(False)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.1)
        self.step = 0

    def train(self, steps):
        for _ in range(steps):
            noise = torch.rand(4, 6) * random.random() * float(np.random.rand())
            self.model(noise).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        return self

    def save(self, folder):
        checkpoints.save(folder, self.step, self.model, self.optimizer, [checkpoints.random_state()])
        return self

    @torch.no_grad()
    def load(self, folder, rank=0):
        self.step = checkpoints.load_latest(folder, self.model, self.optimizer, rank)
        return self

    def state(self):
        moments = [value for state in self.optimizer.state_dict()["state"].values() for value in state.values()]
        return [weight.detach().clone() for weight in self.model.parameters() if weight.requires_grad] + moments


def assert_same(one, other):
    assert one.step == other.step
    for left, right in zip(one.state(), other.state(), strict=True):
        assert torch.equal(left, right)


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@settings(max_examples=15, deadline=None)
@given(before=st.integers(1, 5), after=st.integers(0, 5), seed=st.integers(0, 1000))
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path_factory, before, after, seed):
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = Training(seed).train(before).save(folder).train(after)
    resumed = Training(seed)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    resumed.load(folder).train(after)  # with dropout and three random generators
    assert_same(resumed, whole)


def test_without_a_checkpoint_training_begins_at_the_first_step(tmp_path):
    fresh = Training()
    assert_same(Training().load(tmp_path / "nothing"), fresh)


def test_the_newest_two_are_kept_and_leftovers_of_kills_are_cleared(tmp_path):
    training = Training()
    (tmp_path / ".staging-step-00000001-deadbeef").mkdir(parents=True)
    for _ in range(4):
        training.train(1).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    for path in tmp_path.iterdir():
        verify(path)


def test_each_rank_gets_its_own_random_state(tmp_path):
    training = Training().train(1)
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        states.append(checkpoints.random_state())
    checkpoints.save(tmp_path, 1, training.model, training.optimizer, states)
    drawn = []
    for rank in (0, 1):
        Training().load(tmp_path, rank)
        drawn.append(torch.rand(3))
    torch.manual_seed(5)
    assert torch.equal(drawn[0], torch.rand(3))
    torch.manual_seed(6)
    assert torch.equal(drawn[1], torch.rand(3))


def damage(checkpoint, name, how, place=0.5, bit=4):
    path = checkpoint / name
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * place)])
    else:
        data = bytearray(path.read_bytes())
        data[int((len(data) - 1) * place)] ^= 1 << bit
        path.write_bytes(data)


FILES = ["weights.safetensors", "optimizer.pt", "random.pt", "manifest.json"]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FILES),
    how=st.sampled_from(["deleted", "cut", "flipped"]),
    place=st.floats(0, 0.99),
    bit=st.integers(0, 7),
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path_factory, name, how, place, bit):
    folder = tmp_path_factory.mktemp("checkpoints")
    training = Training().train(2).save(folder)
    older = Training().load(folder)
    training.train(2).save(folder)
    newest = folder / "step-00000004"
    good = {path.name: path.read_bytes() for path in newest.iterdir()}
    damage(newest, name, how, place, bit)
    resumed = Training().load(folder)
    if how == "flipped" and name == "manifest.json" and resumed.step == 4:
        # a flipped bit among the manifest's facts beside the hashes does no harm to the weights
        assert_same(resumed, training)
        return
    assert_same(resumed, older)
    assert steps_in(folder) == [2]

    # and the steps that are done again are saved again
    resumed.train(2).save(folder)
    assert_same(resumed, training)
    assert (newest / "weights.safetensors").read_bytes() == good["weights.safetensors"]
    verify(newest)


@pytest.mark.parametrize("name", FILES)
def test_only_damaged_checkpoints_are_an_error_that_stays(tmp_path, name):
    training = Training()
    for _ in range(2):
        training.train(1).save(tmp_path)
    for checkpoint in tmp_path.iterdir():
        damage(checkpoint, name, "deleted")
    for _ in range(2):  # the second attempt must not begin anew in silence either
        with pytest.raises(UserError, match="step-0000000"):
            Training().load(tmp_path)
    assert steps_in(tmp_path) == [1, 2]
    shutil.rmtree(tmp_path)
    assert Training().load(tmp_path).step == 0
