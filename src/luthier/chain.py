"""From a model or a run back to the files that its data came from, as MLflow has recorded it."""

import html
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.exceptions import MlflowException

from luthier.errors import UserError
from luthier.lineage import QUESTIONS, RUN_FACTS, SESSION, SOURCES, VERSION_TAG, made_in, sessions_of

_LENGTH_OF_ID = 32
DATA, MADE = "luthier.data.", "luthier.made."


@dataclass(frozen=True)
class Run:
    """One run of pipelines, and the runs that made what it read."""

    id: str
    started: int
    """Milliseconds since 1970."""
    sessions: list[str]
    """Versions of what it made: of each `kedro run` in it."""
    commit: str
    dirty: bool
    facts: dict[str, Any]
    """What `lineage.run_facts` recorded."""
    read: dict[str, str]
    """Data sets by name: `VERSION sha256:HASH`."""
    made: dict[str, str]
    versions: dict[str, int]
    """Versions of the registry that were asked, by the parameter that named them."""
    sources: list[dict[str, Any]]
    """Files that were read: `source`, `file`, `sha256`, `rows`; `md5` where DVC keeps the file."""
    earlier: list["Run"] = field(default_factory=list)

    def all_sources(self) -> list[dict[str, Any]]:
        """Return the source files of this run and of all before it, each once."""
        every = [*self.sources, *(entry for run in self.earlier for entry in run.all_sources())]
        return list({(entry["file"], entry["sha256"]): entry for entry in every}.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the chain as JSON."""
        own = {
            "run": self.id,
            "sessions": self.sessions,
            "commit": self.commit,
            "dirty": self.dirty,
            "pipelines": self.facts.get("pipelines") or ["__default__"],
            "read": self.read,
            "made": self.made,
            "versions": self.versions,
            "sources": self.sources,
        }
        return own | {"earlier": [run.as_dict() for run in self.earlier]}


def trace(run_id: str, client: Any) -> Run:
    """Follow the versions that a run read to the runs that made them.

    Args:
        run_id: of an MLflow run, or its first letters.
        client: an `mlflow.MlflowClient`.

    Raises:
        UserError: if there is no such run, or it is none of ours.
    """
    return _traced(find_run(run_id, client), client, set())


def pages_of(client: Any, experiments: list[str], view: int = 1) -> list[Any]:
    """Return all runs of experiments, the newest first, however many there are.

    Args:
        client: an `mlflow.MlflowClient`.
        experiments: their ids.
        view: of `mlflow.entities.ViewType`; by default the runs that were not deleted.
    """
    page = client.search_runs(experiments, "", view, 1000)
    found = list(page)
    while page.token:
        page = client.search_runs(experiments, "", view, 1000, page_token=page.token)
        found += page
    return found


def find_run(run_id: str, client: Any) -> Any:
    """Return an MLflow run by its id or its first letters.

    Raises:
        UserError: if there is none, or more than one.
    """
    if len(run_id) == _LENGTH_OF_ID:
        with suppress(MlflowException):
            return _ours(client.get_run(run_id))
    runs = pages_of(client, [experiment.experiment_id for experiment in client.search_experiments()])
    found = [run for run in runs if run.info.run_id.startswith(run_id)] if run_id else []
    if len(found) != 1:
        known = ", ".join(run.info.run_id[:8] for run in runs[:5])
        raise UserError(
            f"{'No run' if not found else 'More than one run'} begins with {run_id!r}. The last ones: {known or 'none'}."
        )
    return _ours(found[0])


def _ours(run: Any) -> Any:
    if not sessions_of(run.data.tags):
        raise UserError(f"Run {run.info.run_id} was not recorded by Luthier: it has no tag {SESSION}.")
    return run


def _traced(run: Any, client: Any, seen: set[str]) -> Run:
    tags = run.data.tags
    read = {name.removeprefix(DATA): value for name, value in tags.items() if name.startswith(DATA)}
    sessions = sessions_of(tags)
    versions = {value.split()[0] for value in read.values()} - set(sessions) - seen
    seen |= versions | set(sessions)
    earlier = []
    for version in sorted(versions):
        makers = client.search_runs([run.info.experiment_id], made_in(version), max_results=1)
        earlier += [_traced(maker, client, seen) for maker in makers]
    return Run(
        id=run.info.run_id,
        started=run.info.start_time,
        sessions=sessions,
        commit=tags.get("luthier.git_commit", "unknown"),
        dirty=tags.get("luthier.git_dirty") == "True",
        facts=read_artefact(run.info.run_id, RUN_FACTS, client) or {},
        read=read,
        made={name.removeprefix(MADE): value for name, value in tags.items() if name.startswith(MADE)},
        versions={name.removeprefix(VERSION_TAG): int(value) for name, value in tags.items() if name.startswith(VERSION_TAG)},
        sources=[entry for path in (SOURCES, QUESTIONS) for entry in read_artefact(run.info.run_id, path, client) or []],
        earlier=earlier,
    )


def read_artefact(run_id: str, path: str, client: Any) -> Any:
    """Return a JSON artefact of a run; None if it has none."""
    folder = path.rpartition("/")[0]
    if path not in {entry.path for entry in client.list_artifacts(run_id, folder)}:
        return None
    with TemporaryDirectory() as place:
        found = client.download_artifacts(run_id, path, place)
        return json.loads(Path(found).read_text(encoding="utf-8"))


# What of all data sets is worth a line: the ones that decide what a model is.
SHOWN = ("tuned_model", "examples", "split_records", "described_data", "answer_schema", "prompt_settings", "records")


def as_tree(run: Run, title: str) -> Any:
    """Return the chain as a rich tree."""
    from rich.tree import Tree

    tree = Tree(f"[bold]{title}[/]")
    _grow(tree, run)
    return tree


def _grow(tree: Any, run: Run) -> None:
    dirty = ", with local changes" if run.dirty else ""
    pipelines = ", ".join(run.facts.get("pipelines") or ["all pipelines"])
    branch = tree.add(f"run [bold]{run.id[:8]}[/] of {pipelines}, {', '.join(run.sessions)}, commit {run.commit[:12]}{dirty}")
    for name in SHOWN:
        value = run.made.get(name) or run.read.get(name)
        if value:
            branch.add(f"{'made' if name in run.made else 'read'} {name} {value}", highlight=False)
    for entry in run.sources:
        branch.add(f"[green]source[/] {entry['file']}  {entry['rows']:,} rows  {_hashes(entry)}", highlight=False)
    for earlier in run.earlier:
        _grow(branch, earlier)


def _hashes(entry: dict[str, Any]) -> str:
    """Return a source file's hash, and DVC's beside it where DVC keeps the file."""
    return f"sha256:{entry['sha256']}" + (f"  DVC md5:{entry['md5']}" if "md5" in entry else "")


def as_html(run: Run, title: str) -> str:
    """Return the chain as one page without anything from elsewhere: a list that folds."""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#223;background:#fff}"
        "ul{list-style:none;border-left:2px solid #cde;padding-left:1rem;margin:.3rem 0}code{color:#456;overflow-wrap:anywhere}"
        ".source{color:#171}@media(prefers-color-scheme:dark){body{background:#16181d;color:#dde}code{color:#9bc}.source{color:#7d7}"
        "ul{border-color:#345}}</style>"
        f"<h1>{html.escape(title)}</h1>{_html_of(run)}</html>\n"
    )


def _html_of(run: Run) -> str:
    dirty = " with local changes" if run.dirty else ""
    pipelines = ", ".join(run.facts.get("pipelines") or ["all pipelines"])
    shown = {name: run.made.get(name) or run.read[name] for name in SHOWN if name in run.made or name in run.read}
    lines = [
        f"<li>{'made' if name in run.made else 'read'} {name} <code>{html.escape(value)}</code></li>"
        for name, value in shown.items()
    ]
    lines += [
        f"<li class='source'>source {html.escape(entry['file'])}, {entry['rows']:,} rows <code>{_hashes(entry)}</code></li>"
        for entry in run.sources
    ]
    lines += [f"<li>{_html_of(earlier)}</li>" for earlier in run.earlier]
    sessions = ", ".join(run.sessions)
    head = f"run <code>{run.id}</code> of {html.escape(pipelines)}, {sessions}, commit <code>{run.commit}</code>{dirty}"
    return f"<details open><summary>{head}</summary><ul>{''.join(lines)}</ul></details>"
