"""Copies of a job's checkpoints in a storage: a machine that is taken away loses the steps since the last one, no more.

Checkpoints lie on a disk of the machine that trains, which is the fastest; where the catalog's root is a URI, the newest ones
are copied there too, by a thread that holds up no step. Of a storage that is away the log tells, and the next one is tried again.
"""

import logging
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.artefacts import MANIFEST, copy_tree, is_complete, link
from luthier.errors import UserError
from luthier.remote import get, open_storage, put

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
_HELD = ".sending-"
_KEPT = 2  # as on the disk
_STEP = re.compile(r"step-\d{8}")


class Mirror:
    """The checkpoints of one job, here and there."""

    def __init__(self, folder: Path, uri: str) -> None:
        """Name both places; nothing is copied yet.

        Args:
            folder: of the job, on this machine.
            uri: of the folder for all jobs, such as `s3://bucket/luthier/06_models/checkpoints`.
        """
        self._folder = folder
        self._storage, path = open_storage(uri)
        self._path = f"{path}/{folder.name}"
        self._sending: threading.Thread | None = None

    def bring(self) -> None:
        """Fetch the newest whole checkpoint, with the metrics up to it, unless there is one as new here.

        Raises:
            UserError: if the storage cannot be read: to train anew what is half done there is a decision for a person.
        """
        for left in self._folder.glob(f"{_HELD}*"):  # by a process that was killed while it sent
            shutil.rmtree(left, ignore_errors=True)
        here = [path.name for path in (self._folder / "checkpoints").glob("step-*") if is_complete(path)]
        try:
            there = self._names()
        except Exception as error:
            raise UserError(f"{self._path}: the storage of the checkpoints cannot be read: {error}") from error
        for name in sorted(there, reverse=True):
            if name <= max(here, default=""):
                return
            try:
                get(self._storage, f"{self._path}/{name}", self._folder / "checkpoints" / name)
            except UserError as error:  # a machine was taken away while it copied
                logger.info("Not taken: %s", error)
                continue
            with suppress(FileNotFoundError):
                self._storage.get_file(f"{self._path}/{METRICS}", str(self._folder / METRICS))
            logger.info("Checkpoint %s is taken from %s.", name, self._path)
            return

    def send(self) -> bool:
        """Copy what is new, in a thread; tell whether that was begun: not while one copies."""
        if self._sending is not None and self._sending.is_alive():
            return False
        self._sending = threading.Thread(target=self._send, name="checkpoints", daemon=True)
        self._sending.start()
        return True

    def finish(self) -> None:
        """Copy the last one, and wait for it."""
        if self._sending is not None:
            self._sending.join()
        self._send()

    def clear(self) -> None:
        """Delete all copies: the job is done."""
        if self._sending is not None:
            self._sending.join()
        try:
            if self._storage.exists(self._path):
                self._storage.rm(self._path, recursive=True)
        except Exception as error:  # the model is finished
            logger.warning("Checkpoints in %s are not needed any more, but cannot be deleted: %s", self._path, error)

    def _send(self) -> None:
        try:
            there = self._names()
            here = sorted(path.name for path in (self._folder / "checkpoints").glob("step-*") if _STEP.fullmatch(path.name))
            if not here or self._storage.exists(f"{self._path}/{here[-1]}/{MANIFEST}"):
                return
            name, newest = here[-1], self._folder / "checkpoints" / here[-1]
            with suppress(FileNotFoundError):  # none was written yet
                self._storage.put_file(str(self._folder / METRICS), f"{self._path}/{METRICS}")
            # links: while it is sent, the worker may write two more and delete it
            with TemporaryDirectory(dir=self._folder, prefix=_HELD) as held:
                copy_tree(newest, Path(held))
                link(newest / MANIFEST, Path(held, MANIFEST))
                put(Path(held), self._storage, f"{self._path}/{name}")
            for old in sorted({*there, name})[:-_KEPT]:
                self._storage.rm(f"{self._path}/{old}", recursive=True)
        except Exception as error:  # a storage that is away ends no training
            logger.warning("The newest checkpoint is not copied to %s: %s", self._path, error)

    def _names(self) -> list[str]:
        """Return the checkpoints in the storage, whole or not."""
        try:
            found: list[Any] = self._storage.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return [name for name in (str(entry).rstrip("/").rpartition("/")[2] for entry in found) if _STEP.fullmatch(name)]
