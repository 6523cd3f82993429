"""What all tests share: a project of its own to run in."""

import os
import shutil
from pathlib import Path

import pytest
from commands import kedro_in, make_project, output
from filelock import FileLock
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
    # one run for all workers of pytest-xdist: the parent of their folders is their common one
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.getbasetemp()
    folder, failed = base / "finished" / "project", base / "finished" / "failed.log"
    with FileLock(base / "finished.lock"):
        if not folder.parent.exists():
            make_project(folder)
            done = kedro_in(folder, "run", "--env", "test")
            (folder / "run.log" if done.returncode == 0 else failed).write_text(output(done))
    assert not failed.exists(), failed.read_text()
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished project that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return folder
