"""What is known of a finished data set: what its owner states, and what was measured."""

import datetime
import math
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from luthier.configuration import Parameters

NOT_STATED = "not stated"


class Describe(Parameters):
    """What only its owner can say about a data set. It stands in the Croissant file and in the data card."""

    name: str = Field(default="luthier-data", min_length=1)
    """Short name of the data set."""
    description: str = Field(default="Conversations for fine-tuning a language model, prepared by Luthier.", min_length=1)
    """What the data set holds, in a sentence or two."""
    version: str = Field(default="1.0.0", pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([-+][0-9A-Za-z.+-]+)?$")
    """MAJOR.MINOR.PATCH: MAJOR when rows changed, MINOR when rows were added, PATCH when only the files did."""
    license: str = Field(default=NOT_STATED, min_length=1)
    """Licence of the data set, best as an address such as `https://spdx.org/licenses/CC-BY-4.0.html`."""
    url: str | None = None
    """Page of the data set; null writes a name made of its hash (RFC 6920) instead."""
    creator: str = Field(default=NOT_STATED, min_length=1)
    """Who made the data set."""
    creator_type: Literal["Organization", "Person"] = "Organization"
    """What the creator is."""
    date_published: datetime.date | None = None
    """Day of publication, YYYY-MM-DD; null takes the day of the git commit."""
    data_collection: str = NOT_STATED
    """How and from whom the data was collected."""
    limitations: str = NOT_STATED
    """What the data set is not good for."""
    biases: str = NOT_STATED
    """Who or what it shows too often, too rarely or in a slanted way."""
    personal_sensitive_information: str | None = None
    """Which personal data may be left in it; null tells what was searched for, as `data_processing.scrub` has it."""
    use_cases: str = NOT_STATED
    """What it was made for."""


class File(Parameters):
    """One Parquet shard."""

    path: str = Field(pattern=r"^\S+$")
    """Where it lies, relative to the folder of the description, with forward slashes; mlcroissant takes no white space."""
    bytes: int = Field(ge=0)
    """Size."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the bytes, hexadecimal."""
    rows: int = Field(ge=0)
    """Rows in it."""
    split: str | None = None
    """The split that all of its rows belong to; null if they are mixed."""


class Source(Parameters):
    """One source that the data set was made from."""

    name: str
    """Its name, as in the column `source`."""
    uri: str
    """Where it was read from."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of what was read."""
    rows: int = Field(ge=0)
    """Rows read."""
    format: str
    """jsonl, csv, parquet ..."""
    shape: str
    """How its rows are written: messages, instruction and answer, ..."""
    license: str | None = None
    """Its licence, if it has one of its own."""


class Commit(Parameters):
    """The code that made the data set."""

    sha: str
    """Git commit."""
    dirty: bool
    """Whether the working tree differed from it."""
    date: datetime.date
    """Day of the commit."""


class Facts(Parameters):
    """All that is known about a finished data set: the Croissant file and the data card say nothing else."""

    describe: Describe
    """The user's words."""
    files: tuple[File, ...]
    """The shards, in order."""
    splits: dict[str, int]
    """Rows of each split."""
    columns: dict[str, str | dict[str, str]]
    """Arrow type of each column as text; for a list of structs, the types of its members. See `columns_of`."""
    sources: tuple[Source, ...]
    """What it was made from."""
    commit: Commit | None
    """The code; null outside of a git repository."""
    parameters: dict[str, Any]
    """Resolved parameters of the steps: JSON."""
    counts: dict[str, dict[str, int]]
    """For each step, in the order of the run, any of in, out, dropped, changed."""
    dropped: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Dropped rows by step and reason."""
    labels: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Rows by split and label."""
    label_deviation: dict[str, float] = Field(default_factory=dict)
    """For each split, the largest difference between a label's share in it and in the whole, from 0 to 1."""
    profile: dict[str, Any] = Field(default_factory=dict)
    """What was measured: finite numbers, and dictionaries of them, nested at will."""

    @field_validator("profile")
    @classmethod
    def _numbers_only(cls, profile: dict[str, Any]) -> dict[str, Any]:
        for name, value in measured(profile):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is neither a finite number nor a dictionary of numbers: {value!r}")
        return profile

    @property
    def published(self) -> str | None:
        """The day of publication as text, if there is one."""
        day = self.describe.date_published or (self.commit.date if self.commit else None)
        return day.isoformat() if day else None

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(file.rows for file in self.files)


def measured(profile: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested dictionary with their paths.

    >>> list(measured({"tokens": {"mean": 7.5}, "rows": 2}))
    [('tokens/mean', 7.5), ('rows', 2)]
    """
    for key, value in profile.items():
        if isinstance(value, dict):
            yield from measured(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def columns_of(schema: pa.Schema) -> dict[str, str | dict[str, str]]:
    """Return the columns of an Arrow schema as `Facts.columns` wants them."""
    columns: dict[str, str | dict[str, str]] = {}
    for field in schema:
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            members = field.type.value_type
            columns[field.name] = {member.name: str(member.type) for member in members}
        else:
            columns[field.name] = str(field.type)
    return columns


def told_counts(counts: dict[str, int]) -> str:
    """Return the counts of a step in words.

    >>> told_counts({"in": 5, "out": 4, "dropped": 1})
    'in 5, out 4, dropped 1'
    """
    return ", ".join(f"{name} {count}" for name, count in counts.items())
