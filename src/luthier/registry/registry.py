"""Registering versions, putting one into production and taking it back.

    take the lock -> check the package's bytes -> in one transaction: add a line, set the aliases `previous` and `champion`

A kill at any moment leaves the old state or the new one. Where the log lies in a database of its own, the aliases are set after
the line, one by one: a kill in between leaves them behind the log, and the next command sets them and says so in the log.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection

from luthier.artefacts import read_manifest
from luthier.errors import UserError, did_you_mean
from luthier.registry.catalogue import Catalogue, ClientCatalogue
from luthier.registry.log import BusyError, DeploymentLog, Line, whoami
from luthier.registry.store import Check, PackageStore, check_bytes
from luthier.registry.tables import TableCatalogue
from luthier.registry.versions import CANDIDATE, CHAMPION, PREVIOUS, Gate, Version, written_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that registering waits for the lock. A promotion does not wait: its reasons may be gone by then."""


Guard = Callable[[list[Line]], None]
"""Raises if what is about to be written may not be."""


@dataclass(frozen=True)
class Standing:
    """Where production stands."""

    sequence: int
    """Number of the deployment log's last line; 0 before the first promotion."""
    aliases: dict[str, int]
    """Alias -> version; `champion` and `previous` as the log says."""


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
            check: what a package must withstand before it is registered, fetched or promoted for the first time. One that was in
                production before is compared with what the log says of it.
            who: who acts, as the log will say; by default user@machine.

        Raises:
            UserError: if there is no database for the log.
        """
        if re.search(r"[/:'\"]", name):
            raise UserError(f"{name!r} cannot name a model in the registry: no /, : or quotation marks.")
        if log_uri is None and tracking_uri.startswith(("http://", "https://")):
            raise UserError(
                "The tracking URI is a server, which does not show its database: name one for the deployment log in "
                "LUTHIER_LOG_URI, such as postgresql+psycopg://user@host/database, the password in PGPASSWORD. "
                "All who promote must use the same."
            )
        self.name, self.tracking_uri = name, tracking_uri
        self.log = DeploymentLog(name, log_uri or tracking_uri, who or whoami())
        self._mlflow = ClientCatalogue(name, tracking_uri)
        self._beside = log_uri in (None, tracking_uri)
        self._check = check
        self._store = PackageStore(tracking_uri, cache, check)

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client of the tracking server."""
        return self._mlflow.client

    @cached_property
    def _tables(self) -> TableCatalogue | None:
        """MLflow's tables, if the log lies beside them."""
        tables = TableCatalogue(self.name, self.log.database)
        return tables if self._beside and tables.is_known() else None

    @property
    def _catalogue(self) -> Catalogue:
        return self._tables or self._mlflow

    # --- reading

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        found = self._catalogue.versions()
        aliases = self._aliases()
        return [_with_aliases(version, aliases) for version in found]

    def resolve(self, which: str | int) -> Version:
        """Return the version of a number or an alias.

        `champion` and `previous` are what the log says, which at any moment is one whole state: aliases are set one by one.

        Raises:
            UserError: if there is none, with what there is.
        """
        aliases = self._aliases()
        # a number that no database can hold is none of a version
        number = int(which) if str(which).isdecimal() and len(str(which)) < 10 else aliases.get(str(which))
        version = self._catalogue.version(number) if number is not None else None
        if version is None:
            numbers = [version.number for version in self.versions()]
            known = sorted(alias for alias, number in aliases.items() if number is not None)
            raise UserError(
                f"{self.name} has no version {which}{did_you_mean(str(which), known)}; there are "
                f"{', '.join(map(str, reversed(numbers))) or 'none: `kedro run` registers one'}"
                + (f", and the aliases {', '.join(known)}." if known else ".")
            )
        return _with_aliases(version, aliases)

    def standing(self) -> Standing:
        """Return where production stands now, at the price of two small reads: made to be asked again and again."""
        last = self.log.last()
        aliases = self._catalogue.aliases() | _logged(last)
        return Standing(
            0 if last is None else last.number, {name: number for name, number in aliases.items() if number is not None}
        )

    def fetch(self, version: Version, cache: Path) -> Path:
        """Return a checked copy of a version's package on this machine, in `cache` under its root hash.

        What is there already is read again in full; what was damaged is fetched again.

        Raises:
            UserError: if what is stored is not what was registered.
        """
        return self._store.fetch(version, cache)

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
        tags = written_tags(manifest, gate, figures or {}, data or {}, run_id, commit)
        with self.log.writer("register", PATIENCE) as connection:
            self._mlflow.create_model()
            self._repair(connection)
            same = [v.number for v in self.versions() if (v.manifest, v.run) == (manifest, run_id)]
            source = f"{root.rstrip('/')}/{place}"
            number = same[0] if same else self._mlflow.create_version(source, run_id, tags)
            self._mlflow.set_aliases({CANDIDATE: number})
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
            target.must_be_ours()
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
            self._store.check_stored(target, known.manifest if known else None)
            return self._write(
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

    def rollback(self, to: str | int | None = None, reason: str | None = None, guard: Guard | None = None) -> Line:
        """Bring back the champion that the present one was promoted over, or one that was champion before it.

        Args:
            to: number or alias of a version that was champion once; None takes the previous one.
            reason: why; kept in the log.
            guard: looks at all lines before anything is written, while nobody else can write, and raises what forbids it.

        Raises:
            UserError: if there is nothing to go back to, it is damaged, or another is at it. Then nothing was changed.
        """
        with self.log.writer("rollback") as connection:
            last = self._repair(connection)
            self._ask(guard, connection)
            if last is None:
                raise UserError("There is nothing to roll back: no version was ever promoted (`kedro promote`).")
            restored = self._line_to_restore(connection, last, to)
            target = self.resolve(restored.version)
            self._store.check_stored(target, restored.manifest)
            return self._write(
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

    def note(
        self, action: Literal["retrain", "retrain failed", "end experiment"], reason: str, guard: Guard | None = None
    ) -> Line:
        """Write down what was done about the champion, which stays.

        Args:
            action: what was done.
            reason: why.
            guard: as of `rollback`.

        Raises:
            UserError: if nothing was ever promoted, or another is at it.
        """
        with self.log.writer(action) as connection:
            last = self._repair(connection)
            self._ask(guard, connection)
            if last is None:
                raise UserError("No version was ever promoted (`kedro promote`): there is nothing to note in the deployment log.")
            same = {name: getattr(last, name) for name in ("version", "previous", "below", "gate", "manifest")}
            return self._write(connection, action=action, forced=False, from_version=last.version, reason=reason.strip(), **same)

    def _ask(self, guard: Guard | None, connection: Connection) -> None:
        if guard is not None:
            guard(self.log.lines(connection))

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
        line = self._write(
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
        return line

    def _disagreement(self, last: Line) -> dict[str, int | None] | None:
        """Return what the aliases say if it is not what they should; None if all is well."""
        aliases = self._catalogue.aliases()
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
            version = self._catalogue.version(number) if number is not None else None
            wanted[alias] = number if version is not None and version.manifest == manifest else None
        return wanted

    def _write(self, connection: Connection, **facts: Any) -> Line:
        """Add a line and set the aliases to what it says, in one transaction where both are in one database."""
        tables = self._tables
        if tables is not None:
            return self.log.append(connection, lambda line: tables.set_aliases(connection, self._wanted(line)), **facts)
        line = self.log.append(connection, **facts)
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow.set_aliases(self._wanted(line))
        except MlflowException as error:
            raise UserError(
                f"Version {line.version} is the champion: line {line.number} of the deployment log says so. "
                f"But MLflow did not take its aliases ({error}). The next command sets them, such as `kedro models`."
            ) from error
        return line

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

    def _aliases(self) -> dict[str, int | None]:
        """Return which version each alias points to; `champion` and `previous` as the log says."""
        return self._catalogue.aliases() | _logged(self.log.last())


def _logged(last: Line | None) -> dict[str, int | None]:
    return {} if last is None else {CHAMPION: last.version, PREVIOUS: last.previous}


def _with_aliases(version: Version, aliases: Mapping[str, int | None]) -> Version:
    return replace(version, aliases=tuple(sorted(alias for alias, number in aliases.items() if number == version.number)))


def of_active_run(cache: Path, tracking_uri: str | None = None) -> Registry | None:
    """Return the registry that the active MLflow run belongs to; None if no run is active.

    One experiment, one model: both carry the same name.

    Args:
        cache: as of `Registry`.
        tracking_uri: of another MLflow whose versions are meant; by default that of the run.
    """
    import mlflow

    from luthier.packages import check_package

    run = mlflow.active_run()
    if run is None:
        return None
    name = mlflow.get_experiment(run.info.experiment_id).name
    log_uri = os.environ.get("LUTHIER_LOG_URI") or None
    return Registry(name, tracking_uri or mlflow.get_tracking_uri(), log_uri, cache, check=check_package)
