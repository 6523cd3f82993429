"""The dashboards that are written are those of the code, and each asks for metrics that exist."""

import json
import re
import subprocess
import sys

import pytest
from commands import ROOT

from tests.deploy.test_prometheus import exported

GRAFANA = ROOT / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))


def queries(file):
    """Return (title of the panel, query) of a dashboard."""
    return [(panel["title"], target["expr"]) for panel in json.loads(file.read_text())["panels"] for target in panel["targets"]]


def test_the_files_are_current():
    done = subprocess.run(
        [sys.executable, str(GRAFANA / "dashboards.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(FILES) >= 7


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_ask_for_metrics_that_exist(file):
    recorded = {"luthier:failed_ratio:rate5m", "luthier:failed_ratio:rate1h"}
    for title, query in queries(file):
        bare = re.sub(r"\{[^}]*\}|by \([^)]*\)", "", re.sub(r'"[^"]*"', "", query))
        used = set(re.findall(r"\b(?:luthier|gen_ai)[a-z_:0-9]*", bare))
        assert used <= exported() | recorded | {"luthier_gpu_utilization_ratio", "luthier_gpu_memory_used_bytes"}, (title, used)
