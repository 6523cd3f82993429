"""One MLflow run for several `kedro run`: `kedro begin` makes it, and MLflow's variable names it.

Lineage and reproduction take such a run for one. So it is refused what one run could not have done.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import UserError
from luthier.lineage import flatten

VARIABLE = "MLFLOW_RUN_ID"


def begun(environ: Mapping[str, str], experiment: str) -> Any:
    """Return the MLflow run that a command goes on with; None if it has one of its own.

    Args:
        environ: of the command.
        experiment: name of the project's.

    Raises:
        UserError: if the variable names no run that can be gone on with.
    """
    named = environ.get(VARIABLE)
    if named is None:
        return None
    import mlflow
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

    if not named.strip():
        raise UserError(f"{VARIABLE} is set and empty: did `kedro begin` fail? Unset it for a run of its own.")
    try:
        run = mlflow.get_run(named)
        home = mlflow.get_experiment(run.info.experiment_id).name
    except mlflow.MlflowException as error:
        if error.error_code not in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)):
            raise UserError(f"{VARIABLE}: MLflow cannot be asked for run {named}: {error}") from error
        raise UserError(f"{VARIABLE}: there is no run {named} in this MLflow. `kedro begin` begins one, or unset it.") from error
    if run.info.lifecycle_stage != "active":
        raise UserError(f"{VARIABLE}: run {named} was deleted. `kedro begin` begins another one.")
    if home != experiment:
        raise UserError(f"{VARIABLE}: run {named} belongs to the experiment {home}, and this project to {experiment}.")
    return run


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command that has a run of its own."""
    return {name: value for name, value in environ.items() if name != VARIABLE}


def continued(facts: dict[str, Any], earlier: dict[str, Any], rooms: Sequence[str], finished: bool) -> dict[str, Any]:
    """Return the facts of a `kedro run` together with those of the ones before it in the same MLflow run.

    What came last may be run again, as after a failure. What came before may not: MLflow keeps one version of each data set, and
    the run would say that what came after was made from the newest.

    Args:
        facts: from `lineage.run_facts`.
        earlier: the same of those before.
        rooms: the pipelines that run where none is named.
        finished: whether the last one came to its end.

    Raises:
        UserError: if they cannot be done again as one: other parameters, another environment, other code, single nodes, an
            earlier pipeline.
    """
    if facts["selected"] or earlier["selected"]:
        raise UserError(f"A run that several `kedro run` share ({VARIABLE}) has whole pipelines: select no nodes.")
    for what, name in (("--env", "env"), ("the commit", "commit"), ("local changes of the hash", "changes")):
        if facts[name] != earlier.get(name):
            raise _other(f"with {what} {earlier.get(name)}, and now it is {facts[name]}")
    now, before = flatten(facts["parameters"]), flatten(earlier["parameters"])
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    if changed:
        told = "\n  ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed)
        raise _other(f"with other parameters:\n  {told}")
    done, asked = (_expanded(one["pipelines"], rooms) for one in (earlier, facts))
    if asked == done[-len(asked) :] and (len(asked) == 1 or not finished):
        return facts | {"pipelines": done}
    if repeated := [name for name in asked if name in done]:
        raise _other(f"and has run {', '.join(done)}; {', '.join(repeated)} once more would put other data under what came after")
    return facts | {"pipelines": [*done, *asked]}


def _expanded(pipelines: Sequence[str], rooms: Sequence[str]) -> list[str]:
    named = pipelines or ["__default__"]
    return list(dict.fromkeys(room for name in named for room in (rooms if name == "__default__" else [name])))


def _other(why: str) -> UserError:
    return UserError(f"The run in {VARIABLE} was begun {why}. `kedro begin` begins another one.")
