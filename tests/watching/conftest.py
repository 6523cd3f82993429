"""What the tests of `kedro monitor` share with those of serving."""

from postgres import postgres

from tests.serving.conftest import home, versions
from tests.serving.logs import uri

__all__ = ["home", "postgres", "uri", "versions"]
