"""The rules of deploy/: promtool agrees with them, every alert has a test and a page, and every metric that they name exists."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import ROOT, require
from observed import observe

from luthier.serving.metrics import Metrics
from luthier.serving.resources import Resources
from luthier.watching.gauges import Gauges

PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = [rule for group in yaml.safe_load((PROMETHEUS / "rules/alerts.yml").read_text())["groups"] for rule in group["rules"]]


def tool(*arguments, cwd=PROMETHEUS):
    require(shutil.which(arguments[0]) is not None, f"{arguments[0]} (Debian's packages `prometheus`, `prometheus-alertmanager`)")
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configurations_are_accepted(tmp_path):
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    (tmp_path / "prometheus" / "metrics.key").touch()
    tool("promtool", "check", "config", "prometheus.yml", cwd=tmp_path / "prometheus")
    # as `make observe` has it: Debian's amtool 0.25 does not know `url_file` yet, which Alertmanager 0.26 brought
    observe.lay_out(tmp_path / "observe", "key", observe.Ports(), "http://127.0.0.1:9095/alerts")
    tool("amtool", "check-config", str(tmp_path / "observe" / "alertmanager" / "alertmanager.yml"))


def test_alerts_reach_the_address_that_whoever_deploys_must_give():
    deploy = ROOT / "deploy"
    (receiver,) = yaml.safe_load((deploy / "alertmanager/alertmanager.yml").read_text())["receivers"]
    (webhook,) = receiver["webhook_configs"]
    file = Path(webhook["url_file"])
    assert "url" not in webhook

    written = (deploy / "compose.yaml").read_text()
    compose = yaml.safe_load(written)
    assert file.name in compose["services"]["alertmanager"]["secrets"]
    assert file.parent == Path("/run/secrets")
    header = written.split("name: luthier")[0]
    assert f"export {compose['secrets'][file.name]['environment']}=" in header

    manifests = yaml.safe_load_all((deploy / "kubernetes/base/prometheus.yaml").read_text())
    pods = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]
    (pod,) = (one for one in pods if one["containers"][0]["name"] == "alertmanager")
    (volume,) = (one for one in pod["volumes"] if "secret" in one)
    assert {"name": volume["name"], "mountPath": str(file.parent)} in pod["containers"][0]["volumeMounts"]
    assert not volume["secret"].get("optional")
    (item,) = volume["secret"]["items"]
    assert item["path"] == file.name
    assert f"--from-literal={item['key']}=" in (deploy / "kubernetes/base/kustomization.yaml").read_text().split("namespace:")[0]


@pytest.mark.parametrize("file", sorted(path.name for path in (PROMETHEUS / "tests").glob("*.yml")))
def test_alerts_fire_when_they_should_and_only_then(file):
    assert "SUCCESS" in tool("promtool", "test", "rules", f"tests/{file}")


def test_every_alert_has_a_test_and_a_page():
    tested = set()
    for file in (PROMETHEUS / "tests").glob("*.yml"):
        for test in yaml.safe_load(file.read_text())["tests"]:
            tested |= {case["alertname"] for case in test.get("alert_rule_test", []) if case.get("exp_alerts")}
    names = {rule["alert"] for rule in ALERTS}
    assert tested == names
    assert set(re.findall(r"^### (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.M)) == names
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_inhibitions_name_alerts_that_there_are():
    names = {rule["alert"] for rule in ALERTS}
    for rule in yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            pattern = re.fullmatch(r'alertname=~?"(.*)"', matcher)[1]
            for alternative in pattern.split("|"):
                assert any(re.fullmatch(alternative, name) for name in names), alternative


def exported() -> set[str]:
    """Return the names of all metrics of the gateway and of the monitor, as Prometheus stores them."""
    serving = Metrics()
    serving.registry.register(Resources(dict))
    names = set()
    for registry in (serving.registry, Gauges().registry):
        for metric in registry.collect():
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(metric.type, [""])
            names |= {metric.name + ending for ending in endings}
    return names


def test_rules_use_metrics_that_exist():
    known = exported() | {"up"}
    recorded = set()
    for file in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((PROMETHEUS / "rules" / file).read_text())["groups"]:
            for rule in group["rules"]:
                expression = re.sub(r'"[^"]*"', "", rule["expr"])
                used = set(re.findall(r"\b(?:luthier|gen_ai)[a-z_:0-9]*", re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)))
                assert used <= known | recorded, used - known - recorded
                recorded |= {rule.get("record", "")}
