"""Databases for the request log."""

import pytest
from postgres import postgres  # noqa: F401
from sqlalchemy import create_engine, text

from tests.serving.logs import uri_of
from tests.serving.versions import build, copied


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request, tmp_path):
    """Return each kind of database in turn, without a log in it."""
    if request.param == "sqlite":
        return uri_of(tmp_path)
    server = request.getfixturevalue("postgres")
    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("DROP TABLE IF EXISTS luthier_requests, luthier_feedback"))
    return server


@pytest.fixture(scope="session")
def versions(tmp_path_factory):
    """Return a registry with three versions; copy it to promote one."""
    return build(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def home(versions, tmp_path):
    """Return such a registry to change."""
    return copied(versions, tmp_path / "home")
