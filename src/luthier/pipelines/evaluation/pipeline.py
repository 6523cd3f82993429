"""Wiring of evaluation."""

from kedro.pipeline import Node, Pipeline

from luthier.pipelines.evaluation import nodes


def create_pipeline() -> Pipeline:
    """Ask -> answer -> score -> compare -> gate -> report."""
    asking = ["questions", "evaluation_plan", "params:model", "params:evaluation", "params:folders"]
    answers = ["baseline_answers", "base_answers", "tuned_answers", "champion_answers", "candidate_answers"]
    return Pipeline(
        [
            Node(
                func=nodes.prepare_questions,
                inputs=[
                    "split_records",
                    "examples",
                    "prompt_settings",
                    "answer_schema",
                    "params:data",
                    "params:model",
                    "params:evaluation",
                    "params:folders",
                    "params:seed",
                ],
                outputs=["questions", "evaluation_plan"],
                name="prepare_questions",
            ),
            Node(
                func=nodes.answer_with_baselines,
                inputs=["split_records", "examples", "questions", "params:model", "params:folders"],
                outputs="baseline_answers",
                name="answer_with_baselines",
            ),
            Node(func=nodes.answer_with_base, inputs=asking, outputs="base_answers", name="answer_with_base"),
            Node(
                func=nodes.answer_with_tuned,
                inputs=["tuned_model", *asking],
                outputs="tuned_answers",
                name="answer_with_tuned",
            ),
            Node(func=nodes.answer_with_champion, inputs=asking, outputs="champion_answers", name="answer_with_champion"),
            Node(func=nodes.answer_with_candidates, inputs=asking, outputs="candidate_answers", name="answer_with_candidates"),
            Node(func=nodes.join_answers, inputs=answers, outputs="answers", name="join_answers"),
            Node(
                func=nodes.run_benchmarks,
                inputs=["tuned_model", "params:model", "params:evaluation", "params:folders", "params:seed"],
                outputs="lm_eval_figures",
                name="run_benchmarks",
            ),
            Node(
                func=nodes.score_answers,
                inputs=["answers", "evaluation_plan", "answer_schema", "split_records", "params:evaluation"],
                outputs=["scores", "noisy_scores"],
                name="score_answers",
            ),
            Node(
                func=nodes.judge_safety,
                inputs=["answers", "evaluation_plan"],
                outputs="safety_verdicts",
                name="judge_safety",
            ),
            Node(
                func=nodes.compare_models,
                inputs=[
                    "scores",
                    "noisy_scores",
                    "answers",
                    "safety_verdicts",
                    "lm_eval_figures",
                    "params:evaluation",
                    "params:seed",
                ],
                outputs=["evaluation", "slice_figures"],
                name="compare_models",
            ),
            Node(
                func=nodes.decide_gate,
                inputs=["scores", "answers", "safety_verdicts", "evaluation_plan", "params:evaluation"],
                outputs="gate_decision",
                name="decide_gate",
            ),
            Node(func=nodes.find_worst_errors, inputs="scores", outputs="worst_errors", name="find_worst_errors"),
            Node(func=nodes.time_answers, inputs="answers", outputs="answer_times", name="time_answers"),
            Node(
                func=nodes.write_report,
                inputs=[
                    "evaluation",
                    "scores",
                    "slice_figures",
                    "worst_errors",
                    "safety_verdicts",
                    "answer_times",
                    "gate_decision",
                    "data_report",
                    "training_history",
                ],
                outputs=["evaluation_report", "evaluation_markdown"],
                name="write_report",
            ),
            Node(func=nodes.plot_comparison, inputs="evaluation", outputs="evaluation_plot", name="plot_comparison"),
            Node(func=nodes.log_evaluation, inputs=["evaluation", "gate_decision"], outputs=None, name="log_evaluation"),
        ]
    )
