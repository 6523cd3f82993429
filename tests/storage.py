"""Real servers of S3 and of Google Cloud Storage on this machine, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


GOOGLE = {"FSSPEC_GS_TOKEN": "anon", "FSSPEC_GCS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
"""An emulator knows no accounts, and no gRPC, by which gcsfs asks for what a bucket is."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's server, and yield its address; it ends with the context."""
    with _served([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]) as address:
        yield address


@contextmanager
def gcs_server() -> Iterator[str]:
    """Start an emulator of Google Cloud Storage, and yield its address; it ends with the context."""
    emulator = str(Path(sys.executable).with_name("gcp-storage-emulator"))
    with _served([emulator, "start", "--host=127.0.0.1", "--in-memory", "--port"]) as address:
        yield address


@contextmanager
def _served(command: list[str]) -> Iterator[str]:
    """Start a server whose last argument is its port; yield its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | ENVIRONMENT
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
