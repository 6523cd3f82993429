"""Versioned folders as Kedro datasets, thin over `artefacts`: a version counts only with its manifest."""

from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import pyarrow as pa
from kedro.io import AbstractVersionedDataset, DatasetError, Version

from luthier.artefacts import copy_tree, is_complete, read_manifest, staged
from luthier.models import ModelDirectory
from luthier.shards import Shards, write_shards

Saved = TypeVar("Saved")
Loaded = TypeVar("Loaded")


class FolderDataset(AbstractVersionedDataset[Saved, Loaded], Generic[Saved, Loaded]):
    """A folder `FILEPATH/VERSION/NAME` with a manifest; an interrupted save is never the latest version."""

    def __init__(self, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None) -> None:
        """Describe the folder.

        Args:
            filepath: the folder, local.
            version: set by Kedro for `versioned: true`.
            metadata: free facts, such as kedro-viz's layer.
        """
        super().__init__(PurePosixPath(filepath), version, exists_function=is_complete)
        self.metadata = metadata

    def _exists(self) -> bool:
        try:
            return is_complete(str(self._get_load_path()))
        except DatasetError:
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}

    def _finished_folder(self) -> Path:
        folder = Path(self._get_load_path())
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
        folder = Path(self._get_save_path())
        if isinstance(data, Shards):
            _copy(data.folder, folder)
        else:
            write_shards(data, folder)

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
        _copy(data.folder, Path(self._get_save_path()))


def _copy(source: Path, target: Path) -> None:
    """Make a finished folder anew under another name, with the facts of its manifest."""
    facts = {key: value for key, value in read_manifest(source).items() if key not in ("files", "sha256")}
    with staged(target, **facts) as staging:
        copy_tree(source, staging)
