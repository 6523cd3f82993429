"""Databases for the request log."""

import pytest
from postgres import postgres  # noqa: F401

from tests.serving.logs import uri  # noqa: F401
from tests.serving.versions import build, copied


@pytest.fixture(scope="session")
def versions(tmp_path_factory):
    """Return a registry with three versions; copy it to promote one."""
    return build(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def home(versions, tmp_path):
    """Return such a registry to change."""
    return copied(versions, tmp_path / "home")
