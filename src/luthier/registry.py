"""Which versions of the model there are, which one is in production, and how it came there.

Versions, their tags and aliases live in MLflow's model registry; their packages in MLflow's artefact store. MLflow has no history
of its aliases, and cannot set two of them at once. So the truth about production is a log of our own: a table, by default in
MLflow's database, to which lines are only ever added, each with the hash of the one before. To switch is

    take the lock -> check the package's bytes -> add a line, in one transaction -> set the aliases `previous` and `champion`

A kill before the line changed nothing. A kill after it leaves aliases that are behind the log: the next command, whichever it is,
sets them and says so in the log. The lock is one that a killed process cannot keep: `flock` beside SQLite, a session's advisory
lock in PostgreSQL.

`previous` is what a rollback would bring back: the champion that the present one was promoted over. A rollback restores the state
of that line, its `previous` included, so two rollbacks go back twice and never return to what was just taken back.
"""

import contextlib
import fcntl
import gc
import getpass
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    create_engine,
    insert,
    select,
)
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from luthier.artefacts import MANIFEST, hash_of, is_complete, read_manifest, staged, verify
from luthier.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

logger = logging.getLogger(__name__)

Gate = Literal["pass", "fail", "undecided", "none"]
Check = Callable[[Path, str], object]
"""Reads every byte of a package folder; raises UserError unless it is sound and has this root hash."""

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
FIRST = "0" * 64
"""What the first line of a log carries in place of the hash of a line before it."""
MLFLOW_NOTE = "registered_model_meta"
"""What MLflow writes into a package that it loads, in the store itself if that is a local folder."""
PATIENCE = 60.0
"""Seconds that registering waits for the lock. A promotion does not wait: its reasons may be gone by then."""


class BusyError(UserError):
    """Another holds the lock."""


# --- the deployment log ------------------------------------------------------------------------------------------------------


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
    """`promote`, `rollback`, or `repair` (aliases that disagreed with the log were set again)."""
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
        self._url = _database(uri)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"

    @cached_property
    def _engine(self) -> Engine:
        # SQLite: transactions begin where we say so, and wait while a training run logs its metrics into the same file
        options: dict[str, Any] = {"isolation_level": None, "timeout": 30} if self._is_sqlite else {"connect_timeout": 10}
        return create_engine(self._url, poolclass=NullPool, connect_args=options)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            connection = self._engine.connect()
        except ModuleNotFoundError as error:
            raise UserError(f'{self._url.drivername} needs a driver: pip install "luthier[postgres]" ({error}).') from error
        except OperationalError as error:
            raise UserError(f"The database {self._url.render_as_string()} cannot be opened: {error.orig}") from error
        with connection:
            yield connection

    @contextmanager
    def writer(self, doing: str, patience: float = 0.0) -> Iterator[Connection]:
        """Hold the lock of all writers; the operating system or the server releases it when this process dies.

        Args:
            doing: what for, as others will be told who are kept out.
            patience: seconds to wait for it.

        Raises:
            UserError: if another holds it, saying who.
        """
        lock = self._file_lock(doing, patience) if self._is_sqlite else contextlib.nullcontext()
        with lock, self._connection() as connection:
            if not self._is_sqlite:
                # on the connection that writes: a session that was lost can no longer write either
                self._session_lock(connection, doing, patience)
            yield connection

    @contextmanager
    def _file_lock(self, doing: str, patience: float) -> Iterator[None]:
        path = Path(f"{self._url.database}-{re.sub(r'[^A-Za-z0-9.-]', '_', self.model)}.lock")
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

    def append(self, connection: Connection, **facts: Any) -> Line:
        """Add a line, in one transaction.

        Args:
            connection: what `writer` yielded: the lock is held.
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
        connection.commit()
        return line

    def lines(self) -> list[Line]:
        """Return all lines, the oldest first."""
        return self._read(None)

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
        with self._connection() if connection is None else contextlib.nullcontext(connection) as reading:
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


def _database(uri: str) -> URL:
    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in APPEND_ONLY or not url.database or url.database == ":memory:":
        shown = url.render_as_string() if url is not None else uri.split("@")[-1]
        raise UserError(
            f"The deployment log cannot be kept in {shown}: it needs a database that it can lock. "
            "Set LUTHIER_LOG_URI to sqlite:////absolute/path.db or postgresql+psycopg://user:password@host/database."
        )
    return url


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


# --- the registry ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """A registered version of the model."""

    number: int
    aliases: tuple[str, ...]
    """Aliases that point to it; `champion` and `previous` as the log says."""
    manifest: str
    """Root sha256 of its package; empty if it was not registered by Luthier."""
    gate: str
    """The gate's decision: pass, fail, undecided or none."""
    figures: dict[str, float]
    """Metric -> value, the main ones first."""
    data: dict[str, str]
    """Data set -> sha256."""
    run: str
    """The MLflow run that made it."""
    commit: str
    created: str
    """When it was registered, ISO 8601 in UTC."""
    source: str
    """Where its package lies in the artefact store."""


