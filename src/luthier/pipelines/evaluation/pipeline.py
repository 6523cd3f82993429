"""Wiring of evaluation."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.evaluation import nodes


def create_pipeline() -> Pipeline:
    """Answer -> score -> compare -> gate -> report."""
    model = ["params:model", "params:evaluation", "params:folders"]
    retention = ["base_retention", "tuned_retention", "champion_retention"]
    return Pipeline(
        [
            Node(
                func=nodes.answer_with_baselines,
                inputs=["split_records", "examples", "params:evaluation"],
                outputs="baseline_answers",
                name="answer_with_baselines",
            ),
            Node(
                func=nodes.answer_with_base,
                inputs=["split_records", "examples", *model],
                outputs=["base_answers", "base_retention"],
                name="answer_with_base",
            ),
            Node(
                func=nodes.answer_with_tuned,
                inputs=["tuned_model", "split_records", "examples", *model],
                outputs=["tuned_answers", "tuned_retention"],
                name="answer_with_tuned",
            ),
            Node(
                func=nodes.answer_with_champion,
                inputs=["split_records", "examples", *model],
                outputs=["champion_answers", "champion_retention"],
                name="answer_with_champion",
            ),
            Node(
                func=nodes.score_answers,
                inputs=[
                    "base_answers",
                    "tuned_answers",
                    "champion_answers",
                    "baseline_answers",
                    "answer_schema",
                    "split_records",
                    "params:evaluation",
                ],
                outputs="scores",
                name="score_answers",
            ),
            Node(
                func=nodes.compare_models,
                inputs=["scores", *retention, "params:seed"],
                outputs="evaluation",
                name="compare_models",
            ),
            Node(
                func=nodes.decide_gate,
                inputs=["scores", *retention, "params:evaluation"],
                outputs="gate_decision",
                name="decide_gate",
            ),
            Node(func=nodes.find_worst_errors, inputs="scores", outputs="worst_errors", name="find_worst_errors"),
            Node(
                func=nodes.write_report,
                inputs=["evaluation", "scores", "worst_errors", "data_report", "training_history"],
                outputs=["evaluation_report", "evaluation_markdown"],
                name="write_report",
            ),
            Node(func=nodes.plot_comparison, inputs="evaluation", outputs="evaluation_plot", name="plot_comparison"),
            Node(func=nodes.log_evaluation, inputs="evaluation", outputs=None, name="log_evaluation"),
        ]
    )
