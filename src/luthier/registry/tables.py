"""The versions of one model and their aliases, in the tables of MLflow's own database.

MLflow's client takes two seconds to import and sets one alias after another. Where the deployment log lies in the same database,
a line of it and the aliases are written in one transaction, and at once.
"""

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from luthier.registry.database import Database
from luthier.registry.versions import Version, read_tags

# As MLflow 3.17 has them (mlflow/store/model_registry/dbmodels/models.py), as far as we read them.
VERSIONS = Table(
    "model_versions",
    MetaData(),
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("version", Integer),
    Column("creation_time", BigInteger),
    Column("current_stage", String(20)),
    Column("source", String(500)),
    Column("run_id", String(32)),
)
TAGS = Table(
    "model_version_tags",
    MetaData(),
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("version", Integer),
    Column("key", String(250)),
    Column("value", Text),
)
ALIASES = Table(
    "registered_model_aliases",
    MetaData(),
    Column("workspace", String(63)),
    Column("name", String(256)),
    Column("alias", String(256)),
    Column("version", Integer),
)

WORKSPACE = "default"
"""The only workspace of a database that is not divided into several."""
DELETED = "Deleted_Internal"
"""Stage of a version that was deleted; its row stays, so that its number is never given again."""


class TableCatalogue:
    """One model as MLflow's tables show it."""

    def __init__(self, name: str, database: Database) -> None:
        """Name the model; nothing is opened before it is needed."""
        self.name, self._database = name, database

    def is_known(self) -> bool:
        """Tell whether the tables are those that we know: all columns of the one that is written to, and the ones that are read.

        Where they are not, MLflow is another, or has not made them yet: its client is to be asked.
        """
        if os.environ.get("MLFLOW_ENABLE_WORKSPACES", "false").lower() not in ("false", "0"):
            return False
        with self._database.connection() as connection:
            try:
                columns = {table.name: set(connection.execute(_nothing_of(table)).keys()) for table in (VERSIONS, TAGS, ALIASES)}
            except DBAPIError:
                return False
        reads = all(columns[table.name] >= set(table.columns.keys()) for table in (VERSIONS, TAGS))
        return reads and columns[ALIASES.name] == set(ALIASES.columns.keys())

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        return self._read()

    def version(self, number: int) -> Version | None:
        """Return the version of this number; None if there is none."""
        return next(iter(self._read(number)), None)

    def aliases(self) -> dict[str, int]:
        """Return which version each alias points to."""
        query = select(ALIASES.c.alias, ALIASES.c.version).where(*self._ours(ALIASES))
        with self._database.connection() as connection:
            return {row.alias: row.version for row in connection.execute(query)}

    def set_aliases(self, connection: Connection, wanted: Mapping[str, int | None]) -> None:
        """Point each alias to its version, in the transaction of this connection; None takes an alias away."""
        connection.execute(delete(ALIASES).where(*self._ours(ALIASES), ALIASES.c.alias.in_(wanted)))
        for alias, number in wanted.items():
            if number is not None:
                row = {"workspace": WORKSPACE, "name": self.name, "alias": alias, "version": number}
                connection.execute(insert(ALIASES).values(row))

    def _read(self, number: int | None = None) -> list[Version]:
        one = {table.name: () if number is None else (table.c.version == number,) for table in (VERSIONS, TAGS)}
        tags: dict[int, dict[str, str]] = {}
        with self._database.connection() as connection:
            query = select(TAGS.c.version, TAGS.c.key, TAGS.c.value).where(*self._ours(TAGS), *one[TAGS.name])
            for version, key, value in connection.execute(query):
                tags.setdefault(version, {})[key] = value
            found = select(VERSIONS).where(*self._ours(VERSIONS), *one[VERSIONS.name], VERSIONS.c.current_stage != DELETED)
            rows = connection.execute(found.order_by(VERSIONS.c.version.desc())).all()
        return [read_tags(row.version, tags.get(row.version, {}), row.run_id, row.creation_time, row.source) for row in rows]

    def _ours(self, table: Table) -> tuple[Any, Any]:
        return table.c.workspace == WORKSPACE, table.c.name == self.name


def _nothing_of(table: Table) -> Select[Any]:
    return select(text("*")).select_from(table).limit(0)
