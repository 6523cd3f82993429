"""A table on disk as a folder of Parquet shards with a manifest, and the handle that rooms pass around."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.artefacts import read_manifest, staged

ROWS_PER_SHARD = 16_384


@dataclass(frozen=True)
class Shards:
    """Handle to a sharded table: where it is and what it holds, never the data itself."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Files with sizes and hashes, `rows`, and the root hash `sha256`."""
        return read_manifest(self.folder)

    @property
    def sha256(self) -> str:
        """Hash of the content: equal tables written by one version of pyarrow have equal hashes."""
        return str(self.manifest["sha256"])

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.manifest["rows"])

    @property
    def files(self) -> list[Path]:
        """The Parquet files, in order."""
        return [self.folder / name for name in sorted(self.manifest["files"]) if name.endswith(".parquet")]

    @property
    def hashes(self) -> list[str]:
        """The sha256 of each Parquet file, in order."""
        files = self.manifest["files"]
        return [files[name]["sha256"] for name in sorted(files) if name.endswith(".parquet")]

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        return pq.read_schema(self.files[0])

    def iter_batches(self, columns: list[str] | None = None, size: int = 1024) -> Iterator[pa.RecordBatch]:
        """Yield record batches of at most `size` rows, shard after shard."""
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=size, columns=columns)

    def iter_taken(self, rows: NDArray[np.bool_], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows that a mask over the whole table takes, shard after shard; one without any is not read."""
        start = 0
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                own = rows[start : start + parquet.metadata.num_rows]
                start += len(own)
                at = 0
                for batch in parquet.iter_batches(batch_size=1024, columns=columns) if own.any() else ():
                    taken = batch.filter(pa.array(own[at : at + batch.num_rows]))
                    at += batch.num_rows
                    if taken.num_rows:
                        yield taken

    def take(self, rows: NDArray[np.bool_], columns: list[str] | None = None) -> pa.Table:
        """Read the rows that a mask over the whole table takes; of the others a batch is held at a time."""
        batches = list(self.iter_taken(rows, columns))
        # where no row is taken, the columns come from a file
        return pa.Table.from_batches(batches) if batches else pq.read_table(self.files[0], columns=columns).slice(0, 0)

    def iter_rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield rows as dictionaries, one at a time."""
        for batch in self.iter_batches(columns):
            yield from batch.to_pylist()

    def to_table(self, columns: list[str] | None = None) -> pa.Table:
        """Read the table into memory."""
        return pa.concat_tables(pq.read_table(file, columns=columns) for file in self.files)

    def to_pandas(self, columns: list[str] | None = None, limit: int | None = None) -> pd.DataFrame:
        """Read at most `limit` rows as a data frame."""
        if limit is None:
            return self.to_table(columns).to_pandas()
        batches, rows = [], 0
        for batch in self.iter_batches(columns):
            batches.append(batch.slice(0, limit - rows))
            rows += batches[-1].num_rows
            if rows >= limit:
                break
        # an empty table yields no batch: its columns come from the file
        return (pa.Table.from_batches(batches) if batches else self.to_table(columns)).to_pandas()

    def head(self, n: int = 5) -> pd.DataFrame:
        """Return the first rows, for a look in a notebook."""
        return self.to_pandas(limit=n)


def write_table(table: pa.Table, file: Path) -> None:
    """Write one Parquet file: equal tables give equal bytes with one version of pyarrow."""
    pq.write_table(table.combine_chunks(), file, compression="zstd", row_group_size=ROWS_PER_SHARD)


def write_shards(table: pa.Table, folder: Path, rows_per_shard: int = ROWS_PER_SHARD) -> Shards:
    """Write a table as Parquet shards; the folder appears whole or not at all."""
    with staged(folder, rows=table.num_rows) as staging:
        for number, start in enumerate(range(0, max(table.num_rows, 1), rows_per_shard)):
            write_table(table.slice(start, rows_per_shard), staging / f"part-{number:05d}.parquet")
    return Shards(folder)
