"""Folders that are either whole or not there: staged, synced, renamed, with a manifest of sizes and hashes.

Every folder that Luthier writes goes through `staged`. A reader asks `is_complete` (cheap) or `verify` (reads all
bytes). A kill at any moment leaves at most a `.staging-*` folder beside the final one, which nothing ever reads.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.errors import UserError

MANIFEST = "manifest.json"


def canonical_json(value: Any) -> str:
    """Return JSON that is the same text for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_of(value: Any) -> str:
    """Return the sha256, in hexadecimal, of a JSON value or of bytes."""
    data = value if isinstance(value, bytes) else canonical_json(value).encode()
    return hashlib.sha256(data).hexdigest()


def hash_of_file(path: Path) -> str:
    """Return the sha256, in hexadecimal, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str | bytes, mode: int | None = None) -> None:
    """Write a file so that a reader finds either the old content or the new one, never a part.

    Args:
        path: of the file.
        text: what to write.
        mode: who may read it, at no moment anybody else; None leaves that to the system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.touch(0o666 if mode is None else 0o600)
        temporary.write_bytes(text if isinstance(text, bytes) else text.encode())
        if mode is not None:
            temporary.chmod(mode)
        flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of a folder: each file's size and sha256, their root hash, and `facts`."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_of_file(path)}
        for path in _files(folder)
    }
    manifest = {"files": files, "sha256": hash_of(files), **facts}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return manifest


@contextmanager
def staged(final: Path, **facts: Any) -> Iterator[Path]:
    """Yield an empty folder beside `final`; on success sync it, give it a manifest and rename it to `final`.

    An error leaves nothing behind. Facts are written into the manifest beside the files' hashes.

    Raises:
        FileExistsError: if `final` is there already: artefacts are never overwritten.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = final.parent / f".staging-{final.name}-{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        yield staging
        write_manifest(staging, facts)
        for path in sorted(staging.rglob("*")):
            flush_to_disk(path)
        flush_to_disk(staging)
        if final.exists():
            raise FileExistsError(f"{final} is there already")
        staging.rename(final)
        flush_to_disk(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_complete(folder: Path | str) -> bool:
    """Tell whether a folder was finished: it has its manifest, which is written last."""
    return (Path(folder) / MANIFEST).is_file()


def mark_used(folder: Path) -> None:
    """Note that a folder is used now: `kedro data prune` removes kept copies that nobody used for long."""
    with suppress(OSError):  # somebody else's, which others may read
        os.utime(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished folder.

    Raises:
        UserError: if the folder has none or it cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a finished artefact: {error}") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not (isinstance(files, dict) and "sha256" in manifest and all(_is_entry(entry) for entry in files.values())):
        raise UserError(f"{folder} is not a finished artefact: its {MANIFEST} is none of ours")
    return manifest


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()


def verify(folder: Path) -> dict[str, Any]:
    """Read every byte of a folder and compare it with its manifest, which is returned.

    Raises:
        UserError: naming each file that is missing, changed, or not in the manifest.
    """
    manifest = read_manifest(folder)
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    problems = [f"{name} is not in the manifest" for name in found if name not in manifest["files"]]
    for name, entry in manifest["files"].items():
        if name not in found:
            problems.append(f"{name} is missing")
        elif hash_of_file(found[name]) != entry["sha256"]:
            problems.append(f"{name} has changed (its sha256 differs)")
    if hash_of(manifest["files"]) != manifest["sha256"]:
        problems.append("the manifest's own root hash differs")
    if problems:
        raise UserError(f"{folder} is damaged; make it again.\n  " + "\n  ".join(problems))
    return manifest


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files of a finished folder, without its manifest, into `target`; hard links where the disk allows."""
    for path in _files(source):
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        link(path, destination)


def link(source: Path, target: Path) -> None:
    """Give a finished file a second name; copy it where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
