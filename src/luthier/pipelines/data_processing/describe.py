"""Measure the finished data, count what each step did, and describe both: Croissant, data card, profile."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.executors import Executor, Task
from luthier.pipelines.data_processing import dataset_facts
from luthier.pipelines.data_processing.croissant import croissant
from luthier.pipelines.data_processing.croissant_check import check
from luthier.pipelines.data_processing.data_card import data_card
from luthier.pipelines.data_processing.messages import user_texts
from luthier.pipelines.data_processing.previous import SPLITS
from luthier.shards import Shards
from luthier.text.pii import PII_KINDS
from luthier.text.prepare import ScrubSettings
from luthier.text.profile import Lengths, Profile, Vocabulary, merge, profile_texts


def profile_shard(out: Path, file: Path, examples: Path, train: bool, vocabulary: Vocabulary | None) -> None:
    """Write the profile of the training records of a shard, or of its held-out ones."""
    table = pq.read_table(file, columns=["id", "messages", "label", "meta", "source", "split"])
    table = table.filter((pc.equal if train else pc.not_equal)(table.column("split"), "train"))
    profile = profile_texts(
        user_texts(table),
        tokens=_tokens_of(table.column("id"), pq.read_table(examples, columns=["id", "input_ids"])),
        languages=[json.loads(meta).get("language") for meta in table.column("meta").to_pylist()],
        labels=table.column("label").to_pylist(),
        sources=table.column("source").to_pylist(),
        vocabulary=vocabulary,
    )
    (out / "profile.json").write_text(profile.to_json(), encoding="utf-8")


def _tokens_of(ids: pa.ChunkedArray, examples: pa.Table) -> list[NDArray[np.int32]]:
    """Return the tokens of each record; none of a record that became no example."""
    lists = examples.column("input_ids").combine_chunks()
    ends, tokens = np.asarray(lists.offsets), np.asarray(lists.values)
    places = pc.index_in(ids, examples.column("id")).to_pylist()
    return [tokens[:0] if place is None else tokens[ends[place] : ends[place + 1]] for place in places]


def profile_data(records: Shards, examples: Shards, executor: Executor) -> tuple[Profile, Profile]:
    """Return the profiles of the training records and of the held-out ones, whose unknown words are those not in training."""

    def run(train: bool, vocabulary: Vocabulary | None) -> Profile:
        known = vocabulary.digest if vocabulary else None
        tasks = [
            Task(
                {"input": [a, b], "train": train, "vocabulary": known},
                {"file": file, "examples": tokens, "train": train, "vocabulary": vocabulary},
            )
            for file, a, tokens, b in zip(records.files, records.hashes, examples.files, examples.hashes, strict=True)
        ]
        parts = executor.map("profile_data", profile_shard, tasks)
        found = [Profile.from_json((part / "profile.json").read_text(encoding="utf-8")) for part in parts]
        whole = found[0]
        for other in found[1:]:
            whole = merge(whole, other)
        return whole

    training = run(True, None)
    return training, run(False, training.vocabulary)


def labels_by_split(records: Shards) -> dict[str, dict[str, int]]:
    """Count the labels of each split."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    for batch in records.iter_batches(["split", "label"]):
        for split, label in zip(*(batch.column(name).to_pylist() for name in ("split", "label")), strict=True):
            if label is not None:
                counts[split][label] += 1
    return {split: dict(sorted(count.items())) for split, count in counts.items() if count}


