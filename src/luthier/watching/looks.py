"""Look after look at the traffic: runs of the pipeline monitoring, each in a process of its own."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier import shared_run
from luthier.data_versions.prepared import ROWS, data_of
from luthier.data_versions.store import DataSet
from luthier.errors import UserError
from luthier.registry import Registry
from luthier.registry.versions import CHAMPION
from luthier.remote import open_storage

logger = logging.getLogger(__name__)

LONGEST_LOOK = 900.0
"""Seconds after which a run of the pipeline hangs."""
LOOKS_KEPT = 100
"""Whose reports stay."""
_A_DAY = 86_400.0
_UNTRACKED = {"LUTHIER_UNTRACKED": "monitoring"}  # read in conf/base/mlflow.yml


@dataclass
class Looks:
    """Runs the pipeline monitoring, and finds what it found.

    A look every five minutes is a hundred thousand a year. So MLflow has a run of the first one, of one a day, and of each that
    decides otherwise than the one before it; and of the reports the newest stay.
    """

    project: Path
    """Where `kedro run` looks."""
    env: str | None
    data: str
    """Root of the catalog's data sets."""
    registry: Registry
    """Says which version is in production."""
    rows: DataSet
    """The records that models are made from."""
    reports: Sequence[DataSet]
    """What the pipeline makes."""
    _tracked_at: float = field(default=-float("inf"), init=False)
    _decided: tuple[Any, ...] = field(default=(), init=False)

    def look(self) -> None:
        """Compare the traffic with the data of the version in production.

        Raises:
            UserError: if the run failed, or hangs.
        """
        version = data_in_production(self.registry, self.rows)
        tracked = time.monotonic() - self._tracked_at >= _A_DAY
        self._run(tracked, *(["--load-versions", f"{ROWS}:{version}"] if version else []))
        decision = self.newest("monitoring_decision")
        decided = tuple(decision[name] for name in ("decision", "experiment", "version"))
        if not tracked and decided != self._decided:
            tracked = True
            self._run(tracked, "--nodes", "log_monitoring")
        if tracked:
            self._tracked_at = time.monotonic()
        self._decided = decided
        self._forget()

    def newest(self, name: str) -> Any:
        """Return the newest version of a JSON data set of the reports; None if there is none."""
        storage, files = self.files(name)
        return json.loads(storage.cat_file(files[-1])) if files else None

    def files(self, name: str) -> tuple[Any, list[str]]:
        """Return the versions of a JSON data set of the reports, the oldest first, and what they are stored in."""
        path = f"{self.data}/08_reporting/{name}.json"
        storage, place = open_storage(path if "://" in path else f"file://{path}")
        return storage, sorted(storage.glob(f"{place}/*/*.json"))

    def _forget(self) -> None:
        """Remove the reports of old looks."""
        try:
            for dataset in self.reports:
                for version in dataset.versions()[LOOKS_KEPT:]:
                    dataset.remove(version)
        except OSError as error:  # the next look does it, or another monitor has done it: no reason not to act
            logger.error("Old reports could not be removed: %s", error)

    def _run(self, tracked: bool, *options: str) -> None:
        command = [sys.executable, "-m", "kedro", "run", "--pipeline", "monitoring", *(["--env", self.env] if self.env else [])]
        environ = shared_run.without(os.environ) | ({} if tracked else _UNTRACKED)
        try:
            done = subprocess.run([*command, *options], cwd=self.project, env=environ, check=False, timeout=LONGEST_LOOK)
        except subprocess.TimeoutExpired:
            raise UserError(f"The pipeline monitoring was ended: it took longer than {LONGEST_LOOK:,.0f} s.") from None
        if done.returncode:
            raise UserError("The pipeline monitoring failed; what it says stands above.")


def data_in_production(registry: Registry, rows: DataSet) -> str | None:
    """Return the version of the records that the champion was made from.

    Whoever prepares other data, for an attempt or for a model that the gate refused, changes nothing of what is in production.

    Returns:
        None, which is logged, if that is unknown, or gone.
    """
    champion = registry.standing().aliases.get(CHAMPION)
    if champion is None:
        logger.warning("No version is in production: requests are compared with the newest prepared data.")
        return None
    version = _data_of(registry, champion)
    if version in rows.versions():
        return version
    why = "is not known to MLflow" if version is None else f"was {version}, which is gone"
    logger.warning(
        "The data of version %d, which is in production, %s: requests are compared with the newest prepared data.", champion, why
    )
    return None


def _data_of(registry: Registry, number: int) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return data_of(registry.client.get_run(registry.resolve(number).run).data.tags)
    except (MlflowException, UserError):  # the run or the version was deleted, or it was registered without a run
        return None
