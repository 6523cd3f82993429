"""The project's `kedro` commands: Kedro's own, and ours. A mistake is told in a sentence, no traceback."""

import gc
import sys
import tomllib
from pathlib import Path

from kedro.framework.cli.project import run as kedro_run
from kedro.framework.startup import bootstrap_project
from kedro.utils import find_kedro_project

from luthier.cli import data, delivery, release, traffic
from luthier.cli.common import PACKAGE, Command, cli

__all__ = ["before_plugins", "cli", "data", "delivery", "release", "traffic"]

cli.add_command(Command(name="run", callback=kedro_run.callback, params=kedro_run.params, help=kedro_run.help))


def before_plugins() -> None:
    """Run a command of ours before Kedro loads its plug-ins, of which kedro-mlflow imports all of MLflow: seconds.

    Kedro calls this first of all (entry point `kedro.init`). `kedro run`, and whatever is not ours, goes on as ever.
    """
    name, root = "".join(sys.argv[1:2]), find_kedro_project(Path.cwd())
    if name != "run" and name in cli.commands and root is not None and _is_ours(root):
        # a short life among modules that stay: the collector of garbage would go through them in vain, again and again
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        bootstrap_project(root)
        cli()


def _is_ours(root: Path) -> bool:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return bool(settings["tool"]["kedro"].get("package_name") == PACKAGE)
