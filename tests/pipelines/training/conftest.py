"""A run to compare with."""

import pytest

from tests.pipelines.training import jobs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return jobs.Home(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def whole(home):
    """Return the folder of the uninterrupted run on one process."""
    return jobs.forge().train(home.job(), home.folder / "whole")
