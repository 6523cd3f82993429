"""Wiring of data processing."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.data_processing import nodes

SETTINGS = ["params:data_processing", "params:folders"]


def create_pipeline() -> Pipeline:
    """Ingest, validate, clean, scrub, assess, de-duplicate, split, decontaminate, augment, tokenise, describe."""
    return Pipeline(
        [
            Node(
                func=nodes.ingest_rows,
                inputs=["params:data", "params:model", *SETTINGS],
                outputs=["ingested_rows", "sources"],
                name="ingest_rows",
            ),
            Node(
                func=nodes.fix_prompt_settings,
                inputs=["sources", "params:data", "params:data_processing"],
                outputs="prompt_settings",
                name="fix_prompt_settings",
            ),
            Node(
                func=nodes.load_answer_schema,
                inputs=["sources", "params:data", "params:folders"],
                outputs="answer_schema",
                name="load_answer_schema",
            ),
            Node(
                func=nodes.validate_rows,
                inputs=["ingested_rows", "sources", "prompt_settings", "answer_schema", "params:data", *SETTINGS],
                outputs=["records", "origins", "quarantine"],
                name="validate_rows",
            ),
            Node(
                func=nodes.clean_records,
                inputs=["records", "prompt_settings", *SETTINGS],
                outputs=["cleaned_records", "clean_changes", "clean_dropped"],
                name="clean_records",
            ),
            Node(
                func=nodes.scrub_records,
                inputs=["cleaned_records", "prompt_settings", *SETTINGS],
                outputs=["scrubbed_records", "scrub_changes"],
                name="scrub_records",
            ),
            Node(
                func=nodes.assess_quality,
                inputs=["scrubbed_records", *SETTINGS],
                outputs=["assessed_records", "quality_dropped"],
                name="assess_quality",
            ),
            Node(
                func=nodes.deduplicate_records,
                inputs=["assessed_records", *SETTINGS],
                outputs=["unique_records", "duplicates", "clusters"],
                name="deduplicate_records",
            ),
            Node(
                func=nodes.split_records,
                inputs=["unique_records", "clusters", "params:data_processing", "params:seed", "params:folders"],
                outputs=["divided_records", "split_table"],
                name="split_records",
            ),
            Node(
                func=nodes.decontaminate_records,
                inputs=["divided_records", "prompt_settings", *SETTINGS],
                outputs=["decontaminated_records", "contaminated"],
                name="decontaminate_records",
            ),
            Node(
                func=nodes.augment_records,
                inputs=["decontaminated_records", "prompt_settings", "params:data_processing", "params:seed", "params:folders"],
                outputs="split_records",
                name="augment_records",
            ),
            Node(
                func=nodes.tokenise_records,
                inputs=["split_records", "params:model", *SETTINGS],
                outputs=["examples", "tokenise_dropped"],
                name="tokenise_records",
            ),
            Node(
                func=nodes.report_data,
                inputs=[
                    "sources",
                    "origins",
                    "records",
                    "quarantine",
                    "cleaned_records",
                    "clean_changes",
                    "clean_dropped",
                    "scrub_changes",
                    "assessed_records",
                    "quality_dropped",
                    "unique_records",
                    "duplicates",
                    "divided_records",
                    "decontaminated_records",
                    "contaminated",
                    "split_records",
                    "examples",
                    "tokenise_dropped",
                ],
                outputs="data_report",
                name="report_data",
            ),
            Node(
                func=nodes.profile_data,
                inputs=["split_records", "examples", *SETTINGS],
                outputs=["data_profile", "data_profile_plot"],
                name="profile_data",
            ),
            Node(
                func=nodes.describe_data,
                inputs=["split_records", "data_profile", "sources", "data_report", *SETTINGS],
                outputs=["described_data", "data_card"],
                name="describe_data",
            ),
        ]
    )
