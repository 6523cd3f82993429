"""Wiring of deployment."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.deployment import nodes


def create_pipeline() -> Pipeline:
    """Trace -> package -> compare -> register."""
    facts = ["evaluation", "gate_decision", "data_report", "lineage"]
    settings = ["params:model", "params:deployment", "params:folders"]
    return Pipeline(
        [
            Node(
                func=nodes.trace_lineage,
                inputs=[
                    "tuned_model",
                    "examples",
                    "split_records",
                    "described_data",
                    "sources",
                    "params:model",
                    "params:folders",
                ],
                outputs="lineage",
                name="trace_lineage",
            ),
            Node(
                func=nodes.package_model,
                inputs=["tuned_model", "prompt_settings", "answer_schema", *facts, "params:evaluation.max_new_tokens", *settings],
                outputs="package",
                name="package_model",
            ),
            Node(
                func=nodes.check_parity,
                inputs=[
                    "package",
                    "tuned_model",
                    "split_records",
                    "examples",
                    "params:evaluation.precision",
                    "params:evaluation.max_new_tokens",
                    *settings,
                ],
                outputs="parity",
                name="check_parity",
            ),
            Node(
                func=nodes.register_model,
                inputs=["package", "parity", "gate_decision", "lineage", "evaluation", "params:folders"],
                outputs="registered",
                name="register_model",
            ),
        ]
    )
