"""What an earlier version of the data said of each conversation: no old record may move to another split."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.pipelines.data_processing.shingles import Hashes
from luthier.records import SPLIT_TABLE

WHERE = "data_processing.split.previous"
SPLITS = ("train", "validation", "test")


class PreviousSplits:
    """Content hash -> cluster, split and whether it stayed. Holds five numbers a record."""

    def __init__(self, path: str) -> None:
        """Read a split table.

        Raises:
            UserError: if there is none at `path`, or it is none of ours.
        """
        files = split_table_files(path)
        try:
            table = pa.concat_tables(pq.read_table(file) for file in files)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{WHERE}: {path} cannot be read as a split table: {error}") from error
        content, cluster = (as_numbers(table.column(name).to_pylist()) for name in ("content_hash", "cluster"))
        codes = {name: number for number, name in enumerate(SPLITS)}
        split = np.array([codes.get(name, -1) for name in table.column("split").to_pylist()], np.int8)
        stayed = table.column("kept").to_numpy(zero_copy_only=False)
        # a record that stayed hides a copy of it that did not
        order = np.lexsort((~stayed, content[:, 1], content[:, 0]))
        self.content, self.clusters, self.splits, self.stayed = content[order], cluster[order], split[order], stayed[order]
        kept = np.flatnonzero(self.stayed)
        by_cluster = kept[np.lexsort((self.clusters[kept, 1], self.clusters[kept, 0]))]
        self._names, self._split_of_name = self.clusters[by_cluster], self.splits[by_cluster]

    def _place(self, content: Hashes) -> NDArray[np.int64]:
        """Return the row of each conversation in this table, or -1."""
        return _places(self.content, content)

    def kept(self, content: Hashes) -> NDArray[np.bool_]:
        """Tell which conversations were in the earlier version and stayed."""
        place = self._place(content)
        return (place >= 0) & self.stayed[place] if len(self.content) else place >= 0

    def cluster(self, content: Hashes) -> Hashes:
        """Return the cluster of conversations that are all known."""
        found: Hashes = self.clusters[self._place(content)]
        return found

    def split(self, content: Hashes, cluster: Hashes) -> list[str | None]:
        """Return the split of each conversation, that of its cluster for a new one; None if both are new."""
        place, name = self._place(content), _places(self._names, cluster)
        own = np.where((place >= 0) & self.stayed[place], self.splits[place], -1) if len(self.content) else place
        of_cluster = np.where(name >= 0, self._split_of_name[name], -1) if len(self._names) else name
        return [SPLITS[split] if split >= 0 else None for split in np.where(own >= 0, own, of_cluster).tolist()]

    def bridges(self, content: Hashes, root: NDArray[np.int64], old: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which rows are in a component that holds old ones of different splits."""
        split = np.where(old, self.splits[self._place(content)], -1) if len(self.content) else np.full(len(content), -1)
        first = np.full(len(content), -1)
        first[root[old]] = split[old]
        mixed = np.zeros(len(content), bool)
        mixed[root[old & (first[root] != split)]] = True
        return mixed[root]


def _places(known: Hashes, hashes: Hashes) -> NDArray[np.int64]:
    """Return where each hash stands in a sorted table of them, or -1; the first 64 bits lead there, the others are compared."""
    if not len(known):
        return np.full(len(hashes), -1)
    place = np.minimum(np.searchsorted(known[:, 0], hashes[:, 0]), len(known) - 1)
    return np.where((known[place] == hashes).all(1), place, -1)


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


def as_numbers(hashes: list[str]) -> Hashes:
    """Return hashes of 32 hexadecimal digits as numbers: shape (hashes, 2)."""
    return np.array([[int(h[:16], 16), int(h[16:], 16)] for h in hashes], np.uint64).reshape(-1, 2)
