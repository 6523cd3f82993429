"""What the pipeline found is what Prometheus reads."""

from datetime import UTC, datetime

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from luthier.watching.gauges import Gauges
from tests.pipelines.monitoring.test_nodes import MESSAGES, OTHER, logged_messages, message, vote, watched


def read(gauges):
    """Return every sample: (name, labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(gauges.registry).decode())
        for sample in family.samples
    }


def test_gauges_show_what_was_found(tmp_path):
    uri = logged_messages(tmp_path, [message(text) for text in [*MESSAGES[:100], *(OTHER * 34)[:100], *(OTHER * 50)[:130]]])
    vote(uri, [(number, "up" if number % 4 else "down") for number in range(100)])
    found = watched(tmp_path, uri)
    told = {"monitoring_decision": "decided", "drift": "drift", "live_quality": "live", "experiments": "experiments"}
    gauges = Gauges()
    gauges.show(lambda name: found[told[name]], datetime(2026, 3, 1, tzinfo=UTC))
    seen = read(gauges)
    assert seen["luthier_monitor_decision", (("decision", "retrain"),)] == 1
    assert sum(value for (name, _), value in seen.items() if name == "luthier_monitor_decision") == 1
    assert (seen["luthier_drift_alarm", ()], seen["luthier_drift_windows", ()], seen["luthier_drift_messages_waiting", ()]) == (
        1,
        3,
        30,
    )
    newest = {change["feature"]: change for change in found["drift"]["windows"][-1]["changes"]}
    assert seen["luthier_drift_score", (("feature", "words"),)] == newest["words"]["effect"]
    assert seen["luthier_drift_changed", (("feature", "words"),)] == 1
    assert seen["luthier_live_quality", (("kind", "votes"), ("model_version", "1"))] == 0.75
    assert seen["luthier_live_quality_subjects", (("kind", "votes"), ("model_version", "1"))] == 100
    assert ("luthier_live_quality", (("kind", "labels"), ("model_version", "1"))) not in seen
    assert seen["luthier_evaluation_timestamp_seconds", ()] == datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    forgotten = {**found["live"], "versions": []}  # the log is as long as its days
    gauges.show(lambda name: forgotten if name == "live_quality" else found[told[name]], None)
    assert not any(name.startswith("luthier_live_quality") and labels for (name, labels) in read(gauges))


def test_before_the_first_look_nothing_is_made_up():
    gauges = Gauges()
    gauges.show(lambda name: None, None)
    assert not any(name == "luthier_monitor_decision" for name, _ in read(gauges))


def test_an_experiment_that_ended_is_shown_no_more():
    gauges = Gauges()
    compared = {"metric": "rating", "subjects": {"a": 1, "b": 1}, "difference": 0.1, "low": None, "high": 0.2}
    found = {
        "challenger": "b",
        "decision": "blocked",
        "assignment": {"subjects": {"a": 1, "b": 1}},
        "primary": compared,
        "guardrails": [{"compared": compared | {"metric": "errors"}, "state": "broken"}],
    }
    findings = {"experiments": [found]}
    gauges.show(findings.get, None)
    seen = read(gauges)
    assert seen["luthier_experiment_mismatch", ()] == 1
    assert seen["luthier_experiment_decision", (("decision", "blocked"), ("variant", "b"))] == 1
    assert seen["luthier_experiment_guardrail_broken", (("guardrail", "errors"), ("variant", "b"))] == 1
    assert ("luthier_experiment_difference", (("bound", "low"), ("variant", "b"))) not in seen
    findings["experiments"] = []
    gauges.show(findings.get, None)
    assert not any("variant" in dict(labels) for _, labels in read(gauges))
    assert read(gauges)["luthier_experiment_mismatch", ()] == 0
