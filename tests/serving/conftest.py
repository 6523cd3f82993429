"""Databases for the request log."""

import pytest
from postgres import postgres  # noqa: F401
from sqlalchemy import create_engine, text

from tests.serving.logs import uri_of


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request, tmp_path):
    """Return each kind of database in turn, without a log in it."""
    if request.param == "sqlite":
        return uri_of(tmp_path)
    server = request.getfixturevalue("postgres")
    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("DROP TABLE IF EXISTS luthier_requests, luthier_feedback"))
    return server
