"""What may be removed, and removing it: versions of data sets that nobody needs, and work that no run will ask for again."""

import json
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from luthier.artefacts import hash_of, is_complete
from luthier.configuration import FolderParameters
from luthier.data_versions.needs import DAYS_UNDER_WAY, Needed
from luthier.data_versions.store import DataSet, File, age_in_seconds, freed, local_files, remove_tree
from luthier.executors import SECONDS_KEPT


@dataclass(frozen=True)
class Work:
    """A folder of work in progress that may go."""

    folder: Path
    what: str


@dataclass(frozen=True)
class Plan:
    """What would be removed."""

    versions: list[tuple[DataSet, str]]
    work: list[Work]
    kept: list[tuple[str, str, str]]
    """Data set, version, and who needs it."""

    @property
    def bytes(self) -> int:
        """What removing all of it frees."""
        return freed([file for files in self._files() for file in files])

    def by_name(self) -> list[dict[str, Any]]:
        """Return a row for each data set and kind of work: what goes, what stays, how large what goes is."""
        rows: dict[str, dict[str, Any]] = {}
        for (dataset, _), files in zip(self.versions, self._files(), strict=False):
            row = rows.setdefault(dataset.name, {"what": dataset.name, "remove": 0, "keep": 0, "bytes": 0})
            row["remove"] += 1
            row["bytes"] += sum(file.bytes for file in files)
        for name, _, _ in self.kept:
            rows.setdefault(name, {"what": name, "remove": 0, "keep": 0, "bytes": 0})["keep"] += 1
        for work in self.work:
            row = rows.setdefault(work.what, {"what": work.what, "remove": 0, "keep": None, "bytes": 0})
            row["remove"] += 1
            row["bytes"] += sum(file.bytes for file in _files_of(work.folder))
        return [row for row in rows.values() if row["remove"]]

    def _files(self) -> list[list[File]]:
        return [
            *(dataset.files(version) for dataset, version in self.versions),
            *(_files_of(work.folder) for work in self.work),
        ]

    def carry_out(self) -> None:
        """Remove it. Broken off, it has removed a part, each version whole; given again, it removes the rest."""
        for dataset, version in self.versions:
            dataset.remove(version)
        for work in self.work:
            remove_tree(work.folder)


DAYS_UNUSED = 30
UNKNOWN = "no run of this MLflow made it"


def plan(sets: Sequence[DataSet], needed: Needed, known: Collection[str], work: list[Work]) -> Plan:
    """Decide what goes: every version that is neither the newest of its data set nor needed.

    Args:
        sets: to look at.
        needed: data set and version -> who needs it.
        known: versions that runs of MLflow made. Of others nobody can say who needs them: another MLflow may know.
        work: of old runs.
    """
    remove, kept = [], []
    for dataset in sets:
        for place, version in enumerate(dataset.versions()):
            who = "the newest" if place == 0 else needed.get((dataset.name, version), None if version in known else UNKNOWN)
            if who is None:
                remove.append((dataset, version))
            else:
                kept.append((dataset.name, version, who))
    leftovers = [Work(path, "broken off") for dataset in sets for path in dataset.leftovers()]
    return Plan(remove, [*(item for item in leftovers if _is_old(item.folder)), *work], kept)


def unneeded_work(folders: FolderParameters, copies: Path, manifests: Collection[str]) -> list[Work]:
    """Return what of the folders of work no run will ask for, as far as can be told.

    - Results of the steps of data processing: those of yesterday go, as a run of data processing itself does.
    - Training jobs: the last one stays, and what is under way or was broken off within a week.
    - Packages that were fetched from the registry and are not in use, answers that are kept, copies of what lies in a storage:
      those go that nobody asked for within a month; they are fetched, or made, again on demand.

    Args:
        folders: of the project.
        copies: `remote.cache_folder`.
        manifests: root hashes of the packages in use: an alias points to them, or an experiment names them.
    """
    jobs = Path(folders.work)
    latest = _latest(jobs)
    over = [path for path in _within(jobs, 1) if path.is_dir() and path.name != latest and not _may_go_on(path)]
    fetched = [path for path in _within(folders.registry, 1) if path.name not in manifests]
    return [
        *(Work(path, "steps of data processing") for path in _within(Path(folders.shards), 2) if _is_old(path)),
        *(Work(path, "training jobs") for path in over),
        *(Work(path, "packages fetched") for path in fetched if _is_old(path, DAYS_UNUSED * 86_400)),
        *(Work(path, "answers kept") for path in _within(folders.answers, 2) if _is_old(path, DAYS_UNUSED * 86_400)),
        *(Work(path, "copies of stored data") for path in _copies(copies) if _is_old(path, DAYS_UNUSED * 86_400)),
    ]


def _copies(folder: Path) -> list[Path]:
    """Return the copies in a cache's folder, which may be that of other programs too: ours are called by a sha256."""
    return [path for path in _within(folder, 1) if re.fullmatch("[0-9a-f]{64}", path.name) and is_complete(path)]


def _within(folder: Path, depth: int) -> list[Path]:
    return sorted(folder.glob("/".join("*" * depth)))


def _is_old(path: Path, seconds: float = SECONDS_KEPT) -> bool:
    return age_in_seconds(path, time.time()) > seconds


def _latest(jobs: Path) -> str | None:
    """Return the name of the job that was last started."""
    try:
        return hash_of(json.loads((jobs / "latest.json").read_text(encoding="utf-8")))[:16]
    except (OSError, ValueError):
        return None


def _may_go_on(job: Path) -> bool:
    """Tell whether a training job is under way, or was broken off so lately that somebody may want to go on."""
    try:
        parent = json.loads((job / "job.json").read_text(encoding="utf-8"))["parent"]
        if psutil.Process(parent["pid"]).create_time() == parent["created"]:
            return True
    except (OSError, ValueError, KeyError, psutil.Error):
        pass
    return not is_complete(job / "result") and age_in_seconds(job, time.time()) < DAYS_UNDER_WAY * 86_400


def _files_of(path: Path) -> list[File]:
    if path.is_dir():
        return local_files(path)
    stat = path.lstat()
    return [File(str(path), stat.st_size, (stat.st_dev, stat.st_ino), stat.st_nlink)]
