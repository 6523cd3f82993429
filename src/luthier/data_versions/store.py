"""The versioned data sets of the catalog, wherever they lie: which versions there are, how large one is, how one goes."""

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from luthier.artefacts import MANIFEST, link
from luthier.remote import forget, open_storage

REMOVED = ".removed-"
HIDDEN = (REMOVED, ".restoring-", ".staging-")
"""Beginnings of folders that no reader sees: what was being removed, brought back or written when somebody pulled the plug."""
_FOLDERS = "luthier.datasets."


@dataclass(frozen=True)
class File:
    """A stored file."""

    path: str
    bytes: int
    inode: tuple[int, int] | None = None
    """Of a local one: data sets share the bytes of files that have several names."""
    names: int = 1


@dataclass(frozen=True)
class DataSet:
    """A data set of the catalog with its versions: `PATH/VERSION/NAME`, as Kedro keeps them."""

    name: str
    path: str
    """In its storage."""
    storage: Any
    """fsspec's file system."""
    is_folder: bool
    """Whether it is a folder of ours, which counts with its manifest only."""

    @property
    def is_local(self) -> bool:
        """Tell whether it lies on this machine."""
        return "file" in _protocols(self.storage)

    @property
    def is_model(self) -> bool:
        """Tell whether it is weights, which hold nobody's text as text."""
        return "06_models" in PurePosixPath(self.path).parts

    def data(self, version: str) -> str:
        """Return where the data of a version lies."""
        return f"{self.path}/{version}/{PurePosixPath(self.path).name}"

    def versions(self) -> list[str]:
        """Return the finished versions, the newest first."""
        wanted = f"/{MANIFEST}" if self.is_folder else ""
        found = self.storage.glob(f"{_escaped(self.path)}/*/{_escaped(PurePosixPath(self.path).name)}{wanted}")
        depth = len(PurePosixPath(self.path).parts)
        versions = {PurePosixPath(path).parts[depth] for path in found}
        return sorted((version for version in versions if not version.startswith(".")), reverse=True)

    def files(self, version: str) -> list[File]:
        """Return the files of a version."""
        if self.is_local:
            return local_files(Path(self.path, version))
        found = self.storage.find(f"{self.path}/{version}", detail=True)
        return [File(path, int(facts["size"] or 0)) for path, facts in found.items()]

    @contextmanager
    def opened(self, version: str) -> Iterator[Path]:
        """Yield a version as a file or folder of this machine; what lies elsewhere is a copy for the time of its use."""
        if self.is_local:
            yield Path(self.data(version))
            return
        with TemporaryDirectory() as place:
            target = Path(place, PurePosixPath(self.path).name)
            self.storage.get(self.data(version), str(target), recursive=self.is_folder)
            yield target

    def copy(self, version: str, staged: str) -> None:
        """Give a version a second name that nobody sees yet; the bytes of a local one are shared."""
        if self.is_local:
            shutil.copytree(Path(self.path, version), Path(self.path, staged), copy_function=_link)

    def show(self, version: str, staged: str, new: str) -> None:
        """Make what was copied visible as the version `new`; a storage elsewhere copies only now, the manifest last."""
        if self.is_local:
            Path(self.path, staged).rename(Path(self.path, new))
            return
        files = sorted(self.storage.find(f"{self.path}/{version}"), key=lambda path: path.endswith(f"/{MANIFEST}"))
        for file in files:
            self.storage.cp_file(file, f"{self.path}/{new}/{file.removeprefix(f'{self.path}/{version}/')}")

    def remove(self, version: str) -> None:
        """Remove a version: a reader finds it whole or not at all, whenever the power goes."""
        if self.is_local:
            remove_tree(Path(self.path, version))
            return
        if self.is_folder:
            forget(self.storage, self.data(version))
        self.storage.rm(f"{self.path}/{version}", recursive=True)

    def leftovers(self) -> list[Path]:
        """Return what was left of something that was broken off, on this machine."""
        folder = Path(self.path)
        if not (self.is_local and folder.is_dir()):
            return []
        within = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        return [path for place in within for path in place.iterdir() if path.name.startswith(HIDDEN)]


def data_sets(catalog: Mapping[str, Any]) -> list[DataSet]:
    """Return the versioned data sets of a catalog, as its resolved YAML describes them, in its order."""
    found = []
    for name, entry in catalog.items():
        if not (isinstance(entry, Mapping) and entry.get("versioned") and entry.get("filepath")) or name.startswith("_"):
            continue
        filepath = str(entry["filepath"])
        storage, path = open_storage(filepath if "://" in filepath else f"file://{filepath}")
        found.append(DataSet(name, path.rstrip("/"), storage, str(entry.get("type", "")).startswith(_FOLDERS)))
    return found


def local_files(folder: Path) -> list[File]:
    """Return all files below a folder of this machine."""
    facts = [(path, path.lstat()) for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()]
    return [File(str(path), stat.st_size, (stat.st_dev, stat.st_ino), stat.st_nlink) for path, stat in facts]


def freed(files: Iterable[File]) -> int:
    """Return the bytes that are free once these files are removed: a file with further names elsewhere frees nothing."""
    total, names = 0, dict[tuple[int, int], list[File]]()
    for file in files:
        if file.inode is None:
            total += file.bytes
        else:
            names.setdefault(file.inode, []).append(file)
    return total + sum(same[0].bytes for same in names.values() if len(same) == same[0].names)


def remove_tree(folder: Path) -> None:
    """Remove a folder, or a file, of this machine: under its name it is gone at once."""
    if not folder.is_dir():
        folder.unlink()
        return
    aside = folder if folder.name.startswith(HIDDEN) else folder.with_name(f"{REMOVED}{folder.name}-{uuid.uuid4().hex[:8]}")
    if aside != folder:
        folder.rename(aside)
    shutil.rmtree(aside)


def _link(source: str, target: str) -> None:
    link(Path(source), Path(target))


def _escaped(path: str) -> str:
    """Return a path in which a glob finds no signs of its own."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)


def _protocols(storage: Any) -> tuple[str, ...]:
    protocol = storage.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def age_in_seconds(path: Path, now: float) -> float:
    """Return how long ago a file or folder was last written."""
    return now - path.stat().st_mtime
