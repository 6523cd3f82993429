"""Which versions of data sets are needed, and by whom: what is not, may be removed."""

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.chain import DATA, MADE
from luthier.errors import UserError
from luthier.lineage import sessions_of

if TYPE_CHECKING:
    from luthier.registry import Version

Needed = dict[tuple[str, str], str]
"""(data set, version) -> who needs it."""
PREVIOUS = "data_processing.split.previous"
"""The parameter that names an earlier split table, by a path and not as an input."""
DAYS_UNDER_WAY = 7
"""A run that says for longer that it is under way was killed."""


def needed_by_models(
    versions: Sequence["Version"], runs: Sequence[Any], names: Collection[str], crossing: Collection[str]
) -> Needed:
    """Return what the registered versions of the model need.

    One with an alias keeps all that its runs made and read. Of any other stays what one pipeline took from another, and what came
    from another run: enough to follow it back and to do it again; the steps between can be made again from that.

    Args:
        versions: all registered ones.
        runs: of MLflow, all of the experiment.
        names: of all data sets.
        crossing: data sets that one pipeline makes and another reads.

    Raises:
        UserError: if MLflow has lost a run: what its version needs cannot be told.
    """
    by_id = {run.info.run_id: run for run in runs}
    by_session: dict[str, list[Any]] = {}
    for run in runs:
        for session in sessions_of(run.data.tags):
            by_session.setdefault(session, []).append(run)
    if lost := [str(version.number) for version in versions if version.run not in by_id]:
        raise UserError(
            f"MLflow has no run of version {', '.join(lost)} of the model: what it needs cannot be told, so nothing is removed. "
            "Delete that version in MLflow, or restore its run (`mlflow gc` and `mlflow runs restore`)."
        )
    found: Needed = {}
    for version in sorted(versions, key=lambda one: bool(one.aliases), reverse=True):
        who = f"{', '.join(version.aliases)} (version {version.number})" if version.aliases else f"version {version.number}"
        for run in _chain(by_id[version.run], by_session):
            own = sessions_of(run.data.tags)
            everything = [(name, session) for session in own for name in names] if version.aliases else []
            if earlier := split_of(run.data.params.get(PREVIOUS, "")):
                found.setdefault(earlier, who)
            for name, session in [*everything, *_read_and_made(run)]:
                if version.aliases or name in crossing or session not in own:
                    found.setdefault((name, session), who)
    return found


def split_of(path: str) -> tuple[str, str] | None:
    """Return which split table `data_processing.split.previous` names; None if that is none of the catalog's versions."""
    found = re.search(r"(?:^|/)split_table/([^/]+)/", path)
    return ("split_table", found[1]) if found else None


def needed_by_runs_under_way(runs: Sequence[Any], names: Collection[str]) -> Needed:
    """Return what runs need that are not over: all that they read, and whatever they make."""
    found: Needed = {}
    for run in runs:
        since = time.time() - run.info.start_time / 1000
        if run.info.status != "RUNNING" or since > DAYS_UNDER_WAY * 86_400:
            continue
        whatever = [(name, session) for session in sessions_of(run.data.tags) for name in names]
        found |= dict.fromkeys([*_read_and_made(run), *whatever], "a run under way")
    return found


def _read_and_made(run: Any) -> Iterator[tuple[str, str]]:
    for tag, value in run.data.tags.items():
        for prefix in (DATA, MADE):
            if tag.startswith(prefix):
                yield tag.removeprefix(prefix), value.split()[0]


def _chain(run: Any, by_session: Mapping[str, list[Any]]) -> Iterator[Any]:
    """Yield a run, and the runs that made what it read, and so on."""
    seen, waiting = set[str](), [run]
    while waiting:
        current = waiting.pop()
        if current.info.run_id in seen:
            continue
        seen.add(current.info.run_id)
        yield current
        waiting += [maker for _, session in _read_and_made(current) for maker in by_session.get(session, [])]
