"""One look, or look after look: run the pipeline, show what it found, act if that is allowed."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

from luthier import shared_run
from luthier.errors import UserError
from luthier.registry import Registry
from luthier.remote import open_storage
from luthier.watching.acts import Actor, HeldBackError, Limits
from luthier.watching.gauges import Gauges
from luthier.watching.loop import Counter, watch

logger = logging.getLogger(__name__)

LONGEST_LOOK = 900.0
"""Seconds after which a run of the pipeline hangs."""


class Monitor:
    """Looks, shows, acts."""

    def __init__(self, registry: Registry, actor: Actor, limits: Limits | None, data: str) -> None:
        """Look at nothing yet.

        Args:
            registry: whose deployment log is shown.
            actor: does what was decided.
            limits: of acts; None says what would be done, and does nothing.
            data: root of the catalog's data sets.
        """
        self._registry, self._actor, self._limits, self._data = registry, actor, limits, data
        self._gauges = Gauges()

    def look(self) -> dict[str, Any]:
        """Run the pipeline in a process of its own, and return the decision.

        Raises:
            UserError: if it failed, or what was decided cannot be done.
        """
        run_monitoring(self._actor.project, self._actor.env)
        self._gauges.looked(time.time())
        self.show()
        decided: dict[str, Any] = newest_of(self._data, "monitoring_decision")
        self._act(decided)
        return decided

    def show(self) -> None:
        """Show the newest findings that there are."""
        _, evaluated = _files(self._data, "evaluation")
        self._gauges.show(partial(newest_of, self._data), _utc_of(evaluated[-1].split("/")[-2]) if evaluated else None)
        self._gauges.deployments(self._registry.log.lines())

    def watch(
        self, log_uri: str, window: int, every: float, patience: float, host: str, port: int, tell: Callable[[str], None]
    ) -> None:
        """Look until SIGINT or SIGTERM.

        Raises:
            UserError: if the address of `/metrics` is taken.
        """
        try:
            server, thread = start_http_server(port, host, self._gauges.registry)
        except OSError as error:
            raise UserError(f"monitoring.host and --port: {host}:{port} cannot be listened on: {error.strerror}") from None
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        tell(f"Metrics:  http://{host}:{server.server_port}/metrics")
        tell(f"It looks when {window} more requests have come, or {patience:g} s after anything else. Ctrl-C stops it.")
        self.show()
        try:
            watch(self._look_safely, Counter(log_uri).news_if_any, window, every, patience, stop)
        finally:
            server.shutdown()
            thread.join()

    def _look_safely(self) -> bool:
        try:
            self.look()
        except Exception as error:  # a database that is away comes back; whoever watches must outlive it
            self._gauges.failures.inc()
            logger.error("%s", error, exc_info=None if isinstance(error, UserError) else error)
            return False
        return True

    def _act(self, decided: dict[str, Any]) -> None:
        planned = self._actor.plan(decided)
        if planned is None:
            return
        if self._limits is None:
            logger.warning("With --act this would follow: %s.", planned)
            return
        try:
            line = self._actor.act(decided, self._limits)
        except HeldBackError as why:
            logger.warning("Not done, %s: %s.", planned, why)
            self._gauges.acts.labels(planned, "held back").inc()
            return
        except UserError:
            self._gauges.acts.labels(planned, "failed").inc()
            raise
        self._gauges.acts.labels(planned, "done").inc()
        self._gauges.deployments(self._registry.log.lines())
        logger.warning("Done, line %d of the deployment log: %s.", line.number, planned)


def run_monitoring(project: Path, env: str | None) -> None:
    """Run the pipeline in a process of its own.

    Raises:
        UserError: if it failed, or hangs.
    """
    command = [sys.executable, "-m", "kedro", "run", "--pipeline", "monitoring", *(["--env", env] if env else [])]
    try:
        done = subprocess.run(command, cwd=project, env=shared_run.without(os.environ), check=False, timeout=LONGEST_LOOK)
    except subprocess.TimeoutExpired:
        raise UserError(f"The pipeline monitoring was ended: it took longer than {LONGEST_LOOK:,.0f} s.") from None
    if done.returncode:
        raise UserError("The pipeline monitoring failed; what it says stands above.")


def newest_of(data: str, name: str) -> Any:
    """Return the newest version of a JSON data set of its reports; None if there is none.

    Args:
        data: root of the catalog's data sets.
        name: of the data set.
    """
    storage, files = _files(data, name)
    return json.loads(storage.cat_file(files[-1])) if files else None


def _files(data: str, name: str) -> tuple[Any, list[str]]:
    """Return the versions of a JSON data set, the oldest first, and what they are stored in."""
    path = f"{data}/08_reporting/{name}.json"
    storage, place = open_storage(path if "://" in path else f"file://{path}")
    return storage, sorted(storage.glob(f"{place}/*/*.json"))


def _utc_of(version: str) -> datetime:
    """Return when a version of Kedro's was made.

    >>> _utc_of("2026-11-28T03.02.58.738Z").isoformat()
    '2026-11-28T03:02:58.738000+00:00'
    """
    return datetime.strptime(version, "%Y-%m-%dT%H.%M.%S.%fZ").replace(tzinfo=UTC)
