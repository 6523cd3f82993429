"""One look, or look after look: run the pipeline, show what it found, act if that is allowed."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import start_http_server

from luthier.errors import UserError
from luthier.registry import Registry
from luthier.watching.acts import Actor, HeldBackError, Limits
from luthier.watching.gauges import Gauges
from luthier.watching.looks import Looks
from luthier.watching.loop import Counter, watch

logger = logging.getLogger(__name__)


class Monitor:
    """Looks, shows, acts."""

    def __init__(self, registry: Registry, actor: Actor, limits: Limits | None, looks: Looks) -> None:
        """Look at nothing yet.

        Args:
            registry: whose deployment log is shown.
            actor: does what was decided.
            limits: of acts; None says what would be done, and does nothing.
            looks: run the pipeline.
        """
        self._registry, self._actor, self._limits, self._looks = registry, actor, limits, looks
        self._gauges = Gauges()

    def look(self) -> dict[str, Any]:
        """Run the pipeline, and return the decision.

        Raises:
            UserError: if it failed, or what was decided cannot be done.
        """
        self._looks.look()
        self._gauges.looked(time.time())
        self.show()
        decided: dict[str, Any] = self._looks.newest("monitoring_decision")
        self._act(decided)
        return decided

    def show(self) -> None:
        """Show the newest findings that there are."""
        _, evaluated = self._looks.files("evaluation")
        self._gauges.show(self._looks.newest, _utc_of(evaluated[-1].split("/")[-2]) if evaluated else None)
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


def _utc_of(version: str) -> datetime:
    """Return when a version of Kedro's was made.

    >>> _utc_of("2026-11-28T03.02.58.738Z").isoformat()
    '2026-11-28T03:02:58.738000+00:00'
    """
    return datetime.strptime(version, "%Y-%m-%dT%H.%M.%S.%fZ").replace(tzinfo=UTC)
