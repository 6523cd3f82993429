"""Gateway, monitor, Prometheus and Alertmanager together on one machine: `make observe`.

    python deploy/observe.py [--env ENV] [--webhook URL] [--act]

The configuration is that of deploy/, copied into a folder of work in which the addresses and the key of this start stand. What
ends by itself ends the others; Ctrl-C ends all.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

import yaml

from luthier.errors import UserError
from luthier.serving.keys import ADMIN_VARIABLE, CLIENT_VARIABLE, first_key

DEPLOY = Path(__file__).resolve().parent
PROGRAMS = {"prometheus": ("prometheus",), "alertmanager": ("prometheus-alertmanager", "alertmanager")}
"""What each is called: by Debian, by others."""
_GRACE = 40.0


@dataclass(frozen=True)
class Ports:
    """Where everything listens, on loopback."""

    gateway: int = 8080
    monitor: int = 9464
    prometheus: int = 9090
    alertmanager: int = 9093


def programs() -> dict[str, str]:
    """Return where Prometheus and Alertmanager are.

    Raises:
        UserError: if one is missing, with how to get it.
    """
    found = {name: next(filter(None, map(shutil.which, names)), None) for name, names in PROGRAMS.items()}
    if missing := [name for name, path in found.items() if path is None]:
        raise UserError(
            f"{' and '.join(missing)} cannot be found. On Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager. "
            "Elsewhere: https://prometheus.io/download, and the programs on the PATH. With Docker: deploy/compose.yaml."
        )
    return {name: path for name, path in found.items() if path is not None}


def lay_out(folder: Path, key: str, ports: Ports, webhook: str) -> None:
    """Copy the configuration of deploy/ into a folder, with the ports and the key of this start.

    Args:
        folder: is made anew, its data (`prometheus-data`) aside.
        key: of a client of the gateway.
        ports: where everything listens.
        webhook: where alerts are sent.
    """
    for part in ("prometheus", "alertmanager"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(DEPLOY / part, folder / part)
    prometheus = folder / "prometheus" / "prometheus.yml"
    settings = yaml.safe_load(prometheus.read_text())
    jobs = {job["job_name"]: job["static_configs"][0] for job in settings["scrape_configs"]}
    jobs["luthier-gateway"]["targets"] = [f"127.0.0.1:{ports.gateway}"]
    jobs["luthier-monitor"]["targets"] = [f"127.0.0.1:{ports.monitor}"]
    settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ports.alertmanager}"]
    prometheus.write_text(yaml.safe_dump(settings, sort_keys=False))
    secret = folder / "prometheus" / "metrics.key"
    secret.touch(mode=0o600)
    secret.write_text(key)
    alertmanager = folder / "alertmanager" / "alertmanager.yml"
    settings = yaml.safe_load(alertmanager.read_text())
    settings["receivers"][0]["webhook_configs"] = [{"url": webhook, "send_resolved": True}]
    alertmanager.write_text(yaml.safe_dump(settings, sort_keys=False))


def commands(folder: Path, ports: Ports, env: str | None, act: bool = False) -> dict[str, list[str]]:
    """Return how each process is started.

    Args:
        folder: that `lay_out` filled.
        ports: where everything listens.
        env: Kedro's environment.
        act: whether the monitor does what it decided.
    """
    found, chosen = programs(), ["--env", env] if env else []
    kedro = [sys.executable, "-m", "kedro"]
    return {
        "alertmanager": [
            found["alertmanager"],
            f"--config.file={folder / 'alertmanager' / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager-data'}",
            f"--web.listen-address=127.0.0.1:{ports.alertmanager}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ],
        "prometheus": [
            found["prometheus"],
            f"--config.file={folder / 'prometheus' / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus-data'}",
            f"--web.listen-address=127.0.0.1:{ports.prometheus}",
            "--log.level=warn",
        ],
        "gateway": [*kedro, "serve", "--port", str(ports.gateway), *chosen],
        "monitor": [*kedro, "monitor", "--port", str(ports.monitor), *(["--act"] if act else []), *chosen],
    }


@contextmanager
def running(command: list[str], project: Path, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process, and end it with the context."""
    # not in this terminal's group: Ctrl-C comes to us, and we end them in order
    process = subprocess.Popen(command, cwd=project, env=dict(environment), process_group=0)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Shown(BaseHTTPRequestHandler):
    """Shows alerts here, where nobody else is to be told."""

    def do_POST(self) -> None:
        """Print what Alertmanager sends."""
        for alert in json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"]:
            print(f"ALERT {alert['status']}  {alert['labels']['alertname']}: {alert['annotations']['summary']}", flush=True)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing else."""


@contextmanager
def shown_alerts() -> Iterator[str]:
    """Listen for alerts, and return where."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Shown) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/alerts"
        server.shutdown()


def main() -> int:
    """Start everything, say where it is, and wait until it ends."""
    parser = argparse.ArgumentParser(prog="make observe", description="Gateway, monitor, Prometheus and Alertmanager together.")
    parser.add_argument("--env", help="Kedro's environment")
    parser.add_argument("--webhook", help="where alerts are sent; by default they are shown here")
    parser.add_argument("--act", action="store_true", help="let the monitor do what it decided (monitoring.act)")
    given = parser.parse_args()
    ports, folder, project = Ports(), Path("data/06_models/observe").resolve(), Path.cwd()
    environment = dict(os.environ)
    environment.setdefault(CLIENT_VARIABLE, f"observe:sk-{secrets.token_urlsafe(24)}")
    environment.setdefault(ADMIN_VARIABLE, f"sk-{secrets.token_urlsafe(24)}")
    stack = ExitStack()
    try:
        key = first_key(environment)
        planned = commands(folder, ports, given.env, given.act)
        folder.mkdir(parents=True, exist_ok=True)
        lay_out(folder, key, ports, given.webhook or stack.enter_context(shown_alerts()))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1

    def stop(*_: int | FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with stack:
        try:
            bare = {name: value for name, value in environment.items() if name not in (CLIENT_VARIABLE, ADMIN_VARIABLE)}
            processes = {
                name: stack.enter_context(running(line, project, bare if name in PROGRAMS else environment))
                for name, line in planned.items()
            }
            print(f"Prometheus    http://127.0.0.1:{ports.prometheus}/alerts")
            print(f"Alertmanager  http://127.0.0.1:{ports.alertmanager}")
            # a key that is not of this start alone is nobody's to print
            shown = f"{CLIENT_VARIABLE}={key} " if CLIENT_VARIABLE not in os.environ else ""
            print(f"Traffic       {shown}kedro simulate data/01_raw/support_messages.jsonl", flush=True)
            while (ended := next((name for name, process in processes.items() if process.poll() is not None), None)) is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
        print(f"Error: {ended} has ended; what it said stands above.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
