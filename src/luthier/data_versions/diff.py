"""How two versions of the data differ: rows added, removed, changed or moved between splits, and the mix of labels."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from luthier.shards import Shards

CONTENT = ("messages", "rejected", "label", "meta", "source", "weight")
"""What makes a row another one. Its split is no part of it: a row that moved is told apart."""


@dataclass(frozen=True)
class Difference:
    """What became of the rows, by their ids."""

    before: int
    """Rows of the earlier version."""
    after: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]
    """Id -> the columns that differ."""
    moved: dict[str, tuple[str, str]]
    """Id -> the split before and after."""
    labels: dict[str, tuple[int, int]]
    """Label -> rows before and after; the name "" stands for rows without one."""
    splits: dict[str, tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """Tell whether both hold the same rows."""
        return not (self.added or self.removed or self.changed or self.moved)

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def compare(before: Shards, after: Shards) -> Difference:
    """Compare two versions row by row; of each row only hashes are held."""
    old, new = _rows(before), _rows(after)
    both = [name for name in new if name in old]
    changed = {name: _columns(old[name][0], new[name][0]) for name in both if old[name][0] != new[name][0]}
    return Difference(
        before=len(before),
        after=len(after),
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=changed,
        moved={name: (old[name][1], new[name][1]) for name in both if old[name][1] != new[name][1]},
        labels=_side_by_side(_counts(before, "label"), _counts(after, "label")),
        splits=_side_by_side(_counts(before, "split"), _counts(after, "split")),
    )


def _rows(records: Shards) -> dict[str, tuple[bytes, str]]:
    """Return, by id, eight bytes of hash of each column, one after another, and the split."""
    return {
        row["id"]: (b"".join(_digest(row[name]) for name in CONTENT), row["split"])
        for row in records.iter_rows(["id", "split", *CONTENT])
    }


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).digest()


def _columns(old: bytes, new: bytes) -> tuple[str, ...]:
    return tuple(name for at, name in enumerate(CONTENT) if old[8 * at : 8 * at + 8] != new[8 * at : 8 * at + 8])


def _counts(records: Shards, column: str) -> Counter[str]:
    counts = Counter[str]()
    for batch in records.iter_batches([column]):
        counts.update(value or "" for value in batch.column(column).to_pylist())
    return counts


def _side_by_side(old: Counter[str], new: Counter[str]) -> dict[str, tuple[int, int]]:
    return {name: (old[name], new[name]) for name in sorted(old.keys() | new.keys())}
