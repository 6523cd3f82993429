"""Project settings of Kedro."""

import os
from pathlib import Path

from kedro.config import OmegaConfigLoader
from kedro.utils import find_kedro_project

from luthier.hooks import LineageHooks, ParameterHooks, SharedRunHooks, StorageHooks, SummaryHooks


def _root() -> Path:
    """Return the project around the working folder; where there is none, the one that this file belongs to."""
    return find_kedro_project(Path.cwd()) or Path(__file__).resolve().parents[2]


def _project(path: str = "") -> str:
    """Resolve `${project:data/x}` against the project's root, whatever folder the command is given in."""
    return str(_root() / path)


def _data(name: str) -> str:
    """Resolve `${data:LUTHIER_DATA}`: what that variable says, or the project's folder `data`."""
    return (os.environ.get(name) or _project("data")).rstrip("/")


def _tracking_uri() -> str:
    """Resolve `${tracking_uri:}`: MLFLOW_TRACKING_URI, or SQLite in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_root() / 'mlflow.db'}"


def _untracked() -> list[str]:
    """Resolve `${untracked:}`: the pipelines that LUTHIER_UNTRACKED names have no MLflow run; `kedro monitor` sets it."""
    return os.environ.get("LUTHIER_UNTRACKED", "").split()


HOOKS = (StorageHooks(), ParameterHooks(), SharedRunHooks(), LineageHooks(), SummaryHooks())
CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "mlflow": "soft", "globals": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "custom_resolvers": {"data": _data, "project": _project, "tracking_uri": _tracking_uri, "untracked": _untracked},
}
