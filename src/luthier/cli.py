"""The project's `kedro` commands: Kedro's own, and those that release a model. A mistake is told in a sentence, no traceback."""

import gc
import json
import logging
import os
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS, ENV_HELP
from kedro.framework.startup import bootstrap_project
from kedro.utils import find_kedro_project

from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.registry import Line, Registry, Version
    from luthier.serving.keys import Keys
    from luthier.serving.routing import RouteTable


FULL_WIDTH = 116
"""Columns of a terminal that a whole table of versions needs."""


class Command(click.Command):
    """A command whose expected errors are messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit 1 with a message for a mistake of the user's."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from None


@click.group(context_settings=CONTEXT_SETTINGS, name=__package__)
def cli() -> None:
    """Commands of the project."""


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
    return bool(settings["tool"]["kedro"].get("package_name") == __package__)


run = Command(name="run", callback=kedro_run.callback, params=kedro_run.params, help=kedro_run.help)
cli.add_command(run)

env_option = click.option("--env", "-e", default=None, help=ENV_HELP)
reason_option = click.option("--reason", metavar="TEXT", help="Why; the deployment log keeps it.")
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@cli.command(cls=Command)
@click.argument("version", required=False)
@click.option("--force", is_flag=True, help="Promote although the gate did not pass it; needs --reason.")
@reason_option
@env_option
def promote(version: str | None, force: bool, reason: str | None, env: str | None) -> None:
    """Put VERSION (a number or an alias, by default the candidate) into production."""
    _tell(_registry(env).promote(version, force, reason))


@cli.command(cls=Command)
@click.option("--to", metavar="VERSION", help="A version that was in production before; by default the previous one.")
@reason_option
@env_option
def rollback(to: str | None, reason: str | None, env: str | None) -> None:
    """Bring back the version that was in production before."""
    _tell(_registry(env).rollback(to, reason))


@cli.command(cls=Command)
@click.option("--log", "show_log", is_flag=True, help="Show the deployment log, and check that nobody has changed it.")
@json_option
@env_option
def models(show_log: bool, as_json: bool, env: str | None) -> None:
    """List the versions of the model: what is in production, how good it is, what it was made from."""
    from dataclasses import asdict

    from luthier.registry import check_chain

    registry = _registry(env)
    registry.repair()
    lines = registry.log.lines() if show_log else []
    rows: list[Any] = lines if show_log else registry.versions()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    elif rows:
        _print(_log_table(lines) if show_log else _versions_table(rows))
    else:
        click.echo("Nothing was promoted yet." if show_log else f"No version of {registry.name} is registered yet: `kedro run`.")
    check_chain(lines)


@cli.command(cls=Command)
@click.option("--markdown", is_flag=True, help="For a comment on a pull request.")
@json_option
@env_option
@click.pass_context
def gate(ctx: click.Context, markdown: bool, as_json: bool, env: str | None) -> None:
    """Show what the gate said of the last evaluation; exit 0 for pass, 1 for fail, 3 for undecided."""
    data = str(_configuration(env)["globals"]["data"])
    decision = _newest_json(f"{data}/08_reporting/gate_decision.json")
    from luthier.pipelines.evaluation.gate import exit_code
    from luthier.pipelines.evaluation.gate_report import render_markdown, render_table

    if as_json:
        click.echo(json.dumps(decision, indent=2, ensure_ascii=False))
    elif markdown:
        click.echo(render_markdown(decision))
    else:
        _print(render_table(decision))
    ctx.exit(exit_code(decision))


@cli.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="Only what was said from then on, in UTC.")
@env_option
def corrections(file: Path, since: Any, env: str | None) -> None:
    """Write what users corrected into FILE (JSON lines), as messages to train on; each says where it comes from."""
    from datetime import UTC

    from luthier.artefacts import write_atomically
    from luthier.configuration import FolderParameters
    from luthier.serving.feedback import corrections as read_corrections
    from luthier.serving.parameters import ServingParameters

    parameters = _parameters(_configuration(env), env)
    log = ServingParameters(**(parameters.get("serving") or {})).log
    uri = log.locate(FolderParameters(**parameters["folders"]), os.environ)
    rows = list(read_corrections(uri, since.replace(tzinfo=UTC) if since else None))
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    click.echo(f"{len(rows)} corrections are in {file}. To train on them, name it in data.sources (docs/your-own-data.md).")


@cli.command(cls=Command)
@click.argument("which")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the chain as a page, too.")
@json_option
@env_option
def lineage(which: str, page: Path | None, as_json: bool, env: str | None) -> None:
    """Follow WHICH (a version, an alias, or a run) back to its source files and their hashes."""
    from luthier.chain import as_html, as_tree, trace

    registry = _registry(env)
    run_id, title = _run_of(which, registry)
    found = trace(run_id, registry.client)
    if page is not None:
        page.write_text(as_html(found, title), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print(as_tree(found, title))


@cli.command(cls=Command)
@click.argument("which")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep the second run there.")
@env_option
@click.pass_context
def reproduce(ctx: click.Context, which: str, folder: Path | None, env: str | None) -> None:
    """Do the run WHICH (or that of a version) again from its own data, in a folder of its own; exit 1 if bytes differ."""
    import shutil
    from tempfile import mkdtemp

    from mlflow import MlflowClient

    from luthier.chain import trace
    from luthier.reproduce import compare, other_commit
    from luthier.reproduce import reproduce as again

    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: the second run needs a folder of its own.")
    registry, root = _registry(env), _root()
    before = trace(_run_of(which, registry)[0], registry.client)
    if (today := other_commit(before, root)) is not None:
        click.echo(f"The code is not that of the run: commit {today[:12]}, then {before.commit[:12]}.", err=True)
    there = (folder or Path(mkdtemp(prefix="luthier-reproduce-"))).resolve()
    there.mkdir(parents=True, exist_ok=True)
    loader = _configuration(env)
    tracking_uri = str(loader["mlflow"]["server"]["mlflow_tracking_uri"])
    run_id = again(before, root, str(loader["globals"]["data"]), there, tracking_uri)
    compared = compare(before, trace(run_id, MlflowClient(f"sqlite:///{there / 'mlflow.db'}")))
    if folder is None:  # a run that failed stays where its error says
        shutil.rmtree(there)
    for found in compared:
        click.echo(f"{'same     ' if found.same else 'DIFFERENT'}  {found.name}")
    ctx.exit(0 if all(found.same for found in compared) else 1)


@cli.command(cls=Command)
@click.argument("version")
@click.argument("folder", type=click.Path(exists=False, path_type=Path))
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="By default that of the package.")
@env_option
def export(version: str, folder: Path, precision: str | None, env: str | None) -> None:
    """Write VERSION as a plain folder that vLLM, Ollama and transformers load."""
    from luthier.configuration import FolderParameters, ModelParameters
    from luthier.models import resolve_base
    from luthier.packages import facts_of
    from luthier.pipelines.deployment.export import export as write

    if folder.exists():
        raise UserError(f"{folder} is there already: name another folder.")
    registry, loader = _registry(env), _configuration(env)
    package = registry.fetch(registry.resolve(version), Path(loader["globals"]["work"], "06_models", "registry"))
    base = None
    if facts_of(package)["kind"] == "adapter":
        parameters = loader["parameters"]
        base = resolve_base(ModelParameters(**parameters["model"]), FolderParameters(**parameters["folders"]))
    write(package, folder.resolve(), precision, base)
    click.echo(f"Version {version} is in {folder}.")


@cli.command(cls=Command)
@click.option("--host", help="Address to listen on; by default serving.host, this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one. By default serving.port.")
@env_option
def serve(host: str | None, port: int | None, env: str | None) -> None:
    """Answer clients of OpenAI's API with the versions in production, and follow promotions and rollbacks."""
    loader = _configuration(env)
    parameters = _parameters(loader, env)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    from luthier.configuration import FolderParameters, ModelParameters
    from luthier.machine import resolve_precision
    from luthier.models import resolve_base
    from luthier.serving.fleet import Machine
    from luthier.serving.keys import read_keys
    from luthier.serving.parameters import ServingParameters
    from luthier.serving.server import Place
    from luthier.serving.server import serve as run_server

    serving = ServingParameters(**{**(parameters.get("serving") or {}), **given})
    folders = FolderParameters(**parameters["folders"])
    registry, keys = _registry(env), read_keys(os.environ, serving.host)
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
        experiment_file=Path(folders.work).parent / "serving" / "experiment.json",
        pii_key=os.environ.get("LUTHIER_PII_KEY", ""),
    )
    run_server(serving, place, partial(_announce, keys))


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

    loader = _configuration(env)
    parameters = _parameters(loader, env)
    from luthier.configuration import FolderParameters
    from luthier.pipelines.monitoring.parameters import MonitoringParameters
    from luthier.serving.parameters import ServingParameters
    from luthier.watching.acts import WHO, Actor, Limits
    from luthier.watching.monitor import Monitor

    settings, serving = MonitoringParameters(**(parameters.get("monitoring") or {})), ServingParameters(**parameters["serving"])
    folders, acts = FolderParameters(**parameters["folders"]), settings.act
    log_uri = serving.log.locate(folders, os.environ)
    registry = _registry(env, who=WHO)
    watching = Monitor(
        registry,
        Actor(
            registry,
            gateway=f"http://{serving.host}:{serving.port}",
            log_uri=log_uri,
            folder=Path(folders.locate(acts.corrections)),
            project=_root(),
            retraining_log=Path(folders.work).parent / "retraining.log",
            env=env,
            parameters=acts.parameters,
            workflow=None if acts.workflow is None else acts.workflow.model_dump(),
        ),
        Limits(timedelta(hours=acts.cool_down_hours), acts.most_a_day) if act else None,
        str(loader["globals"]["data"]),
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
@click.option("--up", multiple=True, metavar="[VARIANT=]SHARE", help="Share of votes up, of a variant or of all; by default 0.8.")
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
    loader = _configuration(env)
    parameters = _parameters(loader, env)
    from luthier.configuration import DataParameters, FolderParameters
    from luthier.serving.keys import first_key
    from luthier.serving.parameters import ServingParameters
    from luthier.simulation import Traffic, read_messages, send, write_labels

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
    key = first_key(os.environ)
    told = send(traffic, url or f"http://{serving.host}:{serving.port}", key, serving.model)
    if labels is not None:
        write_labels(told, labels)
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
        click.echo(f"Version {variant.version} of {table.name} answers as {variant.name}, {variant.weight:.4g} of the users.")
    made = keys.made.get(CLIENT_VARIABLE)
    click.echo(f"Chat:     {address}/{f'#key={made}' if made else ''}")
    click.echo(f"OpenAI:   base_url {address}/v1, api_key {made or f'one of {CLIENT_VARIABLE}'}")
    if ADMIN_VARIABLE in keys.made:
        click.echo(f"Admin:    {keys.made[ADMIN_VARIABLE]}")
    if keys.made:
        click.echo(f"These keys are new with every start; {CLIENT_VARIABLE} and {ADMIN_VARIABLE} set lasting ones.")
    click.echo("Ctrl-C stops it; answers under way come to their end.")


def _parameters(loader: Any, env: str | None) -> Any:
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


def _run_of(which: str, registry: "Registry") -> tuple[str, str]:
    """Return the run of a version, of an alias, or of its own id, and what to call it."""
    if (which.isdecimal() and len(which) < 8) or which in ("candidate", "challenger", "champion", "previous"):
        version = registry.resolve(which)
        return version.run, f"Version {version.number} of {registry.name}"
    return which, f"Run {which}"


def _newest_json(path: str) -> Any:
    """Return the newest version of a versioned JSON data set.

    Raises:
        UserError: if there is none.
    """
    from luthier.remote import open_storage

    storage, place = open_storage(path if "://" in path else f"file://{path}")
    found = sorted(storage.glob(f"{place}/*/*.json"))
    if not found:
        raise UserError("Nothing was evaluated yet: `kedro run` first.")
    return json.loads(storage.cat_file(found[-1]))


def _root() -> Path:
    root = find_kedro_project(Path.cwd())
    if root is None:
        raise UserError(f"There is no Kedro project in {Path.cwd()} or above it.")
    return Path(root)


def _configuration(env: str | None) -> Any:
    """Return the configuration as `kedro run --env` reads it, without making Kedro's context, which takes seconds."""
    from kedro.framework.project import settings

    _log_to_stderr()
    source = _root() / settings.CONF_SOURCE
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


def _registry(env: str | None, who: str | None = None) -> "Registry":
    """Open the registry that `kedro run --env` writes to, without making Kedro's context, which takes seconds."""
    from luthier.quiet import quiet_trackers
    from luthier.registry import Registry, whoami

    loader = _configuration(env)
    mlflow = loader["mlflow"]
    server = mlflow.get("server") or {}
    if server.get("credentials"):  # as kedro-mlflow does: the keys of the artefact store, for example
        os.environ.update(loader["credentials"][server["credentials"]])
    cache = Path(loader["globals"]["work"], "06_models", "registry")
    quiet_trackers()
    # one experiment, one model: both carry the same name
    name = mlflow["tracking"]["experiment"]["name"]
    log_uri = os.environ.get("LUTHIER_LOG_URI")
    return Registry(name, server["mlflow_tracking_uri"], log_uri, cache, _check, who and f"{who}, {whoami()}")


def _check(package: Path, expected: str) -> None:
    from luthier.packages import check_package  # when there is something to check: it takes a while to import

    check_package(package, expected)


def _tell(line: "Line") -> None:
    before = f", in place of version {line.from_version}" if line.from_version else ""
    forced = " The gate was overruled." if line.forced else ""
    click.echo(f"Version {line.version} is the champion{before}: line {line.number} of the deployment log.{forced}")
    click.echo(
        f"Taken back by `kedro rollback`: version {line.previous} returns." if line.previous else "There is none before it."
    )


def _print(table: Any) -> None:
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # a file or a pipe has no width: nothing is folded there
    return console if console.is_terminal else Console(width=240)


def _table(rows: list[dict[str, Any]], numbers: tuple[str, ...], least: tuple[str, ...]) -> Any:
    """Return a table of rows by column: `numbers` stand to the right, and what is `least` needs a window of some width."""
    from rich.table import Table

    narrow = _console().width < FULL_WIDTH
    told = f"in a window of {FULL_WIDTH} columns: {', '.join(least)}" if narrow else None
    table = Table(box=None, pad_edge=False, caption=told, caption_justify="left")
    shown = [name for name in rows[0] if not (narrow and name in least)]
    for name in shown:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _versions_table(versions: "list[Version]") -> Any:
    from rich.text import Text

    colours = {"pass": "green", "fail": "red", "undecided": "yellow"}
    rows = [
        {
            "version": str(version.number),
            "aliases": Text("\n".join(version.aliases), style="bold" if "champion" in version.aliases else ""),
            "gate": Text(version.gate, style=colours.get(version.gate, "")),
            "figures": "\n".join(f"{name} {value:.4g}" for name, value in list(version.figures.items())[:4]),
            "registered (UTC)": version.created.replace("T", " ")[:16],
            "commit": version.commit[:8],
            "run": version.run[:8],
            "data": "\n".join(f"{name} {sha256[:8]}" for name, sha256 in version.data.items()),
        }
        for version in versions
    ]
    return _table(rows, numbers=("version",), least=("run", "data"))


def _log_table(lines: "list[Line]") -> Any:
    from rich.text import Text

    rows = [
        {
            "line": str(line.number),
            "when (UTC)": line.at.replace("T", " ")[:19],
            "who": Text(line.who),
            "what": f"{line.action}, forced" if line.forced else line.action,
            "from": str(line.from_version or ""),
            "to": str(line.version),
            "gate": line.gate,
            "package": line.manifest[:8],
            "reason": Text(line.reason),
        }
        for line in lines
    ]
    return _table(rows, numbers=("line", "from", "to"), least=("gate", "package"))
