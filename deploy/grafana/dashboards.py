"""The dashboards, as code: each panel a title, a unit and its queries. Writes dashboards/*.json, which Grafana is provisioned with.

.venv/bin/python deploy/grafana/dashboards.py            writes them
.venv/bin/python deploy/grafana/dashboards.py --check    exits 1 if what is written is not current
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FOLDER = Path(__file__).resolve().parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
WIDTH, HEIGHT = 12, 8
CHAT = 'gen_ai_operation_name="chat"'


@dataclass(frozen=True)
class Chart:
    """One panel."""

    title: str
    unit: str
    """Grafana's name of a unit, such as `s` or `percentunit`."""
    queries: Sequence[tuple[str, str]]
    """PromQL, and what its series are called."""
    says: str = ""


def quantiles(metric: str, by: str, name: str) -> list[tuple[str, str]]:
    """Return the median and the 95th percentile of a histogram."""
    rate = f"sum by (le, {by}) (rate({metric}_bucket{{{CHAT}}}[5m]))"
    return [(f"histogram_quantile({q}, {rate})", f"{q:.0%} {name}") for q in (0.5, 0.95)]


DASHBOARDS: dict[str, tuple[str, list[Chart]]] = {
    "overview": (
        "Luthier: overview",
        [
            Chart(
                "Requests",
                "reqps",
                [(f"sum by (error_type) (rate(gen_ai_server_request_duration_seconds_count{{{CHAT}}}[1m]))", "{{error_type}}")],
            ),
            Chart(
                "Share that failed",
                "percentunit",
                [("luthier:failed_ratio:rate5m", "5 minutes"), ("luthier:failed_ratio:rate1h", "1 hour")],
                "What clients did wrong aside.",
            ),
            Chart(
                "First token",
                "s",
                quantiles("gen_ai_server_time_to_first_token_seconds", "model_version", "version {{model_version}}"),
            ),
            Chart(
                "Whole answer",
                "s",
                quantiles("gen_ai_server_request_duration_seconds", "model_version", "version {{model_version}}"),
            ),
            Chart(
                "Running and waiting", "short", [("luthier_requests_running", "running"), ("luthier_requests_queued", "waiting")]
            ),
            Chart(
                "Decision of the monitor",
                "short",
                [("luthier_monitor_decision", "{{decision}}")],
                "1 for the decision of the last look.",
            ),
        ],
    ),
    "variants": (
        "Luthier: versions and variants",
        [
            Chart(
                "Requests by version",
                "reqps",
                [
                    (
                        f"sum by (model_version, variant) (rate(gen_ai_server_request_duration_seconds_count{{{CHAT}}}[1m]))",
                        "version {{model_version}}, {{variant}}",
                    )
                ],
            ),
            Chart(
                "Errors by version",
                "reqps",
                [
                    (
                        f'sum by (model_version, error_type) (rate(gen_ai_server_request_duration_seconds_count{{{CHAT}, error_type!="none"}}[1m])) or vector(0)',
                        "version {{model_version}}, {{error_type}}",
                    )
                ],
            ),
            Chart(
                "First token by variant", "s", quantiles("gen_ai_server_time_to_first_token_seconds", "variant", "{{variant}}")
            ),
            Chart(
                "Time of a token by variant",
                "s",
                quantiles("gen_ai_server_time_per_output_token_seconds", "variant", "{{variant}}"),
            ),
            Chart(
                "Why answers ended",
                "reqps",
                [
                    (
                        "sum by (finish_reason, model_version) (rate(luthier_answers_total[5m]))",
                        "{{finish_reason}}, version {{model_version}}",
                    )
                ],
            ),
            Chart("Versions that are served", "short", [("luthier_model_info", "version {{model_version}} {{alias}}")]),
        ],
    ),
    "tokens": (
        "Luthier: tokens and cache",
        [
            Chart(
                "Tokens",
                "short",
                [
                    (
                        f"sum by (gen_ai_token_type) (rate(gen_ai_client_token_usage_sum{{{CHAT}}}[1m]))",
                        "{{gen_ai_token_type}} a second",
                    )
                ],
            ),
            Chart(
                "Tokens of a request",
                "short",
                [
                    (
                        f"histogram_quantile(0.5, sum by (le, gen_ai_token_type) (rate(gen_ai_client_token_usage_bucket{{{CHAT}}}[5m])))",
                        "{{gen_ai_token_type}}, median",
                    )
                ],
            ),
            Chart("Tokens in the engines' caches", "short", [("luthier_engine_cached_tokens", "version {{model_version}}")]),
            Chart("Silence of an engine at work", "s", [("luthier_engine_silent_seconds", "version {{model_version}}")]),
        ],
    ),
    "resources": (
        "Luthier: resources",
        [
            Chart("Processor", "short", [("rate(luthier_process_cpu_seconds_total[1m])", "{{process}}, cores")]),
            Chart("Memory", "bytes", [("luthier_process_memory_bytes", "{{process}}")]),
            Chart("GPUs", "percentunit", [("luthier_gpu_utilization_ratio or vector(0)", "GPU {{gpu}}")]),
            Chart("GPU memory", "bytes", [("luthier_gpu_memory_used_bytes or vector(0)", "GPU {{gpu}}")]),
            Chart("Restarts of workers", "short", [("increase(luthier_worker_restarts_total[5m])", "in 5 minutes")]),
            Chart(
                "Request log",
                "short",
                [
                    ("luthier_log_rows_waiting", "rows that wait"),
                    ("increase(luthier_log_rows_dropped_total[5m])", "lost in 5 minutes"),
                ],
            ),
        ],
    ),
    "inputs": (
        "Luthier: inputs and drift",
        [
            Chart(
                "Effect of each feature in the newest window",
                "short",
                [("luthier_drift_score", "{{feature}}"), ("luthier_drift_minimum", "{{feature}} counts from")],
            ),
            Chart(
                "Features that have changed",
                "short",
                [("luthier_drift_changed", "{{feature}}"), ("luthier_drift_alarm", "alarm: two of three windows")],
            ),
            Chart(
                "Windows",
                "short",
                [("luthier_drift_windows", "compared"), ("luthier_drift_messages_waiting", "messages that wait")],
            ),
            Chart(
                "Characters of a request",
                "short",
                [
                    ("histogram_quantile(0.5, sum by (le) (rate(luthier_input_characters_bucket[5m])))", "median"),
                    ("histogram_quantile(0.95, sum by (le) (rate(luthier_input_characters_bucket[5m])))", "95 %"),
                ],
            ),
            Chart(
                "Languages", "reqps", [("topk(10, sum by (language) (rate(luthier_input_language_total[5m])))", "{{language}}")]
            ),
            Chart(
                "Personal data that was taken out",
                "short",
                [("sum by (kind) (rate(luthier_input_pii_total[5m])) or vector(0)", "{{kind}} a second")],
            ),
        ],
    ),
    "feedback": (
        "Luthier: feedback and experiments",
        [
            Chart(
                "Votes",
                "short",
                [
                    (
                        'sum by (rating, variant) (increase(luthier_feedback_total{result="created"}[5m])) or vector(0)',
                        "{{rating}} for {{variant}}",
                    )
                ],
            ),
            Chart(
                "Live quality",
                "percentunit",
                [
                    ("luthier_live_quality", "{{kind}}, version {{model_version}}"),
                    ("luthier_live_quality_low", "{{kind}}, version {{model_version}}, at least"),
                ],
            ),
            Chart("Votes and labels", "short", [("luthier_live_quality_subjects", "{{kind}}, version {{model_version}}")]),
            Chart(
                "Challenger minus champion",
                "short",
                [("luthier_experiment_difference or vector(0)", "{{variant}} {{bound}}")],
                "Bounds hold at every look.",
            ),
            Chart(
                "What the experiment says",
                "short",
                [
                    ("luthier_experiment_decision or vector(0)", "{{variant}}: {{decision}}"),
                    ("luthier_experiment_mismatch or vector(0)", "subjects are not dealt as planned"),
                ],
            ),
            Chart("Subjects", "short", [("luthier_experiment_subjects or vector(0)", "{{variant}}")]),
        ],
    ),
    "deployments": (
        "Luthier: deployments",
        [
            Chart("Champion", "short", [("luthier_champion_version", "version")]),
            Chart("Deployment log", "short", [("luthier_deployments", "{{action}}")]),
            Chart(
                "Looks at the registry",
                "short",
                [
                    ("increase(luthier_reloads_total[5m]) or vector(0)", "{{result}}"),
                    ("increase(luthier_rollbacks_total[5m])", "rollbacks"),
                ],
            ),
            Chart("Acts of the monitor", "short", [("luthier_monitor_acts_total or vector(0)", "{{act}} {{result}}")]),
            Chart(
                "Age of the last evaluation",
                "s",
                [
                    ("time() - luthier_evaluation_timestamp_seconds", "evaluation"),
                    ("time() - luthier_deployment_timestamp_seconds", "deployment"),
                    ("time() - luthier_monitor_last_look_timestamp_seconds", "look of the monitor"),
                ],
            ),
            Chart("Looks that failed", "short", [("increase(luthier_monitor_failures_total[15m])", "in 15 minutes")]),
        ],
    ),
}


