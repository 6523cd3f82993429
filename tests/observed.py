"""The whole stack as `make observe` starts it, and a webhook that its alerts reach."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import requests
from commands import ROOT, command, environment, require

sys.path.insert(0, str(ROOT / "deploy"))
import observe

KEY, ADMIN = "sk-client-0123456789", "sk-admin-0123456789"
SECONDS = 60
"""In which a condition must reach the webhook."""


class Webhook:
    """Keeps the alerts that Alertmanager sends, and when each came first."""

    def __init__(self):
        self.fired: dict[str, float] = {}
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in said["alerts"]:
                    if alert["status"] == "firing":
                        webhook.fired.setdefault(alert["labels"]["alertname"], time.monotonic())
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"

    def wait(self, name: str, since: float) -> float:
        """Return how long after a condition its alert came."""
        end = since + SECONDS + 30
        while name not in self.fired and time.monotonic() < end:
            time.sleep(0.1)
        assert name in self.fired, f"{name} did not fire; {sorted(self.fired)} did"
        return self.fired[name] - since


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def free_ports() -> observe.Ports:
    return observe.Ports(*(free_port() for _ in range(4)))


@contextmanager
def observed(project, webhook, ports, act=False):
    """Start everything; yield the processes."""
    folder = project / "data" / "06_models" / "observe"
    folder.mkdir(parents=True, exist_ok=True)
    observe.lay_out(folder, KEY, ports, webhook.url)
    variables = environment() | {"LUTHIER_API_KEYS": f"demo:{KEY}", "LUTHIER_ADMIN_KEY": ADMIN, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(observe.running(line, project, variables))
            for name, line in observe.commands(folder, ports, "test", act).items()
        }
        until(lambda: requests.get(f"http://127.0.0.1:{ports.gateway}/readyz", timeout=5).ok, 120)
        until(lambda: requests.get(f"http://127.0.0.1:{ports.prometheus}/-/ready", timeout=5).ok, 60)
        until(lambda: requests.get(f"http://127.0.0.1:{ports.alertmanager}/-/ready", timeout=5).ok, 60)
        yield processes


def until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        with suppress(requests.RequestException):
            if holds():
                return
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def simulate(project, ports, file: str, count: int, rate: float, *more: str) -> "subprocess.Popen[bytes]":
    line = command("simulate", file, "--count", str(count), "--rate", str(rate), *more)
    line += ["--url", f"http://127.0.0.1:{ports.gateway}", "--env", "test"]
    return subprocess.Popen(line, cwd=project, env=environment() | {"LUTHIER_API_KEYS": f"demo:{KEY}"}, stdout=subprocess.DEVNULL)


def workers(gateway) -> list[psutil.Process]:
    """Return the processes of engines that listen."""
    children = psutil.Process(gateway.pid).children(recursive=True)
    return [child for child in children if "luthier.serving.engines.worker" in child.cmdline() and child.net_connections()]


def asked(ports, query: str) -> list:
    answer = requests.get(f"http://127.0.0.1:{ports.prometheus}/api/v1/query", params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


def require_programs() -> None:
    for names in observe.PROGRAMS.values():
        require(any(map(observe.shutil.which, names)), f"{names[0]} (Debian's package)")
