"""Commands around the traffic: serve it, watch it, learn from it, make it."""

import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luthier.cli.common import Command, cli, configuration, env_option, open_looks, open_registry, parameters_of, project_root
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.serving.keys import Keys
    from luthier.serving.routing import RouteTable
    from luthier.simulation import Told


@cli.command(cls=Command)
@click.option("--host", help="Address to listen on; by default serving.host, this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one. By default serving.port.")
@click.option("--only", metavar="VERSION", help="Serve this version to everybody, whatever is in production.")
@env_option
def serve(host: str | None, port: int | None, only: str | None, env: str | None) -> None:
    """Answer clients of OpenAI's API with the versions in production, and follow promotions and rollbacks."""
    loader = configuration(env)
    parameters = parameters_of(loader, env)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    from luthier.configuration import FolderParameters, ModelParameters
    from luthier.machine import resolve_precision
    from luthier.models import resolve_base
    from luthier.serving.fleet import Machine
    from luthier.serving.keys import read_keys
    from luthier.serving.parameters import ServingParameters, experiment_file
    from luthier.serving.server import Place
    from luthier.serving.server import serve as run_server

    serving = ServingParameters(**{**(parameters.get("serving") or {}), **given})
    folders = FolderParameters(**parameters["folders"])
    registry, keys = open_registry(env), read_keys(os.environ, serving.host)
    if only is not None:
        serving = serving.only(registry.resolve(only).number)
    place = Place(
        registry,
        Machine(
            cache=Path(loader["globals"]["work"], "06_models", "registry"),
            precision=resolve_precision(serving.engine.precision),
            base=lambda: resolve_base(ModelParameters(**parameters["model"]), folders),
            upstream_key=_upstream_key(serving.engine.key_variable),
        ),
        keys,
        serving.log.locate(folders, os.environ),
        experiment_file=None if only else experiment_file(folders),
        pii_key=os.environ.get("LUTHIER_PII_KEY", ""),
    )
    run_server(serving, place, partial(_announce, keys))


@cli.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="Only what was said from then on, in UTC.")
@env_option
def corrections(file: Path, since: Any, env: str | None) -> None:
    """Write what users corrected into FILE (JSON lines), as messages to train on; each says where it comes from."""
    from datetime import UTC

    from luthier.artefacts import write_atomically
    from luthier.configuration import FolderParameters
    from luthier.serving.parameters import ServingParameters
    from luthier.serving.records.feedback import corrections as read_corrections

    parameters = parameters_of(configuration(env), env)
    log = ServingParameters(**(parameters.get("serving") or {})).log
    uri = log.locate(FolderParameters(**parameters["folders"]), os.environ)
    rows = list(read_corrections(uri, since.replace(tzinfo=UTC) if since else None))
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    click.echo(f"{len(rows)} corrections are in {file}. To train on them, name it in data.sources (docs/your-own-data.md).")


@cli.command(cls=Command)
@click.option("--once", is_flag=True, help="Look once: exit 0 for keep or promote, 3 where something is to be done.")
@click.option("--act", is_flag=True, help="Do what was decided (monitoring.act); without it, it is only said.")
@click.option("--host", help="Address of its own /metrics; by default monitoring.host, this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of its own /metrics; by default monitoring.port.")
@env_option
@click.pass_context
def monitor(ctx: click.Context, once: bool, act: bool, host: str | None, port: int | None, env: str | None) -> None:
    """Run the pipeline monitoring whenever there is enough that is new, and show what it finds to Prometheus."""
    from datetime import timedelta

    loader = configuration(env)
    parameters = parameters_of(loader, env)
    from luthier.configuration import FolderParameters
    from luthier.pipelines.monitoring.parameters import MonitoringParameters
    from luthier.serving.parameters import ServingParameters
    from luthier.watching.acts import WHO, Actor, Limits
    from luthier.watching.monitor import Monitor

    settings, serving = (
        MonitoringParameters(**(parameters.get("monitoring") or {})),
        ServingParameters(**(parameters.get("serving") or {})),
    )
    folders, acts = FolderParameters(**parameters["folders"]), settings.act
    log_uri = serving.log.locate(folders, os.environ)
    registry = open_registry(env, who=WHO, lasting=True)
    watching = Monitor(
        registry,
        Actor(
            registry,
            gateway=acts.gateway or f"http://{serving.host}:{serving.port}",
            log_uri=log_uri,
            folder=Path(folders.locate(acts.rows)),
            project=project_root(),
            retraining_log=Path(folders.work).parent / "retraining.log",
            env=env,
            parameters=acts.parameters,
            labels=folders.locate(settings.quality.labels) if settings.quality.labels else None,
            workflow=None if acts.workflow is None else acts.workflow.model_dump(),
        ),
        Limits(timedelta(hours=acts.cool_down_hours), acts.most_a_day) if act else None,
        open_looks(env, registry),
    )
    if once:
        decided = watching.look()
        ctx.exit(0 if decided["decision"] in ("keep", "promote") else 3)
    watching.watch(
        log_uri,
        settings.drift.window,
        settings.every_seconds,
        settings.patience_seconds,
        host or settings.host,
        settings.port if port is None else port,
        click.echo,
    )