def label_deviation(labels: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return, for each split, the largest difference between a label's share in it and its share in all."""
    whole = Counter[str]()
    for counts in labels.values():
        whole.update(counts)
    total = sum(whole.values())
    return {
        split: max(abs(counts.get(label, 0) / sum(counts.values()) - whole[label] / total) for label in whole)
        for split, counts in labels.items()
    }


def splits_of(records: Shards) -> dict[str, int]:
    """Count the records of each split."""
    counts = Counter(name for batch in records.iter_batches(["split"]) for name in batch.column("split").to_pylist())
    return {name: counts.get(name, 0) for name in SPLITS}


def measured(training: Profile, held_out: Profile) -> dict[str, Any]:
    """Return the figures of the profiles that people read."""

    def spread(lengths: Lengths) -> dict[str, float]:
        return {"mean": lengths.mean, "p50": lengths.quantile(0.5), "p95": lengths.quantile(0.95)}

    return {
        "training_texts": training.texts,
        "characters": spread(training.characters),
        "tokens": spread(training.tokens),
        "languages": training.languages,
        "labels": training.labels,
        "sources": training.sources,
        "personal_data": training.pii,
        "out_of_vocabulary": held_out.unknown_share,
        "non_ascii": training.non_ascii_share,
    }


def _parameters(parameters: Any) -> dict[str, Any]:
    """Return what decided the bytes: not where and by how many the work was done."""
    resolved: dict[str, Any] = parameters.model_dump(mode="json", exclude={"executor", "describe"})
    return resolved


def search_for_personal_data(scrub: ScrubSettings | None) -> str:
    """Say which personal data were searched for and replaced, and which were not."""
    by_pattern = scrub.kinds if scrub else ()
    by_model = sorted(set(scrub.presidio.entities.values())) if scrub and scrub.presidio else []
    told = []
    if by_pattern:
        told.append(f"Replaced where their patterns were found: {_listed(by_pattern)}.")
    if by_model:
        told.append(f"Replaced where a model found them: {_listed(by_model)}.")
    if told and scrub and scrub.extraction_fields:
        told.append(f"Left in the answers' fields: {', '.join(scrub.extraction_fields)}.")
    if missed := [kind for kind in PII_KINDS if kind not in (*by_pattern, *by_model)]:
        told.append(f"Not searched for: {_listed(missed)}.")
    return " ".join(told)


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kind.replace("_", " ") for kind in kinds)


def describe(
    records: Shards,
    profile: tuple[Profile, Profile],
    sources: list[dict[str, Any]],
    counts: dict[str, dict[str, int]],
    dropped: dict[str, dict[str, int]],
    parameters: Any,
    root: Path,
    executor: Executor,
) -> tuple[Shards, str]:
    """Put the records, their Croissant description, data card and profile into one folder.

    Returns:
        the folder as a table, and the data card as HTML.

    Raises:
        UserError: if the description is not true of the files; every problem is named.
    """
    from luthier.lineage import UNKNOWN, commit, day_of_commit, local_changes  # MLflow: not for the workers

    files = zip(records.files, records.hashes, strict=True)
    labels = labels_by_split(records)
    sha, day = commit(root), day_of_commit(root)
    told = parameters.describe
    if told.personal_sensitive_information is None:
        told = told.model_copy(update={"personal_sensitive_information": search_for_personal_data(parameters.scrub)})
    if told.date_published is None and not day:  # without git nothing else tells when
        told = told.model_copy(update={"date_published": datetime.now(UTC).date()})
    facts = dataset_facts.Facts(
        describe=told,
        files=tuple(
            dataset_facts.File(path=f.name, bytes=f.stat().st_size, sha256=sha256, rows=pq.read_metadata(f).num_rows)
            for f, sha256 in files
        ),
        splits=splits_of(records),
        columns=dataset_facts.columns_of(records.schema),
        sources=tuple(
            dataset_facts.Source(
                name=source["source"],
                uri=source["file"],
                sha256=source["sha256"],
                rows=source["rows"],
                format=source["format"],
                shape=source["shape"],
                license=source["license"],
            )
            for source in sources
        ),
        commit=dataset_facts.Commit(sha=sha, dirty=bool(local_changes(root)), date=date.fromisoformat(day))
        if sha != UNKNOWN and day
        else None,
        parameters=_parameters(parameters),
        counts=counts,
        dropped=dropped,
        labels=labels,
        label_deviation=label_deviation(labels),
        profile=measured(*profile),
    )
    page = croissant(facts)
    markdown, html = data_card(facts, page)
    texts = {
        "croissant.json": json.dumps(page, indent=2, ensure_ascii=False),
        "data_card.md": markdown,
        "data_card.html": html,
        "profile.json": profile[0].to_json(),
    }
    described = executor.table("describe_data", records.files, texts)
    problems = check(page, described.folder)
    if problems:
        raise UserError("The description of the data does not fit the data:\n  " + "\n  ".join(problems))
    return described, html
