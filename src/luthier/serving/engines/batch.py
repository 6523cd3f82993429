"""The rows that are answered at a time: which of them the next forward pass reads or writes, and what comes of it.

- Every pass holds the newest token of all rows, and a row that has ended leaves for another one (continuous batching: Orca,
  OSDI 2022), on `luthier.ragged`, as `luthier.generation` does for files.
- A long prompt is read in pieces, with a pass for all others in between (chunked prefill: Sarathi, arXiv:2308.16369).
- What a slot holds stays when its row has left: see `prefix_cache`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.errors import UserError
from luthier.generation import PASS_TOKENS, Drafts
from luthier.ragged import FEW_QUERIES, forward
from luthier.serving.engines.prefix_cache import PrefixCache
from luthier.serving.engines.writing import Proposal, Row, Written

logger = logging.getLogger(__name__)

READ_TOKENS = 128  # of prompts, between two tokens of the answers under way: fewer take longer each
REMEMBERED = 100_000  # places in answers after which is known what followed: some 50 MB

Outcome = tuple[Row, Written | Exception]


class Batch:
    """Rows and their keys and values."""

    def __init__(self, model: Any, slots: int, capacity: int, ends: set[int]) -> None:
        """Start without rows.

        Args:
            model: one that `luthier.ragged.fits`, set to the attention of that module.
            slots: how many rows there may be.
            capacity: tokens of each.
            ends: tokens that end an answer.
        """
        self._model, self._capacity, self._ends = model, capacity, ends
        self._drafts = Drafts(ends)
        self._slots: list[Row | None] = [None] * slots
        self._prefixes = PrefixCache(slots, capacity)
        self._may_read = READ_TOKENS  # before the next token of the answers under way

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are held."""
        return sum(map(len, self._prefixes.held))

    @property
    def is_full(self) -> bool:
        """Whether no further row can come in."""
        return None not in self._slots

    def admit(self, row: Row) -> None:
        """Take in a row, where there is a free slot."""
        slot = self._prefixes.take(row.tokens, [slot for slot, other in enumerate(self._slots) if other is None])
        self._slots[slot] = row

    def remove(self, row: Row) -> None:
        """Let go of a row."""
        self._slots[self._slots.index(row)] = None

    def advance(self) -> list[Outcome]:
        """Make one forward pass.

        Returns:
            the rows that wrote a token, with what may be shown of it, and those that failed, which are removed.
        """
        self._close_up()
        if len(self._drafts.followed) > REMEMBERED:
            self._drafts = Drafts(self._ends)
        unread = [self._unread(slot) for slot in range(self._size())]
        somebody_writes = any(count <= FEW_QUERIES for count in unread)
        first, pieces = self._next_to_read(self._may_read if somebody_writes else PASS_TOKENS)
        if pieces:
            self._may_read -= sum(pieces)
            return self._pass(first, pieces)
        self._may_read = READ_TOKENS
        # one whose turn to read has not come takes part with one token: a pass holds neighbours
        unread = [self._unread(slot) for slot in range(self._size())]
        return self._pass(0, [count if count <= FEW_QUERIES else 1 for count in unread])

    def _next_to_read(self, most: int) -> tuple[int, list[int]]:
        """Return a slot, and how many tokens of a prompt the rows from there on are to read: at most so many together."""
        for oldest in sorted(range(self._size()), key=lambda slot: self._row(slot).number) if most > 0 else ():
            if self._is_long(oldest):
                pieces = {oldest: min(most, self._unread(oldest))}
                for neighbours in (range(oldest + 1, self._size()), range(oldest - 1, -1, -1)):
                    for slot in neighbours:
                        if not self._joins(slot, pieces, most - sum(pieces.values())):
                            break
                        pieces[slot] = self._unread(slot)
                return min(pieces), [pieces[slot] for slot in sorted(pieces)]
        return 0, []

    def _joins(self, slot: int, others: Iterable[int], room: int) -> bool:
        """Tell whether a row is to be read in one pass with others, which may be about to read what it could copy."""
        tokens = self._row(slot).tokens
        copies = any(self._prefixes.is_worth(slot, tokens, self._row(other).tokens) for other in others)
        return not copies and self._is_long(slot) and self._unread(slot) <= room

    def _is_long(self, slot: int) -> bool:
        """Tell whether a row has so much to read that a pass for all rows is too small for it."""
        if self._unread(slot) > FEW_QUERIES:
            # another row may have read the same meanwhile
            self._prefixes.reuse(slot, self._row(slot).tokens)
        return self._unread(slot) > FEW_QUERIES

    def _size(self) -> int:
        return len(self._slots) - self._slots.count(None)

    def _row(self, slot: int) -> Row:
        row = self._slots[slot]
        assert row is not None
        return row

    def _unread(self, slot: int) -> int:
        """Return how many tokens of a row have no keys and values yet: more than its newest one only while it is read."""
        return len(self._row(slot).tokens) - len(self._prefixes.held[slot])

    def _close_up(self) -> None:
        """Move the rows into the first slots."""
        size = self._size()
        gaps = [slot for slot, row in enumerate(self._slots[:size]) if row is None]
        for gap, slot in zip(gaps, [slot for slot in range(size, len(self._slots)) if self._slots[slot]], strict=True):
            self._prefixes.swap(gap, slot)
            self._slots[gap], self._slots[slot] = self._slots[slot], None

    def _pass(self, first: int, counts: Sequence[int]) -> list[Outcome]:
        """Let neighbouring rows read their next tokens; those that have then read all write one.

        Args:
            first: slot of the first row.
            counts: how many tokens each of them reads.
        """
        slots = range(first, first + len(counts))
        rows, held = [self._row(slot) for slot in slots], [self._prefixes.held[slot] for slot in slots]
        starts = [len(kept) for kept in held]
        fed = [row.tokens[start : start + count] for row, start, count in zip(rows, starts, counts, strict=True)]
        scored = [0] * len(rows)
        proposals: dict[Row, Proposal] = {}
        for place, (row, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
            if start + count == len(row.tokens):
                try:
                    proposals[row] = draft, _ = row.propose(self._drafts, max(0, FEW_QUERIES - count))
                except Exception as error:
                    return self._failed({row: error})
                fed[place], scored[place] = fed[place] + draft, len(draft) + 1
        try:
            logits = forward(self._model, self._prefixes.cache, first, fed, starts, scored).float()
        except Exception as error:
            return self._failed(dict.fromkeys(rows, error))
        written: dict[Row, Written] = {}
        failed: dict[Row, Exception] = {}
        for row, kept, read, own in zip(rows, held, fed, logits.split(scored), strict=True):
            kept += read
            if row in proposals:
                try:
                    written[row] = row.write(self._drafts, proposals[row], own)
                except Exception as error:
                    failed[row] = error
                del kept[len(row.tokens) - 1 :]  # what was foreseen and did not come
        return [*written.items(), *self._failed(failed)]

    def _failed(self, errors: Mapping[Row, Exception]) -> list[Outcome]:
        for row in errors:
            self.remove(row)
        ours = {error for error in errors.values() if not isinstance(error, UserError)}
        for error in ours:
            logger.error("%d requests have failed.", len(errors), exc_info=error)
        if ours:
            # nobody knows what is left in it, and what is no number spoils other rows: they are read anew
            self._prefixes = PrefixCache(len(self._slots), self._capacity)
        return list(errors.items())
