"""A bucket for data, and databases for the request log."""

import fsspec
import pytest
from postgres import postgres  # noqa: F401
from storage import ENVIRONMENT, s3_server

from tests.serving.logs import uri  # noqa: F401


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Return the file system of an S3 server with an empty bucket `bucket`; copies go to a folder of this test."""
    with s3_server() as address:
        settings = ENVIRONMENT | {"AWS_ENDPOINT_URL": address, "LUTHIER_CACHE": str(tmp_path / "cache")}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        # it remembers the server of the test before
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        storage = fsspec.filesystem("s3", use_listings_cache=False)
        storage.mkdir("bucket")
        yield storage
        fsspec.get_filesystem_class("s3").clear_instance_cache()
