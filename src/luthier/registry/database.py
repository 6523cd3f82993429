"""A SQLite or PostgreSQL database, opened one connection at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from luthier.errors import UserError

BACKENDS = ("sqlite", "postgresql")


class Database:
    """A database that can be locked, so that a log can be kept in it."""

    def __init__(self, uri: str, log: str = "The deployment log", setting: str = "LUTHIER_LOG_URI") -> None:
        """Name the database; it is neither opened nor created before it is needed.

        Args:
            uri: SQLAlchemy's URL of a SQLite or PostgreSQL database.
            log: what is to be kept in it.
            setting: what names another database, for a message.

        Raises:
            UserError: if no log can be kept in such a database.
        """
        self.url = _lockable(uri, log, setting)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"

    @cached_property
    def _engine(self) -> Engine:
        # SQLite: transactions begin where we say so, and wait while a training run logs its metrics into the same file
        options: dict[str, Any] = {"isolation_level": None, "timeout": 30} if self.is_sqlite else {"connect_timeout": 10}
        return create_engine(self.url, poolclass=NullPool, connect_args=options)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection that is closed in the end.

        Raises:
            UserError: if the database cannot be opened.
        """
        try:
            connection = self._engine.connect()
        except ModuleNotFoundError as error:
            raise UserError(f'{self.url.drivername} needs a driver: pip install "luthier[postgres]" ({error}).') from error
        except OperationalError as error:
            raise UserError(f"The database {self.url.render_as_string()} cannot be opened: {error.orig}") from error
        with connection:
            yield connection


def _lockable(uri: str, log: str, setting: str) -> URL:
    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in BACKENDS or not url.database or url.database == ":memory:":
        shown = url.render_as_string() if url is not None else uri.split("@")[-1]
        raise UserError(
            f"{log} cannot be kept in {shown}: it needs a database that it can lock. "
            f"Set {setting} to sqlite:////absolute/path.db or postgresql+psycopg://user@host/database (password in PGPASSWORD)."
        )
    return url
