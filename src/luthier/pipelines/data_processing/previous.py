"""What an earlier version of the data said of each conversation: no old record may move to another split."""

from binascii import unhexlify
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.pipelines.data_processing.shingles import Hashes
from luthier.records import SPLIT_TABLE

WHERE = "data_processing.split.previous"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class PreviousSplits:
    """Content hash -> cluster, split and whether it stayed: 51 bytes a record, mapped into memory or not."""

    content: Hashes
    """Sorted, shape (2, records): what is searched lies together."""
    clusters: Hashes
    """In that order, shape (2, records)."""
    splits: NDArray[np.int8]
    """Number in SPLITS, or -1."""
    stayed: NDArray[np.bool_]
    names: Hashes
    """The clusters of records that stayed, sorted, shape (2, records that stayed)."""
    splits_of_names: NDArray[np.int8]

    @classmethod
    def read(cls, path: str) -> "PreviousSplits":
        """Read a split table.

        Raises:
            UserError: if there is none at `path`, or it is none of ours.
        """
        files = split_table_files(path)
        try:
            table = pa.concat_tables(pq.read_table(file) for file in files)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{WHERE}: {path} cannot be read as a split table: {error}") from error
        try:
            content, cluster = (as_numbers(table.column(name)).T for name in ("content_hash", "cluster"))
        except ValueError as error:
            raise UserError(f"{WHERE}: {path} is no split table: {error}") from error
        split = pc.fill_null(pc.index_in(table.column("split"), pa.array(SPLITS)), -1).to_numpy().astype(np.int8)
        stayed = table.column("kept").to_numpy()
        # a record that stayed hides a copy of it that did not
        order = np.lexsort((~stayed, content[1], content[0]))
        # `take`, unlike an index, lays each half of the hashes out in one piece
        content, cluster, split, stayed = content.take(order, 1), cluster.take(order, 1), split[order], stayed[order]
        kept = np.flatnonzero(stayed)
        by_name = kept[np.lexsort((cluster[1, kept], cluster[0, kept]))]
        return cls(content, cluster, split, stayed, cluster.take(by_name, 1), split[by_name])

    def _place(self, content: Hashes) -> NDArray[np.int64]:
        """Return the row of each conversation in this table, or -1."""
        return _places(self.content, content)

    def kept(self, content: Hashes) -> NDArray[np.bool_]:
        """Tell which conversations were in the earlier version and stayed."""
        place = self._place(content)
        return (place >= 0) & self.stayed[place] if len(self.stayed) else place >= 0

    def cluster(self, content: Hashes) -> Hashes:
        """Return the cluster of conversations that are all known."""
        found: Hashes = self.clusters[:, self._place(content)].T
        return found

    def split(self, content: Hashes, cluster: Hashes) -> list[str | None]:
        """Return the split of each conversation, that of its cluster for a new one; None if both are new."""
        place, name = self._place(content), _places(self.names, cluster)
        own = np.where((place >= 0) & self.stayed[place], self.splits[place], -1) if len(self.stayed) else place
        of_cluster = np.where(name >= 0, self.splits_of_names[name], -1) if len(self.splits_of_names) else name
        return [SPLITS[split] if split >= 0 else None for split in np.where(own >= 0, own, of_cluster).tolist()]

    def bridges(self, content: Hashes, root: NDArray[np.int64], old: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which rows are in a component that holds old ones of different splits."""
        split = np.where(old, self.splits[self._place(content)], -1) if len(self.splits) else np.full(len(content), -1)
        first = np.full(len(content), -1)
        first[root[old]] = split[old]
        mixed = np.zeros(len(content), bool)
        mixed[root[old & (first[root] != split)]] = True
        return mixed[root]


def _places(known: Hashes, hashes: Hashes) -> NDArray[np.int64]:
    """Return where each hash, shape (hashes, 2), stands in sorted ones, shape (2, known), or -1.

    The first 64 bits lead there, the others are compared.
    """
    first, _ = known
    if not len(first):
        return np.full(len(hashes), -1)
    place = np.minimum(np.searchsorted(first, hashes[:, 0]), len(first) - 1)
    return np.where((known[:, place] == hashes.T).all(0), place, -1)


def split_table_files(path: str) -> list[Path]:
    """Return the files of a split table, of which no row is read.

    Raises:
        UserError: if there is none at `path`, or it is none of ours.
    """
    place = Path(path)
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    try:
        schemas = [pq.read_schema(file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{WHERE}: {path} cannot be read as a split table: {error}") from error
    if not files:
        raise UserError(f"{WHERE}: {path} cannot be read as a split table: there is no Parquet file in it.")
    for schema in schemas:
        if not schema.equals(SPLIT_TABLE):
            raise UserError(f"{WHERE}: {path} is no split table (columns {', '.join(schema.names)})")
    return files


def as_numbers(hashes: pa.ChunkedArray) -> Hashes:
    """Return hashes of 32 hexadecimal digits as numbers: shape (hashes, 2).

    Raises:
        ValueError: if one is something else.
    """
    found = [np.zeros((0, 2), np.uint64)]
    for chunk in hashes.chunks:
        digits = chunk.cast(pa.binary(32))  # refuses other lengths
        both = unhexlify(digits.buffers()[1].slice(32 * digits.offset, 32 * len(digits)))
        found.append(np.frombuffer(both, ">u8").astype(np.uint64).reshape(-1, 2))
    return np.concatenate(found)
