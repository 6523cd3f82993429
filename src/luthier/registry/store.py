"""The packages of the versions, in MLflow's artefact store: a folder or a remote one. What is given out was read in full."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from luthier.artefacts import MANIFEST, hash_of, hash_of_file, is_complete, mark_used, read_manifest, staged
from luthier.errors import UserError
from luthier.registry.versions import Version

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

logger = logging.getLogger(__name__)

Check = Callable[[Path, str], object]
"""Reads every byte of a package folder; raises UserError unless it is sound and has this root hash."""

MLFLOW_NOTE = "registered_model_meta"
"""What MLflow writes into a package that it loads, in the store itself if that is a local folder."""


def check_bytes(folder: Path, expected: str) -> None:
    """Read every byte of a package and compare it with its manifest, and the manifest with the root hash.

    Raises:
        UserError: naming what differs.
    """
    manifest = read_manifest(folder)
    if not manifest["sha256"] == hash_of(manifest["files"]) == expected:
        raise UserError(
            f"{folder} is another package: its root hash is {manifest['sha256'][:16]}, the registry says {expected[:16]}."
        )
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    wanted = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    named = {name: path for name, path in found.items() if name in wanted and not path.is_symlink() and path.is_file()}
    with ThreadPoolExecutor() as threads:
        hashes = dict(zip(named, threads.map(hash_of_file, named.values()), strict=True))
    problems = [f"{name} is not in the manifest" for name in found.keys() - wanted.keys() - {MANIFEST, MLFLOW_NOTE}]
    problems += [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is a link or no file" for name in (wanted.keys() & found.keys()) - named.keys()]
    problems += [f"{name} has changed (its sha256 differs)" for name, sha256 in hashes.items() if sha256 != wanted[name]]
    if problems:
        raise UserError(f"{folder} is not what was registered; register the package again.\n  " + "\n  ".join(sorted(problems)))


class PackageStore:
    """Where packages lie, and how they are checked."""

    def __init__(self, tracking_uri: str, cache: Path | None, check: Check) -> None:
        """Name the store; the arguments are those of `Registry`."""
        self._tracking_uri, self._cache, self._check = tracking_uri, cache, check

    def fetch(self, version: Version, cache: Path) -> Path:
        """Return a checked copy of a version's package on this machine, in `cache` under its root hash.

        What is there already is read again in full; what was damaged is fetched again.

        Raises:
            UserError: if what is stored is not what was registered.
        """
        version.must_be_ours()
        target = cache / version.manifest
        if is_complete(target):
            try:
                self._check(target, version.manifest)
            except UserError as error:
                logger.warning("Fetching again what was damaged: %s", error)
                shutil.rmtree(target)
            else:
                mark_used(target)
                return target
        facts = {key: value for key, value in self._stored_manifest(version).items() if key not in ("files", "sha256")}
        try:
            with staged(target, **facts) as staging:
                self._download(version, staging)
                self._check(staging, version.manifest)
        except OSError:
            if not is_complete(target):  # else another was faster
                raise
        return target

    def check_stored(self, version: Version, logged: str | None) -> None:
        """Check the bytes in the store; of a remote one each file's name and size, and the bytes of the copy in the cache.

        Args:
            version: whose package it is.
            logged: the root hash that it was in production with. It withstood the whole check then; if it still is what it was,
                byte by byte, it need not again.

        Raises:
            UserError: naming what differs.
        """
        if logged is not None and version.manifest != logged:
            raise UserError(
                f"The tag luthier.manifest of version {version.number} was changed: it was in production with {logged[:16]}."
            )
        folder = _local(version)
        if folder is not None:
            (check_bytes if logged else self._check)(folder, version.manifest)
            return
        with contextlib.ExitStack() as stack:
            cache = self._cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if is_complete(cache / version.manifest):
                self._check_listing(version)
            self.fetch(version, cache)

    def _check_listing(self, version: Version) -> None:
        manifest = self._stored_manifest(version)
        with _from_store(version):
            stored = dict(_files_of(self._artefacts(version)))
        wanted = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        different = sorted(name for name, _ in wanted.items() ^ stored.items() if name not in (MANIFEST, MLFLOW_NOTE))
        if different or manifest["sha256"] != version.manifest or hash_of(manifest["files"]) != version.manifest:
            raise UserError(
                f"What is stored in {version.source} is not what was registered: {', '.join(different) or MANIFEST}. "
                "Register the package again."
            )

    def _stored_manifest(self, version: Version) -> dict[str, Any]:
        folder = _local(version)
        if folder is not None:
            return read_manifest(folder)
        with tempfile.TemporaryDirectory() as temporary:
            with _from_store(version):
                self._artefacts(version).download_artifacts(MANIFEST, temporary)
            return read_manifest(Path(temporary))

    def _download(self, version: Version, target: Path) -> None:
        folder = _local(version)
        if folder is not None:
            # MLflow would give the store's own folder; links are copied as links, for the check to refuse
            ignored = shutil.ignore_patterns(MLFLOW_NOTE)
            shutil.copytree(folder, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            return
        with _from_store(version):
            self._artefacts(version).download_artifacts("", str(target))
        (target / MLFLOW_NOTE).unlink(missing_ok=True)

    def _artefacts(self, version: Version) -> "ArtifactRepository":
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(version.source, tracking_uri=self._tracking_uri)


def _local(version: Version) -> Path | None:
    """Return the folder that a package lies in; None if a service keeps it."""
    place = urlsplit(version.source)
    if place.scheme not in ("", "file"):
        return None
    # as MLflow finds it, which reads %20 as a space whether or not it says file:
    return Path(unquote(place.path if place.scheme else version.source))


@contextmanager
def _from_store(version: Version) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each kind of store has exceptions of its own
        raise UserError(f"The package of version {version.number} cannot be read from {version.source}: {error}") from error


def _files_of(repository: "ArtifactRepository", folder: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield name and size of each file of a store."""
    for entry in repository.list_artifacts(folder):
        if entry.is_dir:
            yield from _files_of(repository, entry.path)
        else:
            yield entry.path, int(entry.file_size)
