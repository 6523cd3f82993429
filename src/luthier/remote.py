"""Finished folders on S3, Google Cloud Storage, or anything else that fsspec speaks, and their copies on this machine.

There the manifest is written last, so a folder whose upload was broken off is no folder. Here a copy is named by its root
hash: it is fetched once, checked byte by byte, and good for ever.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from luthier.artefacts import MANIFEST, hash_of, hash_of_file, is_complete, mark_used, read_manifest, staged
from luthier.errors import UserError


def cache_folder() -> Path:
    """Return where copies are kept: LUTHIER_CACHE, or `luthier` in the user's cache folder (XDG Base Directory)."""
    own = os.environ.get("LUTHIER_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"


def open_storage(uri: str, **options: Any) -> tuple[Any, str]:
    """Return the file system of a URI, and the path in it.

    Raises:
        UserError: if the library that speaks the protocol is not installed.
    """
    import fsspec

    protocol = uri.partition("://")[0]
    extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}.get(protocol)
    try:
        # without its cache of listings: another machine may have written since
        storage, path = fsspec.url_to_fs(uri, **({"use_listings_cache": False} | options))
    except ImportError as error:
        how = f'`pip install "luthier[{extra}]"`' if extra else str(error)
        raise UserError(f"{uri}: {how} is needed for {protocol}://") from error
    except ValueError as error:
        raise UserError(f"{uri}: {error}") from error
    return storage, path


def put(folder: Path, storage: Any, path: str) -> None:
    """Copy a finished folder to a storage, its manifest last.

    Raises:
        FileExistsError: if it is there already: artefacts are never overwritten.
    """
    if storage.exists(f"{path}/{MANIFEST}"):
        raise FileExistsError(f"{path} is there already")
    for name in [*sorted(read_manifest(folder)["files"]), MANIFEST]:
        storage.put_file(str(folder / name), f"{path}/{name}")


def upload(folder: Path, storage: Any, path: str) -> None:
    """Copy a finished folder to a storage, its manifest last, and keep it as the local copy.

    Raises:
        FileExistsError: if it is there already: artefacts are never overwritten.
    """
    put(folder, storage, path)
    manifest = read_manifest(folder)
    kept = _copy_of(manifest)
    if not is_complete(kept):
        # bytes, not links: a package must not share its files with anything
        without_manifest = shutil.ignore_patterns(MANIFEST)
        _stage(kept, manifest, lambda staging: shutil.copytree(folder, staging, dirs_exist_ok=True, ignore=without_manifest))


def fetch(storage: Any, path: str) -> Path:
    """Return a copy on this machine of a folder in a storage; what is here already is not fetched again.

    Raises:
        UserError: if it was not finished, or its bytes are not those that its manifest names.
    """
    manifest = _manifest_of(storage, path)
    kept = _copy_of(manifest)
    if not is_complete(kept):
        _stage(kept, manifest, lambda staging: _download(storage, path, manifest, staging))
    mark_used(kept)
    return kept


def get(storage: Any, path: str, target: Path) -> None:
    """Copy a folder from a storage to a place where there is none yet.

    Raises:
        UserError: if it was not finished, or its bytes are not those that its manifest names.
    """
    manifest = _manifest_of(storage, path)
    _stage(target, manifest, lambda staging: _download(storage, path, manifest, staging))


def forget(storage: Any, path: str) -> None:
    """Make a finished folder in a storage unfinished, so that no reader finds it, and remove its copy on this machine."""
    if not storage.exists(f"{path}/{MANIFEST}"):
        return
    kept = _copy_of(_manifest_of(storage, path))
    storage.rm_file(f"{path}/{MANIFEST}")
    shutil.rmtree(kept, ignore_errors=True)


def _manifest_of(storage: Any, path: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="luthier-manifest-") as place:
        try:
            storage.get_file(f"{path}/{MANIFEST}", str(Path(place, MANIFEST)))
        except FileNotFoundError as error:
            raise UserError(f"{path} is not a finished artefact: it has no {MANIFEST}") from error
        return read_manifest(Path(place))


def _copy_of(manifest: dict[str, Any]) -> Path:
    # the facts beside the files count too: two folders may hold the same files and say different things of them
    return cache_folder() / hash_of(manifest)


def _stage(kept: Path, manifest: dict[str, Any], fill: Callable[[Path], object]) -> None:
    facts = {name: value for name, value in manifest.items() if name not in ("files", "sha256")}
    with suppress(FileExistsError), staged(kept, **facts) as staging:  # another process may have been faster
        fill(staging)


def _download(storage: Any, path: str, manifest: dict[str, Any], staging: Path) -> None:
    damaged = []
    for name, entry in sorted(manifest["files"].items()):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path} is no artefact of ours: its manifest names {name!r}")
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.get_file(f"{path}/{name}", str(target))
        except FileNotFoundError:
            damaged.append(f"{name} is missing")
            continue
        if hash_of_file(target) != entry["sha256"]:
            damaged.append(f"{name} has changed (its sha256 differs)")
    if hash_of(manifest["files"]) != manifest["sha256"]:
        damaged.append("the manifest's own root hash differs")
    if damaged:
        raise UserError(f"{path} is damaged; make it again.\n  " + "\n  ".join(damaged))
