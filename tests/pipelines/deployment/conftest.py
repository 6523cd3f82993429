"""The tiny model and an adapter for it, built once for the tests of deployment."""

import pytest
import torch

from tests.pipelines.deployment.tiny_packages import random_adapter, tiny_base


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tiny model gains nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def base(home):
    return tiny_base(home)


@pytest.fixture(scope="session")
def tuned(home, base):
    return random_adapter(home / "tuned", base)