@cli.command(cls=Command)
@click.argument("messages")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=4.0, show_default=True, help="Messages a second.")
@click.option("--count", type=click.IntRange(1), default=400, show_default=True, help="Messages in all.")
@click.option("--drifted", metavar="FILE", help="Messages of another kind.")
@click.option("--share", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share of those.")
@click.option("--votes", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of answers that are voted on.")
@click.option(
    "--up",
    multiple=True,
    metavar="[VARIANT=]SHARE",
    help="Share of votes up, of a variant, of right=SHARE and wrong=SHARE answers, or of all; by default 0.8.",
)
@click.option(
    "--labels", type=click.Path(dir_okay=False, path_type=Path), help="Add the right answers, where known, to this file."
)
@click.option("--url", help="The gateway; by default that of serving.host and serving.port.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order, the moments and the votes.")
@env_option
def simulate(
    messages: str,
    rate: float,
    count: int,
    drifted: str | None,
    share: float,
    votes: float,
    up: tuple[str, ...],
    labels: Path | None,
    url: str | None,
    seed: int,
    env: str | None,
) -> None:
    """Send MESSAGES, such as data/01_raw/support_messages.jsonl, to the gateway as traffic, and vote on the answers."""
    loader = configuration(env)
    parameters = parameters_of(loader, env)
    from luthier.configuration import DataParameters, FolderParameters
    from luthier.serving.keys import first_key
    from luthier.serving.parameters import ServingParameters
    from luthier.simulation import Told, Traffic, label_file, read_messages, send

    data, folders = DataParameters(**parameters["data"]), FolderParameters(**parameters["folders"])
    serving = ServingParameters(**(parameters.get("serving") or {}))
    traffic = Traffic(
        usual=read_messages(messages, data, folders, "MESSAGES"),
        drifted=read_messages(drifted, data, folders, "--drifted") if drifted else [],
        share=share if drifted else 0.0,
        rate=rate,
        count=count,
        votes=votes,
        up=_shares_up(up),
        seed=seed,
    )
    key, told = first_key(os.environ), Told()
    address = url or f"http://{serving.host}:{serving.port}"
    try:
        with label_file(labels) if labels else nullcontext(lambda label: None) as keep:
            send(traffic, address, key, serving.model, told, keep)
    finally:
        _tell(told)


def _tell(told: "Told") -> None:
    for title, counts in (("answered", told.answered), ("failed", told.failed), ("votes", told.votes)):
        for name, number in sorted(counts.items()):
            click.echo(f"{title:9} {number:6,}  {name}")
    if told.seconds:
        ordered = sorted(told.seconds)
        middle, late = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95))
        click.echo(f"seconds    {middle:.2f} at the median, {late:.2f} for the slowest 5 %")


def _shares_up(given: tuple[str, ...]) -> dict[str, float]:
    """Return the chance of a vote up by variant.

    Raises:
        UserError: naming what is none.
    """
    found = {"": 0.8}
    for one in given:
        variant, _, share = one.rpartition("=")
        try:
            found[variant] = float(share)
        except ValueError:
            raise UserError(f"--up: {one!r} is none of 0.8 and champion=0.8.") from None
        if not 0 <= found[variant] <= 1:
            raise UserError(f"--up: {one!r} is no share from 0 to 1.")
    return found


def _upstream_key(variable: str | None) -> str | None:
    """Return the key in an environment variable.

    Raises:
        UserError: if it is not set.
    """
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UserError(f"serving.engine.key_variable: {variable} is not set; put the upstream's key into it.")
    return os.environ[variable]


def _announce(keys: "Keys", address: str, table: "RouteTable") -> None:
    """Say what is served and where; keys that were made for this start are shown here and nowhere else."""
    from luthier.serving.keys import ADMIN_VARIABLE, CLIENT_VARIABLE

    for variant in table.experiment.variants:
        told = "answers" if variant.version in table.versions else "is to answer once its engine starts"
        click.echo(f"Version {variant.version} of {table.name} {told} as {variant.name}, {variant.weight:.4g} of the users.")
    made = keys.made.get(CLIENT_VARIABLE)
    click.echo(f"Chat:     {address}/{f'#key={made}' if made else ''}")
    click.echo(f"OpenAI:   base_url {address}/v1, api_key {made or f'one of {CLIENT_VARIABLE}'}")
    if ADMIN_VARIABLE in keys.made:
        click.echo(f"Admin:    {keys.made[ADMIN_VARIABLE]}")
    if keys.made:
        click.echo(f"These keys are new with every start; {CLIENT_VARIABLE} and {ADMIN_VARIABLE} set lasting ones.")
    click.echo("Ctrl-C stops it; answers under way come to their end.")
