"""Wiring of data processing."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.data_processing import nodes


def create_pipeline() -> Pipeline:
    """Ingest -> validate -> de-duplicate -> split -> tokenise -> report."""
    return Pipeline(
        [
            Node(
                func=nodes.ingest_rows,
                inputs=["params:data", "params:folders"],
                outputs="ingested_rows",
                name="ingest_rows",
            ),
            Node(
                func=nodes.fix_prompt_settings,
                inputs="params:data",
                outputs="prompt_settings",
                name="fix_prompt_settings",
            ),
            Node(
                func=nodes.load_answer_schema,
                inputs=["params:data", "params:folders"],
                outputs="answer_schema",
                name="load_answer_schema",
            ),
            Node(
                func=nodes.validate_rows,
                inputs=["ingested_rows", "prompt_settings", "answer_schema", "params:data", "params:data_processing"],
                outputs=["records", "quarantine"],
                name="validate_rows",
            ),
            Node(
                func=nodes.deduplicate_records,
                inputs=["records", "params:data_processing"],
                outputs=["unique_records", "duplicates"],
                name="deduplicate_records",
            ),
            Node(
                func=nodes.split_records,
                inputs=["unique_records", "params:data_processing", "params:seed"],
                outputs="split_records",
                name="split_records",
            ),
            Node(
                func=nodes.tokenise_records,
                inputs=["split_records", "params:model", "params:data_processing", "params:folders"],
                outputs=["examples", "too_long"],
                name="tokenise_records",
            ),
            Node(
                func=nodes.report_data,
                inputs=["ingested_rows", "quarantine", "duplicates", "too_long", "split_records", "examples"],
                outputs="data_report",
                name="report_data",
            ),
        ]
    )
