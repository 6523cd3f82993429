"""Find conversations that are the same, exactly or nearly, and keep one of each.

Exact: equal content hash. Near: character 5-gram sets of the user's turns, MinHash signatures (Broder 1997, by rensa),
banded LSH to find candidates, the true Jaccard similarity to decide, connected components as clusters. The survivor is
the one with the lowest content hash, so the result does not depend on the order of the rows. Digits count: two
messages that differ in an order number are different messages.
"""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from rensa import RMinHash
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from luthier.pipelines.data_processing.parameters import Deduplicate
from luthier.records import DUPLICATE

GRAM = 5


def shingles(text: str) -> frozenset[str]:
    """Return the character 5-grams of a text, case and white space folded; a shorter text is its own gram."""
    folded = " ".join(text.casefold().split())
    return frozenset(folded[i : i + GRAM] for i in range(max(1, len(folded) - GRAM + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the share of common elements, in [0, 1]."""
    return len(a & b) / len(a | b) if a or b else 1.0


def _user_text(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def _candidates(sets: list[frozenset[str]], parameters: Deduplicate) -> set[tuple[int, int]]:
    """Pairs that share a band of their signatures; in a crowd of like texts only a window of neighbours is paired."""
    rows = parameters.permutations // parameters.bands
    buckets: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for number, grams in enumerate(sets):
        signature = RMinHash(num_perm=parameters.permutations, seed=42)
        signature.update(sorted(grams))
        digest = signature.digest()
        for band in range(parameters.bands):
            buckets[band, tuple(digest[band * rows : (band + 1) * rows])].append(number)
    # neighbours alone: a chain joins a bucket of duplicates. In a crowd of form letters just below the threshold a pair
    # just above it may never be neighbours, and is missed.
    return {pair for members in buckets.values() for pair in pairwise(members)}


def _clusters(sets: list[frozenset[str]], parameters: Deduplicate) -> np.ndarray:
    """Return the cluster number of each text."""
    if parameters.near_threshold == 1:
        return np.arange(len(sets))
    near = [(a, b) for a, b in _candidates(sets, parameters) if jaccard(sets[a], sets[b]) >= parameters.near_threshold]
    first, second = [a for a, _ in near], [b for _, b in near]
    graph = coo_matrix((np.ones(len(near)), (first, second)), shape=(len(sets), len(sets)))
    return np.asarray(connected_components(graph, directed=False)[1])


def deduplicate(records: pa.Table, parameters: Deduplicate) -> tuple[pa.Table, pa.Table]:
    """Keep one conversation of each cluster.

    Returns:
        the survivors, sorted by content hash, and a table of schema `records.DUPLICATE` with what was dropped and why.
    """
    rows: list[dict[str, Any]] = sorted(records.to_pylist(), key=lambda row: (row["content_hash"], row["id"], row["row"]))
    unique: dict[str, dict[str, Any]] = {}
    dropped: list[dict[str, Any]] = []
    for row in rows:
        survivor = unique.setdefault(row["content_hash"], row)
        if survivor is not row:
            dropped.append(_dropped(row, survivor, "exact", 1.0))
    texts = list(unique.values())
    sets = [shingles(_user_text(row["messages"])) for row in texts]
    first: dict[int, int] = {}
    kept: list[dict[str, Any]] = []
    for number, cluster in enumerate(_clusters(sets, parameters)):
        survivor_number = first.setdefault(int(cluster), number)
        if survivor_number == number:
            kept.append(texts[number])
        else:
            similarity = jaccard(sets[number], sets[survivor_number])
            dropped.append(_dropped(texts[number], texts[survivor_number], "near", similarity))
    dropped.sort(key=lambda row: row["id"])
    return pa.Table.from_pylist(kept, schema=records.schema), pa.Table.from_pylist(dropped, schema=DUPLICATE)


def _dropped(row: dict[str, Any], survivor: dict[str, Any], kind: str, similarity: float) -> dict[str, Any]:
    return {
        "id": row["id"],
        "source": row["source"],
        "kind": kind,
        "similarity": similarity,
        "survivor": survivor["id"],
        "survivor_source": survivor["source"],
    }
