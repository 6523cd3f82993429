"""The deployment log: a table that only grows, whose last line says what is in production.

Each line carries the hash of the one before. Who writes holds a lock that a killed process cannot keep: `flock` beside SQLite, a
session's advisory lock in PostgreSQL.
"""

import contextlib
import fcntl
import getpass
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    select,
)

from luthier.artefacts import hash_of
from luthier.errors import UserError
from luthier.registry.database import Database

FIRST = "0" * 64
"""What the first line of a log carries in place of the hash of a line before it."""


class BusyError(UserError):
    """Another holds the lock."""


@dataclass(frozen=True)
class Line:
    """One line of the deployment log. The last one says what is in production."""

    model: str
    """The registered model; each has a chain of its own."""
    number: int
    """1, 2, 3 ... without a gap."""
    at: str
    """When, ISO 8601 in UTC."""
    who: str
    """user@machine."""
    action: str
    """`promote`, `rollback`, `repair` (aliases that disagreed with the log were set again); or what the monitor did while the
    champion stays: `retrain`, `retrain failed`, `end experiment`."""
    forced: bool
    """Whether the version had no passing gate."""
    version: int
    """The champion from this line on."""
    from_version: int | None
    """The champion before; of a repair, what the alias said."""
    previous: int | None
    """The version that a rollback would bring back."""
    below: int | None
    """Number of the line whose state a rollback would restore."""
    reason: str
    """Why, in somebody's words."""
    gate: str
    """The gate's decision on the version."""
    manifest: str
    """Root sha256 of the version's package."""
    before: str
    """`sha256` of the line before."""
    sha256: str
    """Hash of all of the above."""

    def digest(self) -> str:
        """Return the hash that the line should carry."""
        return hash_of({name: value for name, value in asdict(self).items() if name != "sha256"})


