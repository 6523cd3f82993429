"""What DVC knows of a file: the hash under which its cache and its remotes keep it. DVC itself need not be installed."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

LOCK = "dvc.lock"
_CACHE = (".dvc", "cache", "files", "md5")


def md5_known(root: Path, file: Path) -> str | None:
    """Return DVC's md5 of a file, or of the folder that it tracks with the file in it, if DVC knows the bytes that are there now.

    `FILE.dvc` beside the file or one of its folders is asked first, then `dvc.lock`. A folder is `MD5.dir`; which files it holds
    stands in DVC's cache, so without that a folder is not known.

    Args:
        root: of the project, where `dvc.lock` lies.
        file: absolute, within the project.
    """
    if not file.is_relative_to(root) or not file.is_file():
        return None
    digest = _md5(file)
    for place, md5 in _tracked(root, file):
        if md5 == digest:
            return md5
        if md5.endswith(".dir") and _listing(root, md5).get(file.relative_to(place).as_posix()) == digest:
            return md5
    return None


def with_md5(entries: Iterable[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Return facts of source files (`file`, `sha256`, ...), each with DVC's `md5` where DVC knows the file."""
    told = []
    for entry in entries:
        known = None if "://" in entry["file"] else md5_known(root, root / entry["file"])
        told.append(entry | ({"md5": known} if known else {}))
    return told


def _tracked(root: Path, file: Path) -> Iterator[tuple[Path, str]]:
    """Yield what DVC tracks that is the file or holds it, with the md5 that was written down."""
    within = [path for path in (file, *file.parents) if path.is_relative_to(root) and path != root]
    for path in within:
        beside = path.with_name(f"{path.name}.dvc")
        if beside.is_file():
            yield from _entries(_read(beside).get("outs"), beside.parent, within)
    for stage in (_read(root / LOCK).get("stages") or {}).values():
        yield from _entries([*stage.get("deps", []), *stage.get("outs", [])], root, within)


def _entries(entries: Any, folder: Path, within: list[Path]) -> Iterator[tuple[Path, str]]:
    for entry in entries or []:
        place = folder / str(entry.get("path"))
        if place in within and entry.get("md5"):
            yield place, str(entry["md5"])


def _listing(root: Path, md5: str) -> dict[str, str]:
    try:
        entries = json.loads(root.joinpath(*_CACHE, md5[:2], md5[2:]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {entry["relpath"]: entry["md5"] for entry in entries}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
