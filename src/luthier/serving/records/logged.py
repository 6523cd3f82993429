"""What is known of a request when it is over, as a row of the request log."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from luthier.artefacts import canonical_json
from luthier.serving.api.errors import Code
from luthier.serving.records.tables import REQUESTS, between, open_database, read_frame, storable, time_text
from luthier.text.pii import PLACEHOLDER
from luthier.text.prepare import Message

if TYPE_CHECKING:
    import pandas as pd

TEXTS = ("prompt", "answer")
_IDS_AT_ONCE = 1_000


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """What is known of a request when it is over. Messages and answer are scrubbed already."""

    request: str
    """The completion's id."""
    at: datetime
    """When it came, with a time zone."""
    asked: str
    """The model, as the client called it."""
    status: int
    """Of HTTP, as the answer began."""
    seconds: float
    """From the request to the end of its answer."""
    streamed: bool = False
    client: str | None = None
    """Name of the API key."""
    experiment: str | None = None
    assigned: str | None = None
    """The subject's variant."""
    served: str | None = None
    """The variant that answered."""
    version: int | None = None
    """That answered."""
    manifest: str | None = None
    """Root sha256 of its package."""
    shadow_of: str | None = None
    """The request whose shown answer this one, never shown, stands beside."""
    subject: str | None = None
    """From `routing.hash_subject`; never who it is."""
    error: Code | None = None
    """Why it failed."""
    finish: str | None = None
    """`stop` or `length`."""
    first_token_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    language: str | None = None
    """Of what the user says; ISO 639-1."""
    messages: Sequence[Message] | None = None
    """The turns that the model saw; none if it came to none."""
    answer: str | None = None
    """What the model wrote, before values were put back in the place of placeholders."""

    @property
    def findings(self) -> dict[str, int]:
        """How often personal data was taken out of the turns, by kind."""
        return Counter(kind for turn in self.messages or () for kind in _kinds(turn["content"]))

    @property
    def characters(self) -> int:
        """Characters of its texts."""
        return sum(len(turn["content"]) for turn in self.messages or ()) + len(self.answer or "")


def row_of(request: LoggedRequest, keep_text: bool) -> dict[str, Any]:
    """Return a request as a row of the table; its features are taken from its text, whether that is kept or not."""
    turns = request.messages
    return storable(
        REQUESTS,
        {
            **vars(request),
            "at": time_text(request.at),
            "turns": None if turns is None else len(turns),
            "prompt_characters": None if turns is None else sum(len(turn["content"]) for turn in turns),
            "answer_characters": None if request.answer is None else len(request.answer),
            "pii": None if turns is None else canonical_json(request.findings),
            "prompt": json.dumps(turns, ensure_ascii=False) if turns is not None and keep_text else None,
            "answer": request.answer if keep_text else None,
        },
    )


def _kinds(text: str) -> Iterator[str]:
    for match in PLACEHOLDER.finditer(text):
        yield match[0][1:].rpartition("_")[0].lower()


def read_requests(uri: str, since: datetime | None = None, until: datetime | None = None, texts: bool = True) -> "pd.DataFrame":
    """Return the requests that came from `since` on and before `until`, in the order of their coming.

    Args:
        uri: of the log.
        since: with a time zone; None begins at the first.
        until: with a time zone; None ends at the last.
        texts: whether with `prompt` and `answer`, which are most of a log's bytes; `LoggedTexts` reads those of some requests.

    Returns:
        the columns of `tables.REQUESTS`; `at` in UTC, `pii` and `prompt` as JSON text.

    Raises:
        UserError: if there is no such log.
    """
    columns = [column for column in REQUESTS.columns if texts or column.name not in TEXTS]
    query = select(*columns).where(*between(REQUESTS, "at", since, until)).order_by(REQUESTS.c.at, REQUESTS.c.request)
    return read_frame(open_database(uri), query)


@dataclass(frozen=True)
class LoggedTexts:
    """What was said in the requests of a log, read when it is asked for: all of it together may be larger than the memory."""

    uri: str
    """Of the log."""

    def of(self, requests: Sequence[str]) -> "pd.DataFrame":
        """Return `prompt` (JSON text) and `answer` of requests, indexed by their ids, in the order that was asked for.

        Null is what the log does not keep, or has forgotten.

        Raises:
            UserError: if there is no such log.
        """
        import pandas as pd

        columns, database = [REQUESTS.c.request, *(REQUESTS.c[name] for name in TEXTS)], open_database(self.uri)
        starts = range(0, max(1, len(requests)), _IDS_AT_ONCE)
        queries = (select(*columns).where(REQUESTS.c.request.in_(requests[start : start + _IDS_AT_ONCE])) for start in starts)
        parts = [read_frame(database, query) for query in queries]
        return pd.concat(parts).set_index("request").reindex(list(requests))
