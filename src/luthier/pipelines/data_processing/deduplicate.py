"""Find conversations that are the same, exactly or nearly, and keep one of each.

Exact: equal hash of the normalised conversation. Near: character 5-gram sets of what the user says, so that short texts
have shingles too; MinHash signatures (Broder 1997; rensa), bands of them as keys of buckets (Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, chapter 3), the true Jaccard similarity of the sets to decide, connected components as
clusters. Digits count: two messages that differ in an order number are different messages.

A cluster is never divided between splits. Of it stays one record for each answer that is unlike the others: many answers
to one message are what some data sets are made of. Records with a label are an exception: two labels of one message
contradict each other, so one record stays. The survivor is the one with the lowest content hash, whatever the order of
the rows.

Texts stay in their shards. What is held for all records at once is a few numbers each: two hashes, one band, a cluster.

    sign (a task a shard) -> exact groups -> buckets (a task a band) -> shingles of candidates (a task a shard)
      -> similarities, clusters, survivors -> keep (a task a shard)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.artefacts import canonical_json
from luthier.executors import Executor, Task, key_of, stored
from luthier.pipelines.data_processing.messages import turns, user_texts
from luthier.pipelines.data_processing.parameters import Deduplicate
from luthier.pipelines.data_processing.previous import PreviousSplits
from luthier.pipelines.data_processing.shingles import Hashes, Numbers, band_hashes, fold, jaccard, shingle_hashes, signatures
from luthier.records import DUPLICATE
from luthier.shards import Shards, write_table

ALL_PAIRS_UP_TO = 16
"""Records in a bucket of which each is compared with each; in a larger one, each with the next ones in order."""
NEIGHBOURS = 4
ARRAYS = "deduplicate_arrays"


def content_hash(messages: Any, rejected: Any = None) -> str:
    """Return the hash of a conversation that ignores letter case and white space, but no digit and no word."""
    return _hash_of(_folded(messages), _folded(rejected))


def _folded(messages: Any) -> list[tuple[str, str, str]]:
    """Return role, folded text and tool calls of each turn."""
    return [(turn["role"], fold(turn["content"]), turn.get("tool_calls") or "") for turn in messages or []]


def _hash_of(said: list[tuple[str, str, str]], rejected: list[tuple[str, str, str]]) -> str:
    return key_of(canonical_json([said, rejected]))


def _folded_user_text(said: list[tuple[str, str, str]]) -> str:
    """Return what `fold` makes of `user_text`."""
    turns_of_user = [text for role, text, _ in said if role == "user"]
    return " ".join(text for text in turns_of_user or [text for _, text, _ in said] if text)


def _folded_answers(said: list[tuple[str, str, str]], rejected: list[tuple[str, str, str]]) -> str:
    """Return what the assistant says and calls; of a preference pair, both answers."""
    return " ".join(part for role, *parts in [*said, *rejected] if role == "assistant" for part in parts if part)


def sign_shard(out: Path, file: Path, permutations: int, bands: int) -> None:
    """Write what is compared of each record of a shard.

    Its content hash (2 x 64 bits), its band hashes and a byte of each minimum, the least hash of its answers' shingles, and
    whether it has a label.
    """
    table = pq.read_table(file, columns=["messages", "rejected", "label"])
    said, rejected = ([_folded(messages) for messages in turns(table, column)] for column in ("messages", "rejected"))
    hashes = [_hash_of(own, other) for own, other in zip(said, rejected, strict=True)]
    np.save(out / "content.npy", np.array([[int(h[:16], 16), int(h[16:], 16)] for h in hashes], np.uint64).reshape(-1, 2))
    signed = signatures([_folded_user_text(own) for own in said], permutations)
    np.save(out / "bands.npy", band_hashes(signed, bands))
    np.save(out / "bytes.npy", signed.astype(np.uint8))
    shingles, offsets = shingle_hashes([_folded_answers(*both) for both in zip(said, rejected, strict=True)])
    np.save(out / "answers.npy", np.minimum.reduceat(shingles, offsets[:-1]) if len(said) else shingles)
    np.save(out / "labelled.npy", np.asarray(table.column("label").is_valid()))


def find_pairs(out: Path, band: int, folders: list[Path], alive: Path, least: float) -> None:
    """Write the pairs that share a band and whose signatures look similar enough: shape (pairs, 2), the lower one first."""
    rows = np.flatnonzero(stored(alive)["alive"])
    count = len(np.load(folders[0] / "bands.npy", mmap_mode="r"))
    keys = _column(folders, band)[rows]
    # neighbours in a crowded bucket are those that share the next band too, and of equal messages those with like answers
    order = np.lexsort((rows, _whole(folders, "answers")[rows], _column(folders, (band + 1) % count)[rows], keys))
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(keys)) if len(keys) else starts
    crowded = (ends - starts) > ALL_PAIRS_UP_TO
    reach = np.repeat(np.where(crowded, NEIGHBOURS, ALL_PAIRS_UP_TO), ends - starts)
    end = np.repeat(ends, ends - starts)
    found = []
    for step in range(1, ALL_PAIRS_UP_TO):
        first = np.flatnonzero((reach >= step) & (np.arange(len(rows)) + step < end))
        if not len(first):
            break
        found.append(np.stack([rows[first], rows[first + step]], 1))
    pairs = np.sort(np.concatenate(found), 1) if found else np.zeros((0, 2), np.int64)
    np.save(out / "pairs.npy", _look_alike(pairs, folders, least))


def _column(folders: list[Path], band: int) -> Hashes:
    return np.concatenate([np.load(folder / "bands.npy", mmap_mode="r")[band] for folder in folders])


def _whole(folders: list[Path], name: str) -> NDArray[Any]:
    return np.concatenate([np.load(folder / f"{name}.npy") for folder in folders])


def _look_alike(pairs: Numbers, folders: list[Path], least: float) -> Numbers:
    """Keep the pairs whose signatures agree in a share of at least `least`, as far as one byte of each minimum tells."""
    if not len(pairs):
        return pairs
    signed = [np.load(folder / "bytes.npy", mmap_mode="r") for folder in folders]
    starts = np.cumsum([0, *map(len, signed)])

    def take(rows: Numbers) -> NDArray[np.uint8]:
        taken = np.empty((len(rows), signed[0].shape[1]), np.uint8)
        shard = np.searchsorted(starts, rows, "right") - 1
        for number in np.unique(shard):
            own = shard == number
            taken[own] = signed[number][rows[own] - starts[number]]
        return taken

    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    good = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 65_536):
        a, b = pairs[start : start + 65_536].T
        good[start : start + 65_536] = (take(a) == take(b)).mean(1) >= least
    return pairs[good]


def shingle_shard(out: Path, file: Path, rows: list[int]) -> None:
    """Write shingle sets of some records of a shard, of messages and of answers.

    Sorted 64-bit hashes, those of one record after those of another, and their ends.
    """
    table = pq.read_table(file, columns=["messages", "rejected"]).take(pa.array(rows, pa.int64()))
    both = zip(turns(table, "messages"), turns(table, "rejected"), strict=True)
    answers = [_folded_answers(_folded(messages), _folded(rejected)) for messages, rejected in both]
    for name, texts in (("messages", [fold(text) for text in user_texts(table)]), ("answers", answers)):
        hashes, offsets = shingle_hashes(texts)
        sets = [np.unique(hashes[start:end]) for start, end in pairwise(offsets)]
        np.save(out / f"{name}.npy", np.concatenate(sets))
        np.save(out / f"{name}_ends.npy", np.cumsum([len(one) for one in sets]))


class _ShingleSets:
    """Shingle sets of the candidates, read from disk as they are asked for."""

    def __init__(self, name: str, rows: Numbers, folders: dict[int, Path], starts: Numbers) -> None:
        self.starts = starts
        self.rows = rows
        self.sets = {shard: np.load(folder / f"{name}.npy", mmap_mode="r") for shard, folder in folders.items()}
        self.ends = {shard: np.concatenate([[0], np.load(folder / f"{name}_ends.npy")]) for shard, folder in folders.items()}
        self.first = {shard: int(np.searchsorted(rows, starts[shard])) for shard in folders}

    def __getitem__(self, row: int) -> Hashes:
        shard = int(np.searchsorted(self.starts, row, "right")) - 1
        place = int(np.searchsorted(self.rows, row)) - self.first[shard]
        ends = self.ends[shard]
        return np.asarray(self.sets[shard][ends[place] : ends[place + 1]])


class _Clusters:
    """Union-find over row numbers; the lower number is the root."""

    def __init__(self, rows: int) -> None:
        self.parent = np.arange(rows)

    def find(self, row: int) -> int:
        parent = self.parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def roots(self) -> Numbers:
        """Return the root of each row."""
        roots = self.parent
        while not np.array_equal(deeper := roots[roots], roots):
            roots = deeper
        return roots


@dataclass(frozen=True)
class _Verdict:
    """What becomes of each record."""

    survivor: Numbers
    """Row number of the record that stays in its place; its own if it stays."""
    cluster: Hashes
    """Content hash, 2 x 64 bits, that names its cluster."""
    kind: NDArray[np.str_]
    """`""` (stays), exact, near or bridge."""
    similarity: NDArray[np.float64]


def keep_shard(out: Path, file: Path, signed: Path, verdict: Path) -> None:
    """Write the records that stay, with content hash and cluster, and the duplicates (schema `records.DUPLICATE`)."""
    table = pq.read_table(file)
    content = _hex(np.load(signed / "content.npy"))
    fate = stored(verdict)
    clusters = _hex(fate["cluster"])
    table = table.append_column("content_hash", pa.array(content, pa.string()))
    table = table.append_column("cluster", pa.array(clusters, pa.string()))
    dropped = fate["kind"] != ""
    write_table(table.filter(pa.array(~dropped)), out / "records.parquet")
    gone = table.filter(pa.array(dropped)).select(["key", "id"])
    facts = {
        "kind": fate["kind"][dropped].astype(object),
        "similarity": fate["similarity"][dropped],
        "survivor": fate["survivor_id"].astype(object),
        "survivor_key": fate["survivor_key"].astype(object),
    }
    for name, values in facts.items():
        gone = gone.append_column(name, pa.array(values, DUPLICATE.field(name).type))
    write_table(gone.cast(DUPLICATE), out / "duplicates.parquet")
    everyone = {"content_hash": content, "cluster": clusters, "kept": ~dropped}
    write_table(pa.table(everyone), out / "clusters.parquet")


def _hex(hashes: Hashes) -> list[str]:
    return [f"{high:016x}{low:016x}" for high, low in hashes.tolist()]


def deduplicate(
    records: Shards, parameters: Deduplicate, executor: Executor, previous: PreviousSplits | None = None
) -> tuple[Shards, Shards, Shards]:
    """Keep one conversation of each cluster and answer; where an earlier version of the data had some of it, those stay.

    Returns:
        the survivors, with content hash and cluster, in the order of the input; what was dropped and for whom (schema
        `records.DUPLICATE`); and content hash, cluster and `kept` of every record.
    """
    files, settings = records.files, {"permutations": parameters.permutations, "bands": parameters.bands}
    tasks = [Task({"input": sha256} | settings, {"file": f} | settings) for f, sha256 in zip(files, records.hashes, strict=True)]
    signed = executor.map("sign_records", sign_shard, tasks)
    content = np.concatenate([np.load(folder / "content.npy") for folder in signed])
    starts = np.cumsum([0, *(len(np.load(folder / "content.npy", mmap_mode="r")) for folder in signed)])
    twin = _first_of_equals(content)
    near = _near(records, signed, twin == np.arange(len(twin)), starts, parameters, executor)
    verdict = _judge(content, twin, near, previous)
    return _keep(records, signed, starts, verdict, executor)


def _first_of_equals(content: Hashes) -> Numbers:
    """Return, for each row, the first row with the same content."""
    order = np.lexsort((np.arange(len(content)), content[:, 1], content[:, 0]))
    ordered = content[order]
    new = np.ones(len(content), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.empty(len(content), np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


@dataclass(frozen=True)
class _Near:
    """Which records are alike, by the number of a record that they are joined with."""

    clusters: Numbers
    """Those with like messages."""
    groups: Numbers
    """Those of a cluster of which one stays: their answers are alike too, or they have labels."""
    sets: _ShingleSets | None
    """Shingles of the messages; None if no two are alike."""


def _near(
    records: Shards,
    signed: list[Path],
    alive: NDArray[np.bool_],
    starts: Numbers,
    parameters: Deduplicate,
    executor: Executor,
) -> _Near:
    """Join the records whose Jaccard similarity reaches the threshold."""
    clusters, groups = _Clusters(len(alive)), _Clusters(len(alive))
    if parameters.near_threshold == 1:
        return _Near(clusters.roots(), groups.roots(), None)
    threshold = parameters.near_threshold
    # three standard deviations below the threshold: what is lost there is a pair in a thousand
    least = threshold - 3 * np.sqrt(threshold * (1 - threshold) / parameters.permutations)
    names = [folder.name for folder in signed]
    (mask,) = executor.store(ARRAYS, [{"alive": alive}])
    shared = {"folders": signed, "alive": mask, "least": float(least)}
    decides = {"of": names, "alive": mask.name, "least": float(least)}
    bands = [Task(decides | {"band": band}, shared | {"band": band}) for band in range(parameters.bands)]
    found = executor.map("pair_records", find_pairs, bands)
    rows = np.unique(np.concatenate([np.unique(np.load(folder / "pairs.npy")) for folder in found]))
    if not len(rows):
        return _Near(clusters.roots(), groups.roots(), None)
    places = {shard: rows[(rows >= starts[shard]) & (rows < starts[shard + 1])] - starts[shard] for shard in range(len(signed))}
    needed = {shard: own.tolist() for shard, own in places.items() if len(own)}
    tasks = [
        Task({"input": records.hashes[shard], "rows": own}, {"file": records.files[shard], "rows": own})
        for shard, own in needed.items()
    ]
    shingled = dict(zip(needed, executor.map("shingle_records", shingle_shard, tasks), strict=True))
    messages, answers = (_ShingleSets(name, rows, shingled, starts) for name in ("messages", "answers"))
    for a, b in _distinct(found):
        if clusters.find(a) != clusters.find(b) and jaccard(messages[a], messages[b]) >= threshold:
            clusters.join(a, b)
    labelled = _whole(signed, "labelled")
    for a, b in _distinct(found):
        if clusters.find(a) != clusters.find(b) or groups.find(a) == groups.find(b):
            continue
        if (labelled[a] and labelled[b]) or jaccard(answers[a], answers[b]) >= threshold:
            groups.join(a, b)
    return _Near(clusters.roots(), groups.roots(), messages)


def _distinct(found: list[Path]) -> Iterator[tuple[int, int]]:
    """Yield each pair once: several bands find the same."""
    halves = [np.load(folder / "pairs.npy").astype(np.uint64) for folder in found]
    pairs = np.unique(np.concatenate([own[:, 0] << np.uint64(32) | own[:, 1] for own in halves]))
    for start in range(0, len(pairs), 65_536):
        for pair in pairs[start : start + 65_536].tolist():
            yield pair >> 32, pair & 0xFFFFFFFF


def _judge(content: Hashes, twin: Numbers, near: _Near, previous: PreviousSplits | None) -> _Verdict:
    """Choose the survivors of each cluster."""
    rows = np.arange(len(content))
    root, group = near.clusters[twin], near.groups[twin]
    old = previous.kept(content) if previous else np.zeros(len(content), bool)
    old &= twin == rows
    # no side is left for a new record between old ones of two splits
    bridge = previous.bridges(content, root, old) if previous else np.zeros(len(content), bool)
    leader, first = (_first_in(of, content, old) for of in (root, group))
    stays = old | ((first == rows) & ~bridge)
    heir = np.where(stays[first], first, leader)
    survivor = np.where(stays, rows, np.where(twin != rows, np.where(stays[twin], twin, heir), heir))
    kind = np.where(stays, "", np.where((twin != rows) & (survivor == twin), "exact", "near")).astype("<U6")
    kind[(twin != rows) & (kind == "near")] = "exact"
    kind[~stays & (twin == rows) & bridge] = "bridge"
    cluster = content[leader].copy()
    if previous:
        # a new record with another answer follows the old ones into their split
        known = old[leader]
        cluster[known] = previous.cluster(content[leader[known]])
        cluster[old] = previous.cluster(content[old])
    similarity = np.ones(len(content))
    for row in np.flatnonzero(np.isin(kind, ["near", "bridge"])):
        if near.sets is not None:
            similarity[row] = jaccard(near.sets[int(twin[row])], near.sets[int(survivor[row])])
    return _Verdict(survivor, cluster, kind, similarity)


def _first_in(of: Numbers, content: Hashes, old: NDArray[np.bool_]) -> Numbers:
    """Return, for each record, the one that leads its cluster or group: first the old ones, then by content hash."""
    rows = np.arange(len(content))
    order = np.lexsort((rows, content[:, 1], content[:, 0], ~old, of))
    leads = np.ones(len(content), bool)
    leads[1:] = of[order][1:] != of[order][:-1]
    first = np.empty(len(content), np.int64)
    first[order] = order[np.flatnonzero(leads)][np.cumsum(leads) - 1]
    return first


def _keep(
    records: Shards, signed: list[Path], starts: Numbers, verdict: _Verdict, executor: Executor
) -> tuple[Shards, Shards, Shards]:
    names = _names(records, starts, np.unique(verdict.survivor[verdict.kind != ""]))
    fates = executor.store(ARRAYS, (_fate(verdict, slice(*shard), names) for shard in pairwise(starts)))
    tasks = [
        Task({"input": sha256, "signed": own.name, "verdict": fate.name}, {"file": file, "signed": own, "verdict": fate})
        for file, sha256, own, fate in zip(records.files, records.hashes, signed, fates, strict=True)
    ]
    parts = executor.map("deduplicate_records", keep_shard, tasks)
    kept, duplicates, clusters = (
        executor.table("deduplicate_records", [part / f"{name}.parquet" for part in parts])
        for name in ("records", "duplicates", "clusters")
    )
    return kept, duplicates, clusters


def _fate(verdict: _Verdict, own: slice, names: dict[int, tuple[str, str]]) -> dict[str, NDArray[Any]]:
    """Return what `keep_shard` needs to know of a shard's records."""
    kind, survivors = verdict.kind[own], verdict.survivor[own]
    found = [names[row] for row in survivors[kind != ""].tolist()]
    return {
        "kind": kind,
        "cluster": verdict.cluster[own],
        "similarity": verdict.similarity[own],
        "survivor_id": np.array([identity for _, identity in found], dtype=str),
        "survivor_key": np.array([key for key, _ in found], dtype=str),
    }


def _names(records: Shards, starts: Numbers, rows: Numbers) -> dict[int, tuple[str, str]]:
    """Look up key and id of some rows."""
    found: dict[int, tuple[str, str]] = {}
    for shard, file in enumerate(records.files):
        own = rows[(rows >= starts[shard]) & (rows < starts[shard + 1])]
        if len(own):
            table = pq.read_table(file, columns=["key", "id"]).take(pa.array(own - starts[shard]))
            pairs = zip(table.column("key").to_pylist(), table.column("id").to_pylist(), strict=True)
            found.update(zip(own.tolist(), pairs, strict=True))
    return found
