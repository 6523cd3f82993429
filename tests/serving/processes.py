"""`kedro serve` as its users run it: a process that listens, and its clients."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pandas as pd
import psutil
from commands import command, environment, make_project
from openai import OpenAI

from luthier.registry import Registry
from luthier.serving.records.logged import read_requests
from tests.serving.versions import Home

KEY, ADMIN = "sk-client-0123456789", "sk-admin-0123456789"
ALICE, ROOT = {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {ADMIN}"}


@dataclass
class Server:
    """A `kedro serve` that answers."""

    process: "subprocess.Popen[str]"
    address: str
    home: Home
    log_uri: str
    said: list[str] = field(default_factory=list)
    """What it printed and logged, line by line."""

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0, timeout=60)

    def get(self, path: str, headers: dict[str, str] = ALICE) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", headers=headers, timeout=60)

    def post(self, path: str, headers: dict[str, str] = ALICE, **what: Any) -> httpx.Response:
        return httpx.post(f"{self.address}{path}", headers=headers, timeout=120, **what)

    def ask(self, text: str = "Hello", **options: Any) -> httpx.Response:
        """Send one plain request."""
        body = {"model": "luthier", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **options}
        return self.post("/v1/chat/completions", json=body)

    def champion(self) -> int:
        """Return the version that answers now."""
        return int(self.ask().headers["x-luthier-version"])

    def registry(self) -> Registry:
        return self.home.registry()

    def workers(self) -> list[psutil.Process]:
        """Return the processes of its engines: those that listen, and not the one that waits to take a place."""
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "luthier.serving.engines.worker" in child.cmdline() and child.net_connections()
        ]

    def rows(self) -> pd.DataFrame:
        return read_requests(self.log_uri)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def lay_out(home: Home, parameters: str = "") -> None:
    """Make the project around a registry, with parameters of serving of its own."""
    if not home.project.exists():
        make_project(home.project)
    if parameters:
        (home.project / "conf" / "test" / "parameters_serving.yml").write_text(parameters)


def start(home: Home, *arguments: str, env: str = "test", **variables: str) -> "subprocess.Popen[str]":
    """Start `kedro serve` in a project around a registry."""
    lay_out(home)
    said = environment() | {
        "MLFLOW_TRACKING_URI": home.uri,
        "LUTHIER_API_KEYS": f"alice:{KEY}",
        "LUTHIER_ADMIN_KEY": ADMIN,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    return subprocess.Popen(
        command("serve", "--env", env, "--port", "0", *arguments),
        cwd=home.project,
        env={name: value for name, value in said.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def serving(home: Home, *arguments: str, seconds: float = 120, env: str = "test", **variables: str) -> Iterator[Server]:
    """Start `kedro serve`, wait until it answers, and stop it at the end."""
    process = start(home, *arguments, env=env, **variables)
    server = Server(process, "", home, f"sqlite:///{home.project / 'data' / '06_models' / 'serving' / 'requests.db'}")
    listens = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.said.append(line.rstrip())
            if found := re.search(r"base_url (http://\S+)/v1", line):
                server.address = found[1]
                listens.set()
        listens.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        listens.wait(seconds)
        assert server.address, "\n".join(server.said)
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        listener.join(10)


def eventually(holds: Any, seconds: float = 30.0) -> bool:
    """Wait until something holds; tell whether it came to that."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
