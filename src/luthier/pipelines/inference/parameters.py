"""Parameters of inference."""

from typing import Literal

from pydantic import Field, model_validator

from luthier.configuration import Parameters
from luthier.endpoint import Endpoint
from luthier.text.prepare import ScrubSettings


class InferenceParameters(Parameters):
    """Which file is answered, and by what."""

    source: str | None = None
    """The rows: a file, a folder or a glob, local (relative to the project) or any fsspec URI."""
    format: Literal["auto", "jsonl", "csv", "parquet", "json"] = "auto"
    """`auto` goes by the file's ending, that of a compression aside."""
    id: str | None = None
    """Column that identifies a row; null takes `id` where a row has it, or else its line."""
    column: str | None = None
    """Column of the turns, or of the user's text; null takes the columns of the model's template, or finds it by its name."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read only the first rows of each file; null reads all."""
    model: int | str = "champion"
    """A registered version by number or alias, or `base`: the model of `model.base`."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible endpoint that answers in place of `model`."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Where an answer is cut; null takes what the model was registered with, or `evaluation.max_new_tokens`."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Prompt and answer tokens of one batch at most; a model on this machine only."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute in; `auto` is what this machine does fast."""
    constrain: bool = False
    """Hold every answer to the answer schema: that of the registered version, or for `base` that of `data.answer_schema`. A model
    on this machine only."""
    rows_per_chunk: int = Field(default=256, ge=1)
    """Rows that are answered and stored together: what memory holds, and what a kill can lose."""
    scrub: ScrubSettings | None = Field(default_factory=ScrubSettings)
    """Personal data, before `base` or an endpoint sees a row; null leaves it. A registered version brings its own settings."""

    @model_validator(mode="after")
    def _one_model_that_can_be_held(self) -> "InferenceParameters":
        if self.endpoint is not None and self.model != "champion":
            raise ValueError("give either inference.model or inference.endpoint: which of them is to answer?")
        if self.endpoint is not None and self.constrain:
            raise ValueError(
                "inference.constrain holds a model on this machine to a schema; an endpoint cannot be held: set it to false"
            )
        return self
