"""Empty what was written in requests and votes, and leave what was counted."""

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from sqlalchemy import or_, select, update

from luthier.errors import UserError
from luthier.serving.records.tables import FEEDBACK, REQUESTS, existing_log, open_database, transaction


def requests_holding(uri: str, names: Collection[str], holds: Callable[[str], bool]) -> list[str]:
    """Return the ids of the requests that are called so, or whose texts or votes hold something; none where there is no log.

    Args:
        uri: of the log.
        names: ids of requests.
        holds: tells it of a text.
    """
    found: dict[str, None] = {}
    try:
        with existing_log(open_database(uri)) as connection:
            for table, columns in ((REQUESTS, ("prompt", "answer")), (FEEDBACK, ("correction", "comment"))):
                texts = [table.c[name] for name in columns]
                written = select(table.c.request, *texts).where(or_(*(text.is_not(None) for text in texts)))
                for request, *values in connection.execute(written.order_by(table.c.at)):
                    if request in names or any(value is not None and holds(value) for value in values):
                        found[str(request)] = None
    except UserError as error:
        if "no request log" not in str(error):
            raise
    return list(found)


def prompts_of(uri: str, requests: Collection[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages of the requests whose texts are kept."""
    if not requests:
        return
    with existing_log(open_database(uri)) as connection:
        for request in requests:
            prompt = connection.execute(select(REQUESTS.c.prompt).where(REQUESTS.c.request == request)).scalar()
            if prompt is not None:
                yield json.loads(prompt)


def empty_texts(uri: str, requests: Collection[str]) -> None:
    """Empty the texts of requests and of the votes on them; times, counts and ratings stay.

    Raises:
        UserError: if the database cannot be opened.
    """
    database = open_database(uri)
    with transaction(database) as connection:
        if database.is_sqlite:  # what is taken out is overwritten in the file
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        for request in requests:
            connection.execute(update(REQUESTS).where(REQUESTS.c.request == request).values(prompt=None, answer=None))
            connection.execute(update(FEEDBACK).where(FEEDBACK.c.request == request).values(correction=None, comment=None))
    if database.is_sqlite:
        with database.connection() as connection:  # the log of writes holds the old pages until then
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
