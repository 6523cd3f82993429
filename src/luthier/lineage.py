"""What a run stood on: the git commit and local changes, and data sets with their digests."""

import platform
import subprocess
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any

from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource

from luthier.artefacts import hash_of

UNKNOWN = "unknown"
SESSION = "luthier.session"
"""Tag of a run: the version of every data set that it makes; of several `kedro run` in one MLflow run, all of them in order."""
RUN_FACTS = "lineage/run.json"
"""Artefact of a run: what to run again, with which parameters."""
VERSION_TAG = "luthier.version."
"""Tags of a run that asked a version of the registry, by the parameter that named it: the number that it was."""
DVC_TAG = "luthier.dvc."
"""Tags of a run, by data set that it read: the md5 under which DVC keeps all its versions."""
SOURCES = "lineage/sources.json"
"""Artefact of a run that read source files: their names, hashes (`sha256`; `md5` where DVC keeps the file) and rows."""
QUESTIONS = "lineage/questions.json"
"""The same of a run that answered files."""
_SELECTION = ("tags", "from_nodes", "to_nodes", "node_names", "from_inputs", "to_outputs", "load_versions", "namespaces")


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=20, check=True)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()  # a file may be in any encoding


def commit(root: Path) -> str:
    """Return the commit that is checked out; `unknown` without git, as in a ZIP or a container."""
    return _git(root, "rev-parse", "HEAD") or UNKNOWN


def day_of_commit(root: Path) -> str | None:
    """Return the day of the commit that is checked out, YYYY-MM-DD; None without git."""
    return _git(root, "show", "-s", "--format=%cs", "HEAD")


def local_changes(root: Path) -> str:
    """Return the difference to the commit: of tracked files, and of new ones in `src` and `conf` that git does not ignore.

    Empty if there is none or no git.
    """
    # what DVC writes down in the midst of a run is a result, no change of the code
    results = [f":(exclude){path}" for path in ("data/01_raw", "dvc.lock", "metrics")]
    tracked = _git(root, "diff", "HEAD", "--", ".", *results) or ""
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "src", "conf") or ""
    # an editor's lock is a link to nothing, another repository a folder
    files = [name for name in sorted(new.split("\0")) if name and (root / name).is_file()]
    return "\n".join(filter(None, [tracked, *(_as_new(root, name) for name in files)]))


def _as_new(root: Path, name: str) -> str:
    """Return a file as git's difference to nothing."""
    lines = (root / name).read_text(encoding="utf-8", errors="replace").splitlines()
    header = [f"diff --git a/{name} b/{name}", "new file mode 100644"]
    return "\n".join([*header, *unified_diff([], lines, "/dev/null", f"b/{name}", lineterm="")])


def tracked(root: Path, file: str) -> bool:
    """Tell whether git keeps a file."""
    return _git(root, "ls-files", "--error-unmatch", "--", file) is not None


def environment(run_params: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that kedro-mlflow leaves out: environment, parameters of the command line, Python and system."""
    return {
        "luthier.env": str(run_params.get("env") or "base"),
        "luthier.runtime_params": str(run_params.get("runtime_params") or {}),
        "luthier.python": platform.python_version(),
        "luthier.system": platform.platform(),
    }


def run_facts(run_params: Mapping[str, Any], parameters: Any, commit: str, changes: str) -> dict[str, Any]:
    """Return, as JSON, what a run does and from what.

    Args:
        run_params: of Kedro: pipelines, nodes, environment.
        parameters: all, resolved.
        commit: that is checked out.
        changes: to it, from `local_changes`.
    """
    selected = {name: run_params[name] for name in _SELECTION if run_params.get(name)}
    return {
        "pipelines": list(run_params.get("pipeline_names") or []),
        "env": run_params.get("env"),
        "commit": commit,
        "changes": hash_of(changes) if changes else None,
        "selected": _plain(selected),
        "parameters": _plain(parameters),
    }


def sessions_of(tags: Mapping[str, str]) -> list[str]:
    """Return the versions under which a run made data sets, the oldest first; none if it is no run of ours."""
    return tags.get(SESSION, "").split()


def made_in(session: str) -> str:
    """Return MLflow's filter for the runs that made data sets under a version."""
    return f"tags.`{SESSION}` LIKE '%{session}%'"


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set) else value


def named_version(version: str, data: Any) -> str:
    """Return `VERSION sha256:HASH` of a folder or of JSON; of anything else the version alone."""
    if hasattr(data, "folder"):
        return f"{version} sha256:{data.sha256}"
    return f"{version} sha256:{hash_of(data)}" if isinstance(data, dict | list) else version


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested parameters, pydantic models included, as one level of dotted keys.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if hasattr(values, "model_dump"):
        values = values.model_dump()
    if not isinstance(values, Mapping) or (prefix and not values):
        return {prefix.rstrip("."): values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat


class FolderSource(DatasetSource):
    """Where a folder of ours lies."""

    def __init__(self, folder: str) -> None:
        """Remember the folder."""
        self.folder = folder

    @staticmethod
    def _get_source_type() -> str:
        return "luthier_folder"

    def load(self) -> str:
        """Return the folder."""
        return self.folder

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "FolderSource":
        return cls(str(raw_source))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"uri": self.folder}

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "FolderSource":
        """Read the JSON form."""
        return cls(source_dict["uri"])


class FolderInput(Dataset):
    """A folder with a manifest as an MLflow input: a reference and its digest, never a copy."""

    def __init__(self, name: str, folder: Path, sha256: str) -> None:
        """Describe the folder.

        Args:
            name: the catalog's name.
            folder: where it lies.
            sha256: root hash of its manifest; MLflow shows the first 36 characters.
        """
        super().__init__(source=FolderSource(str(folder)), name=name, digest=sha256[:36])

    def _compute_digest(self) -> str:
        return self._digest

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return {**super().to_dict(), "profile": "{}", "schema": "{}"}
