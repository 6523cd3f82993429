"""Requests to log."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

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
