"""What the tests of delivery share with those of serving."""

from tests.serving.conftest import home, versions

__all__ = ["home", "versions"]
