"""Wiring of training."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.training import nodes


def create_pipeline() -> Pipeline:
    """Plan -> train -> history."""
    return Pipeline(
        [
            Node(
                func=nodes.plan_training,
                inputs=["examples", "params:model", "params:training", "params:folders", "params:seed"],
                outputs="training_plan",
                name="plan_training",
            ),
            Node(
                func=nodes.train,
                inputs=[
                    "examples",
                    "prompt_settings",
                    "training_plan",
                    "params:model",
                    "params:training",
                    "params:folders",
                ],
                outputs=["tuned_model", "training_history"],
                name="train",
            ),
            Node(
                func=nodes.summarise_training,
                inputs="training_history",
                outputs="training_summary",
                name="summarise_training",
            ),
            Node(func=nodes.plot_training, inputs="training_history", outputs="training_plot", name="plot_training"),
        ]
    )
