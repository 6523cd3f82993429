"""A real PostgreSQL server of Debian's, in a temporary folder and on a free port of this machine."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import require

PASSWORD = "of-one-test"


def _binary(name: str) -> str | None:
    """Return the newest of Debian's, which keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else shutil.which(name)


def _unprivileged() -> Callable[[], None] | None:
    """Return what makes a child another user: the server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    user = pwd.getpwnam("postgres")

    def drop() -> None:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)

    return drop


def free_port() -> int:
    """Return a port of this machine's that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a server with an empty database; yield its URL; stop it and remove its files at the end."""
    initdb, server = _binary("initdb"), _binary("postgres")
    require(initdb is not None and server is not None, "PostgreSQL's server (Debian's package `postgresql`)")
    become = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="luthier-postgres-"))  # not in pytest's, which other users may not enter
    process = None
    try:
        (folder / "password").write_text(PASSWORD)
        if become is not None:
            user = pwd.getpwnam("postgres")
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        data, port = folder / "data", free_port()
        make = [initdb, "-D", data, "-U", "luthier", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, preexec_fn=become, cwd=folder)
        settings = ["listen_addresses=127.0.0.1", "max_connections=200", f"unix_socket_directories={folder}"]
        log = (folder / "log").open("w+")
        process = subprocess.Popen(
            [server, "-D", data, "-p", str(port), *(part for setting in settings for part in ("-c", setting))],
            stdout=log,
            stderr=log,
            preexec_fn=become,
            cwd=folder,
        )
        uri = f"postgresql+psycopg://luthier:{PASSWORD}@127.0.0.1:{port}/postgres"
        _wait_for(uri, process, folder / "log")
        yield uri
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # its "fast" shutdown, which does not wait for clients
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(uri: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(uri.replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the URL of a running server's database."""
    with postgresql() as uri:
        yield uri
