"""Divide records into train, validation and test by their content alone: no order, no random state, no row count."""

import hashlib

import pyarrow as pa

from luthier.errors import UserError
from luthier.pipelines.data_processing.parameters import Split

SPLITS = ("train", "validation", "test")


def position(content_hash: str, seed: int) -> float:
    """Map a content hash to a number in [0, 1), evenly: the same content always falls on the same number."""
    digest = hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(records: pa.Table, parameters: Split, seed: int) -> pa.Table:
    """Add the column `split`. Near duplicates are one survivor by now, so none stands on both sides.

    Raises:
        UserError: if no record falls on train or on test.
    """
    names = []
    for key in records.column("content_hash").to_pylist():
        place = position(key, seed)
        held_out = "test" if place < parameters.test else "validation"
        names.append(held_out if place < parameters.test + parameters.validation else "train")
    for name in ("train", "test"):
        if name not in names:
            raise UserError(
                f"{len(names)} records are too few: none of them fell on {name}. Add rows or change data_processing.split."
            )
    return records.append_column("split", pa.array(names, pa.string()))
