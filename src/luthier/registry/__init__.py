"""Which versions of the model there are, which one is in production, and how it came there.

Versions, their tags and aliases live in MLflow's model registry; their packages in MLflow's artefact store. MLflow has no history
of its aliases, and its client cannot set two of them at once. So the truth about production is a log of our own: a table, by
default in MLflow's database, to which lines are only ever added, each with the hash of the one before.

`previous` is what a rollback would bring back: the champion that the present one was promoted over. A rollback restores the state
of that line, its `previous` included, so two rollbacks go back twice and never return to what was just taken back.
"""

from luthier.registry.log import FIRST, BusyError, DeploymentLog, Line, check_chain, whoami
from luthier.registry.registry import Registry, Standing, of_active_run
from luthier.registry.store import check_bytes
from luthier.registry.versions import Version

__all__ = [
    "FIRST",
    "BusyError",
    "DeploymentLog",
    "Line",
    "Registry",
    "Standing",
    "Version",
    "check_bytes",
    "check_chain",
    "of_active_run",
    "whoami",
]
