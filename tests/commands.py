"""The real commands, in a project folder of a test's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def make_project(folder: Path) -> Path:
    """Lay out a project that shares code with this one, but has configuration, data and runs of its own."""
    folder.mkdir(parents=True)
    (folder / "src").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    (folder / "conf" / "local").mkdir()
    shutil.copytree(ROOT / "data" / "01_raw", folder / "data" / "01_raw")
    return folder


def environment() -> dict[str, str]:
    """Return the environment of a command: no network, no telemetry, wide enough that no sentence is folded."""
    settings = {"HF_HUB_OFFLINE": "1", "COLUMNS": "240", "KEDRO_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "KEDRO_ENV")}
    return kept | settings


def command(*arguments: str) -> list[str]:
    """Return the command line of a kedro command in this Python."""
    return [sys.executable, "-m", "kedro", *arguments]


def kedro_in(folder: Path, *arguments: str, timeout: float = 900, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a kedro command in a folder, with variables of the environment, and return what it printed."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output(done: "subprocess.CompletedProcess[str]") -> str:
    """Return all that a command printed, with runs of white space folded."""
    return " ".join((done.stdout + done.stderr).split())


def require(present: bool, what: str) -> None:
    """Skip a test where something is missing; where CI promised to have installed it, fail."""
    if not present and os.environ.get("LUTHIER_REQUIRE_SERVICES"):
        pytest.fail(f"{what} is missing, and LUTHIER_REQUIRE_SERVICES is set")
    if not present:
        pytest.skip(f"{what} is not on this machine")
