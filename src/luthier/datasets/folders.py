"""Versioned folders as Kedro datasets, thin over `artefacts`: a version counts only with its manifest."""

import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import pyarrow as pa
from kedro.io import AbstractVersionedDataset, DatasetError, Version

from luthier.artefacts import MANIFEST, copy_tree, is_complete, read_manifest, staged
from luthier.models import ModelDirectory
from luthier.remote import fetch, open_storage, upload
from luthier.shards import Shards, write_shards

Saved = TypeVar("Saved")
Loaded = TypeVar("Loaded")


class FolderDataset(AbstractVersionedDataset[Saved, Loaded], Generic[Saved, Loaded]):
    """A folder `FILEPATH/VERSION/NAME` with a manifest; an interrupted save is never the latest version."""

    def __init__(
        self,
        filepath: str,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Describe the folder.

        Args:
            filepath: the folder, local or a URI such as `s3://bucket/folder`; of the latter a copy is kept here.
            version: set by Kedro for `versioned: true`.
            credentials: of the storage, for fsspec.
            metadata: free facts, such as kedro-viz's layer.
        """
        self._storage: Any = None
        path = filepath
        if "://" in filepath:
            self._storage, path = open_storage(filepath, **(credentials or {}))
        self._protocol = filepath.partition("://")[0] if self._storage else "file"
        glob = {"glob_function": self._storage.glob} if self._storage else {}
        super().__init__(PurePosixPath(path), version, exists_function=self._is_complete, **glob)
        self.metadata = metadata

    def _is_complete(self, path: str) -> bool:
        return bool(self._storage.exists(f"{path}/{MANIFEST}")) if self._storage else is_complete(path)

    def _exists(self) -> bool:
        try:
            return self._is_complete(str(self._get_load_path()))
        except DatasetError:
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "protocol": self._protocol, "version": self._version}

    def _store(self, folder: Path) -> None:
        """Make a finished folder the new version."""
        path = self._get_save_path()
        if self._storage:
            upload(folder, self._storage, str(path))
        else:
            _copy(folder, Path(path))

    def _finished_folder(self) -> Path:
        path = self._get_load_path()
        if self._storage:
            return fetch(self._storage, str(path))
        folder = Path(path)
        if not is_complete(folder):
            raise DatasetError(f"{folder} is not there or was not finished.")
        return folder


class ShardsDataset(FolderDataset[pa.Table | Shards, Shards]):
    """A table in Parquet shards; loads as a handle, not as data. Saving a handle links its files."""

    def load(self) -> Shards:
        """Return a handle to the newest (or the asked for) version."""
        return Shards(self._finished_folder())

    def save(self, data: pa.Table | Shards) -> None:
        """Write a new version."""
        if isinstance(data, Shards):
            self._store(data.folder)
        elif self._storage:
            with TemporaryDirectory() as place:
                self._store(write_shards(data, Path(place, "table")).folder)
        else:
            write_shards(data, Path(self._get_save_path()))

    def preview(self) -> Any:
        """Return the first rows for kedro-viz."""
        shards = self.load()
        frame = shards.head(20)
        for column in frame.columns:
            frame[column] = frame[column].map(lambda value: str(value)[:120])
        return frame.to_dict(orient="split")


class ModelDirectoryDataset(FolderDataset[ModelDirectory, ModelDirectory]):
    """A model or an adapter; saving copies the folder that the handle points to, with the facts of its manifest."""

    def load(self) -> ModelDirectory:
        """Return a handle to the newest (or the asked for) version."""
        return ModelDirectory(self._finished_folder())

    def save(self, data: ModelDirectory) -> None:
        """Store the folder as a new version."""
        self._store(data.folder)


class PackageDataset(ModelDirectoryDataset):
    """A package; saving copies its bytes, for a file with a second name (a hard link) is no file of a package."""

    def _store(self, folder: Path) -> None:
        if self._storage:
            super()._store(folder)
            return
        with staged(Path(self._get_save_path())) as staging:
            shutil.copytree(folder, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))


def _copy(source: Path, target: Path) -> None:
    """Make a finished folder anew under another name, with the facts of its manifest."""
    facts = {key: value for key, value in read_manifest(source).items() if key not in ("files", "sha256")}
    with staged(target, **facts) as staging:
        copy_tree(source, staging)
