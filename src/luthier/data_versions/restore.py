"""Make an old version of the prepared data the newest one again, so that every run takes it.

All data sets are copied under names that nobody sees, then renamed within a moment. What is broken off before leaves the data as
it was; given again, the command makes a newer version still, whole.
"""

import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from luthier.chain import DATA, MADE
from luthier.data_versions.store import DataSet
from luthier.errors import UserError
from luthier.lineage import RUN_FACTS, SESSION, made_in

RESTORED = "luthier.restored"
"""Tag of a run that brought a version back: which."""


def restore(sets: Sequence[DataSet], version: str, new: str) -> None:
    """Make `version` of all these data sets the version `new`.

    Raises:
        UserError: if a data set lacks the version, or `new` would not be the newest. Then nothing was changed.
    """
    held = {dataset.name: dataset.versions() for dataset in sets}
    if missing := [name for name, versions in held.items() if version not in versions]:
        raise UserError(f"Version {version} is not whole, so it cannot be brought back: {', '.join(missing)} missing.")
    newest = max(max(versions) for versions in held.values())
    if newest >= new:
        raise UserError(f"There is a version {newest}, which is later than now ({new}): is the clock right?")
    staged, shown = f".restoring-{new}-{uuid.uuid4().hex[:8]}", list[DataSet]()
    try:
        for dataset in sets:
            dataset.copy(version, staged)
        with _ctrl_c_waits(all(dataset.is_local for dataset in sets)):
            for dataset in sets:
                shown.append(dataset)
                dataset.show(version, staged, new)
    except BaseException:
        for dataset in shown:
            _take_back(dataset, new)
        for dataset in sets:
            _take_back(dataset, staged)
        raise


def _take_back(dataset: DataSet, version: str) -> None:
    if dataset.storage.exists(f"{dataset.path}/{version}"):
        dataset.remove(version)


@contextmanager
def _ctrl_c_waits(wanted: bool) -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back for a moment: renaming comes to its end. An upload may be long, and is taken back instead."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def record(client: Any, experiment: str, version: str, new: str, names: Sequence[str], facts: Mapping[str, str]) -> None:
    """Log a run that read the old version and made the new one: so `kedro lineage` finds the way back through it.

    Args:
        client: an `mlflow.MlflowClient`.
        experiment: name of the experiment; without it nothing was ever recorded, and nothing is.
        version: that was brought back.
        new: what it is called now.
        names: of the data sets.
        facts: further tags.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return
    makers = client.search_runs([found.experiment_id], made_in(version), max_results=1)
    said = makers[0].data.tags if makers else {}
    values = {name: said.get(f"{MADE}{name}", version) for name in names}
    run = client.create_run(
        found.experiment_id,
        run_name=f"restore {version}",
        tags={
            SESSION: new,
            RESTORED: version,
            **facts,
            **{f"{DATA}{name}": value for name, value in values.items()},
            **{f"{MADE}{name}": value.replace(version, new, 1) for name, value in values.items()},
        },
    )
    client.log_dict(run.info.run_id, {"pipelines": [f"kedro data restore {version}"]}, RUN_FACTS)
    client.set_terminated(run.info.run_id)
