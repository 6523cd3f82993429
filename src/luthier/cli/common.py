"""What the commands share: how a mistake is told, and what of the project they read."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.cli.utils import CONTEXT_SETTINGS, ENV_HELP
from kedro.utils import find_kedro_project

from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.registry import Registry
    from luthier.watching.looks import Looks

PACKAGE = "luthier"
OPENED = "luthier.registry"
"""Under which click's context holds the registry that the command opened."""
RETRIES = "2"
"""How often a command asks a server of MLflow's again: MLflow's own seven take minutes."""


class Command(click.Command):
    """A command whose expected errors are messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit 1 with a message for a mistake of the user's, or a server that is away."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if (told := _trouble_of_registry(error, ctx)) is None:
                raise
            raise click.ClickException(told) from None


def _trouble_of_registry(error: Exception, ctx: click.Context) -> str | None:
    """Return what to tell of an error of the registry that a command opened."""
    registry: Registry | None = ctx.meta.get(OPENED)
    if registry is None:
        return None
    from luthier.registry.trouble import trouble_of

    return trouble_of(error, registry.tracking_uri, registry.log.database.url.render_as_string())


@click.group(context_settings=CONTEXT_SETTINGS, name=PACKAGE)
def cli() -> None:
    """Commands of the project."""


env_option = click.option("--env", "-e", default=None, help=ENV_HELP)
reason_option = click.option("--reason", metavar="TEXT", help="Why; the deployment log keeps it.")
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


def parameters_of(loader: Any, env: str | None) -> Any:
    """Return all parameters, checked as `kedro run` does.

    Raises:
        UserError: naming every wrong key with its file and line.
    """
    from luthier.configuration import validate_parameters
    from luthier.pipeline_registry import PARAMETERS

    source = Path(loader.conf_source)
    names = [env or loader.default_run_env, loader.base_env]
    parameters = loader["parameters"]
    validate_parameters(parameters, PARAMETERS, [source / name for name in names], {})
    return parameters


def newest_json(path: str) -> Any:
    """Return the newest version of a versioned JSON data set.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    from luthier.remote import open_storage

    storage, place = open_storage(path if "://" in path else f"file://{path}")
    found = sorted(storage.glob(f"{place}/*/*.json"))
    if not found:
        raise UserError("Nothing was evaluated yet: `kedro run` first.")
    try:
        return json.loads(storage.cat_file(found[-1]))
    except ValueError as error:
        raise UserError(f"{found[-1]} is damaged: {error}. Remove that version, or make a new one: `kedro run`.") from error


def project_root() -> Path:
    """Return the root of the project around the working folder.

    Raises:
        UserError: if there is none.
    """
    root = find_kedro_project(Path.cwd())
    if root is None:
        raise UserError(f"There is no Kedro project in {Path.cwd()} or above it.")
    return Path(root)


def configuration(env: str | None) -> Any:
    """Return the configuration as `kedro run --env` reads it, without making Kedro's context, which takes seconds."""
    from kedro.framework.project import settings

    _log_to_stderr()
    source = project_root() / settings.CONF_SOURCE
    if env is not None and not (source / env).is_dir():
        raise UserError(f"There is no environment {env}: no folder {source / env}.")
    return settings.CONFIG_LOADER_CLASS(conf_source=str(source), env=env, **settings.CONFIG_LOADER_ARGS)


def _log_to_stderr() -> None:
    """Leave the standard output to what a command answers: Kedro logs there, and a warning would spoil `--json`."""
    from rich.console import Console
    from rich.logging import RichHandler

    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            handler.console = Console(stderr=True)


def open_registry(env: str | None, who: str | None = None, lasting: bool = False) -> "Registry":
    """Open the registry that `kedro run --env` writes to, without making Kedro's context, which takes seconds.

    Args:
        env: the environment.
        who: who acts, if it is no person.
        lasting: whether the command starts runs, which MLflow may leave alone for minutes.
    """
    from luthier.quiet import quiet_trackers
    from luthier.registry import Registry, whoami

    loader = configuration(env)
    mlflow = loader["mlflow"]
    server = mlflow.get("server") or {}
    if server.get("credentials"):  # as kedro-mlflow does: the keys of the artefact store, for example
        os.environ.update(loader["credentials"][server["credentials"]])
    cache = Path(loader["globals"]["work"], "06_models", "registry")
    quiet_trackers()
    # one experiment, one model: both carry the same name
    name = mlflow["tracking"]["experiment"]["name"]
    log_uri = os.environ.get("LUTHIER_LOG_URI") or None
    if not lasting:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
    registry = Registry(name, server["mlflow_tracking_uri"], log_uri, cache, _check, who and f"{who}, {whoami()}")
    if (ctx := click.get_current_context(silent=True)) is not None:
        ctx.meta[OPENED] = registry
    return registry


def open_looks(env: str | None, registry: "Registry") -> "Looks":
    """Return what runs the pipeline monitoring of an environment."""
    from luthier.data_versions.prepared import ROWS
    from luthier.data_versions.store import data_sets
    from luthier.pipelines.monitoring.pipeline import create_pipeline
    from luthier.watching.looks import Looks

    loader = configuration(env)
    sets = {dataset.name: dataset for dataset in data_sets(loader["catalog"])}
    reports = [sets[name] for name in sorted(create_pipeline().all_outputs() & sets.keys())]
    return Looks(project_root(), env, str(loader["globals"]["data"]), registry, sets[ROWS], reports)


def _check(package: Path, expected: str) -> None:
    from luthier.packages import check_package  # when there is something to check: it takes a while to import

    check_package(package, expected)
