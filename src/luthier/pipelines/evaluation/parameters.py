"""Parameters of evaluation."""

from typing import Literal

from pydantic import Field

from luthier.configuration import Parameters


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
