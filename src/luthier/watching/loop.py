"""Look when there is something new."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select

from luthier.errors import UserError
from luthier.serving.records.tables import FEEDBACK, REQUESTS, existing_log, open_database

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class News:
    """How much there is to see."""

    requests: int
    votes: int
    newest: str
    """When a vote was last cast or changed."""


def news_of(uri: str) -> News | None:
    """Count requests and votes; None while there is no log.

    Args:
        uri: of the request log.
    """
    try:
        with existing_log(open_database(uri)) as connection:
            requests = connection.execute(select(func.count()).select_from(REQUESTS)).scalar_one()
            votes, newest = connection.execute(select(func.count(), func.max(FEEDBACK.c.updated_at)).select_from(FEEDBACK)).one()
            return News(requests, votes, newest or "")
    except UserError:
        return None


def news_if_any(uri: str) -> News | None:
    """Count as `news_of`; None, too, while the database is away, which is logged."""
    try:
        return news_of(uri)
    except Exception as error:
        logger.error("The request log cannot be counted: %s", error)
        return None


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
