"""The request log: one row for every request, written behind the answers.

    put -> bounded queue -> one thread: batches of rows -> database

`put` never blocks and never fails. A database that is locked or away is asked again and again, with the queue as buffer; what the
full queue cannot take is dropped and counted. `close` writes all that is left. A row is written once, also where a commit's
acknowledgement got lost: its id decides.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Literal

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from luthier.errors import UserError
from luthier.serving.records.logged import LoggedRequest, row_of
from luthier.serving.records.tables import FEEDBACK, REQUESTS, existing_log, make_tables, open_database, time_text, transaction

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows of one transaction."""
LINGER = 0.1
"""Seconds that a row waits for others: what a kill can lose, and how often the database is bothered."""
CHARACTERS_PER_ROW = 10_000
"""Characters that the queue holds, for each of its places: endless messages must not fill the memory."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
TIDY_EVERY = 3600.0
_PER_DELETION = 1_000


class RequestLog:
    """Writes requests into a database, behind the answers.

    >>> with RequestLog("sqlite:////srv/requests.db") as log:    # doctest: +SKIP
    ...     log.put(LoggedRequest(request=envelope.id, at=began, asked="luthier", status=200, seconds=0.4))
    """

    def __init__(
        self,
        uri: str,
        text: Literal["scrubbed", "none"] = "scrubbed",
        queue: int = 10_000,
        retention_days: float | None = None,
        on_drop: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Name the log; nothing is opened before `start`.

        Args:
            uri: SQLAlchemy's URL of a SQLite or PostgreSQL database.
            text: whether messages and answers are kept.
            queue: rows that wait at most.
            retention_days: older rows are deleted every hour; None keeps all.
            on_drop: is told how many rows were lost, at once.

        Raises:
            UserError: if nothing can be logged in such a database.
        """
        self.database = open_database(uri)
        self.keeps_text = text == "scrubbed"
        self._size, self._retention_days, self._on_drop = queue, retention_days, on_drop
        self._rows: deque[LoggedRequest] = deque()
        self._characters = 0
        self._accepted = self._done = self._dropped = 0
        self._hurry = self._closing = False
        self._give_up_at: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)

    # --- what the gateway calls

    def start(self) -> None:
        """Make the tables where they are missing, and begin to write.

        Raises:
            UserError: if the database cannot be written to.
        """
        try:
            if self.database.is_sqlite:
                Path(str(self.database.url.database)).parent.mkdir(parents=True, exist_ok=True)
            make_tables(self.database)
        except (SQLAlchemyError, OSError) as error:
            raise UserError(f"serving.log.uri: {self._shown} cannot be written to: {_reason(error)}") from error
        self._thread.start()

    def put(self, request: LoggedRequest) -> bool:
        """Take a row to be written, at once; False if it was dropped because the queue is full or the log closed."""
        characters = request.characters
        with self._changed:
            full = len(self._rows) >= self._size or self._characters >= self._size * CHARACTERS_PER_ROW
            taken = not (full or self._closing)
            if taken:
                self._rows.append(request)
                self._characters += characters
                self._accepted += 1
                if len(self._rows) in (1, BATCH):
                    self._changed.notify_all()
            else:
                self._dropped += 1
        if not taken:
            self._on_drop(1)
        return taken

    @property
    def waiting(self) -> int:
        """Rows that are not written yet."""
        return len(self._rows)

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until all is written that was put before; False if that takes longer."""
        with self._changed:
            goal = self._accepted
            self._hurry = self._done < goal
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done >= goal, seconds)

    def close(self, seconds: float = 60.0) -> int:
        """Write all that is left, and take no more.

        Args:
            seconds: how long to wait for a database that is locked or away.

        Returns:
            rows that could not be written.
        """
        with self._changed:
            self._closing = True
            self._give_up_at = time.monotonic() + seconds
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds + LONGEST_PAUSE)
        left = self.waiting
        if left:
            logger.error("Request log: %d rows are lost: %s did not take them within %g s.", left, self._shown, seconds)
            self._on_drop(left)
        return left

    def __enter__(self) -> "RequestLog":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def delete_older_than(self, days: float) -> int:
        """Delete requests that came longer ago, and the feedback on them; return how many requests."""
        end = time_text(datetime.now(UTC) - timedelta(days=days))
        old = select(REQUESTS.c.request).where(REQUESTS.c.at < end).limit(_PER_DELETION)
        deleted = 0
        while True:  # in pieces: who votes meanwhile waits for one of them only
            with transaction(self.database) as connection:
                ids = list(connection.execute(old).scalars())
                connection.execute(delete(FEEDBACK).where(FEEDBACK.c.request.in_(ids)))
                connection.execute(delete(REQUESTS).where(REQUESTS.c.request.in_(ids)))
            deleted += len(ids)
            if len(ids) < _PER_DELETION:
                return deleted

    # --- the thread that writes

    def _write_all(self) -> None:
        pause, tidied, told = FIRST_PAUSE, time.monotonic() - TIDY_EVERY, 0
        while True:
            batch = self._next_batch()
            if self._dropped > told:
                logger.warning("Request log: %d rows were dropped: the queue was full.", self._dropped - told)
                told = self._dropped
            if not batch and self._closing:
                return
            if batch and not self._written(batch):
                if self._gave_up():
                    return
                with self._changed:  # a caller who hurries does not make the database come back
                    self._changed.wait_for(self._gave_up, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if not self._closing and time.monotonic() - tidied >= TIDY_EVERY:
                tidied = time.monotonic()
                self._tidy()

    def _gave_up(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at

    def _next_batch(self) -> list[LoggedRequest]:
        """Wait for rows, and a moment for more of them. They stay in the queue until they are written."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._closing, TIDY_EVERY)
            self._changed.wait_for(lambda: len(self._rows) >= BATCH or self._hurry or self._closing, LINGER)
            batch = list(islice(self._rows, BATCH))
            self._hurry = self._hurry and len(self._rows) > len(batch)
            return batch

    def _written(self, batch: list[LoggedRequest]) -> bool:
        """Write a batch; False if the database cannot take it now."""
        try:
            if not self._inserted(batch):
                # one row that is refused must not keep the others waiting for ever
                for request in batch:
                    if not self._inserted([request]):
                        logger.error("Request log: row %s is lost: it is none that %s takes.", request.request, self._shown)
                        self._on_drop(1)
        except (SQLAlchemyError, UserError, OSError) as error:
            logger.warning("Request log: %s takes no rows, %d wait: %s", self._shown, self.waiting, _reason(error))
            self._mend()
            return False
        with self._changed:
            for request in batch:
                self._rows.popleft()
                self._characters -= request.characters
            self._done += len(batch)
            self._changed.notify_all()
        return True

    def _inserted(self, batch: list[LoggedRequest]) -> bool:
        """Insert rows; False if one of them is none that a table takes.

        Raises:
            SQLAlchemyError: and others, if it is the database that is in trouble.
        """
        try:
            rows = [row_of(request, self.keeps_text) for request in batch]
            dialect = sqlite if self.database.is_sqlite else postgresql
            # what was committed before its acknowledgement got lost is there already
            statement = dialect.insert(REQUESTS).on_conflict_do_nothing(index_elements=["request"])
            with transaction(self.database) as connection:
                connection.execute(statement, rows)
        except (SQLAlchemyError, UserError, OSError) as error:
            if isinstance(error, DataError | IntegrityError):
                return False
            raise
        except Exception:
            logger.exception("Request log: a row cannot be made.")
            return False
        return True

    def _mend(self) -> None:
        """Make the tables again if they are gone: somebody put the database aside, or emptied it."""
        try:
            with existing_log(self.database):
                return
        except (SQLAlchemyError, UserError):
            with suppress(SQLAlchemyError, UserError):
                make_tables(self.database)

    def _tidy(self) -> None:
        if self._retention_days is None:
            return
        try:
            deleted = self.delete_older_than(self._retention_days)
        except (SQLAlchemyError, UserError) as error:
            logger.warning("Request log: old rows could not be deleted: %s", _reason(error))
        else:
            if deleted:
                logger.info("Request log: %d requests older than %g days are deleted.", deleted, self._retention_days)

    @property
    def _shown(self) -> str:
        return self.database.url.render_as_string()


def _reason(error: Exception) -> str:
    """Return the database's own words, without the statement and the values that SQLAlchemy puts around them."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]
