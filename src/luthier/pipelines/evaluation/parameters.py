"""Parameters of evaluation."""

from typing import Literal

from pydantic import Field

from luthier.candidates import Candidates
from luthier.configuration import Parameters
from luthier.pipelines.evaluation.lm_eval_tasks import LmEval
from luthier.pipelines.evaluation.robustness import Robustness
from luthier.pipelines.evaluation.rules import GateParameters
from luthier.pipelines.evaluation.slices import Slices
from luthier.pipelines.evaluation.tasks import Tasks


class RetentionParameters(Parameters):
    """What the model must not forget."""

    path: str | None = None
    """General texts, JSON Lines of `id`, `kind` and `text`: how much the loss on them grew is told. Null measures none."""


class CalibrationParameters(Parameters):
    """Whether the models know what they know."""

    labels_of: tuple[str, ...] = ("tuned",)
    """Models of which the probability of every label is measured, if the answers are labels or `tasks.label` names one; a
    forward pass for each label and message. Of the others, and of free text, it is the confidence in the whole answer."""


class EvaluationParameters(Parameters):
    """Parameters of the room."""

    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer; a model that does not stop by then is judged by what it wrote."""
    batch_tokens: int = Field(default=8192, ge=64)
    """Tokens, prompt and answer, that are generated at once."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute in: `auto` is bf16 where the processor has it."""
    max_examples: int | None = Field(default=None, ge=1)
    """Evaluate on so many test examples only, a sample of all sources; null takes all."""
    constrain: bool = False
    """Compare also with the tuned model held to the answer schema, as `constrained`: what serving it so would bring. The gate
    judges the tuned model as it is."""
    tasks: Tasks = Field(default_factory=Tasks)
    """What answers are judged by."""
    champion: int | str | None = "champion"
    """What is in production: an alias or a number of the registry; null compares with none."""
    candidates: Candidates = ()
    """Further models to compare with: versions of the registry, OpenAI-compatible endpoints."""
    slices: Slices = Field(default_factory=Slices)
    """What the figures are broken down by."""
    calibration: CalibrationParameters = Field(default_factory=CalibrationParameters)
    """Confidence against rightness."""
    robustness: Robustness = Field(default_factory=Robustness)
    """The same messages with slips of the keyboard."""
    retention: RetentionParameters = Field(default_factory=RetentionParameters)
    """Forgetting."""
    lm_eval: LmEval = Field(default_factory=LmEval)
    """Tasks of EleutherAI's lm-eval."""
    gate: GateParameters = Field(default_factory=GateParameters)
    """When the model may go out."""
