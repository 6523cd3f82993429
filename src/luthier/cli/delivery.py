"""Commands that a pipeline of CI/CD gives, and people may: try a version, let users try it, tell GitHub."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from luthier.cli.common import Command, cli, configuration, env_option, open_looks, open_registry, parameters_of, project_root
from luthier.errors import UserError

BEGUN_BY = "luthier.begun_by"
"""Tag of a run that several `kedro run` share: who began it."""
url_option = click.option("--url", help="The gateway; by default monitoring.act.gateway, or serving.host and serving.port.")


@cli.command(cls=Command)
@click.option("--by", metavar="TEXT", help="Who begins it, such as the orchestrator's own run; kept as a tag.")
@env_option
def begin(by: str | None, env: str | None) -> None:
    """Begin an MLflow run that several `kedro run` share, each of which finds it in MLFLOW_RUN_ID; print its id."""
    import mlflow
    from kedro.framework.session import KedroSession

    configuration(env)
    with KedroSession.create(project_path=project_root(), env=env) as session:
        context: Any = session.load_context()  # kedro-mlflow makes the experiment, and lays its settings beside the context
        experiment = context.mlflow.tracking.experiment._experiment.experiment_id
    begun = mlflow.MlflowClient().create_run(experiment, tags={BEGUN_BY: by} if by else None)
    click.echo(begun.info.run_id)


@cli.command(cls=Command)
@click.argument("version")
@click.option("--url", help="A gateway that runs, which must answer with VERSION; by default one is started for it alone.")
@click.option("--patience", type=click.FloatRange(0), default=120.0, show_default=True, help="Seconds until it must answer.")
@env_option
def smoke(version: str, url: str | None, patience: float, env: str | None) -> None:
    """Ask a gateway with VERSION what clients ask, and what strangers might; exit 1 if an answer is not as it should be."""
    from luthier.smoke import check_gateway, gateway_of

    registry = open_registry(env)
    number = registry.resolve(version).number
    if url is not None:
        from luthier.serving.keys import first_key

        check_gateway(url, first_key(os.environ), registry.name, number, patience, click.echo)
        return
    with gateway_of(number, env, os.environ, patience) as (address, key):
        check_gateway(address, key, f"{registry.name}@{number}", number, patience, click.echo)


@cli.command(cls=Command)
@click.argument("version")
@click.option("--share", type=click.FloatRange(0.0001, 0.9999), default=0.1, show_default=True, help="Share of the users.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True, help="Undecided by then: no.")
@url_option
@env_option
@click.pass_context
def canary(ctx: click.Context, version: str, share: float, hours: float, url: str | None, env: str | None) -> None:
    """Give VERSION to a share of the users until it is decided; exit 0 to promote it, 3 for not."""
    import time
    from datetime import UTC, datetime

    loader = configuration(env)
    parameters = parameters_of(loader, env)
    from luthier.configuration import FolderParameters
    from luthier.pipelines.monitoring.parameters import MonitoringParameters
    from luthier.serving.keys import ADMIN_VARIABLE
    from luthier.serving.parameters import ServingParameters, experiment_file, keep_experiment
    from luthier.watching.canary import WHO, check_candidate, plan, share_of, watch
    from luthier.watching.loop import Counter

    monitoring = MonitoringParameters(**(parameters.get("monitoring") or {}))
    serving, folders = ServingParameters(**(parameters.get("serving") or {})), FolderParameters(**parameters["folders"])
    registry = open_registry(env, who=WHO)
    candidate = check_candidate(registry, version)
    if candidate is None:
        click.echo("Nothing is in production yet: there is nothing to compare it with.")
        return
    key = os.environ.get(ADMIN_VARIABLE)
    if not key:
        raise UserError(f"{ADMIN_VARIABLE} is not set: the gateway asks for its administrator's key before it deals a share.")
    experiment = plan(candidate.number, share, datetime.now(UTC))
    log_uri = serving.log.locate(folders, os.environ)
    looks = open_looks(env, registry)

    def look() -> list[Mapping[str, Any]]:
        looks.look()
        return list(looks.newest("experiments") or [])

    gateway = url or monitoring.act.gateway or f"http://{serving.host}:{serving.port}"
    keep = partial(keep_experiment, experiment_file(folders), serving.experiment)
    with _ended_by_sigterm(), share_of(gateway, key, experiment, keep):
        click.echo(f"Version {candidate.number} has {share:.4g} of the users: {experiment.id}.")
        until = time.monotonic() + hours * 3600
        verdict = watch(look, Counter(log_uri).news_if_any, experiment.id, monitoring.patience_seconds, until)
    click.echo(f"{verdict.outcome.capitalize()}: {verdict.why}")
    if verdict.outcome != "promote":
        registry.note("end experiment", verdict.why)
        ctx.exit(3)


@cli.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--title", default="gate", show_default=True, help="Tells comments apart: one with the same title is replaced.")
def comment(file: Path, title: str) -> None:
    """Put FILE (Markdown) as a comment on the pull request of the commit that a workflow of GitHub's runs for."""
    from luthier.github import comment as put

    numbers = put(file.read_text(encoding="utf-8"), title, os.environ)
    told = ", ".join(f"#{number}" for number in numbers)
    click.echo(f"It is a comment on {told}." if numbers else "The commit belongs to no pull request; nobody was told.")


@cli.command(cls=Command)
@click.argument("workflow")
@click.argument("inputs", nargs=-1, metavar="[NAME=VALUE]...")
def dispatch(workflow: str, inputs: tuple[str, ...]) -> None:
    """Start WORKFLOW, such as deploy.yml, of the repository that a workflow of GitHub's runs in."""
    from luthier.github import dispatch as start

    if wrong := [one for one in inputs if "=" not in one]:
        raise UserError(f"{wrong[0]!r} is no input: write NAME=VALUE, such as version=3.")
    start(workflow, dict(one.split("=", 1) for one in inputs), os.environ)
    click.echo(f"{workflow} is started.")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Come to an end, with all that is to be done then, also when a machine is taken away: that is said by SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
