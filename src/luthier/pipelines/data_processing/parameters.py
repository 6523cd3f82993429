"""Parameters of data processing."""

from pydantic import Field, model_validator

from luthier.configuration import Parameters


class Validate(Parameters):
    """When a row is refused, and when the whole file is."""

    max_characters: int = Field(default=8_000, ge=1)
    """A longer message, cleaned, is quarantined."""
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)
    """More quarantined rows than this share stop the run: then the template or the file is wrong, not the rows."""


class Deduplicate(Parameters):
    """When two conversations are the same."""

    near_threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of character 5-grams from which two messages are near duplicates; 1 keeps all but exact ones."""
    permutations: int = Field(default=128, ge=16, le=1024)
    """Length of a MinHash signature."""
    bands: int = Field(default=32, ge=1)
    """Bands of the signature: more of them find less similar pairs, and compare more candidates."""

    @model_validator(mode="after")
    def _bands_divide(self) -> "Deduplicate":
        if self.permutations % self.bands:
            raise ValueError(f"bands ({self.bands}) must divide permutations ({self.permutations})")
        return self


class Split(Parameters):
    """Shares of the held-out splits; the rest is for training."""

    validation: float = Field(default=0.05, ge=0, lt=1)
    """Share of clusters whose loss is watched during training."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of clusters for evaluation alone."""

    @model_validator(mode="after")
    def _some_train(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1: nothing would be left for training")
        return self


class Tokenise(Parameters):
    """Limits of an example."""

    max_tokens: int = Field(default=1024, ge=8)
    """A longer conversation is dropped and counted, never cut: a cut answer teaches the model to stop early."""


class DataProcessingParameters(Parameters):
    """Parameters of the room."""

    validate_rows: Validate = Field(default_factory=Validate)
    """Validation of rows."""
    deduplicate: Deduplicate = Field(default_factory=Deduplicate)
    """De-duplication."""
    split: Split = Field(default_factory=Split)
    """The split into train, validation and test."""
    tokenise: Tokenise = Field(default_factory=Tokenise)
    """Tokenising."""
