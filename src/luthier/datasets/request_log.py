"""What the gateway kept, as a dataset of Kedro's: a table to be read, never to be written by a pipeline."""

import os
from typing import Any, Literal, NoReturn

import pandas as pd
from kedro.io import AbstractDataset, DatasetError

from luthier.errors import UserError
from luthier.serving.parameters import LOG_VARIABLE
from luthier.serving.records.feedback import read_feedback
from luthier.serving.records.logged import LoggedTexts, read_requests
from luthier.serving.records.tables import existing_log, open_database


class RequestLogDataset(AbstractDataset[NoReturn, pd.DataFrame | LoggedTexts]):
    """Requests without their texts, the votes on them, or the texts: a handle that reads those that it is asked for.

    In the catalog: `{type: luthier.datasets.RequestLogDataset, uri: "${globals:request_log}", table: requests}`.
    """

    def __init__(
        self, uri: str, table: Literal["requests", "feedback", "texts"] = "requests", metadata: dict[str, Any] | None = None
    ) -> None:
        """Name the log.

        Args:
            uri: SQLAlchemy's URL of its database, unless the environment variable LUTHIER_REQUEST_LOG_URI names another.
            table: `requests`, `feedback` or `texts`.
            metadata: free facts, such as kedro-viz's layer.
        """
        self._uri = os.environ.get(LOG_VARIABLE) or uri
        self._table = table
        self.metadata = metadata

    def load(self) -> pd.DataFrame | LoggedTexts:
        """Return the table, the oldest first; of texts what reads them."""
        if self._table == "texts":
            return LoggedTexts(self._uri)
        return read_requests(self._uri, texts=False) if self._table == "requests" else read_feedback(self._uri)

    def save(self, data: NoReturn) -> None:
        """Refuse to be written."""
        raise DatasetError("The request log is written by the gateway alone.")

    def _exists(self) -> bool:
        try:
            with existing_log(open_database(self._uri)):
                return True
        except UserError:
            return False

    def _describe(self) -> dict[str, Any]:
        # SQLAlchemy writes *** in the place of a password
        return {"uri": open_database(self._uri).url.render_as_string(), "table": self._table}