TABLE = Table(
    "luthier_deployments",
    MetaData(),
    Column("model", String(256), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),
    Column("who", Text, nullable=False),
    Column("action", String(16), nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("from_version", Integer),
    Column("previous", Integer),
    Column("below", BigInteger),
    Column("reason", Text, nullable=False),
    Column("gate", String(16), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("before", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
)

# The database itself refuses to change what was written. REPLACE of SQLite's deletes without asking the trigger for DELETE.
APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER luthier_no_update BEFORE UPDATE ON luthier_deployments "
        "BEGIN SELECT RAISE(ABORT, 'luthier_deployments is append-only'); END",
        "CREATE TRIGGER luthier_no_delete BEFORE DELETE ON luthier_deployments "
        "BEGIN SELECT RAISE(ABORT, 'luthier_deployments is append-only'); END",
        "CREATE TRIGGER luthier_no_replace BEFORE INSERT ON luthier_deployments "
        "WHEN EXISTS (SELECT 1 FROM luthier_deployments WHERE model = NEW.model AND number >= NEW.number) "
        "BEGIN SELECT RAISE(ABORT, 'luthier_deployments is append-only'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION luthier_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'luthier_deployments is append-only'; END $$",
        "CREATE TRIGGER luthier_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON luthier_deployments "
        "FOR EACH STATEMENT EXECUTE FUNCTION luthier_append_only()",
    ),
}


class DeploymentLog:
    """The log of one registered model: a table that only grows, and the lock for all who write."""

    def __init__(self, model: str, uri: str, who: str) -> None:
        """Name the log; nothing is opened or created before it is needed.

        Args:
            model: the registered model.
            uri: SQLAlchemy's URL of a SQLite or PostgreSQL database.
            who: who is writing, as the lines will say.

        Raises:
            UserError: if no log can be kept in such a database.
        """
        self.model, self.who = model, who
        self.database = Database(uri)

    @contextmanager
    def writer(self, doing: str, patience: float = 0.0) -> Iterator[Connection]:
        """Hold the lock of all writers; the operating system or the server releases it when this process dies.

        Args:
            doing: what for, as others will be told who are kept out.
            patience: seconds to wait for it.

        Raises:
            UserError: if another holds it, saying who.
        """
        lock = self._file_lock(doing, patience) if self.database.is_sqlite else contextlib.nullcontext()
        with lock, self.database.connection() as connection:
            if not self.database.is_sqlite:
                # on the connection that writes: a session that was lost can no longer write either
                self._session_lock(connection, doing, patience)
            yield connection

    @contextmanager
    def _file_lock(self, doing: str, patience: float) -> Iterator[None]:
        path = Path(f"{self.database.url.database}-{re.sub(r'[^A-Za-z0-9.-]', '_', self.model)}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as file:

            def acquired() -> bool:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            if not _within(patience, acquired):
                file.seek(0)
                raise _kept_out(file.read().strip())
            # closing the file releases the lock, and so does the end of the process, however it ends
            file.truncate(0)
            file.write(f"{self.who}, process {os.getpid()}, {doing}, since {_now()}\n")
            file.flush()
            yield

    def _session_lock(self, connection: Connection, doing: str, patience: float) -> None:
        key = int.from_bytes(hashlib.sha256(f"luthier deployments of {self.model}".encode()).digest()[:8], signed=True)
        name = f"luthier {doing} {self.who} process {os.getpid()}"
        connection.exec_driver_sql("SELECT set_config('application_name', %s, false)", (name[:63],))
        # where a machine vanishes with its process, the server notices within a minute
        for setting, value in (("tcp_keepalives_idle", "20"), ("tcp_keepalives_interval", "10"), ("tcp_keepalives_count", "3")):
            connection.exec_driver_sql("SELECT set_config(%s, %s, false)", (setting, value))
        connection.commit()

        def acquired() -> bool:
            held = connection.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (key,)).scalar_one()
            connection.commit()
            return bool(held)

        if not _within(patience, acquired):
            holder = connection.exec_driver_sql(
                "SELECT application_name || ', since ' || to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') "
                "FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND classid::bigint = %s AND objid::bigint = %s",
                ((key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF),
            ).scalar_one_or_none()
            raise _kept_out(holder or "")

    def append(self, connection: Connection, along: Callable[[Line], None] | None = None, **facts: Any) -> Line:
        """Add a line, in one transaction.

        Args:
            connection: what `writer` yielded: the lock is held.
            along: what else is to be written through this connection if the line is, and not if it is not.
            facts: the fields of `Line` from `action` to `manifest`.

        Raises:
            UserError: if the last line was changed since it was written.
        """
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('luthier_deployments'))")
        if not connection.dialect.has_table(connection, TABLE.name):
            TABLE.create(connection)
            for statement in APPEND_ONLY[connection.dialect.name]:
                connection.exec_driver_sql(statement)
        last = next(iter(_lines(connection, self.model, newest=True)), None)
        if last is not None:
            check_chain([last], last.before, last.number)
        number, before = (last.number + 1, last.sha256) if last else (1, FIRST)
        values = {"model": self.model, "number": number, "at": _now(), "who": self.who, **facts, "before": before}
        line = Line(**values, sha256=hash_of(values))
        connection.execute(insert(TABLE).values(**asdict(line)))
        if along is not None:
            along(line)
        connection.commit()
        return line

    def lines(self, connection: Connection | None = None) -> list[Line]:
        """Return all lines, the oldest first."""
        return self._read(connection)

    def last(self, connection: Connection | None = None) -> Line | None:
        """Return the line that says what is in production; None before the first promotion."""
        return next(iter(self._read(connection, newest=True)), None)

    def last_of(self, version: int, connection: Connection | None = None) -> Line | None:
        """Return the last line after which this version was the champion."""
        return next(iter(self._read(connection, TABLE.c.version == version, newest=True)), None)

    def line(self, number: int, connection: Connection | None = None) -> Line | None:
        """Return the line of this number."""
        return next(iter(self._read(connection, TABLE.c.number == number)), None)

    def _read(self, connection: Connection | None, *conditions: Any, newest: bool = False) -> list[Line]:
        with self.database.connection() if connection is None else contextlib.nullcontext(connection) as reading:
            lines = _lines(reading, self.model, *conditions, newest=newest)
            reading.rollback()  # ends the transaction: a package may be read for minutes before the next statement
        return lines


def check_chain(lines: list[Line], before: str = FIRST, number: int = 1) -> None:
    """Check that nothing was changed, removed or put in between.

    Args:
        lines: lines one after another.
        before: hash of the line before the first of them.
        number: number of the first of them.

    Raises:
        UserError: naming the first line that is not as it was written.
    """
    for expected, line in enumerate(lines, start=number):
        if (line.number, line.before, line.sha256) != (expected, before, line.digest()):
            raise UserError(
                f"The deployment log of {line.model} was changed after it was written, at line {expected}. "
                "Restore the table luthier_deployments from a backup."
            )
        before = line.sha256


def _lines(connection: Connection, model: str, *conditions: Any, newest: bool = False) -> list[Line]:
    """Return the lines in their order, or a list of only the newest."""
    if not connection.dialect.has_table(connection, TABLE.name):
        return []
    query = select(TABLE).where(TABLE.c.model == model, *conditions)
    query = query.order_by(TABLE.c.number.desc()).limit(1) if newest else query.order_by(TABLE.c.number)
    return [Line(**row) for row in connection.execute(query).mappings()]


def _within(seconds: float, acquired: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not acquired():
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def _kept_out(holder: str) -> BusyError:
    return BusyError(
        f"Another is at it, so nothing was changed ({holder or 'it does not say who'}). Look at `kedro models`, then try again."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def whoami() -> str:
    """Return user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container under a user id that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
