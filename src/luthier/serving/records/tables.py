"""Where requests and the feedback on them are kept: two tables in SQLite or PostgreSQL.

Times are texts of one form (ISO 8601, UTC, microseconds), so that their order is that of time, in both databases.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, Column, Connection, Double, Index, Integer, MetaData, Select, String, Table, Text

from luthier.errors import UserError
from luthier.registry.database import Database

if TYPE_CHECKING:
    import pandas as pd

METADATA = MetaData()

REQUESTS = Table(
    "luthier_requests",
    METADATA,
    Column("request", String(64), primary_key=True),  # the completion's id
    Column("at", String(32), nullable=False),  # when it came
    Column("client", Text),  # name of the API key
    Column("asked", Text, nullable=False),  # the model, as the client called it
    Column("experiment", Text),
    Column("assigned", Text),  # the subject's variant; null if the client chose the version
    Column("served", Text),  # the variant that answered; another one where the assigned one could not
    Column("version", Integer),  # that answered; null if none did
    Column("manifest", String(64)),  # root sha256 of its package
    Column("shadow_of", String(64)),  # the request whose shown answer this one, never shown, stands beside
    Column("subject", String(64)),  # hash of who asked
    Column("status", Integer, nullable=False),  # of HTTP, as the answer began
    Column("error", Text),  # one of luthier.serving.api.errors.CODES
    Column("finish", Text),  # stop | length
    Column("streamed", Boolean, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("first_token_seconds", Double),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("turns", Integer),
    Column("prompt_characters", BigInteger),  # of all turns, scrubbed
    Column("answer_characters", BigInteger),
    Column("language", Text),  # of what the user says; ISO 639-1
    Column("pii", Text),  # JSON: kind -> placeholders in the turns
    Column("prompt", Text),  # JSON: the turns, scrubbed; null if no text is kept
    Column("answer", Text),  # scrubbed; null if no text is kept
    Index("luthier_requests_at", "at"),
)

FEEDBACK = Table(
    "luthier_feedback",
    METADATA,
    Column("request", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),  # what is judged, such as `helpful`
    Column("rating", String(8)),  # up | down
    Column("correction", Text),  # what the answer should have been, scrubbed
    Column("comment", Text),  # scrubbed
    Column("at", String(32), nullable=False),  # the first vote
    Column("updated_at", String(32), nullable=False),  # the last one that said something else
    Index("luthier_feedback_updated_at", "updated_at"),
)

_ROWS_AT_ONCE = 10_000
_TIMES = ("at", "updated_at")
_TYPES = {str: "string", int: "Int64", float: "Float64", bool: "boolean"}


def open_database(uri: str) -> Database:
    """Name the database of the request log; it is neither opened nor created.

    Raises:
        UserError: if it is none of SQLite's files and PostgreSQL's databases.
    """
    return Database(uri, "The request log", "serving.log.uri")


def make_tables(database: Database) -> None:
    """Make the tables where they are missing.

    Raises:
        UserError: if the database cannot be opened, or has these tables with other columns.
        DBAPIError: if it cannot be written to.
    """
    if database.is_sqlite:
        with database.connection() as connection:
            # whoever reads does not keep the writer waiting, nor the other way round
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    with transaction(database) as connection:
        if not database.is_sqlite:
            # two gateways that start at once
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('luthier_requests'))")
        METADATA.create_all(connection)
        for table in METADATA.sorted_tables:
            _must_fit(connection, table)


def _must_fit(connection: Connection, table: Table) -> None:
    found = {column["name"] for column in connection.dialect.get_columns(connection, table.name)}
    if missing := sorted(set(table.columns.keys()) - found):
        raise UserError(
            f"serving.log.uri: its table {table.name} has no column {', '.join(missing)}: another version of Luthier made it. "
            "Name another database, or rename that table."
        )


@contextmanager
def transaction(database: Database) -> Iterator[Connection]:
    """Yield a connection in a transaction that writes, committed in the end unless an error leaves it.

    Raises:
        UserError: if the database cannot be opened.
    """
    with database.connection() as connection:
        if database.is_sqlite:  # its driver is told to begin no transaction by itself
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        connection.commit()


def time_text(at: datetime) -> str:
    """Return a time as the tables have it.

    Args:
        at: with a time zone.

    Raises:
        ValueError: without one: the server's own would be guessed.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at} has no time zone")
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def storable(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a table that holds these values: no NUL, no half characters, no endless numbers.

    Raises:
        TypeError: if a value is of another type than its column: SQLite would take it, and PostgreSQL would not.
    """
    return {column.name: _storable(column, values.get(column.name)) for column in table.columns}


def _storable(column: Column[Any], value: Any) -> Any:
    kind = column.type.python_type
    if value is None:
        return None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise TypeError(f"{column.name} must be {kind.__name__}, not {type(value).__name__}")
    if kind is str:
        return str(value).replace("\0", "\ufffd").encode(errors="replace").decode()
    return value if abs(value) < 2**31 or (isinstance(column.type, BigInteger) and abs(value) < 2**63) else None


@contextmanager
def existing_log(database: Database) -> Iterator[Connection]:
    """Yield a connection to a log that is there.

    Raises:
        UserError: if none is.
    """
    shown = database.url.render_as_string()
    # SQLite would make the file
    if not database.is_sqlite or Path(str(database.url.database)).exists():
        with database.connection() as connection:
            if connection.dialect.has_table(connection, REQUESTS.name):
                yield connection
                return
    raise UserError(f"There is no request log in {shown} yet: `kedro serve` begins one.")


def read_frame(database: Database, query: Select[Any]) -> "pd.DataFrame":
    """Return what a query finds, each column of the type that its table gives it, whether any row was found or not.

    Raises:
        UserError: if there is no log in the database.
    """
    import pandas as pd

    columns: list[Any] = list(query.selected_columns)
    with existing_log(database) as connection:
        # as Python's objects a whole log takes several times the memory of the frame
        found = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query)
        parts = [_frame(rows, columns) for rows in found.partitions()]
    return pd.concat(parts, ignore_index=True) if parts else _frame([], columns)


def _frame(rows: Sequence[Any], columns: Sequence[Any]) -> "pd.DataFrame":
    import pandas as pd

    found = {column.name: pd.Series([row[place] for row in rows], dtype=object) for place, column in enumerate(columns)}
    return pd.DataFrame({column.name: _typed(found[column.name], column) for column in columns})


def _typed(values: Any, column: Any) -> Any:
    import pandas as pd

    if column.name in _TIMES:
        return pd.to_datetime(values, utc=True, format="ISO8601").astype("datetime64[us, UTC]")
    return values.astype(_TYPES[column.type.python_type])


def between(table: Table, column: str, since: datetime | None, until: datetime | None) -> list[Any]:
    """Return the conditions for rows from `since` on and before `until`; None sets no bound."""
    found = []
    if since is not None:
        found.append(table.c[column] >= time_text(since))
    if until is not None:
        found.append(table.c[column] < time_text(until))
    return found
