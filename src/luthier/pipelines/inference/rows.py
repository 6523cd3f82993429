"""From a source to conversations, row by row: what the model is asked about each, or why it cannot be."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from luthier.reading import as_json, read
from luthier.text.prepare import Message, PromptSettings, RowError, columns_of_template, prepare, prompt_messages
from luthier.text.rows import Row, asked


@dataclass(frozen=True)
class AskedRow:
    """A row of the source."""

    id: str
    row: str
    """All that it holds, as JSON."""
    turns: list[Message]
    """What the model is asked; empty if there is an error."""
    error: str | None
    """Why it cannot be asked."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a source become conversations."""

    settings: PromptSettings
    """Of the model."""
    id: str | None
    """Column of the id."""
    column: str | None
    """Column of what is asked."""
    key: str
    """Of the placeholders that personal data become."""

    def rows(self, location: str, asked_format: str, shown: str, limit: int | None, prefix: str) -> Iterator[AskedRow]:
        """Yield the rows of a file.

        Args:
            location: the file.
            asked_format: as of `luthier.reading.read`.
            shown: what to call the file.
            limit: how many rows at most; null for all.
            prefix: what a line's number is put behind, where it is the id.

        Raises:
            UserError: if the file cannot be read.
        """
        for line, value, error in islice(read(location, asked_format, shown, "inference.source"), limit):
            text, why = as_json(value, error)
            name = f"{prefix}{line}"
            try:
                if why is not None:
                    raise RowError(why)
                row = json.loads(text)
                name = self._identity(row) or name
                yield AskedRow(name, text, self.turns(row), None)
            except RowError as reason:
                yield AskedRow(name, text, [], str(reason))

    def turns(self, row: Row) -> list[Message]:
        """Return what the model is asked about a row, cleaned and scrubbed as in training.

        Raises:
            RowError: if nothing is.
        """
        template = self.settings.user
        if self.column is None and template is not None:
            try:
                return prompt_messages(row, self.settings, self.key)
            except RowError:
                # a template may do without a column, as training's rows did; a row of another form is asked by its own
                if columns_of_template(template) <= row.keys():
                    raise
        turns = asked(row, self.column)
        if self.settings.system and not any(turn["role"] == "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": self.settings.system})
        return prepare(turns, self.settings, self.key)[0]

    def _identity(self, row: Row) -> str | None:
        value = row.get(self.id or "id")
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
        if self.id is not None:
            raise RowError(f"{self.id} must be text or a number" if self.id in row else f"has no {self.id} (inference.id)")
        return None
