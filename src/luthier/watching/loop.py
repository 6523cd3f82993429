"""Look when there is something new."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, func, select

from luthier.errors import UserError
from luthier.serving.records.tables import FEEDBACK, REQUESTS, existing_log, open_database, time_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class News:
    """How much there is to see."""

    requests: int
    """That have come, forgotten ones among them."""
    votes: int
    newest: str
    """When a vote was last cast or changed."""


class Counter:
    """Counts requests and votes again and again: all requests once, from then on only those of the last days.

    A request is written when it is over, with the moment when it came: so one that is older than the newest may still come in.
    """

    def __init__(self, uri: str) -> None:
        """Count nothing yet.

        Args:
            uri: of the request log.
        """
        self._uri, self._since, self._before = uri, "", 0

    def news(self) -> News | None:
        """Return how much there is; None while there is no log."""
        try:
            with existing_log(open_database(self._uri)) as connection:
                requests = self._requests(connection)
                votes, newest = connection.execute(
                    select(func.count(), func.max(FEEDBACK.c.updated_at)).select_from(FEEDBACK)
                ).one()
                return News(requests, votes, newest or "")
        except UserError:
            return None

    def news_if_any(self) -> News | None:
        """Count as `news`; None, too, while the database is away, which is logged."""
        try:
            return self.news()
        except Exception as error:
            logger.error("The request log cannot be counted: %s", error)
            return None

    def _requests(self, connection: Connection) -> int:
        newest = connection.execute(select(func.max(REQUESTS.c.at))).scalar_one()
        if newest is None:
            return self._before
        a_day_ago, two_days_ago = (time_text(datetime.fromisoformat(newest) - timedelta(days=days)) for days in (1, 2))
        if self._since <= two_days_ago:
            self._before += _count(connection, REQUESTS.c.at >= self._since, REQUESTS.c.at < a_day_ago)
            self._since = a_day_ago
        return self._before + _count(connection, REQUESTS.c.at >= self._since)


def _count(connection: Connection, *of: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).select_from(REQUESTS).where(*of)).scalar_one())


def watch(
    look: Callable[[], bool],
    news: Callable[[], News | None],
    window: int,
    every: float,
    patience: float,
    stop: threading.Event,
) -> None:
    """Look as soon as a window's worth of requests has come, and some time after anything else.

    Args:
        look: runs the pipeline, and tells whether it came to its end; otherwise it is tried again after `patience`.
        news: how much there is to see.
        window: requests.
        every: seconds between two counts.
        patience: seconds that other news waits at most.
        stop: ends it.
    """
    seen: News | None = None
    looked, failed = -float("inf"), False
    while not stop.is_set():
        now = news()
        waited = time.monotonic() - looked >= patience
        full = now is not None and (seen is None or now.requests // window != seen.requests // window) and not failed
        if now is not None and now != seen and (full or waited):
            looked = time.monotonic()
            failed = not look()
            seen = seen if failed else now
        stop.wait(every)
