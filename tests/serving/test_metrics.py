"""Metrics: OpenTelemetry's names and buckets, counts that add up, and label values from closed sets alone."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from luthier.serving.api.errors import CODES
from luthier.serving.metrics import Metrics
from luthier.serving.routing import Experiment, RouteTable, Variant

TABLE = RouteTable(
    versions={3: "c" * 64, 4: "d" * 64},
    aliases={"champion": 3, "candidate": 4, "previous": 3},
    experiment=Experiment("e1", (Variant("champion", 3, 0.9), Variant("challenger", 4, 0.1))),
)
LABELS = {"gen_ai_operation_name", "gen_ai_request_model", "gen_ai_response_model", "error_type", "variant", "model_version"}


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.serving(TABLE)
    return made


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a sample by those of its labels, but for operation and bucket."""
    text = metrics.exposition()[0].decode()
    return {
        tuple(
            value for label, value in sorted(sample.labels.items()) if label not in ("gen_ai_operation_name", "le")
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_a_request_is_counted_under_what_it_was(metrics):
    metrics.request("luthier", "luthier@4", 4, "challenger", 2.0, 0.5, 12, 31)
    key = ("none", "luthier", "luthier@4", "4", "challenger")  # error, asked, answered, version, variant
    assert samples(metrics, "gen_ai_server_request_duration_seconds_count") == {key: 1}
    assert samples(metrics, "gen_ai_server_request_duration_seconds_sum") == {key: 2.0}
    assert samples(metrics, "gen_ai_server_time_to_first_token_seconds_sum") == {key: 0.5}
    assert samples(metrics, "gen_ai_server_time_per_output_token_seconds_sum") == {key: pytest.approx(1.5 / 30)}
    assert samples(metrics, "gen_ai_client_token_usage_sum") == {
        ("none", "luthier", "luthier@4", "input", "4", "challenger"): 12,
        ("none", "luthier", "luthier@4", "output", "4", "challenger"): 31,
    }


def test_what_a_shadow_says_is_timed_and_is_no_answer(metrics):
    metrics.request("luthier", "luthier@3", 3, "champion", 1.0, finish="stop")
    metrics.request("luthier", "luthier@4", 4, None, 1.0, finish="length", operation="shadow")
    assert samples(metrics, "luthier_answers_total") == {("stop", "3", "champion"): 1}
    assert sum(samples(metrics, "gen_ai_server_request_duration_seconds_count").values()) == 2


def test_a_refused_request_is_counted_without_what_it_never_had(metrics):
    metrics.request("gpt-99", None, None, None, 0.001, error="model_not_found")
    key = ("model_not_found", "other", "none", "none", "none")
    assert samples(metrics, "gen_ai_server_request_duration_seconds_count") == {key: 1}
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds"):
        assert samples(metrics, f"gen_ai_server_{name}_count") == {}
    assert samples(metrics, "gen_ai_client_token_usage_count") == {}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(), st.none() | st.text(), st.none() | st.text(), st.text()), max_size=20))
def test_no_client_makes_a_time_series_of_its_own(requests):
    metrics = Metrics()
    metrics.serving(TABLE)
    for asked, answered, variant, error in requests:
        metrics.request(asked, answered, None, variant, 0.1, error=error)
        metrics.feedback("created", variant, "up")
    known = {*TABLE.models, *CODES, "champion", "challenger", "other", "none", "chat"}
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            if family.name.startswith("gen_ai"):
                assert sample.labels.keys() - {"le", "gen_ai_token_type"} == LABELS
                assert {value for label, value in sample.labels.items() if label != "le"} <= known
    assert sum(samples(metrics, "gen_ai_server_request_duration_seconds_count").values()) == len(requests)


def test_requests_under_way_during_a_switch_are_counted_under_their_own_version(metrics):
    metrics.serving(
        RouteTable(versions={5: "e" * 64}, aliases={"champion": 5}, experiment=Experiment("e1", (Variant("champion", 5, 1.0),)))
    )
    metrics.request("luthier", "luthier@4", 4, "challenger", 1.0)
    assert list(samples(metrics, "gen_ai_server_request_duration_seconds_count")) == [
        ("none", "luthier", "luthier@4", "4", "challenger")
    ]
    assert samples(metrics, "luthier_model_info") == {("champion", "e" * 64, "5"): 1}


def test_what_is_served_is_told_with_its_aliases_and_manifest(metrics):
    assert samples(metrics, "luthier_model_info") == {("champion,previous", "c" * 64, "3"): 1, ("candidate", "d" * 64, "4"): 1}


def test_ours_are_there_from_the_first_scrape_and_count(metrics):
    assert samples(metrics, "luthier_log_rows_dropped_total") == {(): 0}
    metrics.log_dropped.inc(3)
    metrics.running.inc()
    metrics.queued.set(4)
    metrics.restarts.inc()
    metrics.rollback()
    metrics.reload("reloaded")
    metrics.feedback("refused")
    metrics.feedback("created", "challenger", "down")
    assert samples(metrics, "luthier_log_rows_dropped_total") == {(): 3}
    assert samples(metrics, "luthier_requests_running") == {(): 1}
    assert samples(metrics, "luthier_requests_queued") == {(): 4}
    assert samples(metrics, "luthier_worker_restarts_total") == {(): 1}
    assert samples(metrics, "luthier_rollbacks_total") == {(): 1}
    assert samples(metrics, "luthier_reloads_total") == {("reloaded",): 1, ("unchanged",): 0, ("failed",): 0}
    assert samples(metrics, "luthier_feedback_total") == {("none", "refused", "none"): 1, ("down", "created", "challenger"): 1}


def test_buckets_are_opentelemetrys(metrics):
    metrics.request("luthier", "luthier@3", 3, "champion", 1.0, 0.5, 5, 5)
    text = metrics.exposition()[0].decode()
    for name, first, last, count in (
        ("gen_ai_server_request_duration_seconds", 0.01, 81.92, 14),
        ("gen_ai_server_time_to_first_token_seconds", 0.001, 10.0, 16),
        ("gen_ai_server_time_per_output_token_seconds", 0.01, 2.5, 13),
    ):
        bounds = [float(bound) for bound in re.findall(rf'^{name}_bucket{{.*?le="([^"]+)"', text, re.MULTILINE)]
        assert (bounds[0], bounds[-2], len(bounds) - 1) == (first, last, count)


def test_both_formats_of_prometheus_can_be_read(metrics):
    metrics.request("luthier", "luthier@3", 3, "champion", 1.0)
    text, plain = metrics.exposition("text/plain")
    assert plain.startswith("text/plain")
    body, media_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    read = {family.name for family in openmetrics(body.decode())}
    assert {"gen_ai_server_request_duration_seconds", "luthier_log_rows_dropped"} <= read
    assert text != body


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on this machine")
def test_prometheus_own_linter_finds_nothing(metrics):
    metrics.request("luthier", "luthier@3", 3, "champion", 1.0, 0.5, 5, 5)
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics.exposition()[0], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
