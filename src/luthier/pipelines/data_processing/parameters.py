"""Parameters of data processing."""

from typing import Literal

from pydantic import Field, model_validator

from luthier.configuration import Parameters
from luthier.executors import Backend
from luthier.pipelines.data_processing.augment import Augment
from luthier.pipelines.data_processing.dataset_facts import Describe
from luthier.pipelines.data_processing.quality import Quality
from luthier.shards import ROWS_PER_SHARD
from luthier.text.prepare import ScrubSettings


class Execute(Parameters):
    """Where the work is done; the results are the same bytes."""

    backend: Backend = "process"
    """`serial`: in this process; `process`: over the cores of this machine; `ray`: on a Ray cluster (RAY_ADDRESS)."""
    workers: int | None = Field(default=None, ge=1)
    """Shards in work at a time; null takes the cores of this machine or container, with RAY_ADDRESS of the whole cluster."""
    rows_per_shard: int = Field(default=ROWS_PER_SHARD, ge=1)
    """Rows that a worker holds in memory."""


class Validate(Parameters):
    """When a row is refused, and when the whole file is."""

    max_characters: int = Field(default=8_000, ge=1)
    """A longer message is quarantined."""
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)
    """More quarantined rows than this share stop the run: then the template or the file is wrong, not the rows."""


class Deduplicate(Parameters):
    """When two conversations are the same: their messages are alike, and so are their answers."""

    near_threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of character 5-grams from which two messages are alike, and two answers. Of like messages one stays for
    each answer that is unlike the others, or one alone if the rows have labels; all in one split. 1 keeps all but exact ones."""
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

    previous: str | None = None
    """Split table of an earlier version (`data/03_primary/split_table/VERSION/split_table`): no old record moves."""

    validation: float = Field(default=0.05, ge=0, lt=1)
    """Share of clusters whose loss is watched during training."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of clusters for evaluation alone."""

    @model_validator(mode="after")
    def _some_train(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1: nothing would be left for training")
        return self


class Decontaminate(Parameters):
    """What must not be trained on."""

    benchmarks: tuple[str, ...] = ()
    """Files of benchmarks, of any format, by the ending, and of any shape, that of the templates of `data` included: a file, a
    folder or a glob each. They are cleaned and scrubbed as the data is. The test split is always compared."""
    words: int = Field(default=13, ge=3)
    """Length of the runs of words that are compared; a shorter text counts whole."""
    drop_from: float = Field(default=0.5, gt=0)
    """Share of a record's runs from which it is dropped; above 1 all findings are only listed."""


class Tokenise(Parameters):
    """Limits of an example."""

    max_tokens: int = Field(default=1024, ge=8)
    """Tokens of an example: at most as many as the base model can read."""
    too_long: Literal["drop", "drop_oldest_turns", "cut_end"] = "drop"
    """A longer conversation is dropped, or loses its oldest turns, or its end: a cut answer teaches the model to stop early."""


class DataProcessingParameters(Parameters):
    """Parameters of the room."""

    executor: Execute = Field(default_factory=Execute)
    """Where the work is done."""
    validate_rows: Validate = Field(default_factory=Validate)
    """Validation of rows."""
    scrub: ScrubSettings | None = Field(default_factory=ScrubSettings)
    """Personal data; null leaves it where it is."""
    quality: Quality = Field(default_factory=Quality)
    """Language and quality."""
    deduplicate: Deduplicate = Field(default_factory=Deduplicate)
    """De-duplication."""
    split: Split = Field(default_factory=Split)
    """The split into train, validation and test."""
    decontaminate: Decontaminate = Field(default_factory=Decontaminate)
    """What must not be trained on."""
    augment: Augment = Field(default_factory=Augment)
    """Altered copies of training records."""
    tokenise: Tokenise = Field(default_factory=Tokenise)
    """Tokenising."""
    describe: Describe = Field(default_factory=Describe)
    """What the data card and the Croissant file say."""
