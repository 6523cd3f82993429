"""The whole stack as `make observe` starts it: what happens to the gateway reaches a webhook, through real processes, in time."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import requests
from commands import ROOT, command, environment, kedro_in, output, require

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


@contextmanager
def observed(project, webhook):
    """Start everything; yield the processes and the ports."""
    ports = observe.Ports(*(free_port() for _ in range(4)))
    folder = project / "data" / "06_models" / "observe"
    folder.mkdir(parents=True, exist_ok=True)
    observe.lay_out(folder, KEY, ports, webhook.url)
    variables = environment() | {"LUTHIER_API_KEYS": f"demo:{KEY}", "LUTHIER_ADMIN_KEY": ADMIN, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(observe.running(line, project, variables))
            for name, line in observe.commands(folder, ports, "test").items()
        }
        until(lambda: requests.get(f"http://127.0.0.1:{ports.gateway}/readyz", timeout=5).ok, 120)
        until(lambda: requests.get(f"http://127.0.0.1:{ports.prometheus}/-/ready", timeout=5).ok, 60)
        until(lambda: requests.get(f"http://127.0.0.1:{ports.alertmanager}/-/ready", timeout=5).ok, 60)
        yield processes, ports


def until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        with suppress(requests.RequestException):
            if holds():
                return
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def simulate(project, ports, file: str, count: int, rate: float) -> "subprocess.Popen[bytes]":
    line = command("simulate", file, "--count", str(count), "--rate", str(rate), "--votes", "0.5")
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


@pytest.mark.slow
def test_what_happens_reaches_the_webhook_in_time_and_every_panel_has_data(copied):
    for name in observe.PROGRAMS:
        require(any(map(observe.shutil.which, observe.PROGRAMS[name])), f"{name} (Debian's package)")
    (copied / "conf/test/parameters_monitoring.yml").write_text(
        "monitoring: {every_seconds: 1, patience_seconds: 20, drift: {window: 50, draws: 799}}"
    )
    promoted = kedro_in(copied, "promote", "1", "--force", "--reason", "a test", "--env", "test")
    assert promoted.returncode == 0, output(promoted)
    webhook = Webhook()
    with observed(copied, webhook) as (processes, ports):
        assert simulate(copied, ports, "data/01_raw/support_messages.jsonl", 60, 6).wait(180) == 0
        assert not {"LuthierDrift", "LuthierFirstTokenLate", "LuthierWorkerRestarted"} & webhook.fired.keys()

        # a killed worker
        workers(processes["gateway"])[0].kill()
        late = {"killed worker": webhook.wait("LuthierWorkerRestarted", time.monotonic())}

        # drifted windows: two of the last three
        until(lambda: requests.get(f"http://127.0.0.1:{ports.gateway}/readyz", timeout=5).ok, 60)
        assert simulate(copied, ports, "data/01_raw/other_messages.jsonl", 110, 8).wait(180) == 0
        late["drifted window"] = webhook.wait("LuthierDrift", time.monotonic())

        # a slow engine: it stands still for three seconds of every four
        traffic = simulate(copied, ports, "data/01_raw/support_messages.jsonl", 100, 1)
        began = time.monotonic()
        while "LuthierFirstTokenLate" not in webhook.fired and time.monotonic() < began + SECONDS + 30:
            for worker in workers(processes["gateway"]):
                worker.suspend()
            time.sleep(3.2)
            for worker in workers(processes["gateway"]):
                worker.resume()
            time.sleep(0.8)
        late["slowed engine"] = webhook.wait("LuthierFirstTokenLate", began)
        print(", ".join(f"{name}: {seconds:.0f} s" for name, seconds in late.items()))
        assert max(late.values()) <= SECONDS, late

        # every panel of every dashboard has data
        empty = []
        for file in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
            for panel in json.loads(file.read_text())["panels"]:
                if not any(asked(ports, target["expr"]) for target in panel["targets"]):
                    empty.append(f"{file.stem}: {panel['title']}")
        traffic.kill()
        traffic.wait()
        assert not empty
        assert all(process.poll() is None for process in processes.values())
    assert not [
        child
        for child in psutil.Process(os.getpid()).children(recursive=True)
        if "luthier.serving.engines.worker" in child.cmdline()
    ]
