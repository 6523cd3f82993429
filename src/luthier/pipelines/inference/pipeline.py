"""Wiring of inference."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.inference import nodes


def create_pipeline() -> Pipeline:
    """Rows of a file -> answers."""
    settings = ["params:inference", "params:data", "params:model", "params:evaluation.max_new_tokens", "params:folders"]
    return Pipeline(
        [
            Node(
                func=nodes.answer_rows,
                inputs=settings,
                outputs=["predictions", "inference_report"],
                name="answer_rows",
            )
        ]
    )