def build(name: str) -> str:
    """Return a dashboard as Grafana reads it."""
    title, charts = DASHBOARDS[name]
    board = (
        Dashboard(title)
        .uid(f"luthier-{name}")
        .tags(["luthier"])
        .refresh("10s")
        .time("now-1h", "now")
        .with_variable(DatasourceVariable("source").type("prometheus").label("Prometheus"))
    )
    for chart in charts:
        panel = (
            Panel()
            .title(chart.title)
            .unit(chart.unit)
            .description(chart.says)
            .datasource(SOURCE)
            .span(WIDTH)
            .height(HEIGHT)
            .fill_opacity(8)
            .legend(VizLegendOptions().show_legend(True))
        )
        for number, (query, legend) in enumerate(chart.queries):
            panel.with_target(Dataquery().expr(query).legend_format(legend).ref_id(chr(ord("A") + number)).datasource(SOURCE))
        board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def main() -> int:
    """Write the files, or check them."""
    check, stale = "--check" in sys.argv[1:], []
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        file, text = FOLDER / f"{name}.json", build(name)
        if not file.is_file() or file.read_text() != text:
            stale.append(name)
            if not check:
                file.write_text(text)
    if check and stale:
        print(f"Not current: {', '.join(stale)}. Run deploy/grafana/dashboards.py.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
