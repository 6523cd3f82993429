"""What happens to the gateway reaches a webhook, through real processes, in time; and every panel of the dashboards has data."""

import json
import os
import time

import psutil
import pytest
import requests
from commands import ROOT, kedro_in, output
from observed import SECONDS, Webhook, asked, free_ports, observed, require_programs, simulate, until, workers


@pytest.mark.slow
def test_what_happens_reaches_the_webhook_in_time_and_every_panel_has_data(copied):
    require_programs()
    (copied / "conf/test/parameters_monitoring.yml").write_text(
        "monitoring: {every_seconds: 1, patience_seconds: 20, drift: {window: 50, draws: 799}}"
    )
    promoted = kedro_in(copied, "promote", "1", "--force", "--reason", "a test", "--env", "test")
    assert promoted.returncode == 0, output(promoted)
    webhook, ports = Webhook(), free_ports()
    with observed(copied, webhook, ports) as processes:
        assert simulate(copied, ports, "data/01_raw/support_messages.jsonl", 60, 6, "--votes", "0.5").wait(180) == 0
        assert not {"LuthierDrift", "LuthierFirstTokenLate", "LuthierWorkerRestarted"} & webhook.fired.keys()

        # a killed worker
        workers(processes["gateway"])[0].kill()
        late = {"killed worker": webhook.wait("LuthierWorkerRestarted", time.monotonic())}

        # drifted windows: two of the last three
        until(lambda: requests.get(f"http://127.0.0.1:{ports.gateway}/readyz", timeout=5).ok, 60)
        assert simulate(copied, ports, "data/01_raw/other_messages.jsonl", 110, 8, "--votes", "0.5").wait(180) == 0
        late["drifted window"] = webhook.wait("LuthierDrift", time.monotonic())

        # a slow engine: it stands still for three seconds of every four
        traffic = simulate(copied, ports, "data/01_raw/support_messages.jsonl", 100, 1, "--votes", "0.5")
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
