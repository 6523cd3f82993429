"""Commands around the versions of the data: `kedro data ...`."""

import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luthier.cli.common import Command, cli, configuration, env_option, json_option, newest_json, open_registry, parameters_of
from luthier.cli.tables import difference_lines, mix_table, prepared_table, prune_table, show, shown_bytes
from luthier.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from luthier.data_versions.erase import Found
    from luthier.data_versions.prepared import Prepared
    from luthier.data_versions.store import DataSet
    from luthier.registry import Registry
    from luthier.shards import Shards

FEWEST_ADDED = 20
"""Rows that must have come for a test of what is new in them."""
yes_option = click.option("--yes", is_flag=True, help="Do it; without it, it is only said what would be done.")


@cli.group()
def data() -> None:
    """Versions of the data: list and compare them, bring one back, remove old ones, erase a person's rows."""


@data.command(cls=Command)
@json_option
@env_option
def versions(as_json: bool, env: str | None) -> None:
    """List the versions of the prepared data: rows, sources, and the models that were trained on each."""
    found = Project(env).versions
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
    elif found:
        show(prepared_table(found))
    else:
        click.echo("There is no prepared data yet: `kedro run --pipeline data_processing` makes some.")


@data.command(cls=Command)
@click.argument("before")
@click.argument("after", default="newest")
@json_option
@env_option
@click.pass_context
def diff(ctx: click.Context, before: str, after: str, as_json: bool, env: str | None) -> None:
    """Compare two versions: rows added, removed, changed; the mix of labels; whether what came is of another kind.

    BEFORE and AFTER (by default newest) are `newest`, a version or its beginning, or a version of the model or its alias: the
    data that it was trained on. Exit 0 if both hold the same rows, 3 if not.
    """
    from luthier.data_versions.diff import compare
    from luthier.data_versions.prepared import opened_rows

    project = Project(env)
    names = [project.resolve(which) for which in (before, after)]
    with ExitStack() as stack:
        old, new = (stack.enter_context(opened_rows(project.prepared, name)) for name in names)
        found = compare(old, new)
        drift = _drift(old, new, set(found.added))
    if as_json:
        click.echo(json.dumps({"versions": names, **found.as_dict(), "drift": drift}, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{names[0]} -> {names[1]}")
        click.echo("\n".join(difference_lines(found)))
        if not found.is_empty:
            show(mix_table("split", found.splits))
            show(mix_table("label", found.labels))
            click.echo(_told(drift, len(found.added)))
    ctx.exit(0 if found.is_empty else 3)


def _drift(old: "Shards", new: "Shards", added: set[str]) -> dict[str, Any] | None:
    """Compare the rows that came with those that were there, as the monitor compares requests; None if there are too few."""
    if len(added) < FEWEST_ADDED or len(old) < FEWEST_ADDED:
        return None
    from luthier.pipelines.monitoring.drift import Reference, Rule, compare
    from luthier.pipelines.monitoring.observe import messages_of
    from luthier.pipelines.monitoring.parameters import MonitoringParameters

    columns, most = ["id", "messages", "meta", "label"], MonitoringParameters().drift.reference_rows
    came = (row for row in new.iter_rows(columns) if row["id"] in added)
    before, now = (messages_of(islice(rows, most)) for rows in (old.iter_rows(columns), came))
    return compare(Reference.of(before), now, Rule(fewest=FEWEST_ADDED)).as_dict()


def _told(drift: dict[str, Any] | None, added: int) -> str:
    if drift is None:
        return f"drift    not tested: {added} rows came, {FEWEST_ADDED} are the least"
    changed = [
        f"{one['feature']} (effect {one['effect']:.2f}, p {one['adjusted']:.2g})" for one in drift["changes"] if one["drifted"]
    ]
    if not changed:
        return "drift    none found: the rows that came are like those that were there"
    return f"drift    the rows that came differ in {', '.join(changed)}"


@data.command(cls=Command)
@click.argument("version")
@env_option
def restore(version: str, env: str | None) -> None:
    """Make VERSION the newest again: the next training takes it. Nothing is lost: it is copied under a new name."""
    from kedro.io.core import generate_timestamp

    from luthier.data_versions.restore import record
    from luthier.data_versions.restore import restore as bring_back
    from luthier.lineage import commit, local_changes

    project = Project(env)
    old, new = project.resolve(version), generate_timestamp()
    if old == project.versions[0].version:
        raise UserError(f"{old} is the newest version already.")
    bring_back(project.prepared, old, new)
    root = Path(project.parameters["folders"]["root"])
    facts = {"luthier.git_commit": commit(root), "luthier.git_dirty": str(bool(local_changes(root)))}
    names = [dataset.name for dataset in project.prepared]
    record(project.registry.client, project.registry.name, old, new, names, facts)
    click.echo(f"Version {old} is the newest again, as {new}.")
    click.echo("`kedro run --pipeline training` trains on it; `kedro run` would prepare the raw files anew.")


@data.command(cls=Command)
@click.argument("data_sets", nargs=-1)
@yes_option
@json_option
@env_option
def prune(data_sets: tuple[str, ...], yes: bool, as_json: bool, env: str | None) -> None:
    """Remove versions that nobody needs, of DATA_SETS or of all, and old work in progress; say first what that would be.

    Kept are the newest version of each data set, all that a model with an alias was made from and with, what it takes to follow
    any other registered model back and to make it again, what a run under way reads or makes, and what no run in MLflow made but
    for reports of the monitor.
    """
    from luthier.configuration import FolderParameters
    from luthier.data_versions.needs import PREVIOUS, needed_by_models, needed_by_runs_under_way, split_of
    from luthier.data_versions.prune import UNKNOWN, plan, unneeded_work
    from luthier.remote import cache_folder
    from luthier.serving.parameters import ServingParameters, experiment_file, running_experiment

    project = Project(env)
    known = [dataset.name for dataset in project.sets]
    if unknown := [f"{name}{did_you_mean(name, known)}" for name in data_sets if name not in known]:
        raise UserError(f"No versioned data set of the catalog: {', '.join(unknown)}.")
    chosen = [dataset for dataset in project.sets if not data_sets or dataset.name in data_sets]
    models = project.registry.versions()
    needed = needed_by_runs_under_way(project.runs, known) | needed_by_models(models, project.runs, known, project.crossing)
    split = (project.parameters.get("data_processing") or {}).get("split") or {}
    if earlier := split_of(split.get("previous") or ""):
        needed[earlier] = PREVIOUS
    folders = FolderParameters(**project.parameters["folders"])
    serving = ServingParameters(**(project.parameters.get("serving") or {}))
    asked = running_experiment(experiment_file(folders), serving.experiment)
    by_number = {asked.shadow, *(variant.version for variant in asked.variants)}
    in_use = {model.manifest for model in models if model.aliases or model.number in by_number}
    work = unneeded_work(folders, cache_folder(), in_use)
    planned = plan(chosen, needed, project.sessions | project.looks, [] if data_sets else work)
    rows, size = planned.by_name(), planned.bytes
    if yes:
        planned.carry_out()
    if as_json:
        removed = [{"data_set": dataset.name, "version": version} for dataset, version in planned.versions]
        kept = [{"data_set": name, "version": version, "needed_by": who} for name, version, who in planned.kept]
        work_rows = [{"folder": str(item.folder), "what": item.what} for item in planned.work]
        told = {"done": yes, "bytes": size, "remove": removed, "work": work_rows, "keep": kept}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    elif not rows:
        click.echo("Nothing to remove: everything is needed.")
    else:
        show(prune_table(rows))
        click.echo(f"{shown_bytes(size)} {'are free' if yes else 'would be free: `kedro data prune --yes` removes it'}.")
    unknown_to = sorted({version for _, version, who in planned.kept if who == UNKNOWN})
    if unknown_to and not as_json:
        click.echo(
            f"{len(unknown_to)} other versions ({', '.join(unknown_to[:3])}{', ...' if len(unknown_to) > 3 else ''}) stay: "
            "no run of this MLflow made them. Is MLFLOW_TRACKING_URI the right one?"
        )


@data.command(cls=Command)
@click.option("--row", metavar="ID", help="A row by its id (the column data.id, or the id of a request).")
@click.option("--text", metavar="TEXT", help="A text, or a value such as an e-mail address, wherever it stands.")
@click.option("--reason", metavar="TEXT", default="", help="Such as the number of the request; the record of erasures keeps it.")
@yes_option
@json_option
@env_option
def erase(row: str | None, text: str | None, reason: str, yes: bool, as_json: bool, env: str | None) -> None:
    """Find a row or a person's text in raw files, versions and the request log, and erase it; say first what that would be."""
    if (row is None) == (text is None):
        raise UserError("Give either --row ID or --text TEXT.")
    from luthier.configuration import DataParameters, FolderParameters
    from luthier.data_versions.erase import Record, Where, find
    from luthier.data_versions.erase import erase as remove
    from luthier.data_versions.needles import Needles
    from luthier.data_versions.raw_files import raw_files
    from luthier.pipelines.data_processing.nodes import KEY_VARIABLE
    from luthier.pipelines.data_processing.parameters import DataProcessingParameters
    from luthier.pipelines.monitoring.parameters import MonitoringParameters
    from luthier.remote import open_storage
    from luthier.serving.parameters import ServingParameters

    project = Project(env)
    parameters = project.parameters
    source, folders = DataParameters(**parameters["data"]), FolderParameters(**parameters["folders"])
    labels = MonitoringParameters(**(parameters.get("monitoring") or {})).quality.labels
    scrub = DataProcessingParameters(**(parameters.get("data_processing") or {})).scrub
    key = os.environ.get(KEY_VARIABLE, "")
    wanted = Needles(names=frozenset({row})) if row is not None else Needles.of_text(text or "", key, scrub)
    where = Where(
        root=folders.root.rstrip("/"),
        raw=raw_files(source, folders, [folders.locate(labels)] if labels else []),
        id_column=source.id,
        prepared=project.prepared,
        others=[one for one in project.sets if one not in project.prepared and not one.is_model],
        log_uri=ServingParameters(**(parameters.get("serving") or {})).log.locate(folders, os.environ),
        work=[Path(folders.shards), folders.answers],
        key=key,
    )
    found = find(wanted, where, project.models)
    if yes and not found.is_nothing:
        root = str(project.loader["globals"]["data"])
        # not in the project's folder `data`, which `make clean` empties
        storage, place = open_storage(root if "://" in root else f"file://{where.root}")
        remove(found, where, Record(storage, f"{place}/erasures.jsonl"), reason)
    if as_json:
        click.echo(json.dumps({"done": yes, **found.as_dict()}, indent=2, ensure_ascii=False))
    else:
        _tell_found(found, yes, Path(folders.root))


def _tell_found(found: "Found", done: bool, root: Path) -> None:
    from luthier.data_versions.raw_files import in_git

    for rows in found.raw:
        click.echo(f"raw file  {rows.file.shown}:{', '.join(map(str, rows.lines))}")
    for version, names in found.prepared.items():
        click.echo(f"prepared  {version}  {', '.join(names)}")
    for dataset, version in found.others:
        click.echo(f"version   {version}  {dataset.name}")
    if found.requests:
        click.echo(f"requests  {len(found.requests):,} of the request log, with their votes")
    for path in found.broken_off:
        click.echo(f"left      {path}, of what was broken off")
    for model in found.models:
        click.echo(f"model     {model.number}, of data {model.data}: {_judged(model.rows)}")
    for file, line in found.by_hand:
        click.echo(f"by hand   {file}:{line} is no row of a table: it stays until you change it")
    if found.is_nothing:
        click.echo("It stands in nothing else." if found.by_hand else "It stands nowhere.")
        return
    if not done:
        click.echo(
            "Nothing was changed: --yes takes the rows out of the raw files, removes these versions and empties the requests; "
            "with them go results of steps and answers that are kept to save time."
        )
        return
    click.echo("Erased; the record of erasures has a line. `kedro run` prepares and trains without it.")
    if kept := in_git(root, found.raw):
        click.echo(f"Git's history still holds it in {', '.join(kept)}: rewrite it, and what was pushed.")
    click.echo(
        "Copies elsewhere are yours to remove: backups, a cache or a remote of DVC's, LUTHIER_CACHE and LUTHIER_WORK of other "
        "machines, and the models named above."
    )
    if found.requests:
        click.echo("A PostgreSQL server holds the old rows until `VACUUM FULL luthier_requests, luthier_feedback`.")


def _judged(rows: dict[str, int] | None) -> str:
    if rows is None:
        return "the data is gone, so it cannot be told (the record of erasures may say)"
    if not rows:
        return "the rows were dropped before training"
    return ", ".join(f"{count:,} rows of {split}" for split, count in rows.items())


@data.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@env_option
def metrics(file: Path, env: str | None) -> None:
    """Write the figures of the newest evaluation into FILE, as `dvc metrics` reads them."""
    from luthier.artefacts import write_atomically

    evaluation = newest_json(f"{configuration(env)['globals']['data']}/08_reporting/evaluation.json")
    figures = {
        model: {metric: value["value"] for metric, value in found.items() if value["value"] is not None}
        for model, found in evaluation["models"].items()
    }
    write_atomically(file, json.dumps({"examples": evaluation["examples"], **figures}, indent=2) + "\n")
    click.echo(f"The figures of {', '.join(figures)} are in {file}.")


class Project:
    """What the commands read of the project; each part when it is first asked for."""

    def __init__(self, env: str | None) -> None:
        """Read the configuration of an environment."""
        self.env, self.loader = env, configuration(env)

    @cached_property
    def parameters(self) -> Any:
        """All parameters, checked."""
        return parameters_of(self.loader, self.env)

    @cached_property
    def registry(self) -> "Registry":
        """The registry of models."""
        return open_registry(self.env)

    @cached_property
    def sets(self) -> "list[DataSet]":
        """All versioned data sets of the catalog."""
        from luthier.data_versions.store import data_sets

        return data_sets(self.loader["catalog"])

    @cached_property
    def _rooms(self) -> dict[str, Any]:
        from luthier.pipeline_registry import register_pipelines

        return {name: pipeline for name, pipeline in register_pipelines().items() if name != "__default__"}

    @cached_property
    def prepared(self) -> "list[DataSet]":
        """The data sets that data processing makes."""
        made = self._rooms["data_processing"].all_outputs()
        return [dataset for dataset in self.sets if dataset.name in made]

    @cached_property
    def crossing(self) -> set[str]:
        """The data sets that one pipeline makes and another reads."""
        made = {name: pipeline.all_outputs() for name, pipeline in self._rooms.items()}
        read = {name: pipeline.inputs() for name, pipeline in self._rooms.items()}
        return {one for maker in made for reader in read if maker != reader for one in made[maker] & read[reader]}

    @cached_property
    def _runs(self) -> list[Any]:
        from mlflow.entities import ViewType

        from luthier.chain import pages_of

        experiment = self.registry.client.get_experiment_by_name(self.registry.name)
        if experiment is None:
            return []
        return pages_of(self.registry.client, [experiment.experiment_id], ViewType.ALL)

    @property
    def runs(self) -> list[Any]:
        """All runs that MLflow has of the project, but those that were deleted."""
        return [run for run in self._runs if run.info.lifecycle_stage == "active"]

    @property
    def sessions(self) -> set[str]:
        """The versions that some run made data under."""
        from luthier.lineage import sessions_of

        return {session for run in self._runs for session in sessions_of(run.data.tags)}

    @property
    def looks(self) -> set[str]:
        """The versions of the monitor's reports: of most of its looks MLflow has no run."""
        made = self._rooms["monitoring"].all_outputs()
        return {version for dataset in self.sets if dataset.name in made for version in dataset.versions()}

    @cached_property
    def models(self) -> dict[int, str]:
        """Registered version of the model -> version of the data that it was trained on."""
        from luthier.data_versions.prepared import data_of

        tags = {run.info.run_id: run.data.tags for run in self.runs}
        known = {model.number: data_of(tags.get(model.run, {})) for model in self.registry.versions()}
        return {number: version for number, version in known.items() if version is not None}

    @cached_property
    def versions(self) -> "list[Prepared]":
        """The versions of the prepared data, the newest first."""
        from luthier.data_versions.prepared import prepared_versions

        return prepared_versions(self.prepared, self.models)

    def resolve(self, which: str) -> str:
        """Return the version of the prepared data that is meant.

        Raises:
            UserError: if it is none, with what there is.
        """
        from luthier.data_versions.prepared import resolve

        aliases = self.registry.standing().aliases
        return resolve(which, [one.version for one in self.versions], self.models, aliases)
