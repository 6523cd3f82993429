"""What all tests share: a project of its own to run in."""

import shutil
from pathlib import Path

import pytest
from commands import kedro_in, make_project, output
from hypothesis import settings

# the same examples on every run: a failure in CI is a failure at home
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a fresh project."""
    return make_project(tmp_path / "a project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which `kedro run --env test` has been run. Read it; a test that changes it copies it."""
    folder = make_project(tmp_path_factory.mktemp("finished") / "project")
    done = kedro_in(folder, "run", "--env", "test")
    assert done.returncode == 0, output(done)
    (folder / "run.log").write_text(output(done))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished project that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return folder
