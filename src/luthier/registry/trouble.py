"""What to tell of MLflow or a database that cannot be asked, instead of where in a library that was noticed."""

import re

_SECRET = re.compile(r"(?<=//)[^/\s]*@|(?<=[?&]password=)[^&\s]*")
_LONGEST = 300
"""Characters of a library's own words that are shown."""


def trouble_of(error: Exception, tracking_uri: str, log_uri: str) -> str | None:
    """Return what to tell of an error of MLflow's or of a database; None for any other.

    Args:
        error: what a command ended with.
        tracking_uri: MLflow's.
        log_uri: database of the deployment log.
    """
    from mlflow.exceptions import MlflowException  # now: it takes long to import
    from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError

    # by type: what derives from these, such as a statement that is wrong, is no trouble of the database's
    if type(error) in (DatabaseError, InterfaceError, OperationalError):
        places = dict.fromkeys((f"MLflow is {_shown(tracking_uri)}", f"the deployment log {_shown(log_uri)}"))
        return (
            f"A database cannot be used: {_why(error)}\n"
            f"{', '.join(places)}: look whether it runs, and whether MLFLOW_TRACKING_URI and LUTHIER_LOG_URI are right."
        )
    if isinstance(error, MlflowException):
        return (
            f"MLflow at {_shown(tracking_uri)} cannot be asked: {_why(error)}\n"
            "Look whether it runs and can be reached from here, and whether MLFLOW_TRACKING_URI names the right one."
        )
    return None


def _shown(uri: str) -> str:
    return _SECRET.sub("", uri)


def _why(error: BaseException) -> str:
    """Return the first error of those that led to this one, in one line."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return _shown(" ".join(str(error).split()))[:_LONGEST] or type(error).__name__
