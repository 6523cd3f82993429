"""A Ray cluster of several nodes on this machine, each a process tree of its own as `ray start` makes it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass
class Cluster:
    """Its address, and its nodes: the first one is the head."""

    address: str
    environment: dict[str, str]
    """That its nodes and its users have: one token, without which nobody may run code there."""
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def kill(self, node: int) -> None:
        """Take a machine away."""
        _end(self.nodes[node])


@contextmanager
def ray_cluster(nodes: int = 2) -> Iterator[Cluster]:
    """Start a cluster with one core a node, on loopback."""
    # Ray replaces 127.0.0.1 by the machine's own address; other addresses of loopback are left as they are
    with socket.create_server(("127.0.0.2", 0)) as free:
        address = f"127.0.0.2:{free.getsockname()[1]}"
    cluster = Cluster(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex})
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            for number in range(nodes):
                cluster.nodes.append(_start(cluster, number, Path(folder)))
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                _end(node)


def _start(cluster: Cluster, number: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a node; Ray gives up after a minute, which on a busy machine is too soon, so it is tried again."""
    port = cluster.address.partition(":")[2]
    where = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}/head"]
    options = [
        f"--node-ip-address=127.0.0.{number + 2}",
        "--num-cpus=1",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    ray, log = Path(sys.executable).with_name("ray"), folder / f"node-{number}.log"
    command = [str(ray), "start", *([f"--address={cluster.address}"] if number else where), *options, "--block"]
    for _ in range(3):
        with log.open("wb") as said:
            node = subprocess.Popen(
                command, stdout=said, stderr=said, start_new_session=True, env=os.environ | cluster.environment
            )
        while node.poll() is None:
            if "Ray runtime started." in log.read_text(errors="replace"):
                return node
            time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace"))


def _end(node: "subprocess.Popen[bytes]") -> None:
    if node.poll() is None:
        family = psutil.Process(node.pid).children(recursive=True)
        for process in [psutil.Process(node.pid), *family]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        node.wait(30)
