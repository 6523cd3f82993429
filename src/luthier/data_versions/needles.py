"""What is looked for when somebody's text is to be erased, and where it stands in tables, JSON and pages.

Prepared data holds no personal data as it came: an address stands there as its placeholder, a sentence cleaned, with the
placeholder in it. So a text is looked for as it was given, as cleaning leaves it, and as scrubbing leaves that.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.artefacts import MANIFEST
from luthier.errors import UserError
from luthier.text.clean import clean_with_changes
from luthier.text.pii import PII_KINDS, PLACEHOLDER, placeholder, scrub
from luthier.text.prepare import ScrubSettings

LEAST = 4
"""Characters of a text: a shorter one stands everywhere."""
PAGES = (".html", ".md", ".txt")
NAMES = frozenset({"key", "id", "ids", "item", "survivor", "survivor_key", "request"})
"""Columns of tables in which rows are called by name."""
_HEAD = 60
_LEAST_HEAD = 20


@dataclass(frozen=True)
class Needles:
    """What is looked for."""

    texts: frozenset[str] = frozenset()
    """Any text counts that holds one of them, in whatever case."""
    names: frozenset[str] = frozenset()
    """Ids and keys: they count in columns that name rows."""
    quoted: frozenset[str] = frozenset()
    """Those of rows that were found: they count in reports, too, where they stand alone. Of others a word may be meant."""

    @classmethod
    def of_text(cls, text: str, key: str, settings: ScrubSettings | None) -> "Needles":
        """Return what to look for of a text that was given.

        Args:
            text: a sentence, or a value such as an e-mail address.
            key: of the placeholders.
            settings: how texts are scrubbed; None if they are not.

        Raises:
            UserError: if it is too short, or what cleaning leaves of it is.
        """
        cleaned = clean_with_changes(text)[0]
        if min(len(text.strip()), len(cleaned.strip())) < LEAST:
            left = "" if cleaned.strip() == text.strip() else f", of which data processing leaves {cleaned.strip()!r},"
            raise UserError(f"--text: {text!r}{left} is too short: {LEAST} characters at least, or it stands everywhere.")
        recognizer = settings.recognizer() if settings else None
        kinds, keep = (settings.kinds, settings.keep) if settings else ((), ())
        scrubbed, _ = scrub(cleaned, key, kinds, keep, recognizer)
        # a value may have been found where more stood around it
        as_value = {placeholder(kind, cleaned, key) for kind in PII_KINDS}
        return cls(texts=frozenset({text.strip(), cleaned.strip(), scrubbed.strip(), *as_value}))

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """Those of the texts that stand for a value."""
        return frozenset(text for text in self.texts if PLACEHOLDER.fullmatch(text))

    def with_names(self, names: Iterable[str]) -> "Needles":
        """Return these, and further names."""
        more = frozenset(names)
        return Needles(self.texts, self.names | more, self.quoted | more)

    def with_heads(self, contents: Iterable[str]) -> "Needles":
        """Return these, and the beginnings of messages, by which pages quote them; short ones say too little."""
        heads = {content.strip()[:_HEAD] for content in contents}
        return Needles(self.texts | {head for head in heads if len(head) >= _LEAST_HEAD}, self.names, self.quoted)

    def __or__(self, other: "Needles") -> "Needles":
        """Return both."""
        return Needles(self.texts | other.texts, self.names | other.names, self.quoted | other.quoted)

    # --- in one text

    @cached_property
    def _spellings(self) -> list[str]:
        """The texts as they are and as JSON strings spell them, of which some columns are full."""
        spelt = {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in self.texts for ascii_only in (False, True)}
        return sorted(self.texts | spelt)

    @cached_property
    def _folded(self) -> list[str]:
        return [text.casefold() for text in self._spellings]

    def in_value(self, value: Any, field: str | None = None) -> bool:
        """Tell whether a value of JSON holds any of it.

        Args:
            value: read from JSON.
            field: that it is the value of: where that names rows, a name counts however short it is. Elsewhere 12 is a number.
        """
        if isinstance(value, dict):
            return any(self.in_value(name) or self.in_value(item, name) for name, item in value.items())
        if isinstance(value, list):
            return any(self.in_value(item, field) for item in value)
        if isinstance(value, bool) or value is None:
            return False
        said = str(value)
        names_rows = field in NAMES or (isinstance(value, str) and len(said) >= LEAST)
        return (names_rows and said in self.quoted) or any(text in said.casefold() for text in self._folded)

    def in_page(self, page: str) -> bool:
        """Tell whether a page or another text holds any of it; a name counts as a whole word."""
        read = (page.casefold(), html.unescape(page).casefold())  # as it is written, and as a browser shows it
        if any(text in said for said in read for text in self._folded):
            return True
        long = [name for name in self.quoted if len(name) >= LEAST]
        return bool(long) and re.search(rf"(?<![\w-])(?:{'|'.join(map(re.escape, long))})(?![\w-])", page) is not None

    # --- in tables

    def rows(self, table: pa.Table) -> NDArray[np.bool_]:
        """Tell which rows of a table hold any of it, in whatever column."""
        found = np.zeros(len(table), np.bool_)
        pattern = "|".join(map(re.escape, self._spellings))
        names = pa.array(sorted(self.names), pa.string())
        # an altered copy of a record is called after it: m-1~2
        copies = "|".join(f"^{re.escape(name)}~" for name in sorted(self.names))
        for name in table.column_names:
            for texts, row in _leaves(table.column(name).combine_chunks(), np.arange(len(table))):
                held = np.zeros(len(texts), np.bool_)
                if pattern:
                    held |= _true(pc.match_substring_regex(texts, pattern, ignore_case=True))
                if len(names) and name in NAMES:
                    held |= _true(pc.is_in(texts, names)) | _true(pc.match_substring_regex(texts, copies))
                found[row[held]] = True
        return found

    def in_file(self, path: Path) -> bool:
        """Tell whether a file holds any of it; one that holds no text (a picture, weights) never does."""
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return any(self.rows(pa.Table.from_batches([batch])).any() for batch in file.iter_batches(4096))
        if path.suffix == ".json" and path.name != MANIFEST:
            return self.in_value(json.loads(path.read_text(encoding="utf-8")))
        return path.suffix in PAGES and self.in_page(path.read_text(encoding="utf-8"))


def _true(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False), np.bool_)


def _leaves(values: pa.Array, rows: NDArray[np.int64]) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
    """Yield the texts within an Arrow array, however deep, each with the row that it belongs to."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield values.cast(pa.string()), rows
    elif pa.types.is_dictionary(kind):
        yield from _leaves(values.dictionary_decode(), rows)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(pc.list_flatten(values), rows[np.asarray(pc.list_parent_indices(values))])
    elif pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            yield from _leaves(pc.struct_field(values, place), rows)
