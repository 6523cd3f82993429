"""Commands that release a model, and follow it back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luthier.cli.common import (
    Command,
    cli,
    configuration,
    env_option,
    json_option,
    newest_json,
    open_registry,
    project_root,
    reason_option,
)
from luthier.cli.tables import log_table, show, versions_table
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.registry import Line, Registry


@cli.command(cls=Command)
@click.argument("version", required=False)
@click.option("--force", is_flag=True, help="Promote although the gate did not pass it; needs --reason.")
@reason_option
@env_option
def promote(version: str | None, force: bool, reason: str | None, env: str | None) -> None:
    """Put VERSION (a number or an alias, by default the candidate) into production."""
    _tell(open_registry(env).promote(version, force, reason))


@cli.command(cls=Command)
@click.option("--to", metavar="VERSION", help="A version that was in production before; by default the previous one.")
@reason_option
@env_option
def rollback(to: str | None, reason: str | None, env: str | None) -> None:
    """Bring back the version that was in production before."""
    _tell(open_registry(env).rollback(to, reason))


@cli.command(cls=Command)
@click.option("--log", "show_log", is_flag=True, help="Show the deployment log, and check that nobody has changed it.")
@click.option("--number", metavar="VERSION", help="Print the number of one version or alias, and no more.")
@json_option
@env_option
def models(show_log: bool, number: str | None, as_json: bool, env: str | None) -> None:
    """List the versions of the model: what is in production, how good it is, what it was made from."""
    from dataclasses import asdict

    from luthier.registry import check_chain

    registry = open_registry(env)
    registry.repair()
    if number is not None:
        click.echo(registry.resolve(number).number)
        return
    lines = registry.log.lines() if show_log else []
    rows: list[Any] = lines if show_log else registry.versions()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    elif rows:
        show(log_table(lines) if show_log else versions_table(rows))
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
    data = str(configuration(env)["globals"]["data"])
    decision = newest_json(f"{data}/08_reporting/gate_decision.json")
    from luthier.pipelines.evaluation.gate import exit_code
    from luthier.pipelines.evaluation.gate_report import render_markdown, render_table

    if as_json:
        click.echo(json.dumps(decision, indent=2, ensure_ascii=False))
    elif markdown:
        click.echo(render_markdown(decision))
    else:
        show(render_table(decision))
    ctx.exit(exit_code(decision))


@cli.command(cls=Command)
@click.argument("which")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the chain as a page, too.")
@json_option
@env_option
def lineage(which: str, page: Path | None, as_json: bool, env: str | None) -> None:
    """Follow WHICH (a version, an alias, or a run) back to its source files and their hashes."""
    from luthier.artefacts import write_atomically
    from luthier.chain import as_html, as_tree, trace

    registry = open_registry(env)
    run_id, title = _run_of(which, registry)
    found = trace(run_id, registry.client)
    if page is not None:
        write_atomically(page, as_html(found, title))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        show(as_tree(found, title))


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
    registry, root = open_registry(env, lasting=True), project_root()
    before = trace(_run_of(which, registry)[0], registry.client)
    if (today := other_commit(before, root)) is not None:
        click.echo(f"The code is not that of the run: commit {today[:12]}, then {before.commit[:12]}.", err=True)
    there = (folder or Path(mkdtemp(prefix="luthier-reproduce-"))).resolve()
    there.mkdir(parents=True, exist_ok=True)
    loader = configuration(env)
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
    registry, loader = open_registry(env), configuration(env)
    package = registry.fetch(registry.resolve(version), Path(loader["globals"]["work"], "06_models", "registry"))
    base = None
    if facts_of(package)["kind"] == "adapter":
        parameters = loader["parameters"]
        base = resolve_base(ModelParameters(**parameters["model"]), FolderParameters(**parameters["folders"]))
    write(package, folder.resolve(), precision, base)
    click.echo(f"Version {version} is in {folder}.")


def _run_of(which: str, registry: "Registry") -> tuple[str, str]:
    """Return the run of a version, of an alias, or of its own id, and what to call it."""
    # the names that people know are told as such, even where there is no such version yet
    if (which.isdecimal() and len(which) < 8) or which in {"candidate", "champion", "previous", *registry.standing().aliases}:
        version = registry.resolve(which)
        return version.run, f"Version {version.number} of {registry.name}"
    return which, f"Run {which}"


def _tell(line: "Line") -> None:
    before = f", in place of version {line.from_version}" if line.from_version else ""
    forced = " The gate was overruled." if line.forced else ""
    click.echo(f"Version {line.version} is the champion{before}: line {line.number} of the deployment log.{forced}")
    click.echo(
        f"Taken back by `kedro rollback`: version {line.previous} returns." if line.previous else "There is none before it."
    )
