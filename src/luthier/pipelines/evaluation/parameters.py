"""Parameters of evaluation."""

from typing import Literal

from pydantic import Field

from luthier.configuration import Parameters
from luthier.pipelines.evaluation.gate import GateParameters
from luthier.pipelines.evaluation.slices import Slices


class RetentionParameters(Parameters):
    """What the model must not forget."""

    path: str | None = None
    """General texts, JSON Lines of `id`, `kind` and `text`: how much the loss on them grew is told. Null measures none."""


class EvaluationParameters(Parameters):
    """Parameters of the room."""

    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer; a model that does not stop by then is judged by what it wrote."""
    batch_tokens: int = Field(default=8192, ge=64)
    """Tokens, prompt and answer, that are generated at once."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute in: `auto` is bf16 where the processor has it."""
    max_examples: int | None = Field(default=None, ge=1)
    """Evaluate on the first test examples only; null takes all."""
    retention: RetentionParameters = Field(default_factory=RetentionParameters)
    """Forgetting."""
    slices: Slices = Field(default_factory=Slices)
    """What the figures are broken down by."""
    gate: GateParameters = GateParameters.model_validate({"rules": [{"metric": "exact_match", "better_than": "base"}]})
    """When the model may go out."""
