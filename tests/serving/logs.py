"""Requests to log, and databases for them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from luthier.serving.records.logged import LoggedRequest

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TURNS = [
    {"role": "system", "content": "Triage."},
    {"role": "user", "content": "Write to <EMAIL_aaaaaa>, <EMAIL_bbbbbb> or <PHONE_cccccc>"},
]


def logged(number: int = 0, **facts) -> LoggedRequest:
    """Return a request that went well; the number tells its id and its second."""
    known = {
        "asked": "luthier",
        "status": 200,
        "seconds": 0.5,
        "request": f"r{number:06d}",
        "at": NOON + timedelta(seconds=number),
    }
    return LoggedRequest(**known | facts)


def uri_of(folder: Path) -> str:
    """Return the URL of a SQLite database in a folder."""
    return f"sqlite:///{folder / 'requests.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request, tmp_path):
    """Return each kind of database in turn, without a log in it."""
    if request.param == "sqlite":
        return uri_of(tmp_path)
    server = request.getfixturevalue("postgres")
    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("DROP TABLE IF EXISTS luthier_requests, luthier_feedback"))
    return server
