"""What users say of answers: a rating, the answer that it should have been, a comment.

A vote is known by its request and its name. The same vote again changes nothing; another one takes its place. Whose answer is
judged stands in the request's row: nobody can say it was another variant's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from luthier.errors import UserError
from luthier.serving.api.bodies import Body, wrong
from luthier.serving.api.errors import ApiError, invalid, unavailable
from luthier.serving.records.log import RequestLog
from luthier.serving.records.tables import (
    FEEDBACK,
    REQUESTS,
    between,
    existing_log,
    open_database,
    read_frame,
    storable,
    time_text,
    transaction,
)
from luthier.text.prepare import Message, has_content

if TYPE_CHECKING:
    import pandas as pd

Rating = Literal["up", "down"]
Result = Literal["created", "updated", "unchanged"]
NAMES_PER_REQUEST = 16
"""Different votes on one answer."""


class FeedbackRequest(Body):
    """What a client says of an answer. Whose answer it was, the server knows."""

    request_id: str = Field(min_length=1, max_length=64)
    """The answer's `id`, also in the header x-request-id."""
    name: str = Field(default="helpful", pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """What is judged. A second vote of this name takes the first one's place."""
    rating: Rating | None = None
    """`up` or `down`."""
    correction: str | None = Field(default=None, max_length=100_000)
    """What the answer should have been, whole: the model can learn from it."""
    comment: str | None = Field(default=None, max_length=10_000)
    """Anything else."""

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackRequest":
        if self.rating is None and self.correction is None and self.comment is None:
            raise wrong("rating", "is missing, and so are correction and comment: nothing is said")
        for field in ("correction", "comment"):
            text = getattr(self, field)
            if text is not None and not has_content(text):
                raise wrong(field, "is empty: leave it out")
        return self


@dataclass(frozen=True)
class Vote:
    """What became of a vote, and whom it judges."""

    result: Result
    assigned: str | None
    served: str | None
    version: int | None


class FeedbackStore:
    """Keeps votes beside the requests that they judge."""

    def __init__(self, log: RequestLog) -> None:
        """Name the log of the requests."""
        self._log = log

    def vote(self, said: FeedbackRequest) -> Vote:
        """Keep a vote; blocks until it is committed, so that a 200 is a promise.

        Args:
            said: what the client says, its texts scrubbed.

        Raises:
            ApiError: 404 if no answer of this id was shown, 400 if the log keeps no text and the vote has some, or if there are
                too many different votes on the request; 503 if the database does not answer.
        """
        if not self._log.keeps_text and (said.correction or said.comment):
            field = "correction" if said.correction else "comment"
            raise invalid(f"{field}: this server keeps no text: send the rating alone.", field, "unsupported_parameter")
        try:
            row = self._judged(said.request_id)
            if row is None and self._log.flush():  # answered a moment ago: its row may still be in the queue
                row = self._judged(said.request_id)
            if row is None:
                raise _unknown(said.request_id)
            with transaction(self._log.database) as connection:
                result = _keep(connection, said)
        except (SQLAlchemyError, UserError) as error:
            raise unavailable("Feedback cannot be kept now: send it again later.", "log_unavailable", 5.0) from error
        return Vote(result, row.assigned, row.served, row.version)

    def _judged(self, request: str) -> Any:
        columns = (REQUESTS.c.assigned, REQUESTS.c.served, REQUESTS.c.version)
        shown = (REQUESTS.c.request == request, REQUESTS.c.shadow_of.is_(None), REQUESTS.c.version.is_not(None))
        with self._log.database.connection() as connection:
            return connection.execute(select(*columns).where(*shown)).one_or_none()


def _unknown(request: str) -> ApiError:
    return ApiError(
        404, f"request_id: no answer {request!r} is known. It may have been deleted.", "request_not_found", "request_id"
    )


def _keep(connection: Connection, said: FeedbackRequest) -> Result:
    now = time_text(datetime.now(UTC))
    key = {"request": said.request_id, "name": said.name}
    content = {"rating": said.rating, "correction": said.correction, "comment": said.comment}
    row = storable(FEEDBACK, {**key, **content, "at": now, "updated_at": now})
    here = (FEEDBACK.c.request == said.request_id, FEEDBACK.c.name == said.name)
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    new = dialect.insert(FEEDBACK).values(row).on_conflict_do_nothing(index_elements=list(key)).returning(FEEDBACK.c.name)
    if connection.execute(new).one_or_none() is not None:
        votes = connection.execute(select(func.count()).where(FEEDBACK.c.request == said.request_id)).scalar_one()
        if votes > NAMES_PER_REQUEST:  # the transaction ends without a commit
            raise invalid(f"name: there are {NAMES_PER_REQUEST} different votes on this answer already.", "name")
        return "created"
    before = connection.execute(select(FEEDBACK).where(*here).with_for_update()).mappings().one()
    if all(before[name] == row[name] for name in content):
        return "unchanged"
    connection.execute(update(FEEDBACK).where(*here).values({name: row[name] for name in (*content, "updated_at")}))
    return "updated"


def corrections(uri: str, since: datetime | None = None) -> Iterator[dict[str, Any]]:
    """Yield what users corrected, as rows of the shape `messages` that data processing reads; the oldest first.

    Args:
        uri: of the log.
        since: only what was said or changed from then on, with a time zone.

    Yields:
        id, the messages with the corrected answer, and in `meta` where it comes from: request, vote, rating, the answer that was
        corrected, model version, manifest, variants, experiment, times.

    Raises:
        UserError: if there is no such log.
    """
    judged = ("asked", "experiment", "assigned", "served", "version", "manifest", "answer", "prompt")
    query = (
        select(FEEDBACK, *(REQUESTS.c[name] for name in judged))
        .join(REQUESTS, FEEDBACK.c.request == REQUESTS.c.request)
        .where(FEEDBACK.c.correction.is_not(None), REQUESTS.c.prompt.is_not(None), *between(FEEDBACK, "updated_at", since, None))
        .order_by(FEEDBACK.c.updated_at, FEEDBACK.c.request, FEEDBACK.c.name)
    )
    with existing_log(open_database(uri)) as connection:
        for row in connection.execute(query).mappings():
            turns: list[Message] = json.loads(row["prompt"])
            meta = {name: row[name] for name in (*FEEDBACK.columns.keys(), *judged) if name not in ("correction", "prompt")}
            answer: Message = {"role": "assistant", "content": row["correction"]}
            yield {"id": f"{row['request']}-{row['name']}", "messages": [*turns, answer], "meta": meta}


def read_feedback(uri: str, since: datetime | None = None, until: datetime | None = None) -> "pd.DataFrame":
    """Return the votes that were first cast from `since` on and before `until`, each with whom it judges.

    Returns:
        the columns of `tables.FEEDBACK` without its texts, and experiment, assigned, served, version, subject of the request.

    Raises:
        UserError: if there is no such log.
    """
    votes = (FEEDBACK.c.request, FEEDBACK.c.name, FEEDBACK.c.rating, FEEDBACK.c.at, FEEDBACK.c.updated_at)
    judged = (REQUESTS.c.experiment, REQUESTS.c.assigned, REQUESTS.c.served, REQUESTS.c.version, REQUESTS.c.subject)
    query = select(*votes, *judged).join(REQUESTS, FEEDBACK.c.request == REQUESTS.c.request)
    query = query.where(*between(FEEDBACK, "at", since, until)).order_by(FEEDBACK.c.at, FEEDBACK.c.request, FEEDBACK.c.name)
    return read_frame(open_database(uri), query)