def check_bytes(folder: Path, expected: str) -> None:
    """Read every byte of a package and compare it with its manifest, and the manifest with the root hash.

    Raises:
        UserError: naming what differs.
    """
    found = verify(folder)["sha256"]
    if found != expected:
        raise UserError(f"{folder} is another package: its root hash is {found[:16]}, the registry says {expected[:16]}.")


class Registry:
    """The versions of one model and their way into production.

    >>> registry = Registry("luthier", "sqlite:////srv/mlflow.db")              # doctest: +SKIP
    >>> version = registry.register(Path("package"), run_id, gate="pass")       # doctest: +SKIP
    >>> registry.promote()                                                      # doctest: +SKIP
    >>> registry.fetch(registry.resolve("champion"), Path("cache"))             # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        tracking_uri: str,
        log_uri: str | None = None,
        cache: Path | None = None,
        check: Check = check_bytes,
        who: str | None = None,
    ) -> None:
        """Name the registry; nothing is opened before it is needed.

        Args:
            name: the registered model.
            tracking_uri: MLflow's: a database or a server.
            log_uri: database of the deployment log; by default that of MLflow. A server does not show its database: with one,
                name a database that all who promote can reach.
            cache: folder for packages of a remote store, which are downloaded to be checked.
            check: what a package must withstand before it is registered, fetched or switched to.
            who: who acts, as the log will say; by default user@machine.

        Raises:
            UserError: if there is no database for the log.
        """
        if re.search(r"[/:'\"]", name):
            raise UserError(f"{name!r} cannot name a model in the registry: no /, : or quotation marks.")
        self.name = name
        self._tracking_uri = tracking_uri
        self._cache = cache
        self._check = check
        if log_uri is None and tracking_uri.startswith(("http://", "https://")):
            raise UserError(
                "The tracking URI is a server, which does not show its database: name one for the deployment log in "
                "LUTHIER_LOG_URI, such as postgresql+psycopg://user:password@host/database. All who promote must use the same."
            )
        self.log = DeploymentLog(name, log_uri or tracking_uri, who or whoami())

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client of the tracking server, made when it is first asked for."""
        # MLflow makes a million lasting objects as it is imported, through which the collector of garbage would go in vain
        # again and again: a quarter of the time of a whole rollback
        collecting = gc.isenabled()
        gc.disable()
        try:
            from mlflow import MlflowClient

            return MlflowClient(self._tracking_uri, self._tracking_uri)
        finally:
            gc.freeze()
            if collecting:
                gc.enable()

    # --- reading

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self.client.search_model_versions(f"name = '{self.name}'", order_by=["version_number DESC"], page_token=token)
            found += page
            token = page.token
            if not token:
                break
        aliases = self._aliases() | self._logged_aliases()
        return [_version(entry, aliases) for entry in found]

    def resolve(self, which: str | int) -> Version:
        """Return the version of a number or an alias.

        `champion` and `previous` are what the log says, which at any moment is one whole state: aliases are set one by one.

        Raises:
            UserError: if there is none, with what there is.
        """
        aliases = self._aliases() | self._logged_aliases()
        number = int(which) if str(which).isdecimal() else aliases.get(str(which))
        entry = self._entry(number) if number is not None else None
        if entry is None:
            numbers = [version.number for version in self.versions()]
            known = sorted(alias for alias, number in aliases.items() if number is not None)
            raise UserError(
                f"{self.name} has no version {which}{did_you_mean(str(which), known)}; there are "
                f"{', '.join(map(str, reversed(numbers))) or 'none: `kedro run` registers one'}"
                + (f", and the aliases {', '.join(known)}." if known else ".")
            )
        return _version(entry, aliases)

    def fetch(self, version: Version, cache: Path) -> Path:
        """Return a checked copy of a version's package on this machine, in `cache` under its root hash.

        What is there already is read again in full; what was damaged is fetched again.

        Raises:
            UserError: if what is stored is not what was registered.
        """
        _registered_by_us(version)
        target = cache / version.manifest
        if is_complete(target):
            try:
                self._check(target, version.manifest)
            except UserError as error:
                logger.warning("Fetching again what was damaged: %s", error)
                shutil.rmtree(target)
            else:
                return target
        facts = {key: value for key, value in self._stored_manifest(version).items() if key not in ("files", "sha256")}
        try:
            with staged(target, **facts) as staging:
                self._download(version, staging)
                self._check(staging, version.manifest)
        except OSError:
            if not is_complete(target):  # else another was faster
                raise
        return target

    # --- writing

    def register(
        self,
        package: Path,
        run_id: str,
        gate: Gate = "none",
        figures: Mapping[str, float] | None = None,
        data: Mapping[str, str] | None = None,
        commit: str = "unknown",
    ) -> Version:
        """Store a package and make it a version with the alias `candidate`.

        The same package of the same run is the same version: what was killed can be given again.

        Args:
            package: a folder made by `artefacts.staged`.
            run_id: the MLflow run that made it; its artefact store takes the package.
            gate: the gate's decision.
            figures: metric -> value, the main ones first.
            data: data set -> sha256.
            commit: of the code.

        Raises:
            UserError: if the package is damaged or refused by `check`.
        """
        manifest = str(read_manifest(package)["sha256"])
        self._check(package, manifest)
        place = f"packages/{manifest}"
        root = self.client.get_run(run_id).info.artifact_uri
        # named by content, and without a version nothing reads it: a killed upload is given again over itself
        self.client.log_artifacts(run_id, str(package), place)
        tags = {
            "luthier.manifest": manifest,
            "luthier.data": json.dumps(dict(data or {}), sort_keys=True),
            "luthier.run": run_id,
            "luthier.commit": commit,
            "luthier.gate": gate,
            "luthier.figures": json.dumps(dict(figures or {})),
        }
        with self.log.writer("register", PATIENCE) as connection:
            self._create_model()
            self._repair(connection)
            same = [v.number for v in self.versions() if (v.manifest, v.run) == (manifest, run_id)]
            source = f"{root.rstrip('/')}/{place}"
            number = same[0] if same else int(self.client.create_model_version(self.name, source, run_id, tags).version)
            self.client.set_registered_model_alias(self.name, CANDIDATE, str(number))
        return self.resolve(number)

    def promote(self, version: str | int | None = None, force: bool = False, reason: str | None = None) -> Line:
        """Make a version the champion, and the champion the version to roll back to.

        Args:
            version: number or alias; None takes the candidate.
            force: promote although the gate did not pass it; needs a reason.
            reason: why; kept in the log.

        Raises:
            UserError: if it may not be, is damaged, is the champion already, or another is at it. Then nothing was changed.
        """
        if force and not (reason or "").strip():
            raise UserError("--force goes with --reason TEXT: the log keeps why the gate was overruled.")
        with self.log.writer("promote") as connection:
            last = self._repair(connection)
            target = self.resolve(CANDIDATE if version is None else version)
            _registered_by_us(target)
            passed = target.gate == "pass"
            if last is not None and last.version == target.number:
                raise UserError(
                    f"Version {target.number} is the champion already. Name another one, or register a new candidate."
                )
            if not passed and not force:
                raise UserError(
                    f"Version {target.number} may not be promoted: the gate said {target.gate!r}, not 'pass'. "
                    f"To overrule it, and have that in the log: kedro promote {target.number} --force --reason TEXT"
                )
            known = self.log.last_of(target.number, connection)
            self._check_stored(target, known.manifest if known else target.manifest)
            line = self.log.append(
                connection,
                action="promote",
                forced=not passed,
                version=target.number,
                from_version=last.version if last else None,
                previous=last.version if last else None,
                below=last.number if last else None,
                reason=(reason or "").strip(),
                gate=target.gate,
                manifest=target.manifest,
            )
            self._set_aliases(line)
        return line

    def rollback(self, to: str | int | None = None, reason: str | None = None) -> Line:
        """Bring back the champion that the present one was promoted over, or one that was champion before it.

        Args:
            to: number or alias of a version that was champion once; None takes the previous one.
            reason: why; kept in the log.

        Raises:
            UserError: if there is nothing to go back to, it is damaged, or another is at it. Then nothing was changed.
        """
        with self.log.writer("rollback") as connection:
            last = self._repair(connection)
            if last is None:
                raise UserError("There is nothing to roll back: no version was ever promoted (`kedro promote`).")
            restored = self._line_to_restore(connection, last, to)
            target = self.resolve(restored.version)
            self._check_stored(target, restored.manifest)
            line = self.log.append(
                connection,
                action="rollback",
                forced=False,
                version=restored.version,
                from_version=last.version,
                previous=restored.previous,
                below=restored.below,
                reason=(reason or "").strip(),
                gate=target.gate,
                manifest=restored.manifest,
            )
            self._set_aliases(line)
        return line

    def repair(self) -> None:
        """Set aliases that disagree with the log; while another is at it, they are his to set.

        For commands that only read: those that write do it anyway.
        """
        last = self.log.last()
        if last is not None and self._disagreement(last):
            with contextlib.suppress(BusyError), self.log.writer("repair") as connection:
                self._repair(connection)

    def _repair(self, connection: Connection) -> Line | None:
        """Set the aliases to what the log says if they say something else; return the line that counts."""
        last = self.log.last(connection)
        found = self._disagreement(last) if last else None
        if last is None or found is None:
            return last
        said = ", ".join(f"{alias} {number or 'nobody'}" for alias, number in found.items())
        line = self.log.append(
            connection,
            action="repair",
            forced=False,
            version=last.version,
            from_version=found[CHAMPION],
            previous=last.previous,
            below=last.below,
            reason=f"the aliases said {said}",
            gate=last.gate,
            manifest=last.manifest,
        )
        logger.warning("Aliases disagreed with the deployment log (%s); they are set again.", line.reason)
        self._set_aliases(line)
        return line

    def _disagreement(self, last: Line) -> dict[str, int | None] | None:
        """Return what the aliases say if it is not what they should; None if all is well."""
        aliases = self._aliases()
        said = {alias: aliases.get(alias) for alias in (PREVIOUS, CHAMPION)}
        if said == {PREVIOUS: last.previous, CHAMPION: last.version}:
            return None
        return None if said == self._wanted(last) else said

    def _wanted(self, line: Line) -> dict[str, int | None]:
        """Return the aliases that the log asks for, in the order of setting; none for a version that was deleted since.

        MLflow numbers anew where a whole model was deleted, so a version counts only with the manifest that was logged.
        """
        below = self.log.line(line.below) if line.below is not None else None
        wanted: dict[str, int | None] = {}
        for alias, number, manifest in (
            (PREVIOUS, line.previous, below.manifest if below else ""),
            (CHAMPION, line.version, line.manifest),
        ):
            entry = self._entry(number) if number is not None else None
            wanted[alias] = number if entry is not None and entry.tags.get("luthier.manifest") == manifest else None
        return wanted

    def _set_aliases(self, line: Line) -> None:
        from mlflow.exceptions import MlflowException

        try:
            for alias, number in self._wanted(line).items():
                if number is None:
                    self.client.delete_registered_model_alias(self.name, alias)
                else:
                    self.client.set_registered_model_alias(self.name, alias, str(number))
        except MlflowException as error:
            raise UserError(
                f"Version {line.version} is the champion: line {line.number} of the deployment log says so. "
                f"But MLflow did not take its aliases ({error}). The next command sets them, such as `kedro models`."
            ) from error

    def _line_to_restore(self, connection: Connection, last: Line, to: str | int | None) -> Line:
        if to is None:
            below = self.log.line(last.below, connection) if last.below is not None else None
            if below is None:
                raise UserError(
                    f"There is nothing to roll back to: version {last.version} is the first champion. "
                    "Name another version that was champion (kedro rollback --to VERSION), or promote one."
                )
            return below
        number = self.resolve(to).number
        line = self.log.last_of(number, connection)
        if line is None:
            raise UserError(f"Version {number} was never the champion, so it is no rollback: kedro promote {number}")
        if number == last.version:
            raise UserError(f"Version {number} is the champion already.")
        return line

    # --- MLflow and its artefact store

    def _aliases(self) -> dict[str, int | None]:
        client = self.client  # before anything else imports MLflow, the slow way
        from mlflow.exceptions import MlflowException

        try:
            # not from a search, whose versions have no aliases (mlflow#16734)
            found = client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(number) for alias, number in found.items()}

    def _logged_aliases(self) -> dict[str, int | None]:
        last = self.log.last()
        return {} if last is None else {CHAMPION: last.version, PREVIOUS: last.previous}

    def _entry(self, number: int) -> "ModelVersion | None":
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _create_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _check_stored(self, version: Version, expected: str) -> None:
        """Check the bytes in the store; of a remote one each file's name and size, and the bytes of the copy in the cache."""
        if version.manifest != expected:
            raise UserError(
                f"The tag luthier.manifest of version {version.number} was changed: it was in production with {expected[:16]}."
            )
        folder = self._local(version)
        if folder is not None:
            self._check(folder, expected)
            return
        with contextlib.ExitStack() as stack:
            cache = self._cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if is_complete(cache / expected):
                self._check_listing(version)
            self.fetch(version, cache)

    def _check_listing(self, version: Version) -> None:
        manifest = self._stored_manifest(version)
        with _from_store(version):
            stored = dict(_files_of(self._artefacts(version)))
        wanted = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        different = sorted(name for name, _ in wanted.items() ^ stored.items() if name not in (MANIFEST, MLFLOW_NOTE))
        if different or manifest["sha256"] != version.manifest or hash_of(manifest["files"]) != version.manifest:
            raise UserError(
                f"What is stored in {version.source} is not what was registered: {', '.join(different) or MANIFEST}. "
                "Register the package again."
            )

    def _stored_manifest(self, version: Version) -> dict[str, Any]:
        folder = self._local(version)
        if folder is not None:
            return read_manifest(folder)
        with tempfile.TemporaryDirectory() as temporary:
            with _from_store(version):
                self._artefacts(version).download_artifacts(MANIFEST, temporary)
            return read_manifest(Path(temporary))

    def _download(self, version: Version, target: Path) -> None:
        folder = self._local(version)
        if folder is not None:
            # MLflow would give the store's own folder; links are copied as links, for the check to refuse
            ignored = shutil.ignore_patterns(MLFLOW_NOTE)
            shutil.copytree(folder, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            return
        with _from_store(version):
            self._artefacts(version).download_artifacts("", str(target))
        (target / MLFLOW_NOTE).unlink(missing_ok=True)

    def _artefacts(self, version: Version) -> "ArtifactRepository":
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(version.source, tracking_uri=self._tracking_uri)

    def _local(self, version: Version) -> Path | None:
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        repository = self._artefacts(version)
        return Path(repository.artifact_dir) if isinstance(repository, LocalArtifactRepository) else None


@contextmanager
def _from_store(version: Version) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each kind of store has exceptions of its own
        raise UserError(f"The package of version {version.number} cannot be read from {version.source}: {error}") from error


def _files_of(repository: "ArtifactRepository", folder: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield name and size of each file of a store."""
    for entry in repository.list_artifacts(folder):
        if entry.is_dir:
            yield from _files_of(repository, entry.path)
        else:
            yield entry.path, int(entry.file_size)


def _version(entry: "ModelVersion", aliases: Mapping[str, int | None]) -> Version:
    tags = entry.tags
    number = int(entry.version)
    return Version(
        number=number,
        aliases=tuple(sorted(alias for alias, to in aliases.items() if to == number)),
        manifest=tags.get("luthier.manifest", ""),
        gate=tags.get("luthier.gate", "none"),
        figures=json.loads(tags.get("luthier.figures", "{}")),
        data=json.loads(tags.get("luthier.data", "{}")),
        run=tags.get("luthier.run") or entry.run_id or "",
        commit=tags.get("luthier.commit", "unknown"),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        source=entry.source,
    )


def of_active_run(cache: Path) -> Registry | None:
    """Return the registry that the active MLflow run belongs to; None if no run is active.

    One experiment, one model: both carry the same name.

    Args:
        cache: as of `Registry`.
    """
    import mlflow

    from luthier.packages import check_package

    run = mlflow.active_run()
    if run is None:
        return None
    name = mlflow.get_experiment(run.info.experiment_id).name
    log_uri = os.environ.get("LUTHIER_LOG_URI")
    return Registry(name, mlflow.get_tracking_uri(), log_uri, cache, check=check_package)


def _registered_by_us(version: Version) -> None:
    if not version.manifest:
        raise UserError(f"Version {version.number} was not registered by Luthier: it has no tag luthier.manifest to check it by.")
