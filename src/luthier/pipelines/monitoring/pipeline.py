"""Wiring of monitoring."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.monitoring import nodes


def create_pipeline() -> Pipeline:
    """Request log, votes and training messages -> drift, quality, experiments -> a decision with its evidence."""
    settings = "params:monitoring"
    return Pipeline(
        [
            Node(
                func=nodes.read_log,
                inputs=["requests", "feedback"],
                outputs=["logged_requests", "logged_votes"],
                name="read_log",
            ),
            Node(
                func=nodes.observe_requests,
                inputs=["logged_requests", "request_texts", "split_records", "params:data", settings],
                outputs=["observed_messages", "reference_messages"],
                name="observe_requests",
            ),
            Node(
                func=nodes.measure_drift,
                inputs=["observed_messages", "reference_messages", settings],
                outputs="drift",
                name="measure_drift",
            ),
            Node(
                func=nodes.measure_quality,
                inputs=["logged_requests", "request_texts", "logged_votes", "params:serving", settings, "params:folders"],
                outputs="live_quality",
                name="measure_quality",
            ),
            Node(
                func=nodes.analyse_experiment,
                inputs=["logged_requests", "logged_votes", "params:serving", settings, "params:folders"],
                outputs="experiments",
                name="analyse_experiment",
            ),
            Node(
                func=nodes.decide,
                inputs=["drift", "live_quality", "experiments"],
                outputs="monitoring_decision",
                name="decide",
            ),
            Node(
                func=nodes.report_monitoring,
                inputs=["observed_messages", "drift", "live_quality", "experiments", "monitoring_decision"],
                outputs=["monitoring_report", "drift_plot"],
                name="report_monitoring",
            ),
            Node(
                func=nodes.log_monitoring,
                inputs=["drift", "live_quality", "monitoring_decision"],
                outputs=None,
                name="log_monitoring",
            ),
        ]
    )
