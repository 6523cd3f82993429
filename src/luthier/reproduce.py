"""Do a run again, from its own data and parameters, in a folder of its own, and compare what comes out.

Nothing is checked out: the code is today's, and where its commit is another one that is said. Inputs that other runs made
are taken in the very versions that the run read; source files are read again and compared by their hashes.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from luthier import shared_run
from luthier.artefacts import hash_of_file
from luthier.candidates import REGISTRY_VARIABLE
from luthier.chain import Run
from luthier.errors import UserError
from luthier.lineage import commit

_ENVIRONMENT_PARTS = ("catalog*", "mlflow*", "globals*")


@dataclass(frozen=True)
class Compared:
    """One data set that both runs made."""

    name: str
    before: str | None
    """sha256; None if only the other run made it."""
    after: str | None

    @property
    def same(self) -> bool:
        """Tell whether the bytes are the same."""
        return self.before == self.after


def changed_sources(run: Run, root: Path) -> list[str]:
    """Return a sentence for each source file of a run that is missing or has other bytes today."""
    told = []
    for entry in run.sources:
        if "://" in entry["file"]:
            continue  # compared by what comes out
        file = root / entry["file"]
        if not file.exists():
            told.append(f"{entry['file']} is missing")
        elif hash_of_file(file) != entry["sha256"]:
            told.append(f"{entry['file']} has changed: it was sha256:{entry['sha256']}")
    return told


def reproduce(run: Run, root: Path, data: str, folder: Path, tracking_uri: str) -> str:
    """Run the pipelines of a run again.

    Args:
        run: what to do again.
        root: the project.
        data: where the project keeps its data, a folder or a URI.
        folder: empty; configuration, data and MLflow's database of the second run go here.
        tracking_uri: MLflow that the run was logged to: versions of the registry that it asked are asked there again.

    Returns:
        the id of the new run, in `sqlite:///FOLDER/mlflow.db`.

    Raises:
        UserError: if the run recorded too little, an input or a source file is gone, or the second run fails.
    """
    if not run.facts.get("parameters"):
        raise UserError(f"Run {run.id} did not record its parameters: it cannot be done again.")
    if told := changed_sources(run, root):
        raise UserError("The source files are not what they were:\n  " + "\n  ".join(told))
    _write_configuration(run, root, folder)
    _take_inputs(run, root, data, folder)
    settings = {
        "LUTHIER_DATA": str(folder / "data"),
        "LUTHIER_WORK": str(folder / "work"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        REGISTRY_VARIABLE: tracking_uri,
        "KEDRO_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(_command(run, folder), cwd=root, env=shared_run.without(os.environ) | settings)
    if done.returncode:
        raise UserError(f"The second run failed with exit code {done.returncode}; it lies in {folder}.")
    return _only_run(folder)


def _write_configuration(run: Run, root: Path, folder: Path) -> None:
    """Write a configuration whose parameters are those of the run; the catalog is that of its environment."""
    for name in ("base", run.facts.get("env") or "local"):
        target = folder / "conf" / name
        target.mkdir(parents=True, exist_ok=True)
        for pattern in _ENVIRONMENT_PARTS:
            for file in (root / "conf" / name).glob(pattern):
                shutil.copy(file, target)
    (folder / "conf" / "local").mkdir(exist_ok=True)
    parameters = dict(run.facts["parameters"])
    work = folder / "work"
    parameters["folders"] = parameters["folders"] | {
        "root": str(root),
        "shards": str(work / "shards"),
        "work": str(work / "jobs"),
    }
    if "evaluation" in parameters:  # an alias that had no version then may have one now
        parameters["evaluation"] = parameters["evaluation"] | {"champion": None}
    for path, number in run.versions.items():
        _pin(parameters, path, number)
    text = yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True)
    (folder / "conf" / "base" / "parameters.yml").write_text(text, encoding="utf-8")


def _pin(block: Any, path: str, number: int) -> None:
    """Set a parameter that named a version to its number; an element of a list is found by its name, which may hold dots."""
    if isinstance(block, list):
        # the longest: `v1` is the beginning of `v1.2`
        item = max((item for item in block if path.startswith(f"{item['name']}.")), key=lambda item: len(item["name"]))
        _pin(item, path.removeprefix(f"{item['name']}."), number)
        return
    first, dot, rest = path.partition(".")
    if dot:
        _pin(block[first], rest, number)
    else:
        block[first] = number


def _take_inputs(run: Run, root: Path, data: str, folder: Path) -> None:
    """Copy the data sets that the run read and did not make, in their versions, under the same version."""
    from luthier.remote import open_storage

    storage, source = open_storage(data if "://" in data else f"file://{data}")
    catalog: dict[str, Any] = {}
    for file in sorted((root / "conf" / "base").glob("catalog*.yml")):
        catalog |= yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    missing = []
    for name, value in run.read.items():
        version = value.split()[0]
        if version in run.sessions:
            continue
        path = str(catalog[name]["filepath"]).removeprefix("${globals:data}/")
        original = f"{source.rstrip('/')}/{path}/{version}"
        if not storage.exists(original):
            missing.append(f"{name} in version {version} ({original})")
            continue
        target = folder / "data" / path
        target.mkdir(parents=True, exist_ok=True)
        storage.get(original, str(target / version), recursive=True)
    if missing:
        raise UserError("These inputs of the run are gone:\n  " + "\n  ".join(missing))


def _command(run: Run, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "kedro", "run", "--conf-source", str(folder / "conf")]
    if run.facts.get("env"):
        command += ["--env", run.facts["env"]]
    if run.facts["pipelines"]:
        command += ["--pipelines", ",".join(run.facts["pipelines"])]
    options = {"tags": "--tags", "from_nodes": "--from-nodes", "to_nodes": "--to-nodes", "node_names": "--nodes"}
    options |= {"from_inputs": "--from-inputs", "to_outputs": "--to-outputs"}
    for name, option in options.items():
        if chosen := run.facts["selected"].get(name):
            command += [option, ",".join(chosen)]
    return command


def _only_run(folder: Path) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()], max_results=1)
    return str(found.info.run_id)


def compare(before: Run, after: Run) -> list[Compared]:
    """Compare the data sets that have a hash, by name; figures of time and memory differ and are left out."""

    def hashes(run: Run) -> dict[str, str]:
        return {name: value.partition("sha256:")[2] for name, value in run.made.items() if "sha256:" in value}

    old, new = hashes(before), hashes(after)
    names = [name for name in dict.fromkeys([*old, *new]) if name not in _NEVER_THE_SAME]
    return [Compared(name, old.get(name), new.get(name)) for name in names]


_NEVER_THE_SAME = {"training_plan", "training_summary", "registered"}
"""They hold seconds, the memory that is free, and a number of the second run's own registry."""


def other_commit(run: Run, root: Path) -> str | None:
    """Return the commit of today's code if it is not the run's."""
    today = commit(root)
    return None if today == run.commit and not run.dirty else today
